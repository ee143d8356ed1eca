"""The InternLM2 tokenizer against SentencePiece itself, with a toy model trained here in the likeness of the published
one: BPE, byte pieces, no normalisation, no space in front, digits apart, unused pieces that special tokens replace."""

import copy
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from internvl_chat import tokenization_internlm2
from internvl_chat.tokenization_internlm2 import InternLM2Tokenizer, LlamaTokenizer

CORPUS = [
    "Hello world, what is in the picture? Please describe the picture in detail.",
    "The quick brown fox jumps over the lazy dog. It is a dog, isn't it?",
    "图片里有什么？请描述一下这张图片。你好，世界。",
    "Привет, мир! Что на картинке?",
    "日本語のテキストです。写真に何がありますか。",
    "user assistant system 0 1 2 3 4 5 6 7 8 9",
] * 20
BEYOND = ["<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"]
REPLACED = {"[UNUSED_TOKEN_0]": "<|im_end|>", "[UNUSED_TOKEN_1]": "<|im_start|>"}

TEXTS = [
    "Hello world",
    "Hello, what is in the picture?",
    "图片里有什么？",
    "Привет, мир!",
    "日本語のテキスト",
    "العربية हिन्दी ไทย 한국어",  # no letter of these is a piece: bytes
    "naïve café, Ærøskøbing",
    "😀👍🏽 👩‍👩‍👧",
    "0123456789",
    "3.14159 and 1,000,000 and ٣",
    "",
    " ",
    "   ",
    " leading",
    "trailing ",
    "two  three   spaces",
    "\n",
    "line\nline\r\n\n\tend\n",
    "\u3000wide\u00a0hard\u200bzero",
    "[1, 2]: {'x': \"y\"} <tag> </tag> \\n",
]


def train(add_dummy_prefix):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        model_type="bpe",
        vocab_size=480,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=add_dummy_prefix,
        split_digits=True,
        user_defined_symbols=list(REPLACED),
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "dummy_prefix"])
def folder(request, tmp_path_factory):
    """A folder laid out like the tokenizer of a published checkpoint; the published model adds no space in front."""
    path = tmp_path_factory.mktemp("tokenizer")
    (path / "tokenizer.model").write_bytes(train(request.param))
    sp = sentencepiece.SentencePieceProcessor(model_file=str(path / "tokenizer.model"))
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    tokens = {0: "<unk>", 1: "<s>", 2: "</s>"}
    tokens.update({sp.piece_to_id(piece): token for piece, token in REPLACED.items()})
    tokens.update(enumerate(BEYOND, start=sp.get_piece_size()))
    special = [token for index, token in tokens.items() if index > 2]
    files = {
        "tokenizer_config.json": {
            "added_tokens_decoder": {str(i): {"content": t, **plain, "special": True} for i, t in tokens.items()},
            "additional_special_tokens": special,
            "auto_map": {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]},
            "bos_token": "<s>",
            "clean_up_tokenization_spaces": False,
            "eos_token": "</s>",
            "model_max_length": 8192,
            "pad_token": "</s>",
            "tokenizer_class": "InternLM2Tokenizer",
            "unk_token": "<unk>",
        },
        "added_tokens.json": {token: index for index, token in tokens.items() if index > 2},
        "special_tokens_map.json": {
            "additional_special_tokens": special,
            **{
                f"{role}_token": {"content": token, **plain}
                for role, token in [("bos", "<s>"), ("eos", "</s>"), ("pad", "</s>"), ("unk", "<unk>")]
            },
        },
    }
    for name, content in files.items():
        (path / name).write_text(json.dumps(content))
    return path


@pytest.fixture(scope="module")
def sp(folder):
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


@pytest.fixture(scope="module")
def shared(folder):
    """For tests that leave it as it is."""
    return InternLM2Tokenizer.from_pretrained(folder)


@pytest.fixture
def tokenizer(folder):
    return InternLM2Tokenizer.from_pretrained(folder)


# --- ids --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", TEXTS, ids=repr)
def test_text_is_encoded_and_decoded_as_sentencepiece_does(shared, sp, text):
    ids = sp.encode(text)
    assert shared(text)["input_ids"] == [1, *ids]
    assert shared.encode(text, add_special_tokens=False) == ids
    assert shared.tokenize(text) == sp.encode(text, out_type=str)
    assert shared.decode(ids) == sp.decode(ids) == text
    assert shared.decode([1, *ids, 2], skip_special_tokens=True) == text
    assert shared.decode([1, *ids, 2]) == f"<s>{text}</s>"


