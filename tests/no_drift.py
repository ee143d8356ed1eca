"""A guard around the public calls, installed for every test by `conftest.py`: what the caller passed, and the model or
processor that was called, are afterwards as they were before, also where the call ended with an error.

Tensors, arrays, lists, dictionaries, `GenerationConfig`s, tokenizers, configurations and histories are compared
deeply. What a call is there to use up (a streamer, a file, an iterator) is not.
"""

import contextlib
import copy
import functools
import importlib
import weakref
import zlib

import numpy as np
import torch
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

import internvl_chat

# Class -> its guarded calls.
CALLS = {
    "InternVLChatModel": (
        *("chat", "batch_chat", "stream_chat", "count_tokens", "load_image", "load_video"),
        *("generate", "generate_new_tokens", "extract_feature"),
    ),
    "InternVLChatProcessor": ("__call__", "apply_chat_template", "post_process_image_text_to_text"),
    "InternVLChatImageProcessor": ("preprocess", "tiles"),
    "InternVLChatVideoProcessor": ("preprocess", "tiles"),
}
_BIG = 4_000_000  # elements; of larger tensors torch's own count of changes must do
_OF_TOKENIZERS = ("padding_side", "truncation_side", "model_max_length", "chat_template", "all_special_tokens")


def state(value):
    """A picture of a value that does not change with it."""
    if torch.is_tensor(value):
        known = (value.shape, value.dtype, value.device, value.requires_grad)
        if not value.is_inference():
            known += (value._version,)
        return (*known, _checksum(value) if value.numel() < _BIG else None)
    if isinstance(value, np.ndarray):
        return (value.shape, value.dtype, value.tobytes() if value.size < _BIG else None)
    if isinstance(value, (GenerationConfig, PretrainedConfig, internvl_chat.Conversation)):
        return {name: state(entry) for name, entry in vars(value).items()}
    if isinstance(value, PreTrainedTokenizerBase):
        backend = getattr(value, "_tokenizer", None)
        found = {name: getattr(value, name, None) for name in _OF_TOKENIZERS}
        return {**found, "size": len(value), "settings": [backend and backend.padding, backend and backend.truncation]}
    if isinstance(value, PreTrainedModel):
        moved = any("_hf_hook" in vars(part) for part in value.modules())  # accelerate swaps their weights at each step
        own = {name: entry for name, entry in vars(value).items() if name not in _MODULE and isinstance(entry, _PLAIN)}
        return {
            **state(own),
            "weights": [(id(one), one._version, one.requires_grad) for one in value.parameters() if not moved],
            "training": [part.training for part in value.modules()],
            "parts": [state(vars(part).get("generation_config")) for part in value.children()],
        }
    if isinstance(value, dict):
        return {key: state(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [type(value), *map(state, value)]
    if type(value).__name__.startswith("InternVLChat"):  # a processor or a part of one
        return {name: state(entry) for name, entry in vars(value).items()}
    return copy.copy(value) if isinstance(value, (set, bytearray)) else value


_MODULE = ("_modules", "_parameters", "_buffers")  # of torch; what counts in them is looked at by `parameters()`
_PLAIN = (
    str,
    int,
    float,
    dict,
    list,
    tuple,
    type(None),
    GenerationConfig,
    PretrainedConfig,
    internvl_chat.Conversation,
)


def _checksum(tensor):
    """Of the bytes of a tensor; without a copy of them, since some tests measure memory."""
    if tensor.device.type != "cpu" or not tensor.is_contiguous() or tensor.layout is not torch.strided:
        return None
    return zlib.crc32(tensor.detach().reshape(-1).view(torch.uint8).numpy())


def same(before, after) -> bool:
    if isinstance(before, dict):
        return list(before) == list(after) and all(same(before[key], after[key]) for key in before)
    if isinstance(before, (list, tuple)):
        return len(before) == len(after) and all(map(same, before, after))
    return before is after or type(before) is type(after) and before == after


class Watch:
    """What went into a call, to be looked at again."""

    def __init__(self, name, owner, args, kwargs):
        self._name, self._args, self._kwargs = name, args, kwargs
        self._owner = weakref.ref(owner)
        self._before = [state(owner), state(args), state(kwargs)]

    def check(self) -> None:
        now = [state(self._owner()), state(self._args), state(self._kwargs)]
        for what, before, after in zip(("what it was called on", "an argument", "an argument"), self._before, now):
            if self._owner() is not None or what == "an argument":
                assert same(before, after), f"{self._name} changed {what}: {before!r:.2000} became {after!r:.2000}"


_streams = weakref.WeakKeyDictionary()  # an `AnswerStream` -> what to look at when it ends


def guarded(name, function):
    @functools.wraps(function)
    def call(self, *args, **kwargs):
        watch = Watch(name, self, args, kwargs)
        try:
            result = function(self, *args, **kwargs)
        finally:
            watch.check()
        if name == "stream_chat":
            _streams[result] = watch
        return result

    return call


def _checked_at_the_end(function):
    """For `__next__` and `close` of a stream: the generation goes on behind the call that began it."""

    @functools.wraps(function)
    def call(stream):
        try:
            result = function(stream)
        except BaseException:
            if stream in _streams:
                _streams.pop(stream).check()
            raise
        if function.__name__ == "close" and stream in _streams:
            _streams.pop(stream).check()
        return result

    return call


@contextlib.contextmanager
def nothing_drifts(monkeypatch):
    """The guard, for as long as the context lasts."""
    for name, calls in CALLS.items():
        owner = getattr(internvl_chat, name)
        for call in calls:
            monkeypatch.setattr(owner, call, guarded(call, getattr(owner, call)))
    stream = importlib.import_module("internvl_chat.answer_internvl").AnswerStream
    for name in ("__next__", "close"):
        monkeypatch.setattr(stream, name, _checked_at_the_end(getattr(stream, name)))
    yield
