"""From token ids to an answer: when to stop, how to decode, how to stream.

Blocking and streaming answers go through the same `AnswerDecoder`, so that they are equal by construction.
"""

import copy
import queue
import threading

import torch
from transformers import GenerationConfig, StoppingCriteriaList

from .compat_internvl import stored_token_id
from .prompt_internvl import special_ids, token_id

# Where the caller asks for nothing else: the model cards' length, greedy.
DEFAULT_MAX_NEW_TOKENS = 1024

# Settings that only mean something when sampling; left over from a checkpoint's defaults they only cause warnings.
_SAMPLING_ONLY = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


def generation_settings(model, tokenizer, conversation, given):
    """What `generate` is called with.

    Args:
        model: gives the checkpoint's own defaults and end tokens.
        tokenizer: gives the ids of the template's end marks and the padding.
        conversation: the template in use.
        given: the caller's dictionary, `GenerationConfig` or None. It is not changed.

    Returns:
        `(generation_config, keywords, stop_ids)`: a `GenerationConfig` of our own, the entries of a given dictionary
        that are arguments of `generate` rather than settings (`streamer`, `stopping_criteria`, ...), and the ids that
        end an answer: the template's, the checkpoint's and the caller's.

    Raises:
        TypeError: `given` is something else.
    """
    own = [model.generation_config, model.language_model.generation_config]
    if given is None:
        given = {}
    if isinstance(given, GenerationConfig):
        settings, keywords, asked = copy.deepcopy(given), {}, given.to_diff_dict()
    elif isinstance(given, dict):
        settings = copy.deepcopy(own[0])
        asked = {name: value for name, value in given.items() if hasattr(settings, name)}
        keywords = {name: value for name, value in given.items() if name not in asked}
        for name, value in asked.items():
            setattr(settings, name, value)
        if not settings.do_sample and not asked.get("do_sample"):
            fresh = GenerationConfig()
            for name in _SAMPLING_ONLY:
                if hasattr(fresh, name):
                    setattr(settings, name, getattr(fresh, name))
    else:
        raise TypeError(f"generation_config must be a dict, a GenerationConfig or None, got {type(given).__name__}")
    # One limit, the caller's before the checkpoint's: transformers warns about two.
    if asked.get("max_new_tokens") is None and asked.get("max_length") is not None:
        settings.max_new_tokens = None  # the prompt's length decides, see `ChatMixin._ask`
    else:
        settings.max_new_tokens = settings.max_new_tokens or DEFAULT_MAX_NEW_TOKENS
        settings.max_length = GenerationConfig().max_length

    marks = [token_id(tokenizer, mark) for mark in conversation.end_marks()]
    stop_ids = _stop_ids(marks, conversation, *own, settings, tokenizer)
    settings.eos_token_id = stop_ids
    settings.use_cache = asked.get("use_cache", True)
    if settings.pad_token_id is None:
        settings.pad_token_id = padding_id(tokenizer, stop_ids)
    return settings, keywords, stop_ids


def _stop_ids(marks, conversation, *sources) -> list:
    """The ids that end an answer: the template's, and the `eos_token_id` of each source."""
    ids = [*marks, *(conversation.stop_token_ids or [])]
    for source in sources:
        ids += source.eos_token_id if isinstance(source.eos_token_id, (list, tuple)) else [source.eos_token_id]
    return list(dict.fromkeys(number for number in ids if number is not None))


def add_end_tokens(model, folder_or_id, keywords: dict) -> None:
    """Has `generate` of a loaded model end where `chat` ends, though it has no tokenizer: the template's end mark is
    looked up in the tokenizer's files. The generation_config.json of InternVL2-1B and InternVL2-26B names no end, and
    their `llm_config` not always the right one.

    `keywords` are those of `from_pretrained`.
    """
    marks = [stored_token_id(folder_or_id, mark, keywords) for mark in model.conv_template.end_marks()]
    settings = model.generation_config
    stop_ids = _stop_ids(marks, model.conv_template, settings, model.language_model.generation_config)
    if not set(stop_ids) <= set(_stop_ids((), model.conv_template, settings)):
        settings.eos_token_id = stop_ids


# Arguments of `generate` that leave the cache what it is in plain decoding.
_HARMLESS = {"streamer", "stopping_criteria", "logits_processor", "synced_gpus"}
# Settings that do not, with the values that ask for nothing.
_OTHER_CACHES = {
    "num_beams": (None, 1),
    "num_return_sequences": (None, 1),
    "penalty_alpha": (None, 0),
    "dola_layers": (None,),
    "prompt_lookup_num_tokens": (None,),
    "assistant_early_exit": (None,),
    "prefill_chunk_size": (None,),
    "cache_implementation": (None, "dynamic"),
    "use_cache": (True,),
}


def is_plain_decoding(settings, keywords) -> bool:
    """Whether `generate` takes one token after the other for each prompt and keeps all keys and values in a cache that
    grows: greedy decoding and sampling do; beams, assistants and caches of fixed size or few bits do not."""
    plain = all(getattr(settings, name, values[0]) in values for name, values in _OTHER_CACHES.items())
    return plain and set(keywords) <= _HARMLESS