@given(text=st.text(max_size=40))
@settings(max_examples=150, deadline=None)
def test_any_text_survives(shared, sp, text):
    if "\0" in text:  # SentencePiece's own symbol for the end of a text
        text = text.replace("\0", "")
    ids = shared.encode(text, add_special_tokens=False, split_special_tokens=True)
    assert ids == sp.encode(text)
    assert shared.decode(ids) == sp.decode(ids) == text.replace("▁", " ")  # SentencePiece writes the one for the other


def test_ids_known_beforehand(shared, sp):
    """Digits are pieces of their own, letters never seen are their bytes, both whatever the model has merged."""
    first_byte = sp.piece_to_id("<0x00>")
    assert shared.encode("2024", add_special_tokens=False)[-4:] == [sp.piece_to_id(digit) for digit in "2024"]
    assert shared.encode("ไ", add_special_tokens=False)[-3:] == [first_byte + byte for byte in "ไ".encode()]


def test_special_tokens(shared, sp):
    size = sp.get_piece_size()
    names = ["<unk>", "<s>", "</s>", *REPLACED.values(), *BEYOND]
    ids = [0, 1, 2, *(sp.piece_to_id(piece) for piece in REPLACED), *range(size, size + len(BEYOND))]
    assert shared.convert_tokens_to_ids(names) == ids
    assert shared.convert_ids_to_tokens(ids) == names
    assert (shared.unk_token_id, shared.bos_token_id, shared.eos_token_id, shared.pad_token_id) == (0, 1, 2, 2)
    assert sorted(set(shared.all_special_ids)) == sorted(ids)
    for name, index in zip(names, ids):
        assert shared.encode(name, add_special_tokens=False) == [index]
    assert shared.decode(ids) == "".join(names)
    assert shared.decode(ids, skip_special_tokens=True) == ""


def test_text_between_special_tokens_is_encoded_on_its_own(shared, sp):
    """The published tokenizer does so; encoding the whole text at once would give other ids next to the tokens."""
    parts = ["<|im_start|>", "user\n", "<img>", "<IMG_CONTEXT>", "<IMG_CONTEXT>", "</img>", "\nWhat is this?",
             "<|im_end|>", "<|im_start|>", "assistant\n"]  # fmt: skip
    expected = []
    for part in parts:
        index = shared.convert_tokens_to_ids(part)
        expected += [index] if part in [*BEYOND, *REPLACED.values()] else sp.encode(part)
    ids = shared.encode("".join(parts), add_special_tokens=False)
    assert ids == expected
    assert shared.decode(ids) == "".join(parts)
    assert shared.decode(ids, skip_special_tokens=True) == "user\n\nWhat is this?assistant\n"
    assert shared.decode(ids[:2] + ids[:1], spaces_between_special_tokens=True).startswith("<|im_start|> u")


def test_special_tokens_as_plain_text(shared, sp):
    text = "a <|im_end|></s><img> b"
    ids = shared.encode(text, add_special_tokens=False, split_special_tokens=True)
    assert ids == sp.encode(text)
    assert shared.decode(ids) == text
    assert not set(ids) & set(shared.all_special_ids)


@pytest.mark.parametrize("bos, eos", [(True, False), (False, False), (True, True), (False, True)])
def test_added_bos_and_eos(folder, bos, eos):
    tokenizer = InternLM2Tokenizer.from_pretrained(folder, add_bos_token=bos, add_eos_token=eos)
    first, second = tokenizer.encode("Hello", add_special_tokens=False), [7, 8]
    one = [1] * bos + first + [2] * eos
    two = [1] * bos + first + second + [2] * eos
    assert tokenizer("Hello")["input_ids"] == one
    assert tokenizer.build_inputs_with_special_tokens(first, second) == two
    assert tokenizer.num_special_tokens_to_add() == bos + eos
    assert tokenizer("Hello", return_special_tokens_mask=True)["special_tokens_mask"] == (
        [1] * bos + [0] * len(first) + [1] * eos
    )
    assert tokenizer.get_special_tokens_mask(first, second) == [1] * bos + [0] * (len(first) + 2) + [1] * eos
    assert tokenizer.get_special_tokens_mask([1, 7, 2], already_has_special_tokens=True) == [1, 0, 1]
    assert tokenizer.create_token_type_ids_from_sequences(first, second) == [0] * len(two)


