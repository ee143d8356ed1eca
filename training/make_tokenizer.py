"""Trains the tokenizer of the shipped checkpoint: `python -m training.make_tokenizer [--output FOLDER]`.

Byte-level BPE over the project's own conversations, in the file layout of `Qwen2Tokenizer`, which every release of
transformers from 4.37.2 on reads, fast and slow, with the same ids. Any text comes back from its ids as it was, but for
Unicode's canonical form: Qwen2's tokenizer class normalises to NFC, in every release, whatever the files say. Digits
are tokens of their own, as Qwen2's pattern has it; printed words are kept out of the corpus, so that they are read
letter by letter.
"""

import argparse
import json
import re
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from .examples import KINDS, draw_example
from .phrases import COUNTS, ZH_COLORS, ZH_SHAPES, ZONES
from .recipe import RUNS, SYSTEM_MESSAGE
from .world import BACKGROUNDS, COLORS, SHAPES

# The ids are the places in this list. `<|video_pad|>` is what serving engines look for, the rest the family's own.
SPECIAL_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<IMG_CONTEXT>", "<img>", "</img>", "<quad>", "</quad>"),
    *("<ref>", "</ref>", "<box>", "</box>", "<|video_pad|>"),
)
PAD, END = "<|endoftext|>", "<|im_end|>"
VOCABULARY = 1024
# Qwen2's pre-tokenisation pattern (published in its tokenizer.json).
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
MODEL_MAX_LENGTH = 8192


def corpus():
    """The texts that the merges are learnt from; what is printed in pictures is left out."""
    printed = re.compile(r'(?<=")[^"]*(?=")|(?<=“)[^”]*(?=”)')
    cuts = re.compile("|".join(map(re.escape, ("<image>", "<printed>", *SPECIAL_TOKENS))))
    for kind in KINDS:
        for index in range(1500 if kind in ("single", "text") else 300):
            for dialogue in draw_example(f"tokenizer/{index}", kind).dialogues:
                for text in (text for turn in dialogue for text in (turn.question, turn.answer)):
                    yield from cuts.split(printed.sub("<printed>", text))
    # Names are whole tokens, also where they are rare or run into their neighbours, as in Chinese.
    for word in (*COLORS, *SHAPES, *BACKGROUNDS, *COUNTS["en"]):
        yield from [f" {word}"] * 2000
    zones = [word for row in ZONES["zh"] for word in row]
    for word in (*ZH_SHAPES.values(), *(name + "色" for name in ZH_COLORS.values()), *COUNTS["zh"], *zones):
        yield from [word] * 6000
    yield from ["system", "user", "assistant", "Frame", "Image", SYSTEM_MESSAGE] * 6000


def train(vocabulary=VOCABULARY) -> Tokenizer:
    """The tokenizer with `vocabulary` entries, special tokens first. Deterministic."""
    tokenizer = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix=""))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False, trim_offsets=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def save(tokenizer: Tokenizer, folder) -> list:
    """Writes the six files of a `Qwen2Tokenizer` into `folder`; returns their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    values = json.loads(tokenizer.to_str())
    flags = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    values["added_tokens"] = [dict(id=index, content=token, **flags) for index, token in enumerate(SPECIAL_TOKENS)]
    # tokenizers before 0.20 reads merges as strings only, later releases read both forms.
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in values["model"]["merges"]]
    values["model"]["merges"] = merges
    for part in (values["post_processor"], values["decoder"]):
        part.update(add_prefix_space=False, trim_offsets=False, use_regex=False)
    others = [token for token in SPECIAL_TOKENS if token != PAD]
    settings = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(index): dict(content=token, **flags) for index, token in enumerate(SPECIAL_TOKENS)
        },
        "additional_special_tokens": others,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": END,
        "errors": "replace",
        "model_max_length": MODEL_MAX_LENGTH,
        "pad_token": PAD,
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    contents = {
        "tokenizer.json": values,
        "vocab.json": values["model"]["vocab"],
        "added_tokens.json": {token: index for index, token in enumerate(SPECIAL_TOKENS)},
        "special_tokens_map.json": {"additional_special_tokens": others, "eos_token": END, "pad_token": PAD},
        "tokenizer_config.json": settings,
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{merge}\n" for merge in merges), encoding="utf-8")
    return [folder / name for name in (*contents, "merges.txt")]


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m training.make_tokenizer", description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=RUNS / "tokenizer")
    paths = save(train(), parser.parse_args(arguments).output)
    print(f"{VOCABULARY} tokens: {', '.join(map(str, paths))}")


if __name__ == "__main__":
    main()
