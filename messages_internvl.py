"""Messages in, prompts and media out: role/content dictionaries, as `AutoProcessor` and `pipeline` take them.

What a message says is data. The texts of a message go into the Jinja template with a mark, a character that occurs
nowhere else, behind the first character of each reserved token. In the prompt that comes out, a reserved token with
the mark is a text's, and the prompt is cut inside it, as `build_prompt` does; one without is the template's own.
"""

import base64
import binascii
import http.client
import json
import os
import re
import time
import urllib.request
from itertools import accumulate

from .compat_internvl import check_template_variables
from .preprocessing_internvl import ImageLoadError, VideoLoadError, open_image
from .prompt_internvl import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER, Prompt, cut_behind, reserved_starts

# Where a part of a message may keep its medium, in the order in which they are asked.
_SOURCES = {"image": ("image", "url", "path", "base64"), "video": ("video", "url", "path")}
_ERRORS = {"image": ImageLoadError, "video": VideoLoadError}
_WEB = re.compile(r"https?://", re.IGNORECASE)

DOWNLOAD_SECONDS = 30  # without an answer
DOWNLOAD_SECONDS_IN_ALL = 600  # a server that sends a byte now and then must not hold a caller for ever
DOWNLOAD_BYTES = 1 << 30
# Characters that Unicode assigns to nobody: of those that a conversation does not use, one becomes the mark.
_PRIVATE_USE = range(0xF0000, 0xFFFFE)


def as_conversations(conversation):
    """`(conversations, is_batch)`: each conversation a list of messages of our own, the caller's untouched.

    A part that is a string becomes `{"type": "text", "text": ...}`, OpenAI's `image_url` and `video_url` the short form
    `{"type": "image", "url": ...}`.

    Raises:
        TypeError: something other than a list of messages, or a list of such lists.
        ValueError: an empty conversation, or a message without a role.
    """
    conversation = getattr(conversation, "messages", conversation)  # the pipeline's Chat
    if not isinstance(conversation, (list, tuple)):
        raise TypeError(f"a conversation must be a list of messages, got {type(conversation).__name__}")
    is_batch = bool(conversation) and (
        isinstance(conversation[0], (list, tuple)) or hasattr(conversation[0], "messages")
    )
    given = [getattr(one, "messages", one) for one in conversation] if is_batch else [conversation]
    return [_own_messages(one) for one in given], is_batch


def _own_messages(messages) -> list:
    if not messages:
        raise ValueError("a conversation needs at least one message, got none")
    own = []
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise TypeError(f"messages[{index}] must be a dictionary with role and content, got {message!r:.200}")
        if not isinstance(message.get("role"), str):
            raise ValueError(f"messages[{index}] has no role: expected system, user, assistant or tool")
        message = {key: value for key, value in message.items() if value is not None}
        if isinstance(message.get("content"), (list, tuple)):
            message["content"] = [_own_part(part) for part in message["content"]]
        own.append(message)
    return own


def _own_part(part) -> dict:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, dict):
        raise TypeError(f"a part of a message must be a text or a dictionary, got {part!r:.200}")
    kind = part.get("type")
    if kind in ("image_url", "video_url"):
        url = part.get(kind)
        return {"type": kind[:-4], "url": url.get("url") if isinstance(url, dict) else url}
    return dict(part)


def take_media(messages: list, allow_urls=False):
    """The images and the videos of a conversation, in order: `(images, videos)`.

    Each is what `open_image` or `read_frames` takes: data URLs and `base64` are decoded, `http(s)` URLs are downloaded
    where `allow_urls` is true. The parts in `messages` keep their type only.

    Raises:
        MediaLoadError: a URL that is not allowed, cannot be reached or decoded.
        ValueError: a part without a source.
    """
    found = {"image": [], "video": []}
    for message in messages:
        content = message.get("content")
        for index, part in enumerate(content if isinstance(content, list) else ()):
            kind = part.get("type")
            if kind not in found:
                continue
            names = [name for name in _SOURCES[kind] if part.get(name) is not None]
            if not names:
                raise ValueError(f"a part of type {kind!r} has none of the keys {', '.join(_SOURCES[kind])}")
            source = part[names[0]]
            if names[0] == "base64":
                source = _decoded(source, kind)
            elif isinstance(source, (list, tuple)) and kind == "video":
                source = [_frame(fetch(frame, "image", allow_urls)) for frame in source]
            found[kind].append(fetch(source, kind, allow_urls))
            content[index] = {"type": kind}
    return found["image"], found["video"]


def _frame(source):
    """A frame of a video as a picture: a list of paths or bytes would be one of several videos."""
    return open_image(source) if isinstance(source, (str, os.PathLike, bytes)) else source