def test_batches(shared, sp):
    texts = ["Hello world", "图片", ""]
    rows = [[1, *sp.encode(text)] for text in texts]
    width = max(map(len, rows))
    for side in ("left", "right"):
        shared.padding_side = side
        batch = shared(texts, padding=True, return_tensors="pt")
        assert list(batch) == ["input_ids", "attention_mask"]
        for ids, mask, row in zip(batch["input_ids"].tolist(), batch["attention_mask"].tolist(), rows):
            gap = width - len(row)
            assert ids == ([2] * gap + row if side == "left" else row + [2] * gap)
            assert mask == ([0] * gap + [1] * len(row) if side == "left" else [1] * len(row) + [0] * gap)
        assert shared.batch_decode(batch["input_ids"], skip_special_tokens=True) == texts


def test_decoding_one_id_after_another(shared):
    """As a stream does: a longer list of ids never changes the text of a shorter one, whole characters given."""
    ids = shared.encode("Hello world, 图片里有什么？", add_special_tokens=False)
    text = shared.decode(ids)
    for end in range(len(ids)):
        piece = shared.decode(ids[:end])
        assert text.startswith(piece.rstrip("\ufffd"))
    assert shared.decode(ids[0]) == shared.decode(ids[:1])


def test_prefix_space(folder, sp):
    lost = sp.decode(["▁the"]) == "the"  # where the model adds a space in front of a text, it drops one again
    for keep in (False, True):
        tokenizer = InternLM2Tokenizer.from_pretrained(folder, decode_with_prefix_space=keep)
        assert tokenizer.convert_tokens_to_string(["▁the"]) == ("the" if lost and not keep else " the")
        assert tokenizer.convert_tokens_to_string(["t", "he"]) == "the"


def test_clean_up_of_spaces(shared):
    ids = shared.encode("it is n't , is it ?", add_special_tokens=False)
    assert shared.decode(ids) == "it is n't , is it ?"
    assert shared.decode(ids, clean_up_tokenization_spaces=True) == "it isn't, is it?"


# --- vocabulary -------------------------------------------------------------------------------------------------------


def test_vocabulary(shared, sp):
    """A token that takes the id of an unused piece replaces it: counting both would misplace tokens added later."""
    vocab = shared.get_vocab()
    assert len(vocab) == len(shared) == sp.get_piece_size() + len(BEYOND)
    assert sorted(vocab.values()) == list(range(len(shared)))
    assert not set(REPLACED) & set(vocab)
    assert all(vocab[shared.convert_ids_to_tokens(index)] == index for index in range(len(shared)))
    assert shared.vocab_size == sp.get_piece_size()


def test_tokens_added_later(tokenizer, tmp_path):
    size = len(tokenizer)
    assert tokenizer.add_tokens(["<new>", "<img>"]) == 1
    assert tokenizer.add_special_tokens({"additional_special_tokens": ["<newer>"]}) == 1
    tokenizer.save_pretrained(tmp_path)
    for one in (tokenizer, InternLM2Tokenizer.from_pretrained(tmp_path), copy.deepcopy(tokenizer)):
        assert one.convert_tokens_to_ids(["<new>", "<newer>"]) == [size, size + 1]
        assert len(one) == size + 2
        assert one.decode([size, size + 1]) == "<new><newer>"


@pytest.mark.parametrize("index", [-1, 10**6])
def test_ids_out_of_range(shared, index):
    with pytest.raises(ValueError, match=f"{index}.*{len(shared) - 1}"):
        shared.decode([index])


# --- files ------------------------------------------------------------------------------------------------------------


