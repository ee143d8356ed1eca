"""The SentencePiece tokenizers of the checkpoints: InternLM2's, and the slow one of Llama, which transformers gave up.

A thin layer between a `tokenizer.model` and the slow tokenizers of transformers: SentencePiece cuts and joins text, the
base class cuts out the added tokens. Knows nothing of prompts, images or templates.
"""

import json
import os
import shutil

from transformers import PreTrainedTokenizer

try:
    import sentencepiece
except ImportError:  # reported where a tokenizer is made
    sentencepiece = None

VOCAB_FILE = "tokenizer.model"
_SPACE = "▁"  # what SentencePiece writes for a space


class InternLM2Tokenizer(PreTrainedTokenizer):
    """Text to ids and back, with the published ids.

    Text between two added tokens is encoded by SentencePiece on its own, as if it were a whole text; leading and
    repeated spaces, line ends and unknown characters (byte pieces) come out as `tokenizer.model` has them. Decoding
    joins the pieces of each such stretch and writes added tokens between them as they are, without the spaces around
    that slow tokenizers of older transformers put there (`spaces_between_special_tokens=True` still does).

    Args:
        vocab_file: path of the SentencePiece model.
        unk_token, bos_token, eos_token, pad_token: special tokens.
        sp_model_kwargs: keyword arguments of `sentencepiece.SentencePieceProcessor`.
        add_bos_token: put `bos_token` in front of each encoded sequence (or pair).
        add_eos_token: put `eos_token` behind it.
        decode_with_prefix_space: keep the space in front of a decoded text, which SentencePiece drops where its model
            adds one in front of every text.
        clean_up_tokenization_spaces: drop the spaces before punctuation from decoded text.

    Raises:
        ImportError: the package sentencepiece is missing.
        ValueError: `vocab_file` is not a file.
    """

    vocab_files_names = {"vocab_file": VOCAB_FILE}
    model_input_names = ["input_ids", "attention_mask"]
    _auto_class = "AutoTokenizer"  # `save_pretrained` puts this file beside the others: the folder loads anywhere

    def __init__(
        self,
        vocab_file,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        sp_model_kwargs=None,
        add_bos_token=True,
        add_eos_token=False,
        decode_with_prefix_space=False,
        clean_up_tokenization_spaces=False,
        **kwargs,
    ):
        if sentencepiece is None:
            raise ImportError("InternLM2Tokenizer needs sentencepiece: pip install sentencepiece")
        if vocab_file is None or not os.path.isfile(vocab_file):
            raise ValueError(f"vocab_file is {vocab_file!r}: expected the path of a SentencePiece model, {VOCAB_FILE}")
        self.vocab_file = vocab_file
        self.sp_model_kwargs = dict(sp_model_kwargs or {})
        self.add_bos_token = add_bos_token
        self.add_eos_token = add_eos_token
        self.decode_with_prefix_space = decode_with_prefix_space
        # Before the base class runs: it looks the special tokens up.
        self._load(model_file=vocab_file)
        super().__init__(
            unk_token=unk_token,
            bos_token=bos_token,
            eos_token=eos_token,
            pad_token=pad_token,
            sp_model_kwargs=sp_model_kwargs,
            add_bos_token=add_bos_token,
            add_eos_token=add_eos_token,
            decode_with_prefix_space=decode_with_prefix_space,
            clean_up_tokenization_spaces=clean_up_tokenization_spaces,
            **kwargs,
        )

    def _load(self, **source) -> None:
        self.sp_model = sentencepiece.SentencePieceProcessor(**source, **self.sp_model_kwargs)
        self._pieces = [self.sp_model.id_to_piece(index) for index in range(self.sp_model.get_piece_size())]

    def __getstate__(self) -> dict:  # a SentencePieceProcessor does not travel to another process
        return {**self.__dict__, "sp_model": self.sp_model.serialized_model_proto()}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._load(model_proto=state["sp_model"])

    @property
    def vocab_size(self) -> int:
        """Number of pieces in `tokenizer.model`, added tokens not counted."""
        return len(self._pieces)

    def get_vocab(self) -> dict:
        """Token to id, added tokens included. A token added under the id of a piece takes that piece's place (the
        published `<|im_end|>` stands for an unused piece)."""
        vocab = {piece: index for index, piece in enumerate(self._pieces) if index not in self._added_tokens_decoder}
        vocab.update(self._added_tokens_encoder)
        return vocab

    def _tokenize(self, text: str, **kwargs) -> list:
        return self.sp_model.encode(text, out_type=str)

    def _convert_token_to_id(self, token: str) -> int:
        return self.sp_model.piece_to_id(token)

    def _convert_id_to_token(self, index: int) -> str:
        if not 0 <= index < self.vocab_size:
            raise ValueError(f"token id {index} is out of range: expected 0 to {len(self) - 1}")
        return self._pieces[index]

    def _segments(self, tokens: list, skipped=()):
        """The text of each stretch of pieces and the added tokens between them, `skipped` left out, in order."""
        pieces = []
        for token in [*tokens, None]:
            if token is not None and token not in self._added_tokens_encoder:
                pieces.append(token)
                continue
            if pieces:
                text = self.sp_model.decode(pieces)
                has_lost_space = pieces[0].startswith(_SPACE) and not text.startswith(" ")
                yield " " + text if self.decode_with_prefix_space and has_lost_space else text
                pieces = []
            if token is not None and token not in skipped:
                yield token

    def convert_tokens_to_string(self, tokens: list) -> str:
        """The text that `tokens` stand for."""
        return "".join(self._segments(tokens))

    def _decode(
        self,
        token_ids,
        skip_special_tokens=False,
        clean_up_tokenization_spaces=None,
        spaces_between_special_tokens=False,
        **kwargs,
    ) -> str:
        # Written out rather than inherited: each generation of transformers joins the parts in another way.
        tokens = self.convert_ids_to_tokens([token_ids] if isinstance(token_ids, int) else token_ids)
        skipped = set(self.all_special_tokens) if skip_special_tokens else ()
        text = (" " if spaces_between_special_tokens else "").join(self._segments(tokens, skipped))
        if clean_up_tokenization_spaces is None:
            clean_up_tokenization_spaces = self.clean_up_tokenization_spaces
        return self.clean_up_tokenization(text) if clean_up_tokenization_spaces else text

    @staticmethod
    def clean_up_tokenization(out_string: str) -> str:
        """`out_string` without the spaces that English puts before neither punctuation nor contractions. One release of
        transformers left this method out of its base class."""
        for ending in (".", "?", "!", ",", "n't", "'m", "'s", "'ve", "'re"):
            out_string = out_string.replace(" " + ending, ending)
        return out_string.replace(" ' ", "'")

    def build_inputs_with_special_tokens(self, token_ids_0: list, token_ids_1=None) -> list:
        """`<s> first second </s>`, the outer two as `add_bos_token` and `add_eos_token` say."""
        bos = [self.bos_token_id] if self.add_bos_token else []
        eos = [self.eos_token_id] if self.add_eos_token else []
        return [*bos, *token_ids_0, *(token_ids_1 or []), *eos]

    def get_special_tokens_mask(self, token_ids_0: list, token_ids_1=None, already_has_special_tokens=False) -> list:
        """1 for each token that `build_inputs_with_special_tokens` adds, 0 for the others; where the ids already have
        them, 1 for each special token."""
        if already_has_special_tokens:
            special = set(self.all_special_ids)
            return [int(token_id in special) for token_id in token_ids_0]
        length = len(token_ids_0) + len(token_ids_1 or [])
        return [1] * bool(self.add_bos_token) + [0] * length + [1] * bool(self.add_eos_token)

    def create_token_type_ids_from_sequences(self, token_ids_0: list, token_ids_1=None) -> list:
        """Zeros: InternLM2 knows no token types."""
        return [0] * len(self.build_inputs_with_special_tokens(token_ids_0, token_ids_1))

    def save_vocabulary(self, save_directory: str, filename_prefix=None) -> tuple:
        """Writes `tokenizer.model` into a folder and returns its path in a tuple.

        Raises:
            ValueError: `save_directory` is not a folder.
        """
        if not os.path.isdir(save_directory):
            raise ValueError(f"save_directory is {save_directory!r}: expected a folder")
        target = os.path.join(save_directory, (filename_prefix + "-" if filename_prefix else "") + VOCAB_FILE)
        if not os.path.isfile(self.vocab_file):
            with open(target, "wb") as file:
                file.write(self.sp_model.serialized_model_proto())
        elif os.path.abspath(self.vocab_file) != os.path.abspath(target):
            shutil.copyfile(self.vocab_file, target)
        return (target,)

    def _save_pretrained(self, save_directory, file_names, *args, **kwargs) -> tuple:
        # Called between writing the configuration and uploading it. Releases since 5.0 take two settings out of it to
        # keep them in a `tokenizer.json`, which a slow tokenizer does not have, and list the special tokens under a
        # name that means something else to earlier releases; all read the old name.
        with open(file_names[0], encoding="utf-8") as file:
            config = json.load(file)
        config.update(add_bos_token=self.add_bos_token, add_eos_token=self.add_eos_token)
        if isinstance(config.get("extra_special_tokens"), list):
            config["additional_special_tokens"] = config.pop("extra_special_tokens")
        with open(file_names[0], "w", encoding="utf-8") as file:
            file.write(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
        return super()._save_pretrained(save_directory, file_names, *args, **kwargs)


# `normalizer_spec { add_dummy_prefix: false }` as a protocol buffer. Of two values of a field the last one counts, so
# that a model with these bytes behind it puts no space in front of a text.
_NO_SPACE_IN_FRONT = b"\x1a\x02\x18\x00"


class LlamaTokenizer(InternLM2Tokenizer):
    """The slow Llama tokenizer, with the published ids of the checkpoints over Phi-3 and Yi.

    For transformers 5, whose `LlamaTokenizer` is a fast one by other rules: there `AutoTokenizer` gives this one for an
    InternVL checkpoint with a `tokenizer.model`, and transformers' own slow one before; as remote code it serves every
    release. It carries the name of the class in the checkpoint's files, and what it saves is loaded by transformers'
    own.

    Args:
        legacy: True encodes each text between two added tokens as if it were a whole text, with the space in front that
            the model adds or does not. False puts one space in front of the whole text, and none behind added tokens.
        add_prefix_space: put that one space, where not `legacy`.
        Otherwise those of `InternLM2Tokenizer`, without a padding token unless there is a name for it.
    """

    # Remote code travels with what it saves. The package needs no code in the folder.
    _auto_class = "AutoTokenizer" if __name__.startswith("transformers_modules.") else None

    def __init__(self, vocab_file, *, pad_token=None, legacy=True, add_prefix_space=True, **kwargs):
        self.legacy = legacy is None or legacy
        self.add_prefix_space = add_prefix_space
        listed = kwargs.get("extra_special_tokens") or kwargs.get("additional_special_tokens") or []
        super().__init__(
            vocab_file, pad_token=pad_token, legacy=self.legacy, add_prefix_space=add_prefix_space, **kwargs
        )
        if isinstance(getattr(self, "extra_special_tokens", None), list) and isinstance(listed, (list, tuple)):
            # Releases since 5.0 count every token marked as special among these, earlier ones those listed only (and
            # mean something else by the name).
            self.extra_special_tokens = listed

    def _load(self, **source) -> None:
        super()._load(**source)
        if not self.legacy:
            super()._load(model_proto=self.sp_model.serialized_model_proto() + _NO_SPACE_IN_FRONT)

    def tokenize(self, text: str, **kwargs) -> list:
        """The tokens of `text`. Where not `legacy`, the space in front is a token of its own before an added token that
        is not listed as special (the role marks of Phi-3), and is dropped before one that is."""
        if self.legacy or not text:
            return super().tokenize(text, **kwargs)
        front = _SPACE if self.add_prefix_space else ""
        tokens = super().tokenize(front + text.replace(_SPACE, " "), **kwargs)
        is_lone_space = len(tokens) > 1 and tokens[0] == _SPACE and tokens[1] in self.all_special_tokens
        return tokens[1:] if is_lone_space else tokens

    def _segments(self, tokens: list, skipped=()):
        for index, text in enumerate(super()._segments(tokens, skipped)):
            yield text[1:] if index == 0 and self.add_prefix_space and text.startswith(" ") else text