def fetch(source, kind="image", allow_urls=False):
    """`source`, or the bytes behind it where it is a data URL or, with `allow_urls`, an `http(s)` URL."""
    if not isinstance(source, str):
        return source
    if source[:5].lower() == "data:":
        head, comma, payload = source.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise _ERRORS[kind](f"cannot read the data URL {source[:60]!r}...: expected data:TYPE;base64,CONTENT")
        return _decoded(payload, kind)
    if not _WEB.match(source):
        return source
    if not allow_urls:
        raise _ERRORS[kind](
            f"{source[:200]!r} is on the web: pass allow_urls=True to have it downloaded, or a file or its bytes"
        )
    request = urllib.request.Request(source, headers={"User-Agent": "internvl_chat"})
    content, end = bytearray(), time.monotonic() + DOWNLOAD_SECONDS_IN_ALL
    try:
        with urllib.request.urlopen(request, timeout=DOWNLOAD_SECONDS) as answer:
            while len(content) <= DOWNLOAD_BYTES and (piece := answer.read1(1 << 20)):
                content += piece
                if time.monotonic() > end:
                    raise TimeoutError(f"it took more than {DOWNLOAD_SECONDS_IN_ALL} seconds")
            if len(content) <= DOWNLOAD_BYTES and answer.length:
                raise OSError(f"the connection ended {answer.length} bytes too early")
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise _ERRORS[kind](f"cannot download {source[:200]!r}: {error}") from error
    if len(content) > DOWNLOAD_BYTES:
        raise _ERRORS[kind](f"{source[:200]!r} is larger than {DOWNLOAD_BYTES} bytes")
    return bytes(content)


def _decoded(payload, kind) -> bytes:
    try:
        return base64.b64decode(payload, validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise _ERRORS[kind](f"cannot decode {str(payload)[:60]!r}... as base64: {error}") from error


# ------------------------------------------------------------------------------------------------------------ rendering


def render(tokenizer, template, messages, reserved, *, asks_for_media, continue_final_message, **variables) -> Prompt:
    """The prompt that a Jinja template makes of a conversation, cut inside each of the `reserved` tokens in its texts.

    Args:
        tokenizer: renders the template; its own is not used.
        messages: from `as_conversations`.
        reserved: texts that must not act as tokens; with an empty one nothing is cut.
        asks_for_media: let `<image>` and `<video>` in a user's plain text be the places of media, as in `chat`.
        continue_final_message: end the prompt with the last message's text instead of closing that message.
        variables: what else the template reads, such as `tools` and `add_generation_prompt`.

    Raises:
        ValueError: `continue_final_message` for a message without text, or with a template that leaves it out;
            variables that the installed transformers hands to no template.
    """
    check_template_variables(tokenizer, variables)
    mark, stop = _unused_characters(messages, variables, template)
    if continue_final_message:
        messages = [*messages[:-1], _stopped(messages[-1], stop)]
    everywhere = reserved and (*reserved, IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER)
    marked = []
    for message in messages:
        has_places = asks_for_media and message["role"] == "user" and isinstance(message.get("content"), str)
        marked.append(_marked(message, reserved if has_places else everywhere, mark))
    rendered = tokenizer.apply_chat_template(
        marked, chat_template=template, tokenize=False, **_marked(variables, everywhere, mark)
    )
    if continue_final_message:
        if stop not in rendered:
            raise ValueError("continue_final_message: the template leaves out the text of the last message")
        rendered = rendered[: rendered.rindex(stop)]
    pieces = rendered.replace(_in_json(mark), mark).split(mark)  # a template that writes JSON may escape it
    prompt, marks = "".join(pieces), set(accumulate(map(len, pieces[:-1])))
    return Prompt(cut_behind(prompt, [start for start in reserved_starts(prompt, everywhere) if start + 1 in marks]))


def _marked(value, reserved, mark):
    """A copy of nested lists and dictionaries, with a mark behind the first character of each reserved token."""
    if isinstance(value, dict):
        return {_marked(key, reserved, mark): _marked(item, reserved, mark) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_marked(item, reserved, mark) for item in value]
    if not isinstance(value, str):
        return value
    starts = {*reserved_starts(value, reserved), *_broken_off(value, reserved)}
    return mark.join(cut_behind(value, sorted(starts)))


def _broken_off(text, reserved) -> list:
    """Positions from which on `text` is the beginning of a reserved token: the next text may bring the rest of it."""
    end = len(text.rstrip())  # some templates strip
    longest = max(map(len, reserved), default=0)
    ends = [(start, text[start:end]) for start in range(max(0, end - longest), end)]
    return [start for start, begun in ends if any(token.startswith(begun) for token in reserved)]


def _unused_characters(*values):
    """Two characters that occur in none of the texts in `values`."""
    text = json.dumps(values, ensure_ascii=False, default=lambda _: None, skipkeys=True)
    unused = (chr(code) for code in _PRIVATE_USE if chr(code) not in text and _in_json(chr(code)) not in text)
    return next(unused), next(unused)


def _in_json(character: str) -> str:
    return json.dumps(character)[1:-1]


def _stopped(message: dict, stop: str) -> dict:
    """A message with a sign behind its last text."""
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": content + stop}
    if content and isinstance(content[-1].get("text"), str):
        last = {**content[-1], "text": content[-1]["text"] + stop}
        return {**message, "content": [*content[:-1], last]}
    raise ValueError("continue_final_message needs a last message that ends with text")
