"""Tokenizers in the likeness of the published ones, small enough to build in place, the same on every machine.

The published files are not at hand offline, so these stand for them: the same classes, files, settings, special tokens
and rules (how text is cut before merging, byte fallback, spaces in front, normalisation) over another, tiny vocabulary.
Nothing is trained: a list of words decides the merges, so ids depend on no library's trainer.
"""

import json
import struct
from pathlib import Path

IMAGE_TOKENS = ["<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"]

# "·" stands for the space in front of a word. Some reach over the borders at which one family or another cuts text
# (digits, line ends, runs of spaces, contractions), so that a tokenizer with the rules of another gives other ids.
WORDS = (
    "·the ·is ·in ·picture ·dog ·world ·text Hello What isn 't 's 'll 12 123 2024 ·· ···· \n\n \n· .\n ·\n !! "
    "你好 世界 图片 图片里有什么 ·Привет ·мир ·日本語 のテキスト é ed"
).split(" ")

_UNICODE_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
LLAMA3_PATTERN = _CONTRACTIONS + _UNICODE_LETTERS + r"|\p{N}{1,3}" + _TAIL
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
GPT_OSS_PATTERN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _write(folder: Path, **files) -> Path:
    """Writes `{stem: content}` as JSON files into `folder`, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem, content in files.items():
        (folder / f"{stem}.json").write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")
    return folder


def _token(content, special=True, **flags) -> dict:
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return {"content": content, **plain, **flags, "special": special}


# --- byte-level BPE ---------------------------------------------------------------------------------------------------


def byte_letters() -> list:
    """The printable letter that stands for each byte in the files of byte-level tokenizers (GPT-2's table)."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in kept else chr(next(others)) for byte in range(256)]


def byte_level_bpe():
    """(vocabulary {token: id}, merges [(left, right)]): the bytes, then the words, letter by letter."""
    letters = byte_letters()
    tokens, merges = list(letters), []
    for word in WORDS:
        spelled = [letters[byte] for byte in word.replace("·", " ").encode()]
        left = spelled[0]
        for right in spelled[1:]:
            if left + right not in tokens:
                tokens.append(left + right)
                merges.append((left, right))
            left += right
    return {token: index for index, token in enumerate(tokens)}, merges


def write_qwen2(folder: Path) -> Path:
    """Qwen2's files as all Qwen checkpoints of the family ship them: without `tokenizer.json`."""
    vocab, merges = byte_level_bpe()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *IMAGE_TOKENS]
    added = {token: index for index, token in enumerate(special, start=len(vocab))}
    _write(
        folder,
        vocab=vocab,
        added_tokens=added,
        special_tokens_map={
            "additional_special_tokens": special[1:],
            "eos_token": _named("<|im_end|>"),
            "pad_token": _named("<|endoftext|>"),
        },
        tokenizer_config={
            "add_prefix_space": False,
            "added_tokens_decoder": {str(index): _token(token) for token, index in added.items()},
            "additional_special_tokens": special[1:],
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "errors": "replace",
            "model_max_length": 8192,
            "pad_token": "<|endoftext|>",
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    )
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def _named(token) -> dict:
    return {key: value for key, value in _token(token).items() if key != "special"}


def _write_tokenizer_json(folder: Path, pattern: str, special: list, bos: str, config: dict) -> Path:
    vocab, merges = byte_level_bpe()
    added = {token: index for index, token in enumerate(special, start=len(vocab))}
    cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    bytes_only = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    finish = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    if bos is not None:
        bos_piece, text = {"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
        second = [{"SpecialToken": {"id": bos, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
        template = {
            "type": "TemplateProcessing",
            "single": [bos_piece, text],
            "pair": [bos_piece, text, *second],
            "special_tokens": {bos: {"id": bos, "ids": [added[bos]], "tokens": [bos]}},
        }
        finish = {"type": "Sequence", "processors": [finish, template]}
    return _write(
        folder,
        tokenizer={
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{"id": index, **_token(token)} for token, index in added.items()],
            "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [cut, bytes_only]},
            "post_processor": finish,
            "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": True,
                "vocab": vocab,
                "merges": [" ".join(pair) for pair in merges],  # as strings: tokenizers before 0.20 reads no pairs
            },
        },
        tokenizer_config={
            "added_tokens_decoder": {str(index): _token(token) for token, index in added.items()},
            "clean_up_tokenization_spaces": False,
            "model_max_length": 8192,
            "tokenizer_class": "PreTrainedTokenizerFast",
            **config,
        },
        special_tokens_map={key: value for key, value in config.items() if key.endswith("_token")},
    )


def write_llama3(folder: Path) -> Path:
    """Llama 3's layout: one `tokenizer.json`, a class that is fast only, the bos token put in by a template."""
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|im_start|>", "<|im_end|>", *IMAGE_TOKENS]
    config = {"bos_token": "<|begin_of_text|>", "eos_token": "<|im_end|>", "pad_token": "<|end_of_text|>"}
    return _write_tokenizer_json(folder, LLAMA3_PATTERN, special, "<|begin_of_text|>", config)


def write_gpt_oss(folder: Path) -> Path:
    """GPT-OSS's layout: one `tokenizer.json`, nothing put in front."""
    special = ["<|startoftext|>", "<|endoftext|>", "<|return|>", "<|constrain|>", "<|channel|>", "<|start|>"]
    special += ["<|end|>", "<|message|>", "<|call|>", *IMAGE_TOKENS]
    config = {"bos_token": "<|startoftext|>", "eos_token": "<|return|>", "pad_token": "<|endoftext|>"}
    return _write_tokenizer_json(folder, GPT_OSS_PATTERN, special, None, config)


# --- SentencePiece ----------------------------------------------------------------------------------------------------


def _field(number: int, value) -> bytes:
    """One field of a protocol buffer: an integer, a float, a text or an embedded message. Written here because the
    generated classes come in two copies, sentencepiece's and transformers', that refuse to live in one process."""
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    value = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    groups = []
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    return bytes([*groups, value])


def _message(**fields) -> bytes:
    """A message from its field numbers, as in `_message(f1="text", f3=2)`."""
    return b"".join(_field(int(name[1:]), value) for name, value in fields.items())


NORMAL, UNKNOWN, CONTROL, USER_DEFINED, _, BYTE = range(1, 7)  # kinds of pieces


def sentencepiece_pieces(unused=(), ends=("<s>", "</s>")) -> list:
    """[(piece, score, kind)]: `<unk>`, the `ends`, the bytes, the words letter by letter, their letters, `unused`."""
    words, letters = {}, {}
    for word in WORDS:
        word = word.replace("·", "▁")
        if "\n" not in word:  # not in a piece of such models: its byte is
            letters.update(dict.fromkeys(word))
            words.update(dict.fromkeys(word[:end] for end in range(2, len(word) + 1)))
    letters.update(dict.fromkeys("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,?<>|_/"))
    normal = [(piece, float(-rank), NORMAL) for rank, piece in enumerate([*words, *letters])]
    first = [("<unk>", 0.0, UNKNOWN), *((end, 0.0, CONTROL) for end in ends)]
    first += [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
    return [*first, *normal, *((piece, 0.0, USER_DEFINED) for piece in unused)]


def sentencepiece_model(add_dummy_prefix: bool, *names) -> bytes:
    """A BPE `tokenizer.model` that falls back to bytes and normalises nothing."""
    pieces = sentencepiece_pieces(*names)
    model = b"".join(_field(1, _message(f1=piece, f2=score, f3=kind)) for piece, score, kind in pieces)
    trainer = _message(f3=2, f4=len(pieces), f35=1, f40=0, f41=1, f42=2)  # BPE, size, byte fallback, the first three
    normalizer = _message(f1="identity", f3=int(add_dummy_prefix), f4=0, f5=1)  # no spaces lost, "▁" for a space
    return model + _field(2, trainer) + _field(3, normalizer)


def _write_sentencepiece(folder: Path, model: bytes, tokens: dict, special: list, config: dict) -> Path:
    """`tokens` are {id: token as a dictionary}, `special` those listed as additional ones."""
    roles = {key: value for key, value in config.items() if key in ("bos_token", "eos_token", "pad_token", "unk_token")}
    _write(
        folder,
        added_tokens={token["content"]: index for index, token in tokens.items() if index > 2},
        special_tokens_map={
            "additional_special_tokens": special,
            **{role: {key: v for key, v in _token(name).items() if key != "special"} for role, name in roles.items()},
        },
        tokenizer_config={
            "added_tokens_decoder": {str(index): token for index, token in tokens.items()},
            "additional_special_tokens": special,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 8192,
            **config,
        },
    )
    (folder / "tokenizer.model").write_bytes(model)
    return folder


INTERNLM2_TOKENS = ["<|plugin|>", "<|interpreter|>", "<|action_end|>", "<|action_start|>", "<|im_end|>", "<|im_start|>"]


def write_internlm2(folder: Path, add_dummy_prefix=False) -> Path:
    """InternLM2's files: the chat tokens take the ids of unused pieces, the image tokens come after the model's. The
    published model adds no space in front of a text."""
    unused = [f"[UNUSED_TOKEN_{141 + index}]" for index in range(len(INTERNLM2_TOKENS))]
    model = sentencepiece_model(add_dummy_prefix, unused)
    pieces = [piece for piece, _, _ in sentencepiece_pieces(unused)]
    tokens = {0: _token("<unk>"), 1: _token("<s>"), 2: _token("</s>")}
    tokens.update((pieces.index(piece), _token(token)) for piece, token in zip(unused, INTERNLM2_TOKENS))
    tokens.update((index, _token(token)) for index, token in enumerate(IMAGE_TOKENS, start=len(pieces)))
    config = {
        "auto_map": {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]},
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "</s>",
        "tokenizer_class": "InternLM2Tokenizer",
        "unk_token": "<unk>",
    }
    return _write_sentencepiece(folder, model, tokens, [*INTERNLM2_TOKENS, *IMAGE_TOKENS], config)


PHI3_TOKENS = ["<|endoftext|>", "<|assistant|>", *(f"<|placeholder{index}|>" for index in range(1, 5)), "<|system|>"]
PHI3_TOKENS += ["<|end|>", "<|placeholder5|>", "<|placeholder6|>", "<|user|>"]


def write_phi3(folder: Path) -> Path:
    """Phi-3's files: Llama's class without its old handling of spaces; its role marks swallow the white space behind
    them."""
    model = sentencepiece_model(add_dummy_prefix=True)
    size = len(sentencepiece_pieces())
    tokens = {0: _token("<unk>"), 1: _token("<s>"), 2: _token("</s>", special=False, rstrip=True)}
    for index, token in enumerate([*PHI3_TOKENS, *IMAGE_TOKENS], start=size):
        keeps = token in ("<|endoftext|>", *IMAGE_TOKENS)
        tokens[index] = _token(token, rstrip=not keeps)
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "<|end|>",
        "legacy": False,
        "pad_token": "<|endoftext|>",
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": "<unk>",
        "use_default_system_prompt": False,
    }
    return _write_sentencepiece(folder, model, tokens, IMAGE_TOKENS, config)


def write_yi(folder: Path) -> Path:
    """The files of Nous-Hermes-2-Yi (Llama's class, old handling of spaces): nothing put in front, the chat tokens in
    the model's range."""
    names = ["<|im_start|>", "<|im_end|>"], ["<|startoftext|>", "<|endoftext|>"]
    model = sentencepiece_model(False, *names)
    pieces = [piece for piece, _, _ in sentencepiece_pieces(*names)]
    tokens = {pieces.index(token): _token(token) for token in ["<unk>", *names[1], *names[0]]}
    tokens.update((index, _token(token)) for index, token in enumerate(IMAGE_TOKENS, start=len(pieces)))
    config = {
        "add_bos_token": False,
        "add_eos_token": False,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|im_end|>",
        "legacy": True,
        "pad_token": "<unk>",
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": "<unk>",
        "use_default_system_prompt": False,
    }
    return _write_sentencepiece(folder, model, tokens, IMAGE_TOKENS, config)
