"""(d) first token and tokens a second, (e) rounds of one conversation, (f) a batch of ragged questions."""

import statistics
import time
from functools import partial

import torch

import internvl_chat
from internvl_chat.compat_internvl import set_attention
from internvl_chat.prompt_internvl import ImageTokens, build_prompt

from .measuring import interleaved, median_ratio, seconds
from .models import native_model, shipped_tokenizer

TOKENS = {"1B": 48, "2B": 48, "tiny": 8}
ROUNDS = {"1B": 10, "2B": 10, "tiny": 3}
QUESTION = "<image>\nWhat is in this picture, and where is it?"


@torch.no_grad()
def answers(machine, rounds, size, model):
    """Milliseconds to the first token and tokens a second, ours against transformers' own InternVL over the same
    tensors, with the share of the machine's reading rate that decoding reaches."""
    tokenizer, native = shipped_tokenizer(), native_model(model, size)
    counts = (1, 2) if size == "tiny" else (1, 13)
    return [row for tiles in counts for row in _answer_rows(machine, rounds, tokenizer, model, native, tiles, size)]


def _answer_rows(machine, rounds, tokenizer, model, native, tiles, size) -> list:
    pixels, tokens, read = _pixels(machine, tiles), TOKENS[size], _bytes_a_token(model)
    inputs = _native_inputs(model, tokenizer, pixels)
    backend = model.vision_model.config._attn_implementation

    def ours(vision_backend, **settings):
        set_attention(model.vision_model.config, vision_backend)
        model.chat(tokenizer, pixels, QUESTION, settings)
        set_attention(model.vision_model.config, backend)

    calls = {
        "native": lambda **settings: native.generate(**inputs, **settings, pad_token_id=0, eos_token_id=None),
        "ours": partial(ours, backend),
        "ours, eager tower": partial(ours, "eager"),
    }
    first, rest = {name: [] for name in calls}, {name: [] for name in calls}
    for number in range(1 + rounds):  # one after the other in each round, the first to warm up
        for name, call in calls.items():
            clock = _FirstToken()
            whole = seconds(partial(call, **_exactly(tokens + 1), streamer=clock), machine.device)
            if number > 0:
                first[name].append(clock.seconds)
                rest[name].append(whole - clock.seconds)
    rows = []
    for name in calls:
        decoding = statistics.median(rest[name])
        rows.append(
            {
                "tiles": tiles,
                "model": name,
                "first token, ms": 1000 * statistics.median(first[name]),
                "native / this, first token": median_ratio(first["native"], first[name]),
                "tokens/s": tokens / decoding,
                "native / this, decoding": median_ratio(rest["native"], rest[name]),
                "GB/s": tokens * read / decoding / 1e9,
                "of the reading rate": tokens * read / decoding / machine.read_rate,
            }
        )
    return rows


@torch.no_grad()
def rounds_of_one(machine, rounds, size, model):
    """Milliseconds to the first token of each round of a conversation about one large picture, with and without
    reuse. Both continue one history each; in float32 the answers must be equal."""
    tokenizer = shipped_tokenizer()
    tiles = 2 if size == "tiny" else 13
    pixels = _pixels(machine, tiles)
    model.chat(tokenizer, pixels[:1], QUESTION, _exactly(2))  # to warm up
    histories, times = {True: None, False: None}, {True: [], False: []}
    for number in range(ROUNDS[size]):
        question = QUESTION if number == 0 else f"And what is thing number {number}?"
        for reuse, history in list(histories.items()):
            clock = _FirstToken()
            settings = {**_exactly(8), "streamer": clock}
            _, histories[reuse] = model.chat(tokenizer, pixels, question, settings, history, True, reuse=reuse)
            times[reuse].append(clock.seconds)
        if machine.dtype == torch.float32 and histories[True] != histories[False]:
            raise RuntimeError(f"round {number + 1}: the answers with and without reuse differ")
    return [
        {
            "round": number + 1,
            "with reuse, ms": 1000 * own,
            "without, ms": 1000 * whole,
            "times as fast": whole / own,
        }
        for number, (own, whole) in enumerate(zip(times[True], times[False]))
    ]


@torch.no_grad()
def batches(machine, rounds, size, model):
    """Questions of different lengths, every second one with a picture of one tile: one `batch_chat` against as many
    single `chat`s."""
    counts = (4,) if size == "tiny" else (2, 4, 8, 16)
    return [_batch_row(machine, rounds, model, shipped_tokenizer(), count, TOKENS[size] // 2) for count in counts]


def _batch_row(machine, rounds, model, tokenizer, count, tokens) -> dict:
    patches = [1 - index % 2 for index in range(count)]
    pixels = _pixels(machine, sum(patches))
    questions = [
        "<image>\n" * number + "Tell me about it. " * (1 + 3 * (index % 5)) for index, number in enumerate(patches)
    ]

    def together():
        model.batch_chat(tokenizer, pixels, questions, _exactly(tokens), num_patches_list=patches)

    def one_by_one():
        for question, own in zip(questions, pixels.split(patches)):
            model.chat(tokenizer, own if len(own) else None, question, _exactly(tokens))

    times = interleaved({"batch": together, "single": one_by_one}, rounds, machine.device)
    return {
        "questions": count,
        "batch, tokens/s": count * tokens / statistics.median(times["batch"]),
        "single / batch": median_ratio(times["single"], times["batch"]),
    }


class _FirstToken:
    """A streamer of `generate` that takes the time from when it is made to the first new token."""

    def __init__(self):
        self._start, self._prompt_seen, self.seconds = time.perf_counter(), False, None

    def put(self, value) -> None:  # a token comes as numbers on the CPU: the device has done its work
        if self._prompt_seen and self.seconds is None:
            self.seconds = time.perf_counter() - self._start
        self._prompt_seen = True

    def end(self) -> None:
        pass


def _pixels(machine, tiles):
    return torch.randn(tiles, 3, 448, 448, device=machine.device, dtype=machine.dtype)


def _exactly(tokens) -> dict:
    return {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}


def _bytes_a_token(model) -> int:
    """What a step of decoding reads: the language model's weights without the embedding table, of which it reads a
    row."""
    language_model = model.language_model
    table = language_model.get_input_embeddings().weight
    weights = sum(p.numel() * p.element_size() for p in language_model.parameters())
    return weights - (
        0 if language_model.get_output_embeddings().weight is table else table.numel() * table.element_size()
    )


def _native_inputs(model, tokenizer, pixels) -> dict:
    conversation = internvl_chat.get_conv_template(model.template)
    conversation.append_message(conversation.roles[0], QUESTION)
    conversation.append_message(conversation.roles[1], None)
    row = build_prompt(tokenizer, conversation, [len(pixels)], ImageTokens(model.num_image_token))
    ids = torch.tensor([row], device=pixels.device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