def test_save_and_load(folder, shared, tmp_path):
    assert Path(shared.save_pretrained(tmp_path)[0]).is_file()
    assert (tmp_path / "tokenizer.model").read_bytes() == (folder / "tokenizer.model").read_bytes()
    again = InternLM2Tokenizer.from_pretrained(tmp_path)
    assert again.get_vocab() == shared.get_vocab()
    assert set(again.all_special_tokens) == set(shared.all_special_tokens)
    for text in [*TEXTS, "<|im_start|>user\nHello<|im_end|><img></img>"]:
        assert again(text)["input_ids"] == shared(text)["input_ids"]
    for name in ("add_bos_token", "add_eos_token", "decode_with_prefix_space", "clean_up_tokenization_spaces"):
        assert getattr(again, name) == getattr(shared, name)


@pytest.mark.parametrize("bos, eos", [(True, False), (False, False), (False, True)])
def test_what_is_added_is_saved(folder, tmp_path, bos, eos):
    """transformers 5 takes these two out of what it saves."""
    InternLM2Tokenizer.from_pretrained(folder, add_bos_token=bos, add_eos_token=eos).save_pretrained(tmp_path)
    again = InternLM2Tokenizer.from_pretrained(tmp_path)
    assert again("Hello")["input_ids"] == [1] * bos + again("Hello", add_special_tokens=False)["input_ids"] + [2] * eos
    saved = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (saved["add_bos_token"], saved["add_eos_token"]) == (bos, eos)
    assert "<img>" in saved["additional_special_tokens"]  # the name that every release reads


