"""A SentencePiece tokenizer as a `tokenizer.json`, which every release reads alike and without the checkpoint's code.

Reads `tokenizer.model` directly: the few fields that matter, by the rules of protocol buffers (field number and wire
type in front of each value). The generated classes exist twice, in sentencepiece and in transformers, and refuse to
live in one process.
"""

import base64
import re
import struct
from pathlib import Path
from typing import NamedTuple

_SPACE = "▁"  # what SentencePiece writes for a space
_NORMAL, _USER_DEFINED = 1, 4  # kinds of pieces
_BPE = 2  # kind of model


class _Piece(NamedTuple):
    text: str
    score: float
    kind: int


def fast_tokenizer(model_file, tokenizer_config: dict) -> dict:
    """Content of the `tokenizer.json` that gives the ids of `InternLM2Tokenizer`, or of the slow `LlamaTokenizer` (the
    published ids of the checkpoints over Phi-3 and Yi; the fast classes of transformers have others).

    One thing differs: the name of a piece whose id an added token has taken ("[UNUSED_TOKEN_145]") is plain text.

    Args:
        model_file: path of the SentencePiece model.
        tokenizer_config: content of `tokenizer_config.json`: class, added tokens, `legacy`, `add_prefix_space`,
            `add_bos_token`, `add_eos_token`.

    Raises:
        ValueError: the file is no SentencePiece model, not of the kind BPE, or drops spaces.
    """
    pieces, adds_space, charsmap = _read(Path(model_file))
    added = {int(index): token for index, token in (tokenizer_config.get("added_tokens_decoder") or {}).items()}
    for index, piece in enumerate(pieces):  # whole wherever they appear, unless an added token took their place
        if piece.kind == _USER_DEFINED and index not in added:
            added[index] = {"content": piece.text, "special": False}
    vocabulary = {piece.text: index for index, piece in enumerate(pieces)}
    for index, token in added.items():
        if index < len(pieces):
            vocabulary.pop(pieces[index].text, None)
            vocabulary[token["content"]] = index
    is_whole = reads_whole_texts(tokenizer_config)
    if is_whole:
        rules = _rules_of_a_whole_text(tokenizer_config, added)
    else:  # each text between two added tokens by itself
        rules = [{"type": "Prepend", "prepend": _SPACE}] if adds_space else []
    if tokenizer_config.get("tokenizer_class") == "LlamaTokenizer":  # which drops a space when it decodes, then
        adds_space = tokenizer_config.get("add_prefix_space", True)
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    tokens = [{"id": index, **flags, **added[index], "normalized": is_whole} for index in sorted(added)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"special": False, **token} for token in tokens],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                *([{"type": "Precompiled", "precompiled_charsmap": charsmap}] if charsmap else []),
                *rules,
                {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": _frame(tokenizer_config, vocabulary),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if adds_space else []),
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": _name(tokenizer_config.get("unk_token", "<unk>")),
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": _merges(pieces),
        },
    }


def reads_whole_texts(tokenizer_config: dict) -> bool:
    """Whether added tokens are to be looked for after the text's rules were applied ("normalized"), and not before."""
    return tokenizer_config.get("tokenizer_class") == "LlamaTokenizer" and tokenizer_config.get("legacy") is False


def _rules_of_a_whole_text(config, added) -> list:
    """Llama's rules without `legacy`: one space in front of the whole text, none before a token that is listed as
    special, none behind added tokens; white space behind a token with `rstrip` goes.

    Added tokens are looked for in the text that comes out of here, and their own names go through here first, each
    alone: a rule must not change a name. Hence no space before a token that is the whole text, whatever token it is.
    """
    listed = {_name(token) for token in config.get("additional_special_tokens") or ()}
    listed |= {_name(config.get(f"{role}_token")) for role in ("bos", "eos", "unk", "pad")}
    names = {token["content"] for token in added.values()}
    greedy = {token["content"] for token in added.values() if token.get("rstrip")}
    rules = []
    if config.get("add_prefix_space", True):
        front = [rf"\A(?!{_any_of(names)})(?=[\s\S])"]
        front += [rf"\A(?={_any_of(names - listed)}[\s\S])"] if names - listed else []
        rules.append(_replace("|".join(front), _SPACE))
    if greedy:
        behind = "|".join(f"(?<={re.escape(name)})" for name in sorted(greedy))
        rules.append(_replace(rf"(?:{behind})[\s{_SPACE}]+", ""))
    return rules


