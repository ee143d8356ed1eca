"""The ids of the family's tokenizers: literal ones, on every release of transformers, with `use_fast` both ways.

The published vocabularies are not at hand offline: `toy_tokenizers.py` builds small ones with the published rules. The
table holds what the release gives with which the checkpoints were published (4.37.2, `use_fast=False`, as on the model
cards), and SentencePiece and tiktoken, which know nothing of transformers, must agree with it.
"""

import json
import shutil
import unicodedata

import pytest
import sentencepiece
import toy_tokenizers
import transformers
from transformers import AutoTokenizer

import internvl_chat
from internvl_chat.tokenization_internlm2 import InternLM2Tokenizer, LlamaTokenizer

TEXTS = [
    "Hello world, is the dog in?",
    " the  dog   is\n\nin\n \n the text .\n",
    "图片里有什么？你好，世界。",
    "Привет, мир! Que é?",
    "日本語のテキスト 한국 ไ",
    "ed e\u0301d \u00e9d",
    "😀👍🏽",
    "12345 3.14 2024 ٣",
    "It isn't what'll ISN'T!!",
    "",
    " ",
    "   ",
    "\n",
    "<|im_start|>\nis<|im_end|>\n",
    "<|user|>\n<img><IMG_CONTEXT></img>\nWhat is 12?<|end|>",
    "<|message|> Hello <ref>dog</ref><box>[[1]]</box>",
    "a </s> b <s>c<unk>d <|im_end",
]
# A row of ids for each text; "-" stands for none.
GOLDEN = {
    "internlm2": """
1 286 279 421 263 261 274 264 422
1 261 329 274 301 263 13 13 333 335 13 329 13 261 282 329 420 13
1 311 242 191 162 305 242 191 143 306 230 131 133
1 366 367 368 369 370 371 421 320 355 329 406 338 332 329 381 422
1 373 374 375 327 329 240 152 159 237 184 176 329 227 188 135
1 328 329 332 207 132 340 329 381 340
1 243 162 155 131 243 162 148 144 243 162 146 192
1 297 354 415 329 352 420 350 354 329 300 329 220 166
1 398 330 263 335 292 275 331 348 330 295 329 398 408 403 349 409 304
1
1 329
1 302
1 13
1 433 13 290 432 13
1 423 425 338 334 332 339 425 424 13 434 436 435 13 289 263 329 296 422 423 425 332 335 340 425 424
1 423 425 386 332 334 334 348 342 332 425 424 329 286 329 439 340 341 342 440 441 94 94 350 96 96 442
1 348 329 2 329 382 329 1 337 0 340 329 423 425 333 386 426 332 335 340
""",
    "phi3": """
1 329 286 279 421 263 261 274 264 422
1 329 261 329 274 301 263 13 13 333 335 13 329 13 261 282 329 420 13
1 329 311 242 191 162 305 242 191 143 306 230 131 133
1 317 421 320 355 329 406 338 332 329 381 422
1 323 327 329 240 152 159 237 184 176 329 227 188 135
1 329 328 329 332 207 132 340 329 381 340
1 329 243 162 155 131 243 162 148 144 243 162 146 192
1 329 297 354 415 329 352 420 350 354 329 300 329 220 166
1 329 398 330 263 335 292 275 331 348 330 295 329 398 408 403 349 409 304
1
1 301
1 303
1 329 13
1 329 423 425 333 386 426 334 330 348 339 330 425 424 13 290 423 425 333 386 426 332 335 340 425 424 13
1 329 438 439 441 440 13 289 263 329 296 422 435
1 329 423 425 386 332 334 334 348 342 332 425 424 329 286 329 444 340 341 342 445 446 94 94 350 96 96 447
1 329 348 329 2 382 329 1 337 0 340 329 423 425 333 386 426 332 335 340
""",
    "yi": """
286 279 421 263 261 274 264 422
261 329 274 301 263 13 13 333 335 13 329 13 261 282 329 420 13
311 242 191 162 305 242 191 143 306 230 131 133
366 367 368 369 370 371 421 320 355 329 406 338 332 329 381 422
373 374 375 327 329 240 152 159 237 184 176 329 227 188 135
328 329 332 207 132 340 329 381 340
243 162 155 131 243 162 148 144 243 162 146 192
297 354 415 329 352 420 350 354 329 300 329 220 166
398 330 263 335 292 275 331 348 330 295 329 398 408 403 349 409 304
-
329
302
13
428 13 290 429 13
423 425 338 334 332 339 425 424 13 430 432 431 13 289 263 329 296 422 423 425 332 335 340 425 424
423 425 386 332 334 334 348 342 332 425 424 329 286 329 435 340 341 342 436 437 94 94 350 96 96 438
348 329 423 427 334 424 329 382 329 423 334 424 337 0 340 329 423 425 333 386 426 332 335 340
""",
    "qwen2": """
283 276 44 260 258 271 261 63
258 32 271 298 260 301 105 110 302 10 258 279 32 303
332 239 188 159 310 239 188 140 315 227 128 130
208 159 209 128 208 184 208 178 208 181 209 130 44 349 33 32 81 117 101 32 373 63
230 151 165 230 156 172 232 170 158 372 32 237 149 156 234 181 173 32 224 185 132
374 32 373 100 32 373 100
240 159 152 128 240 159 145 141 240 159 143 189
49 50 51 52 53 32 51 46 49 52 32 50 48 50 52 32 217 163
73 116 260 110 289 272 104 97 116 292 32 73 83 78 39 84 305
-
32
299
10
376 10 287 377 10
60 124 117 115 101 114 124 62 10 378 380 379 10 286 260 32 49 50 63 60 124 101 110 100 124 62
60 124 109 101 115 115 97 103 101 124 62 32 283 32 383 100 111 103 384 385 91 91 49 93 93 386
97 32 60 47 115 62 32 98 32 60 115 62 99 60 117 110 107 62 100 32 60 124 105 109 95 101 110 100
""",
    "llama3": """
375 283 276 44 260 258 271 261 63
375 258 32 271 298 260 301 105 110 302 10 258 279 32 303
375 332 239 188 159 310 239 188 140 315 227 128 130
375 208 159 209 128 208 184 208 178 208 181 209 130 44 349 33 32 81 117 101 32 373 63
375 230 151 165 230 156 172 232 170 158 372 32 237 149 156 234 181 173 32 224 185 132
375 374 32 101 204 129 100 32 373 100
375 240 159 152 128 240 159 145 141 240 159 143 189
375 294 52 53 32 51 46 49 52 32 296 52 32 217 163
375 73 116 260 110 289 272 104 97 116 292 32 73 83 78 39 84 305
375
375 32
375 299
375 10
375 377 10 287 378 10
375 60 124 117 115 101 114 124 62 10 379 381 380 10 286 260 32 293 63 60 124 101 110 100 124 62
375 60 124 109 101 115 115 97 103 101 124 62 32 283 32 384 100 111 103 385 386 91 91 49 93 93 387
375 97 32 60 47 115 62 32 98 32 60 115 62 99 60 117 110 107 62 100 32 60 124 105 109 95 101 110 100
""",
    "gpt_oss": """
283 276 44 260 258 271 261 63
258 32 271 298 260 301 105 110 302 10 258 279 32 303
332 239 188 159 310 239 188 140 315 227 128 130
208 159 209 128 208 184 208 178 208 181 209 130 44 349 33 32 81 117 101 32 373 63
230 151 165 230 156 172 232 170 158 372 32 237 149 156 234 181 173 32 224 185 132
374 32 101 204 129 100 32 373 100
240 159 152 128 240 159 145 141 240 159 143 189
294 52 53 32 51 46 49 52 32 296 52 32 217 163
73 116 260 110 289 272 104 97 116 292 32 73 83 78 39 84 305
-
32
299
10
60 124 105 109 95 115 116 97 114 116 124 62 10 287 60 124 105 109 95 101 110 100 124 62 10
60 124 117 115 101 114 124 62 10 384 386 385 10 286 260 32 293 63 381
382 32 283 32 389 100 111 103 390 391 91 91 49 93 93 392
97 32 60 47 115 62 32 98 32 60 115 62 99 60 117 110 107 62 100 32 60 124 105 109 95 101 110 100
""",
}
FAMILIES = list(GOLDEN)
IDS = {family: [[int(index) for index in row.split() if row != "-"] for row in table.split("\n")[1:-1]]
       for family, table in GOLDEN.items()}  # fmt: skip
