"""A conversation with its images and videos: what the command line and the web demo share.

Only the package has it; model files import nothing from here. Errors of files are those of `open_image`, `load_image`,
`read_frames` and `load_video`.
"""

from collections import Counter
from dataclasses import dataclass

import torch

import internvl_chat

_PLACEHOLDER = "<image>"


@dataclass(frozen=True, eq=False)
class Medium:
    """An image or a video as the model takes it, and what the user is told of it."""

    kind: str  # "Image" or "Video"
    details: str
    pixel_values: torch.Tensor  # (tiles, 3, tile size, tile size)
    num_patches_list: list
    placeholders: str

    def __str__(self):
        tiles = len(self.pixel_values)
        return f"{self.details}, {tiles} tile{'' if tiles == 1 else 's'}"


class Session:
    """Questions, answers and the media that they are about.

    Attributes:
        media: the `Medium`s of the conversation, those for the next question included.
        history: the rounds so far, as `chat` returns them.
    """

    def __init__(self, model, tokenizer, max_num=None, num_segments=8, system=None, generation_config=None):
        self.media = []
        self.history = []
        self.model = model
        self.tokenizer = tokenizer
        self.max_num = max_num
        self.num_segments = num_segments
        self.system = system
        self.generation_config = generation_config
        self._shown = 0  # so many media belong to earlier questions, the others to the next one
        self._stream = None

    def add_image(self, path, name=None):
        """Has the next question show an image, called `name` in what is told of it; returns it as a PIL image."""
        image = internvl_chat.open_image(path)
        tiles = self.model.load_image(image, **({} if self.max_num is None else {"max_num": self.max_num}))
        details = f"{name or path}: {image.width} x {image.height} pixels"
        self.media.append(Medium("Image", details, tiles, [len(tiles)], f"{_PLACEHOLDER}\n"))
        return image

    def add_video(self, path, name=None):
        """Has the next question show a video; returns its `VideoFrames`."""
        video = internvl_chat.read_frames(path, num_segments=self.num_segments)
        tiles, num_patches_list = self.model.load_video(video)
        times = f"{video.duration:.1f} s, {video.fps:g} a second"
        details = f"{name or path}: {len(video)} of {video.total_frames} frames ({times})"
        placeholders = internvl_chat.frame_prefix(len(num_patches_list))
        self.media.append(Medium("Video", details, tiles, num_patches_list, placeholders))
        return video

    def inputs(self, question) -> dict:
        """Arguments of `stream_chat` and `count_tokens`: `question` is about the new media, which come before it."""
        return {
            "tokenizer": self.tokenizer,
            "pixel_values": torch.cat([medium.pixel_values for medium in self.media]) if self.media else None,
            "question": question if _PLACEHOLDER in question else self._prefix() + question,
            "history": self.history,
            "num_patches_list": [tiles for medium in self.media for tiles in medium.num_patches_list],
            "system_message": self.system,
        }

    def start(self, inputs):
        """Asks what `inputs` made: the `AnswerStream`."""
        self._stream = self.model.stream_chat(**inputs, generation_config=self.generation_config)
        return self._stream

    def keep(self) -> bool:
        """Takes the last answer, or what came of it, into the conversation; false where there was none."""
        if self._stream is None or not self._stream.text:
            return False
        self.history, self._shown = self._stream.history, len(self.media)
        return True

    def stop(self) -> None:
        """Ends the answer that is being generated, also from another thread."""
        if self._stream is not None:
            self._stream.close()

    def reset(self) -> None:
        """Forgets everything said and shown, an answer that is being generated too."""
        self.media, self.history, self._shown, self._stream = [], [], 0, None

    def _prefix(self) -> str:
        """The lines that put new media before a question; they are numbered where the conversation has several."""
        text, totals, counts = "", Counter(medium.kind for medium in self.media), Counter()
        for index, medium in enumerate(self.media):
            counts[medium.kind] += 1
            if index >= self._shown:
                if totals[medium.kind] > 1:
                    text += f"{medium.kind}-{counts[medium.kind]}:" + (" " if medium.kind == "Image" else "\n")
                text += medium.placeholders
        return text
