"""Tokenizer, processor, chat template and generation settings of converted folders, through transformers' classes."""

import json
import shutil

import numpy as np
import pytest
import torch
import toy_tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer

import internvl_chat
from internvl_chat.conversation import get_conv_template
from internvl_chat.convert_internvl import convert
from internvl_chat.prompt_internvl import ImageTokens, build_prompt
from internvl_chat.tokenizer_json_internvl import fast_tokenizer

if not hasattr(transformers, "InternVLForConditionalGeneration"):
    pytest.skip("this transformers has no native InternVL", allow_module_level=True)
pytest.importorskip("torchvision")

# Layout of the tokenizer's files -> (language model, template, what writes the files).
KINDS = {
    "Qwen2": ("Qwen2", "Hermes-2", toy_tokenizers.write_qwen2),
    "InternLM2": ("InternLM2", "internlm2-chat", toy_tokenizers.write_internlm2),
    "InternLM2, space in front": ("InternLM2", "internvl2_5", lambda f: toy_tokenizers.write_internlm2(f, True)),
    "Llama3": ("Llama", "internlm2-chat", toy_tokenizers.write_llama3),
    "Yi": ("Llama", "Hermes-2", toy_tokenizers.write_yi),
    "Phi3": ("Phi3", "phi3-chat", toy_tokenizers.write_phi3),
    "GptOss": ("GptOss", "internvl3_5_gpt_oss", toy_tokenizers.write_gpt_oss),
}
TILES = {"dynamic_image_size": True, "use_thumbnail": True, "max_dynamic_patch": 6, "force_image_size": 32}
TEXTS = [
    *("Hello world", " What is\nin the  picture?  ", "你好 世界", "é 12 2024 isn't !!", "日本語 😀 ไทย"),
    *("", "<unk>x", "<img><IMG_CONTEXT></img>", "a <ref>b</ref>\n<box> c", "<|im_start|>user\n\nHello<|im_end|> \nx"),
    *("<|user|>\n Hello <|end|>\n<|assistant|>  x </s> y", " <|end|>", "<|end|>"),
]


@pytest.fixture(scope="module", params=KINDS, ids=str)
def folders(request, toy_model, tmp_path_factory):
    """(original folder, native folder, our model, the tokenizer of the original)."""
    llm, template, write = KINDS[request.param]
    folder = tmp_path_factory.mktemp("checkpoint")
    toy_model(llm, text={"vocab_size": 800}, template=template, **TILES).save_pretrained(folder / "original")
    write(folder / "original")
    if request.param == "Qwen2":
        config = folder / "original" / "tokenizer_config.json"
        values = json.loads(config.read_text(encoding="utf-8"))
        config.write_text(json.dumps({**values, "chat_template": "{{ 'published' }}"}))
    convert(folder / "original", folder / "native")
    model = internvl_chat.InternVLChatModel.from_pretrained(folder / "original", torch_dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "original", use_fast=False)
    return folder / "original", folder / "native", model, tokenizer


def read(folder, name):
    return json.loads((folder / name).read_text(encoding="utf-8"))


