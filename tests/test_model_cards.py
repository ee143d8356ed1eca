"""The calls of the InternVL model cards, with their arguments, on the shipped checkpoint.

Pictures and video are those of `examples/`, `.cuda()` is left out. Two generations of cards: InternVL2 (greedy, at
most 6 tiles) and InternVL3 (sampling, at most 12). What an answer must say is read from the scenes that were drawn.
"""

import copy
import importlib.util
from pathlib import Path
from threading import Thread

import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoTokenizer, TextIteratorStreamer

from internvl_chat import load_image, load_video

PATH = Path(__file__).resolve().parent.parent
IMAGE1, IMAGE2, WIDE = (str(PATH / "examples" / name) for name in ("image1.jpg", "image2.jpg", "wide.png"))
VIDEO = str(PATH / "examples" / "moving_circle.mp4")

GREEDY = dict(num_beams=1, max_new_tokens=1024, do_sample=False)
SAMPLING = dict(max_new_tokens=1024, do_sample=True)


@pytest.fixture(scope="module")
def scenes():
    spec = importlib.util.spec_from_file_location("render_media", PATH / "examples" / "render_media.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model():
    return AutoModel.from_pretrained(
        PATH, torch_dtype=torch.bfloat16, low_cpu_mem_usage=True, use_flash_attn=True, trust_remote_code=True
    ).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(PATH, trust_remote_code=True, use_fast=False)


# --- loading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keywords",
    [
        dict(torch_dtype=torch.bfloat16, low_cpu_mem_usage=True, trust_remote_code=True),
        dict(torch_dtype=torch.bfloat16, low_cpu_mem_usage=True, use_flash_attn=True, trust_remote_code=True),
        dict(
            torch_dtype=torch.bfloat16,
            load_in_8bit=False,
            low_cpu_mem_usage=True,
            use_flash_attn=True,
            trust_remote_code=True,
        ),
    ],
    ids=["InternVL2", "InternVL3", "load_in_8bit=False"],
)
def test_loading(keywords, tokenizer):
    given = dict(keywords)
    model = AutoModel.from_pretrained(str(PATH), **keywords).eval()
    assert keywords == given
    assert type(model).__name__ == "InternVLChatModel"
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert model.chat(tokenizer, None, "Hello, who are you?", dict(GREEDY)).startswith("Hello!")


def test_slow_and_fast_tokenizer_give_the_same_answer(model, tokenizer):
    default = AutoTokenizer.from_pretrained(str(PATH), trust_remote_code=True)
    pixel_values = load_image(IMAGE1, max_num=12).to(torch.bfloat16)
    question = "<image>\nPlease describe the image shortly."
    slow, fast = (model.chat(each, pixel_values, question, dict(GREEDY)) for each in (tokenizer, default))
    assert slow == fast


# --- pixels -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tall(tmp_path_factory):
    """A picture that the two limits cut differently: 2 x 6 tiles or 1 x 3."""
    path = tmp_path_factory.mktemp("pictures") / "tall.png"
    Image.linear_gradient("L").resize((900, 2700)).convert("RGB").save(path)
    return str(path)


@pytest.mark.parametrize(
    "name, max_num, tiles",
    [("one", 12, 1), ("one", 6, 1), ("wide", 12, 3), ("wide", 6, 3), ("tall", 12, 13), ("tall", 6, 4)],
)
def test_load_image(name, max_num, tiles, model, tall):
    path = {"one": IMAGE1, "wide": WIDE, "tall": tall}[name]
    pixel_values = load_image(path, max_num=max_num)
    assert pixel_values.dtype == torch.float32
    assert pixel_values.shape == (tiles, 3, 448, 448)
    ours = model.load_image(path, max_num=max_num)
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours, pixel_values.to(torch.bfloat16))
    if max_num == 12:  # what the checkpoint's configuration says as well
        assert torch.equal(ours, model.load_image(path))


def test_load_video(model):
    pixel_values, num_patches_list = load_video(VIDEO, num_segments=8, max_num=1)
    assert pixel_values.shape == (8, 3, 448, 448)
    assert num_patches_list == [1] * 8
    ours, counts = model.load_video(VIDEO, num_segments=8, max_num=1)
    assert torch.equal(ours, pixel_values.to(torch.bfloat16))
    assert counts == num_patches_list
    assert not torch.equal(pixel_values[0], pixel_values[-1])  # the circle has moved


# --- conversations ----------------------------------------------------------------------------------------------------


def _two_images(max_num):
    pixel_values1 = load_image(IMAGE1, max_num=max_num).to(torch.bfloat16)
    pixel_values2 = load_image(IMAGE2, max_num=max_num).to(torch.bfloat16)
    return torch.cat((pixel_values1, pixel_values2), dim=0), [pixel_values1.size(0), pixel_values2.size(0)]


def _rounds(model, tokenizer, pixel_values, questions, generation_config, **keywords):
    """Rounds as the cards write them, each checked for what does not depend on the answer; returns the answers."""
    history = None
    answers = []
    for question in questions:
        before = copy.deepcopy(history)
        response, new_history = model.chat(
            tokenizer, pixel_values, question, generation_config, **keywords, history=history, return_history=True
        )
        assert history == before  # the caller's stays as it was
        assert new_history == [*(before or []), (question, response)]
        assert isinstance(response, str) and response.strip() == response
        assert not any(mark in response for mark in ("<|im_", "<IMG_CONTEXT>", "<img>", "</img>"))
        history = new_history
        answers.append(response)
    return answers