def _replace(pattern: str, text: str) -> dict:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": text}


def _any_of(names) -> str:
    return f"(?:{'|'.join(map(re.escape, sorted(names)))})"


def _name(token):
    """The text of a token, which files give as such or with its flags."""
    return token["content"] if isinstance(token, dict) else token


def _merges(pieces) -> list:
    """Pairs of pieces in the order in which BPE joins them: by the score of what they make, the best first."""
    ids = {piece.text: index for index, piece in enumerate(pieces) if piece.kind == _NORMAL}
    pairs = []
    for text, index in ids.items():
        for cut in range(1, len(text)):
            left, right = ids.get(text[:cut]), ids.get(text[cut:])
            if left is not None and right is not None:
                pairs.append((-pieces[index].score, left, right))
    return [[pieces[left].text, pieces[right].text] for _, left, right in sorted(pairs)]


def _frame(config, vocabulary) -> dict:
    """The post-processor that puts `<s>` in front, and `</s>` behind where the checkpoint asks for it."""
    frame, special = [{"Sequence": {"id": "A", "type_id": 0}}], {}
    pair = [*frame, {"Sequence": {"id": "B", "type_id": 0}}]
    for name, default, wanted in (("bos_token", "<s>", True), ("eos_token", "</s>", False)):
        if config.get(f"add_{name}", wanted):
            token = _name(config.get(name, default))
            special[token] = {"id": token, "ids": [vocabulary[token]], "tokens": [token]}
            mark = [{"SpecialToken": {"id": token, "type_id": 0}}]
            frame, pair = (mark + frame, mark + pair) if name == "bos_token" else (frame + mark, pair + mark)
    return {"type": "TemplateProcessing", "single": frame, "pair": pair, "special_tokens": special}


# --- protocol buffers -------------------------------------------------------------------------------------------------


def _read(path: Path) -> tuple:
    """(pieces, whether a space is put in front of every text, table of normalised letters or "") of a model."""
    pieces, kind, rules = [], 1, {}
    try:
        for number, value in _fields(path.read_bytes()):
            if number == 1:
                piece = dict(_fields(value))
                pieces.append(
                    _Piece(piece[1].decode(), struct.unpack("<f", piece.get(2, bytes(4)))[0], piece.get(3, 1))
                )
            elif number == 2:
                kind = dict(_fields(value)).get(3, 1)
            elif number == 3:
                rules = dict(_fields(value))
    except (KeyError, IndexError, ValueError, AttributeError, TypeError, struct.error) as error:
        raise ValueError(f"{path} is no SentencePiece model: {error}") from error
    if kind != _BPE or rules.get(4, 1):
        raise ValueError(
            f"{path} has model_type={kind} and remove_extra_whitespaces={bool(rules.get(4, 1))}: expected those of "
            f"InternLM2, {_BPE} (BPE) and False"
        )
    return pieces, bool(rules.get(3, 1)), base64.b64encode(rules.get(2, b"")).decode()


def _fields(data: bytes):
    """(number, value) of each field of a message: an integer, or bytes."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, position = _varint(data, position)
        else:
            if wire == 2:
                length, position = _varint(data, position)
            else:
                length = {1: 8, 5: 4}[wire]
            if position + length > len(data):
                raise ValueError("it was cut short")
            value, position = data[position : position + length], position + length
        yield number, value


def _varint(data: bytes, position: int) -> tuple:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position