def picture(width, height):
    """Coarse noise, so that resizing has something to round."""
    numbers = np.random.default_rng(width).integers(0, 256, (height // 10 + 1, width // 10 + 1, 3), dtype=np.uint8)
    return Image.fromarray(numbers).resize((width, height), Image.BICUBIC)


def test_the_tokenizer_gives_the_same_ids(folders):
    _, native, _, tokenizer = folders
    fast = transformers.AutoProcessor.from_pretrained(native).tokenizer
    assert fast.context_image_token == "<IMG_CONTEXT>" and fast.start_image_token == "<img>"
    for text in TEXTS:
        assert fast(text)["input_ids"] == tokenizer(text)["input_ids"], text
    for text in TEXTS[:5]:  # without tokens in it
        ids = tokenizer(text)["input_ids"]
        assert fast.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids, skip_special_tokens=True)


def messages(*turns):
    return [{"role": role, "content": text} for role, text in turns]


CONVERSATIONS = [
    [("user", "Hello")],
    [("user", "Hello"), ("assistant", "Hi!"), ("user", "What is in the picture?")],
    [("system", "Be brief."), ("user", "你好")],
]


@pytest.mark.parametrize("turns", CONVERSATIONS, ids=len)
def test_prompts_are_those_of_chat(folders, turns):
    _, native, model, tokenizer = folders
    processor = transformers.AutoProcessor.from_pretrained(native)
    template = get_conv_template(model.config.template)
    for role, text in turns:
        if role == "system":
            template.set_system_message(text)
        else:
            template.append_message(template.roles[role == "assistant"], text)
    template.append_message(template.roles[1], None)
    given = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
    for each in (given, messages(*turns)):
        text = processor.apply_chat_template(each, add_generation_prompt=True, tokenize=False)
        assert text == template.get_prompt()
    inputs = processor.apply_chat_template(
        given, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    expected = build_prompt(tokenizer, template, [], ImageTokens(model.num_image_token))
    assert inputs["input_ids"].tolist() == [expected]


def test_images_and_videos(folders):
    """Tiles and tokens are those of `load_image`; a video is a line for each frame."""
    _, native, model, tokenizer = folders
    processor = transformers.AutoProcessor.from_pretrained(native, use_fast=False)
    assert type(processor).__name__ == "InternVLProcessor"
    image = picture(100, 60)
    content = [{"type": "image", "image": image}, {"type": "text", "text": "Describe."}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    tiles = model.load_image(image)
    assert len(tiles) > 2
    torch.testing.assert_close(torch.as_tensor(inputs["pixel_values"]), tiles, atol=1e-6, rtol=0)
    template = get_conv_template(model.config.template)
    template.append_message(template.roles[0], "<image>\nDescribe.")
    template.append_message(template.roles[1], None)
    expected = build_prompt(tokenizer, template, [len(tiles)], ImageTokens(model.num_image_token))
    assert inputs["input_ids"].tolist() == [expected]

    content = [{"type": "video"}, {"type": "text", "text": "Describe."}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    frames = np.stack([np.asarray(picture(50, 40))] * 2)
    inputs = processor(text=[text], videos=[frames], return_tensors="pt")
    assert inputs["pixel_values"].shape == (2, 3, 32, 32)
    tile = "<img>" + "<IMG_CONTEXT>" * model.num_image_token + "</img>"
    template.messages = [[template.roles[0], f"Frame1: {tile}\nFrame2: {tile}\nDescribe."]]
    assert inputs["input_ids"].tolist() == [tokenizer(template.get_prompt())["input_ids"]]


@pytest.fixture(scope="module")
def large_tiles(toy_model, tmp_path_factory):
    """A native folder for tiles of the published size."""
    folder = tmp_path_factory.mktemp("large")
    options = {**TILES, "force_image_size": 448, "max_dynamic_patch": 12}
    toy_model(text={"vocab_size": 800}, **options).save_pretrained(folder / "original")
    toy_tokenizers.write_qwen2(folder / "original")
    convert(folder / "original", folder / "native")
    return folder / "native"


@pytest.mark.parametrize("size", [(640, 480), (1200, 700), (300, 900), (448, 448), (200, 200)], ids=str)
def test_pixels_of_both_resizers(large_tiles, size):
    """With Pillow exact; with torchvision, the default, at most two levels of 255 away, in few of the values."""
    image = picture(*size)
    expected = internvl_chat.load_image(image)
    for options, levels, share in (({"use_fast": False}, 1e-3, 0), ({}, 2.1, 0.05)):
        processor = transformers.AutoImageProcessor.from_pretrained(large_tiles, **options)
        pixel_values = processor(image, crop_to_patches=True, return_tensors="pt")["pixel_values"]
        actual = torch.as_tensor(np.asarray(pixel_values))
        assert actual.shape == expected.shape
        difference = (actual - expected).abs() * 255 * torch.tensor([0.229, 0.224, 0.225])[:, None, None]
        assert difference.max() <= levels
        assert (difference > 0.1).float().mean() <= share


def test_the_files_are_those_that_transformers_would_write(folders, tmp_path):
    """Made by hand for the sake of older releases; transformers' own processor, loaded and saved, says the same."""
    _, native, model, _ = folders
    processor = transformers.AutoProcessor.from_pretrained(native)
    assert processor.image_seq_length == model.num_image_token
    image, video = processor.image_processor, processor.video_processor
    for part in (image, video):
        assert dict(part.size) == {"height": 32, "width": 32}
        assert list(part.image_mean) == list(internvl_chat.preprocessing_internvl.IMAGENET_MEAN)
        assert list(part.image_std) == list(internvl_chat.preprocessing_internvl.IMAGENET_STD)
        assert part.rescale_factor == 1 / 255 and part.resample == 3
    assert (image.min_patches, image.max_patches, image.crop_to_patches) == (1, 6, True)
    processor.save_pretrained(tmp_path)
    again = transformers.AutoProcessor.from_pretrained(tmp_path)
    ignored = ("transformers_version", "_processor_class", "processor_class", "data_format")
    for one, other in ((image, again.image_processor), (video, again.video_processor)):
        kept = [{k: v for k, v in part.to_dict().items() if k not in ignored} for part in (one, other)]
        assert kept[0] == kept[1]
    assert (
        again.chat_template == processor.chat_template == (native / "chat_template.jinja").read_text(encoding="utf-8")
    )


def test_every_end_of_an_answer_stops_the_native_model(folders):
    original, native, model, tokenizer = folders
    stops = transformers.GenerationConfig.from_pretrained(native).eos_token_id
    marks = [tokenizer.convert_tokens_to_ids(mark) for mark in model.conv_template.end_marks()]
    assert set(marks) <= set(stops) and None not in stops


def test_the_way_back_restores_the_small_files(folders, tmp_path):
    original, native, _, tokenizer = folders
    convert(native, tmp_path / "again", "original")
    for path in original.glob("*.json"):
        assert read(tmp_path / "again", path.name) == read(original, path.name), path.name
    for name in ("tokenizer.model", "merges.txt", "chat_template.jinja"):
        assert (tmp_path / "again" / name).is_file() == (original / name).is_file()
    names = {path.name for path in (tmp_path / "again").iterdir()}
    assert {path.name for path in original.iterdir()} <= names
    assert {name for name in names if not name.endswith(".py")} <= {path.name for path in original.iterdir()}
    is_ours = read(original, "tokenizer_config.json")["tokenizer_class"] in ("InternLM2Tokenizer", "LlamaTokenizer")
    assert ("tokenization_internlm2.py" in names) == is_ours


def test_a_tokenizer_that_is_code_of_the_checkpoint(folders, tmp_path):
    """The code does not go along: a `tokenizer.json` stands in for it, and without one nothing is converted."""
    source, _, _, tokenizer = folders
    original, native, again = (tmp_path / name for name in ("original", "native", "again"))
    shutil.copytree(source, original)
    name = "tokenizer_config.json"
    values = {**read(original, name), "tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.X", None]}}
    (original / name).write_text(json.dumps(values))
    if not (original / "tokenizer.json").is_file():
        with pytest.raises(ValueError, match="'OwnTokenizer'.*tokenizer.json"):
            convert(original, native)
        return
    convert(original, native)
    convert(native, again, "original")
    for folder in (native, again):
        assert (
            transformers.AutoTokenizer.from_pretrained(folder)("Hello  you")["input_ids"]
            == (tokenizer("Hello  you")["input_ids"])
        )


def test_a_native_folder_that_transformers_saved_goes_back_too(folders, tmp_path):
    """Tokenizer and processor saved anew, in whatever form this release has: the ids stay, the prompt is ours."""
    _, native, model, tokenizer = folders
    shutil.copytree(native, tmp_path / "saved")
    for path in (tmp_path / "saved").iterdir():
        if path.suffix != ".safetensors" and path.name != "config.json":
            path.unlink()
    transformers.AutoProcessor.from_pretrained(native).save_pretrained(tmp_path / "saved")
    convert(tmp_path / "saved", tmp_path / "again", "original")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    for text in TEXTS:
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    config = internvl_chat.InternVLChatConfig.from_pretrained(tmp_path / "again")
    assert config.template == model.config.template and config.max_dynamic_patch == 6


def test_a_native_checkpoint_from_elsewhere_gets_our_processor(folders, tmp_path):
    _, native, model, tokenizer = folders
    shutil.copytree(native, tmp_path / "hf")
    values = read(native, "config.json")
    del values["internvl_chat"]
    (tmp_path / "hf" / "config.json").write_text(json.dumps(values))
    convert(tmp_path / "hf", tmp_path / "ours", "original", template=model.config.template)
    values = read(tmp_path / "ours", "config.json")
    names = ("max_dynamic_patch", "min_dynamic_patch", "force_image_size", "dynamic_image_size", "use_thumbnail")
    assert [values[name] for name in names] == [6, 1, 32, True, True]
    template = get_conv_template(model.config.template)
    template.append_message(template.roles[0], "<image>\nHello")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    text = [{"type": "image"}, {"type": "text", "text": "Hello"}]
    assert again.apply_chat_template([{"role": "user", "content": text}], tokenize=False) == template.get_prompt()
    assert again("Hello world")["input_ids"] == tokenizer("Hello world")["input_ids"]
    processor = internvl_chat.processing_internvl.InternVLChatProcessor.from_pretrained(tmp_path / "ours")
    assert processor.image_processor.max_patches == 6


# --- SentencePiece tokenizers as one file -----------------------------------------------------------------------------

SENTENCEPIECE = {name: KINDS[name][2] for name in ("InternLM2", "InternLM2, space in front", "Phi3", "Yi")}


@pytest.fixture(scope="module", params=SENTENCEPIECE, ids=str)
def both_tokenizers(request, tmp_path_factory):
    """(the slow one of the original folder, the one that is made)."""
    folder = SENTENCEPIECE[request.param](tmp_path_factory.mktemp("tokenizer"))
    (folder / "config.json").write_text('{"model_type": "internvl_chat"}')
    values = fast_tokenizer(folder / "tokenizer.model", read(folder, "tokenizer_config.json"))
    return transformers.AutoTokenizer.from_pretrained(folder, use_fast=False), Tokenizer.from_str(json.dumps(values))


PIECES = [*TEXTS, "<|im_end|>", "<|im_start|>", "<img>", "<|user|>", "<|end|>", "  ", "\n", "▁", " x"]


@given(text=st.one_of(st.text(max_size=30), st.lists(st.sampled_from(PIECES), max_size=6).map("".join)))
@settings(max_examples=150, deadline=None)
def test_fast_and_slow_agree(both_tokenizers, text):
    slow, fast = both_tokenizers
    text = text.replace("\0", "")  # the end of a text for SentencePiece
    if text in slow.added_tokens_encoder:  # see `_rules_of_a_whole_text`
        return
    expected = slow(text)["input_ids"]
    assert fast.encode(text).ids == expected
    if not set(expected) & (set(slow.added_tokens_decoder) - {1}):  # 1 is the bos token
        assert fast.decode(expected) == slow.decode(expected, skip_special_tokens=True)


@pytest.mark.parametrize("options", [{"add_bos_token": False}, {"add_eos_token": True}], ids=str)
def test_internlm2_frame(tmp_path, options):
    folder = toy_tokenizers.write_internlm2(tmp_path)
    config = {**read(folder, "tokenizer_config.json"), **options}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    fast = Tokenizer.from_str(json.dumps(fast_tokenizer(folder / "tokenizer.model", config)))
    slow = internvl_chat.InternLM2Tokenizer.from_pretrained(folder)
    assert fast.encode("Hello world").ids == slow("Hello world")["input_ids"]
    assert fast.encode("Hello", "world").ids == slow("Hello", "world")["input_ids"]


@pytest.mark.parametrize("data", [b"", b"no model at all", bytes(100), b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"])
def test_no_sentencepiece_model(tmp_path, data):
    (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises(ValueError, match="tokenizer.model"):
        fast_tokenizer(tmp_path / "tokenizer.model", {})


# --- the shipped checkpoint -------------------------------------------------------------------------------------------


def test_native_answers_are_those_of_chat(checkpoint, shipped_model, shipped_tokenizer, tmp_path):
    names = ("*.json", "*.txt", "*.jinja", "*.safetensors")
    (tmp_path / "original").mkdir()
    for path in (path for pattern in names for path in checkpoint.glob(pattern)):
        shutil.copyfile(path, tmp_path / "original" / path.name)
    convert(tmp_path / "original", tmp_path / "native")
    model = transformers.InternVLForConditionalGeneration.from_pretrained(
        tmp_path / "native", torch_dtype=torch.float32
    ).eval()
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "native", use_fast=False)
    image = Image.open(checkpoint / "examples" / "wide.png").convert("RGB")
    content = [{"type": "image", "image": image}, {"type": "text", "text": "Describe the image."}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    output = model.generate(**inputs, max_new_tokens=24, do_sample=False)
    answer = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    question, options = "<image>\nDescribe the image.", {"max_new_tokens": 24, "do_sample": False}
    expected = shipped_model.chat(shipped_tokenizer, shipped_model.load_image(image), question, options)
    assert answer.strip() == expected and len(expected) > 5