LLAMA = ("phi3", "yi")  # those with Llama's slow class
BYTE_LEVEL = {"qwen2": None, "llama3": toy_tokenizers.LLAMA3_PATTERN, "gpt_oss": toy_tokenizers.GPT_OSS_PATTERN}
NO_TOKENS = "<|", "</s>", "<s>", "<unk>", "<img>", "<ref>"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The tokenizer of each family in a folder of an InternVL checkpoint."""
    folders = {}
    for family in FAMILIES:
        folders[family] = getattr(toy_tokenizers, f"write_{family}")(tmp_path_factory.mktemp(family))
        (folders[family] / "config.json").write_text('{"model_type": "internvl_chat"}')
    return folders


@pytest.fixture(scope="module")
def load(folders):
    cached = {}

    def load(family, use_fast):
        if (family, use_fast) not in cached:
            cached[family, use_fast] = AutoTokenizer.from_pretrained(folders[family], use_fast=use_fast)
        return cached[family, use_fast]

    return load


BOTH = pytest.mark.parametrize("use_fast", [True, False], ids=["fast", "slow"])
ALL = pytest.mark.parametrize("family", FAMILIES)


@BOTH
@ALL
def test_golden_ids(load, family, use_fast):
    tokenizer = load(family, use_fast)
    assert {text: tokenizer(text)["input_ids"] for text in TEXTS} == dict(zip(TEXTS, IDS[family]))


def test_golden_ids_are_sentencepiece_s(folders):
    """Text without tokens in it: SentencePiece on its own, after the start token where there is one."""
    for family, start in [("internlm2", [1]), ("phi3", [1]), ("yi", [])]:
        processor = sentencepiece.SentencePieceProcessor(model_file=str(folders[family] / "tokenizer.model"))
        for text, ids in zip(TEXTS, IDS[family]):
            if not any(mark in text for mark in NO_TOKENS):
                assert ids == start + processor.encode(text), (family, text)


@pytest.mark.parametrize("family", BYTE_LEVEL)
def test_golden_ids_are_tiktoken_s(load, family):
    """Another implementation of byte-level merging, with the pattern by which the family cuts text; Qwen2's is Llama
    3's with each digit apart, after normalising."""
    tiktoken = pytest.importorskip("tiktoken")
    letters = {letter: byte for byte, letter in enumerate(toy_tokenizers.byte_letters())}
    vocab, _ = toy_tokenizers.byte_level_bpe()
    added = load(family, True).get_added_vocab()
    encoding = tiktoken.Encoding(
        family,
        pat_str=BYTE_LEVEL[family] or toy_tokenizers.LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}"),
        mergeable_ranks={bytes(letters[letter] for letter in token): index for token, index in vocab.items()},
        special_tokens=added,
    )
    start = [added["<|begin_of_text|>"]] if family == "llama3" else []
    for text, ids in zip(TEXTS, IDS[family]):
        text = unicodedata.normalize("NFC", text) if family == "qwen2" else text
        assert ids == start + encoding.encode(text, allowed_special="all"), text


