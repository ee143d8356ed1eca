"""A visitor's conversation in the web demo: limits, the answer piece by piece, what is drawn on pictures.

Knows nothing of Gradio: `demo_page_internvl.py` shows what this computes.
"""

import logging
import math
import mimetypes
import os
import re
import time
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

import internvl_chat
from internvl_chat.compat_internvl import context_length
from internvl_chat.demo_texts_internvl import text
from internvl_chat.session_internvl import Session

logger = logging.getLogger(__name__)

# Longest side of a picture as it is kept to be drawn on, in pixels.
_SHOWN = 1024
# Boxes of the family's grounding format are in thousandths of the picture's width and height.
_BOX_UNITS = 1000
_NUMBER = r"\s*-?\d+(?:\.\d+)?\s*"
_CORNERS = rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]"
_GROUNDED = re.compile(
    rf"(?:<ref>(?P<name>.*?)</ref>\s*)?<box>\s*(?P<boxes>\[?{_CORNERS}(?:\s*,\s*{_CORNERS})*\s*\]?)\s*</box>"
)
_CODE = re.compile(r"(```.*?(?:```|\Z)|`[^`\n]*`)", re.DOTALL)
_COLORS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")


class DemoError(Exception):
    """What the visitor reads in place of an answer; `key` is one of the demo's texts."""

    def __init__(self, key, **values):
        super().__init__(text("en", key, **values))
        self.key, self.values = key, values

    def told(self, language) -> str:
        return text(language, self.key, **self.values)


@dataclass(frozen=True)
class Limits:
    """What one visitor may ask for."""

    max_new_tokens: int = 1024
    files: int = 16
    upload_bytes: int = 100 * 2**20
    tiles: int = 40  # of an image
    frames: int = 64  # of a video


@dataclass(frozen=True, eq=False)
class View:
    """An image, or a frame of a video, as it is drawn on: `picture` has at most 1024 pixels a side, `size` is true."""

    name: str
    picture: Image.Image
    size: tuple
    frame: tuple = ()  # (number from 1, frames of this video); empty for an image


def _view(name, image, frame=()):
    picture = image.copy()
    picture.thumbnail((_SHOWN, _SHOWN))
    return View(name, picture, image.size, frame)


# --- what an answer says about places -----------------------------------------------------------------------------


def find_boxes(answer) -> list:
    """The boxes of an answer in the family's format, `<ref>name</ref><box>[[x1, y1, x2, y2], ...]</box>`.

    Returns:
        `(name, (x1, y1, x2, y2))` of each, in thousandths of the picture's width and height, with x1 <= x2, y1 <= y2
        and all of them from 0 to 1000. The name is empty where the answer gives none.
    """
    found = []
    for match in _GROUNDED.finditer(answer):
        for corners in re.findall(_CORNERS, match["boxes"]):
            x1, y1, x2, y2 = (min(max(float(number), 0), _BOX_UNITS) for number in corners.strip("[]").split(","))
            found.append(((match["name"] or "").strip(), (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))))
    return found