def padding_id(tokenizer, stop_ids) -> int:
    """The id that fills rows of a batch: the tokenizer's, else an end token (it is masked, so that any id would do)."""
    if tokenizer.pad_token_id is not None:
        return tokenizer.pad_token_id
    return stop_ids[0] if stop_ids else 0


class AnswerDecoder:
    """Turns the ids of one answer into text, piece by piece.

    The text ends before the first stop id. Special tokens are left out, except for the grounding marks. White space
    around the answer is dropped. A piece never ends inside a character.
    """

    def __init__(self, tokenizer, stop_ids):
        self._tokenizer = tokenizer
        self._stop_ids = frozenset(stop_ids)
        self._skipped = frozenset(special_ids(tokenizer).values())
        self._ids = []
        self._start = 0  # ids before this one no longer influence how later ones are written
        self._done = 0  # ids whose text was given out
        self._space = ""  # white space that is given out once something follows
        self._begun = False
        self.finished = False

    def _text(self, start: int, end: int) -> str:
        ids = self._ids[start:end]
        if not ids:
            return ""
        return self._tokenizer.decode(ids, skip_special_tokens=False, spaces_between_special_tokens=False)

    def feed(self, ids, last: bool = False) -> str:
        """The text that `ids` add; empty while a character is incomplete. `last` gives out whatever is left."""
        for number in ids:
            if self.finished:
                break
            if number in self._stop_ids:
                self.finished = True
            elif number not in self._skipped:
                self._ids.append(number)
        if len(self._ids) == self._done:
            return ""
        # Some tokenizers write a token differently at the beginning of a text: decode with the tokens before it.
        before = self._text(self._start, self._done)
        text = self._text(self._start, len(self._ids))
        if text.endswith("\ufffd") and not (last or self.finished):
            return ""
        self._start, self._done = self._done, len(self._ids)
        return self._trimmed(text[len(before) :])

    def _trimmed(self, text: str) -> str:
        text = self._space + text
        if not self._begun:
            text = text.lstrip()
        kept = text.rstrip()
        self._space = text[len(kept) :]
        self._begun = self._begun or bool(kept)
        return kept


class AnswerStream:
    """An answer as it is generated: an iterator of text pieces.

    The pieces joined are the answer that `chat` returns. An error in generation is raised from the iteration at once.
    `close()`, leaving a `with` block or dropping the object ends the generation at its next token.

    Attributes:
        text: what has come so far.
    """

    def __init__(self, generate, decoder: AnswerDecoder, on_finish=None):
        """`generate(streamer, stopping_criteria)` is run in a thread of its own; `on_finish(text)` gives `history`."""
        self.text = ""
        self._decoder = decoder
        self._on_finish = on_finish
        self._queue = queue.SimpleQueue()
        self._cancelled = threading.Event()
        self._ended = False
        # The thread must not hold the stream itself, or dropping the stream would never end it.
        self._thread = threading.Thread(
            target=_run, args=(generate, self._queue, self._cancelled), name="internvl-stream", daemon=True
        )
        self._thread.start()

    @property
    def history(self):
        """The history with this answer, as from `chat(return_history=True)`; complete once the stream has ended."""
        return None if self._on_finish is None else self._on_finish(self.text)

    def __iter__(self):
        return self

    def __next__(self) -> str:
        while not self._ended:
            ids = self._queue.get()
            if isinstance(ids, BaseException):
                self._ended = True
                self._thread.join()
                try:
                    raise ids
                finally:  # else error, traceback and this frame, and with them the cache, would keep each other
                    del ids
            piece = self._decoder.feed(ids or [], last=ids is None)
            if ids is None:
                self._ended = True
                self._thread.join()
            if piece:
                self.text += piece
                return piece
        raise StopIteration

    def close(self) -> None:
        """Ends the generation and waits until its thread is gone."""
        self._cancelled.set()
        self._ended = True
        self._thread.join()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def __del__(self):
        self._cancelled.set()


def _run(generate, results, cancelled) -> None:
    """Body of the generating thread: ids as they come, then None, or the exception that ended it."""
    try:
        generate(_QueueStreamer(results), StoppingCriteriaList([_Cancelled(cancelled)]))
    except BaseException as error:  # whatever it is, the consumer must hear of it instead of waiting for ever
        results.put(error)
    else:
        results.put(None)


class _QueueStreamer:
    """Receives ids from `generate` (the streamer protocol of transformers) and queues all but the prompt's."""

    def __init__(self, results):
        self._results = results
        self._prompt_seen = False

    def put(self, value) -> None:
        if self._prompt_seen:
            self._results.put(value.flatten().tolist())
        self._prompt_seen = True

    def end(self) -> None:
        """`generate` has nothing more to say; `_run` reports the end, or the error behind it."""


class _Cancelled:
    """Stopping criterion: the consumer has gone away."""

    def __init__(self, event: threading.Event):
        self._event = event

    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((input_ids.shape[0],), self._event.is_set(), dtype=torch.bool, device=input_ids.device)