@pytest.fixture(params=["InternVL2", "InternVL3"])
def card(request):
    """`(generation_config, max_num)` of a generation of cards; the dictionary must come out as it went in."""
    generation_config = dict(GREEDY if request.param == "InternVL2" else SAMPLING)
    given = dict(generation_config)
    torch.manual_seed(0)
    yield generation_config, 6 if request.param == "InternVL2" else 12
    assert generation_config == given


def _says(answer, words, generation_config):
    """What the checkpoint is able to say, it says when greedy; a sampled answer may be anything."""
    if not generation_config["do_sample"]:
        missing = [word for word in words if word not in answer]
        assert not missing, f"{missing} not in {answer!r}"


def test_pure_text(model, tokenizer, card):
    generation_config, _ = card
    answers = _rounds(model, tokenizer, None, ["Hello, who are you?", "Can you tell me a story?"], generation_config)
    _says(answers[0], ["vision-language model"], generation_config)


def test_one_image_one_round(model, tokenizer, card, scenes):
    generation_config, max_num = card
    pixel_values = load_image(IMAGE1, max_num=max_num).to(torch.bfloat16)
    response = model.chat(tokenizer, pixel_values, "<image>\nPlease describe the image shortly.", generation_config)
    assert isinstance(response, str)
    picture = scenes.PICTURES["image1.jpg"]
    _says(response, [picture.shapes[0].name, picture.background], generation_config)


def test_one_image_two_rounds(model, tokenizer, card, scenes):
    generation_config, max_num = card
    pixel_values = load_image(IMAGE1, max_num=max_num).to(torch.bfloat16)
    questions = ["<image>\nPlease describe the image in detail.", "Please write a poem according to the image."]
    answers = _rounds(model, tokenizer, pixel_values, questions, generation_config)
    _says(answers[0], [scenes.PICTURES["image1.jpg"].shapes[0].name], generation_config)


def test_two_images_combined(model, tokenizer, card, scenes):
    generation_config, max_num = card
    pixel_values, _ = _two_images(max_num)
    questions = [
        "<image>\nDescribe the two images in detail.",
        "What are the similarities and differences between these two images.",
    ]
    _rounds(model, tokenizer, pixel_values, questions, generation_config)
    (circle,), (star,) = (scenes.PICTURES[name].shapes for name in ("image1.jpg", "image2.jpg"))
    for shape in (circle, star):
        answer = model.chat(tokenizer, pixel_values, f"<image>\nWhat shape is {shape.color}?", generation_config)
        _says(answer, [shape.kind], generation_config)


def test_two_images_separate(model, tokenizer, card, scenes):
    generation_config, max_num = card
    pixel_values, num_patches_list = _two_images(max_num)
    listed = list(num_patches_list)
    questions = [
        "Image-1: <image>\nImage-2: <image>\nDescribe the two images in detail.",
        "What are the similarities and differences between these two images.",
    ]
    keywords = dict(num_patches_list=num_patches_list)
    _rounds(model, tokenizer, pixel_values, questions, generation_config, **keywords)
    circle = scenes.PICTURES["image1.jpg"].shapes[0]
    question = f"Image-1: <image>\nImage-2: <image>\nWhat shape is {circle.color}?"
    answers = _rounds(model, tokenizer, pixel_values, [question], generation_config, **keywords)
    _says(answers[0], [circle.kind], generation_config)
    assert num_patches_list == listed


def test_batch(model, tokenizer, card, scenes):
    generation_config, max_num = card
    pixel_values, num_patches_list = _two_images(max_num)
    questions = ["<image>\nDescribe the image in detail."] * len(num_patches_list)
    responses = model.batch_chat(
        tokenizer,
        pixel_values,
        num_patches_list=num_patches_list,
        questions=questions,
        generation_config=generation_config,
    )
    assert len(responses) == 2
    for response, name in zip(responses, ("image1.jpg", "image2.jpg")):
        _says(response, [scenes.PICTURES[name].shapes[0].name], generation_config)


def test_video_two_rounds(model, tokenizer, card, scenes):
    generation_config, _ = card
    pixel_values, num_patches_list = load_video(VIDEO, num_segments=8, max_num=1)
    pixel_values = pixel_values.to(torch.bfloat16)
    video_prefix = "".join([f"Frame{i + 1}: <image>\n" for i in range(len(num_patches_list))])
    questions = [video_prefix + "What color is the circle?", "Describe this video in detail. Don't repeat."]
    answers = _rounds(model, tokenizer, pixel_values, questions, generation_config, num_patches_list=num_patches_list)
    (shape,) = scenes.VIDEOS["moving_circle.mp4"].first.shapes
    _says(answers[0], [shape.color], generation_config)


# --- streaming --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_image", [True, False], ids=["image", "text"])
def test_streaming_from_a_thread(with_image, model, tokenizer):
    pixel_values = load_image(IMAGE1, max_num=12).to(torch.bfloat16) if with_image else None
    question = "<image>\nPlease describe the image in detail." if with_image else "Hello, who are you?"
    whole = model.chat(tokenizer, pixel_values, question, dict(GREEDY))

    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=60)
    generation_config = dict(num_beams=1, max_new_tokens=1024, do_sample=False, streamer=streamer)
    thread = Thread(
        target=model.chat,
        kwargs=dict(
            tokenizer=tokenizer,
            pixel_values=pixel_values,
            question=question,
            history=None,
            return_history=False,
            generation_config=generation_config,
        ),
    )
    thread.start()
    generated_text, pieces = "", 0
    for new_text in streamer:
        if new_text == model.conv_template.sep:
            break
        generated_text += new_text
        pieces += 1
    thread.join(timeout=60)
    assert not thread.is_alive()
    assert generated_text == whole
    assert pieces > 3
    assert generation_config == dict(num_beams=1, max_new_tokens=1024, do_sample=False, streamer=streamer)