@BOTH
@ALL
def test_special_tokens(load, folders, family, use_fast):
    tokenizer = load(family, use_fast)
    config = json.loads((folders[family] / "tokenizer_config.json").read_text())
    ids = {token["content"]: int(index) for index, token in config["added_tokens_decoder"].items()}
    for role in ("bos_token", "eos_token", "pad_token", "unk_token"):
        assert getattr(tokenizer, role) == config.get(role)
        assert getattr(tokenizer, f"{role}_id") == ids.get(config.get(role))
    for token, index in ids.items():
        assert tokenizer.convert_tokens_to_ids(token) == index
        assert tokenizer.convert_ids_to_tokens(index) == token
        assert tokenizer.added_tokens_decoder[index].special is (token != "</s>" or family != "phi3")
    image_ids = [ids[token] for token in toy_tokenizers.IMAGE_TOKENS]
    assert image_ids == list(range(image_ids[0], image_ids[0] + 9))
    assert len(tokenizer) == image_ids[-1] + 1
    without = tokenizer("".join(toy_tokenizers.IMAGE_TOKENS), add_special_tokens=False)["input_ids"]
    assert without == image_ids


@BOTH
@ALL
def test_text_comes_back(load, family, use_fast):
    tokenizer = load(family, use_fast)
    for text in TEXTS:
        if any(mark in text for mark in NO_TOKENS):
            continue
        expected = unicodedata.normalize("NFC", text) if family == "qwen2" else text
        if family == "yi":  # published: the space that SentencePiece never put there is dropped all the same
            expected = expected[expected.startswith(" ") :]
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) == expected