def draw_boxes(picture, boxes) -> Image.Image:
    """A copy of the picture with the boxes of `find_boxes` and their names."""
    drawn = picture.copy()
    draw = ImageDraw.Draw(drawn)
    width = max(3, max(drawn.size) // 150)
    font = _font(max(16, max(drawn.size) // 30))
    names = list(dict.fromkeys(name for name, _ in boxes))
    for name, (x1, y1, x2, y2) in boxes:
        color = _COLORS[names.index(name) % len(_COLORS)]
        corners = [value * side / _BOX_UNITS for value, side in zip((x1, y1, x2, y2), drawn.size * 2)]
        draw.rectangle(corners, outline=color, width=width)
        if name:
            _label(draw, corners[:2], name, color, font, drawn.size)
    return drawn


def draw_grid(picture, columns, rows) -> Image.Image:
    """The picture as it is cut: stretched to `columns` x `rows` square tiles, with their borders and numbers."""
    side = max(64, _SHOWN // max(columns, rows))
    drawn = picture.resize((columns * side, rows * side))
    draw = ImageDraw.Draw(drawn)
    font = _font(max(16, max(drawn.size) // 32))
    for index in range(columns * rows):
        x, y = index % columns * side, index // columns * side
        draw.rectangle((x, y, x + side - 1, y + side - 1), outline=_COLORS[0], width=max(1, side // 100))
        _label(draw, (x + 4, y + 4), str(index + 1), _COLORS[0], font, drawn.size)
    return drawn


def _font(size):
    try:
        return ImageFont.load_default(size)
    except TypeError:  # Pillow before 10.1 has one size
        return ImageFont.load_default()


def _label(draw, corner, name, color, font, size):
    name = name.encode("latin-1", "replace").decode("latin-1")  # what Pillow's own font has
    left, top, right, bottom = draw.textbbox((0, 0), name, font=font)
    x = min(max(corner[0], 0), max(size[0] - right - 4, 0))
    y = min(max(corner[1], 0), max(size[1] - bottom - 4, 0))
    draw.rectangle((x, y, x + right + 4, y + bottom + 4), fill=color)
    draw.text((x + 2, y + 2), name, fill="white", font=font)


def as_markdown(answer) -> str:
    """An answer to be shown as Markdown: grounding marks become bold names and code, other angle brackets stay text."""

    def grounded(match):
        name = f"**{match['name'].strip()}** " if match["name"] else ""
        return f"{name}`{match['boxes'].strip()}`"

    parts = _CODE.split(_GROUNDED.sub(grounded, answer))
    return "".join(
        part if index % 2 else part.replace("&", "&amp;").replace("<", "&lt;") for index, part in enumerate(parts)
    )


# --- the conversation -------------------------------------------------------------------------------------------------


class DemoSession(Session):
    """A `Session` with limits, which is as it was before when a question cannot be asked or gets no answer.

    Attributes:
        views: pictures of the media, one of an image, one of each frame of a video.
        stopped: the last answer was ended by `stop`.
    """

    def __init__(self, model, tokenizer, limits):
        super().__init__(model, tokenizer)
        self.limits = limits
        self.context_length = context_length(model.config.get_text_config()) or math.inf
        self.views = []
        self.stopped = False
        self.length = 0  # tokens of the last prompt
        self.answer_length = 0
        self.seconds = 0.0

    def ask(self, question, files, *, system=None, max_num=12, num_segments=8, max_new_tokens=None, temperature=0.0):
        """Asks a question about what was shown and about `files`, pairs of (path, name).

        Returns:
            An iterator of the answer so far, once for each piece. What is wrong is told before the first one.

        Raises:
            DemoError: a file that cannot be read, a limit that is exceeded.
        """
        if not question.strip():
            raise DemoError("no_question")
        if len(self.media) + len(files) > self.limits.files:
            raise DemoError("too_many", files=len(self.media) + len(files), limit=self.limits.files)
        self.max_num = min(int(max_num), self.limits.tiles)
        self.num_segments = min(int(num_segments), self.limits.frames)
        self.system = system
        self.generation_config = {
            "max_new_tokens": min(int(max_new_tokens or self.limits.max_new_tokens), self.limits.max_new_tokens),
            "do_sample": temperature > 0,
            **({"temperature": float(temperature)} if temperature > 0 else {}),
        }
        before = self.media[:], self.views[:]
        try:
            self._add(files)
            inputs = self.inputs(question)
            try:
                self.length = self.model.count_tokens(**inputs)
                room = self.context_length - self.length
                if room < 1:
                    raise DemoError("too_long", length=self.length, limit=self.context_length)
                self.generation_config["max_new_tokens"] = min(self.generation_config["max_new_tokens"], room)
                stream = self.start(inputs)
            except ValueError as error:  # such as <image> in the question, more often than there are images
                raise DemoError("failed", reason=str(error)) from error
        except BaseException:
            self.media, self.views = before
            raise
        self.stopped = False
        return self._pieces(stream, before)

    def _pieces(self, stream, before):
        began = time.monotonic()
        try:
            for _ in stream:
                yield stream.text
        except Exception as error:  # whatever it is, the visitor must hear of it and go on
            logger.exception("an answer failed")
            raise DemoError("memory" if "out of memory" in str(error) else "failed", reason=str(error)) from error
        finally:  # also where the visitor has gone
            stream.close()
            if self._stream is stream and not self.keep():  # it is not where a new conversation has begun
                self.media, self.views = before
            self.answer_length = len(self.tokenizer(stream.text, add_special_tokens=False).input_ids)
            self.seconds = time.monotonic() - began

    def stop(self) -> None:
        self.stopped = True
        super().stop()

    def reset(self) -> None:
        self.stop()
        super().reset()
        self.views = []

    def _add(self, files):
        for path, name in files:
            size = os.path.getsize(path)
            if size > self.limits.upload_bytes:
                sizes = {"size": f"{size / 2**20:.3g}", "limit": f"{self.limits.upload_bytes / 2**20:.3g}"}
                raise DemoError("too_large", name=name, **sizes)
            try:
                self._add_file(path, name)
            except (ValueError, OSError, ImportError) as error:
                # Without the place of the upload, which is the server's own business.
                reason = str(error).split(f"{str(path)!r}: ")[-1].replace(str(path), name)
                raise DemoError("unreadable", name=name, reason=" ".join(reason.split())) from error
            if self.tokens > self.context_length:
                raise DemoError("too_long", length=self.tokens, limit=self.context_length)

    def _add_file(self, path, name):
        if is_video(name):
            video = self.add_video(path, name)
            self.views += [_view(name, image, (number, len(video))) for number, image in enumerate(video.frames, 1)]
        else:
            self.views.append(_view(name, self.add_image(path, name)))

    @property
    def tiles(self) -> int:
        return sum(len(medium.pixel_values) for medium in self.media)

    @property
    def tokens(self) -> int:
        """Image tokens of the media, without those of text."""
        return self.tiles * self.model.num_image_token

    def drawn_boxes(self, answer):
        """The image that was shown last with the boxes of an answer; None without boxes, or without an image."""
        boxes, images = find_boxes(answer), [view for view in self.views if not view.frame]
        return draw_boxes(images[-1].picture, boxes) if boxes and images else None

    def tilings(self, language, max_num, files=()) -> list:
        """(picture, caption) of how each image is cut, and each frame of a video; `files` as of `ask`."""
        trial = DemoSession(self.model, self.tokenizer, self.limits)
        trial.max_num, trial.num_segments = min(int(max_num), self.limits.tiles), self.num_segments
        if files:
            trial._add(files)
        return [_tiling(self.model, view, language, trial.max_num) for view in [*self.views, *trial.views]]


def is_video(name) -> bool:
    return (mimetypes.guess_type(name)[0] or "").startswith("video/")


def _tiling(model, view, language, max_num):
    if view.frame:
        number, total = view.frame
        values = {"name": view.name, "number": number, "total": total, "tokens": model.num_image_token}
        return view.picture, text(language, "frame_caption", **values)
    config = model.config
    least, most = (config.min_dynamic_patch, max_num) if config.dynamic_image_size else (1, 1)
    columns, rows = internvl_chat.tile_grid(*view.size, least, max(least, most), config.tile_size)
    tiles = internvl_chat.count_tiles(*view.size, least, max(least, most), config.tile_size, config.use_thumbnail)
    values = {
        "name": view.name,
        "width": view.size[0],
        "height": view.size[1],
        "columns": columns,
        "rows": rows,
        "thumbnail": text(language, "thumbnail") if tiles > columns * rows else "",
        "tokens": tiles * model.num_image_token,
    }
    return draw_grid(view.picture, columns, rows), text(language, "tile_caption", **values)