def test_save_vocabulary(folder, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    tokenizer = InternLM2Tokenizer.from_pretrained(moved)
    assert tokenizer.save_vocabulary(str(moved)) == (str(moved / "tokenizer.model"),)  # onto itself
    shutil.rmtree(moved)  # what is loaded does not need the file any more
    (path,) = tokenizer.save_vocabulary(str(tmp_path), filename_prefix="my")
    assert path == str(tmp_path / "my-tokenizer.model")
    assert InternLM2Tokenizer(path).encode("Hello") == tokenizer.encode("Hello")
    with pytest.raises(ValueError, match="absent"):
        tokenizer.save_vocabulary(str(tmp_path / "absent"))


@pytest.mark.parametrize("fast_code", [None, "tokenization_internlm2_fast.InternLM2TokenizerFast"])
@pytest.mark.parametrize("trust_remote_code", [None, False, True])
@pytest.mark.parametrize("use_fast", [True, False])
def test_the_package_door(folder, shared, tmp_path, monkeypatch, use_fast, trust_remote_code, fast_code):
    """A published folder: its code, which some list in two files, is neither run nor asked about."""
    published = tmp_path / "published"
    shutil.copytree(folder, published)
    config = json.loads((published / "tokenizer_config.json").read_text())
    config["auto_map"]["AutoTokenizer"][1] = fast_code
    (published / "tokenizer_config.json").write_text(json.dumps(config))
    (published / "config.json").write_text('{"model_type": "internvl_chat"}')
    for name in ("tokenization_internlm2", "tokenization_internlm2_fast"):
        (published / f"{name}.py").write_text("raise RuntimeError('executed')")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked a question"))
    tokenizer = AutoTokenizer.from_pretrained(published, use_fast=use_fast, trust_remote_code=trust_remote_code)
    assert type(tokenizer) is InternLM2Tokenizer
    assert [tokenizer(text)["input_ids"] for text in TEXTS] == [shared(text)["input_ids"] for text in TEXTS]


BUNDLE = """
import json, sys
from transformers import AutoTokenizer
folder, saved, texts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
answers = []
for name in (folder, saved):
    for use_fast in (True, False):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True, use_fast=use_fast)
        module = type(tokenizer).__module__
        assert module.startswith("transformers_modules.") and module.endswith(".tokenization_internlm2"), module
        assert type(tokenizer).__name__ == "InternLM2Tokenizer" and not tokenizer.is_fast
        answers.append([tokenizer(text)["input_ids"] for text in texts])
    tokenizer.save_pretrained(saved)
assert "internvl_chat" not in sys.modules
print("ANSWERS" + json.dumps(answers))
"""


def test_the_bundle_door(shared, tmp_path):
    """What is saved has the code with it: it loads without this package, saves itself, and loads again. There is no
    fast tokenizer, so that `use_fast` makes no difference."""
    shared.save_pretrained(tmp_path / "bundle")
    (tmp_path / "bundle" / "config.json").write_text('{"model_type": "internlm2"}')
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "config.json").write_text('{"model_type": "internlm2"}')
    texts = [*TEXTS, "<|im_start|>user\nHello<|im_end|>"]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home")}
    environment.pop("HF_MODULES_CACHE", None)
    arguments = [str(tmp_path / "bundle"), str(tmp_path / "again"), json.dumps(texts)]
    done = subprocess.run(
        [sys.executable, "-c", BUNDLE, *arguments], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    expected = [shared(text)["input_ids"] for text in texts]
    assert json.loads(done.stdout.split("ANSWERS")[1]) == [expected] * 4


def test_without_the_package(folder, monkeypatch):
    monkeypatch.setattr(tokenization_internlm2, "sentencepiece", None)
    with pytest.raises(ImportError, match="pip install sentencepiece"):
        InternLM2Tokenizer.from_pretrained(folder)


@pytest.mark.parametrize("vocab_file", [None, "no/such/tokenizer.model"])
def test_without_the_file(vocab_file):
    with pytest.raises(ValueError, match=f"{vocab_file!r}.*tokenizer.model"):
        InternLM2Tokenizer(vocab_file)


def test_chat_template(tokenizer):
    if not hasattr(transformers.PreTrainedTokenizer, "apply_chat_template"):
        pytest.skip("no chat templates in this transformers")
    tokenizer.chat_template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    messages = [{"role": "user", "content": "Hello"}]
    ids = tokenizer.apply_chat_template(messages, tokenize=True)
    ids = ids if isinstance(ids, list) else ids["input_ids"]
    assert tokenizer.decode(ids) == "<|im_start|>user\nHello<|im_end|>"


# --- Llama's slow tokenizer -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spaced(tmp_path_factory):
    """A model that adds a space in front of a text."""
    path = tmp_path_factory.mktemp("spaced") / "tokenizer.model"
    path.write_bytes(train(add_dummy_prefix=True))
    return path, sentencepiece.SentencePieceProcessor(model_file=str(path))


def test_llama_legacy(spaced):
    """`legacy` (as when it is not named) encodes what is between added tokens as SentencePiece encodes a text."""
    path, sp = spaced
    for tokenizer in (LlamaTokenizer(str(path)), LlamaTokenizer(str(path), legacy=None)):
        tokenizer.add_tokens(["<img>"])
        index = len(tokenizer) - 1
        for text in TEXTS:
            assert tokenizer(text)["input_ids"] == [1, *sp.encode(text)]
        assert tokenizer("dog<img>dog")["input_ids"] == [1, *sp.encode("dog"), index, *sp.encode("dog")]


@pytest.mark.parametrize("again", [lambda one: one, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_llama_without_legacy(spaced, again):
    """One space in front of the whole text and none behind added tokens, from the same model."""
    path, sp = spaced
    tokenizer = again(LlamaTokenizer(str(path), legacy=False, additional_special_tokens=["<img>"]))
    image = tokenizer.convert_tokens_to_ids("<img>")
    bare = LlamaTokenizer(str(path), legacy=False, add_prefix_space=False)
    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == [1, *sp.encode(text)]
        assert bare(" " + text)["input_ids"] == ([1, *sp.encode(text)] if text else [1, sp.piece_to_id("▁")])
        assert tokenizer.decode([1, *sp.encode(text)], skip_special_tokens=True) == text
    dog = bare("dog", add_special_tokens=False)["input_ids"]
    assert sp.piece_to_id("▁dog") not in dog and sp.decode(dog) == "dog"
    assert tokenizer("<img>dog")["input_ids"] == [1, image, *dog]
    assert tokenizer("dog<img> dog")["input_ids"] == [1, *sp.encode("dog"), image, *sp.encode("dog")]
    assert tokenizer.decode([image, *dog, image]) == "<img>dog<img>"
    tokenizer.add_tokens(["<mark>"])  # not listed as special: published, the space stays
    assert tokenizer("<mark>dog")["input_ids"] == [1, sp.piece_to_id("▁"), image + 1, *dog]


def test_llama_drops_its_own_space_only(spaced):
    path, sp = spaced
    for legacy in (True, False):
        tokenizer = LlamaTokenizer(str(path), legacy=legacy)
        assert tokenizer.decode(sp.encode("a  b")) == "a  b"
        assert tokenizer.pad_token is None