@BOTH
@ALL
def test_a_saved_tokenizer_gives_the_same_ids(load, family, use_fast, tmp_path):
    tokenizer = load(family, use_fast)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "internvl_chat"}')
    saved = json.loads((tmp_path / "tokenizer_config.json").read_text())
    # 4.49 to 4.53 give a tokenizer that is fast only the name of a slow class, and then load `False` as the slow one.
    use_fast = use_fast or saved["tokenizer_class"] == "PreTrainedTokenizer"
    again = AutoTokenizer.from_pretrained(tmp_path, use_fast=use_fast)
    assert len(again) == len(tokenizer)
    assert {text: again(text)["input_ids"] for text in TEXTS} == dict(zip(TEXTS, IDS[family]))
    if family == "internlm2":
        assert type(again) is InternLM2Tokenizer
        assert saved["auto_map"] == {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]}
        assert (tmp_path / "tokenization_internlm2.py").is_file()
    elif family in LLAMA:
        assert type(again) is type(tokenizer)
        assert saved["tokenizer_class"] == "LlamaTokenizer" and "auto_map" not in saved
        assert not list(tmp_path.glob("*.py"))


@BOTH
@ALL
def test_the_class(load, family, use_fast):
    """Two have no fast tokenizer with their ids, so that `use_fast` makes no difference: InternLM2, and Llama's with a
    `tokenizer.model`, where `AutoTokenizer` gives transformers' own slow class before 5.0 and ours since."""
    tokenizer = load(family, use_fast)
    if family == "internlm2":
        assert type(tokenizer) is InternLM2Tokenizer
    elif family in LLAMA:
        assert not tokenizer.is_fast and type(tokenizer).__name__ == "LlamaTokenizer"
        assert (type(tokenizer) is LlamaTokenizer) == hasattr(transformers, "TokenizersBackend")
    else:
        assert type(tokenizer).__module__.startswith("transformers.")


def test_only_such_folders_get_the_slow_llama_tokenizer(folders, tmp_path):
    """Not those of other models, and not where a `tokenizer.json` is there and wanted."""
    for name, model_type in [("internvl", "internvl_chat"), ("llama", "llama")]:
        shutil.copytree(folders["phi3"], tmp_path / name)
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": model_type}))
    config = internvl_chat.InternVLChatConfig()
    for kwargs, is_slow in [({}, True), ({"config": config}, True), ({"config": config.llm_config}, False)]:
        assert AutoTokenizer.from_pretrained(tmp_path / "internvl", **kwargs).is_fast is not is_slow
    assert AutoTokenizer.from_pretrained(tmp_path / "llama").is_fast
    shutil.copy(folders["llama3"] / "tokenizer.json", tmp_path / "internvl")
    assert AutoTokenizer.from_pretrained(tmp_path / "internvl").is_fast
    assert not AutoTokenizer.from_pretrained(tmp_path / "internvl", use_fast=False).is_fast
    with pytest.raises((OSError, ValueError)):
        AutoTokenizer.from_pretrained(tmp_path / "nothing")
