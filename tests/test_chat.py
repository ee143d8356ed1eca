"""`chat`, `batch_chat`, `stream_chat`, `count_tokens` on the shipped checkpoint: real pictures, real answers."""

import copy
import json
import logging
import threading
import warnings

import pytest
import torch
from PIL import Image, ImageDraw
from transformers import AutoTokenizer, GenerationConfig, TextIteratorStreamer

GREEDY = dict(max_new_tokens=40, do_sample=False)


def picture(color, shape="ellipse", background="white", size=(448, 448), box=(110, 110, 340, 340)):
    image = Image.new("RGB", size, background)
    getattr(ImageDraw.Draw(image), shape)(box, fill=color)
    return image


@pytest.fixture(scope="module")
def model(shipped_model):
    return shipped_model


@pytest.fixture(scope="module", params=[True, False], ids=["fast", "slow"])
def any_tokenizer(request, checkpoint):
    return AutoTokenizer.from_pretrained(checkpoint, use_fast=request.param)


@pytest.fixture(scope="module")
def tokenizer(shipped_tokenizer):
    return shipped_tokenizer


@pytest.fixture(scope="module")
def red(model):
    return model.load_image(picture((222, 36, 36)))


@pytest.fixture(scope="module")
def blue(model):
    return model.load_image(picture((36, 80, 220), "rectangle"))


@pytest.fixture
def call(model):
    """`call(name, ...)` calls a method of the model and reads a stream to its end."""

    def run(name, *args, **kwargs):
        result = getattr(model, name)(*args, **kwargs)
        return list(result) if name == "stream_chat" else result

    return run


# --- what is answered -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "question, words",
    [
        ("What color is the circle?", ["red"]),
        ("What shape is red?", ["circle"]),
        ("What is the background color?", ["white"]),
        ("How many shapes are there?", ["one"]),
        ("<image>\nDescribe the image.", ["red", "circle", "white"]),
        ("Is there a red circle?", ["Yes"]),
    ],
)
def test_sees_the_picture(call, any_tokenizer, red, question, words):
    answer = call("chat", any_tokenizer, red, question, GREEDY)
    assert all(word in answer for word in words), answer


def test_different_pictures_get_different_answers(call, tokenizer, model, red):
    answers = {
        color: call("chat", tokenizer, model.load_image(picture(rgb)), "What color is the circle?", GREEDY)
        for color, rgb in {"green": (34, 150, 60), "black": (22, 22, 22), "purple": (135, 50, 185)}.items()
    }
    assert all(color in answer for color, answer in answers.items()), answers


def test_text_rounds(call, tokenizer):
    answer, history = call("chat", tokenizer, None, "Hello, who are you?", GREEDY, return_history=True)
    assert "tiny vision-language model" in answer
    second, longer = call("chat", tokenizer, None, "Thank you.", GREEDY, history=history, return_history=True)
    assert longer == [("Hello, who are you?", answer), ("Thank you.", second)]
    assert json.loads(json.dumps(longer)) == [list(pair) for pair in longer]
    again = call("chat", tokenizer, None, "Thank you.", GREEDY, history=json.loads(json.dumps(history)))
    assert again == second


def test_image_rounds_and_a_new_image_later(call, tokenizer, model, red, blue):
    first, history = call("chat", tokenizer, red, "What shape is red?", GREEDY, return_history=True)
    assert history == [("<image>\nWhat shape is red?", first)]
    second, history = call("chat", tokenizer, red, "How many shapes are there?", GREEDY, history, return_history=True)
    assert "one" in second and history[1] == ("How many shapes are there?", second)
    both = torch.cat((red, blue))
    answer, longer = call(
        "chat",
        tokenizer,
        both,
        "<image>\nDescribe the image.",
        GREEDY,
        history=history,
        return_history=True,
        num_patches_list=[1, 1],
    )
    assert answer and len(longer) == 3
    # the same conversation, its prompt written by hand
    turns = "".join(
        f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n{answered}<|im_end|>\n"
        for asked, answered in history
    )
    text = (
        f"<|im_start|>system\n{model.system_message}<|im_end|>\n{turns}"
        "<|im_start|>user\n<image>\nDescribe the image.<|im_end|>\n<|im_start|>assistant\n"
    ).replace("<image>", "<img>" + "<IMG_CONTEXT>" * 49 + "</img>")
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    output = model.generate(
        pixel_values=both, input_ids=ids, eos_token_id=tokenizer.eos_token_id, pad_token_id=0, **GREEDY
    )
    assert tokenizer.decode(output[0], skip_special_tokens=True).strip() == answer


def test_order_of_images_matters(model, tokenizer, red, blue):
    question = "Image-1: <image>\nImage-2: <image>\nDescribe the two images."
    settings = dict(max_new_tokens=60, do_sample=False)
    one = model.chat(tokenizer, torch.cat((red, blue)), question, settings, num_patches_list=[1, 1])
    other = model.chat(tokenizer, torch.cat((blue, red)), question, settings, num_patches_list=[1, 1])
    assert one != other


def test_system_message(call, model, tokenizer):
    def prompt_tokens(**options):
        return call("count_tokens", tokenizer, None, "Hello", **options)

    default = prompt_tokens()
    assert default == prompt_tokens(system_message=model.system_message) == prompt_tokens(system_message=None)
    assert prompt_tokens(system_message="") == default - len(tokenizer(model.system_message)["input_ids"])
    assert prompt_tokens(system_message="Be brief. " * 9) > default
    assert call("chat", tokenizer, None, "Hello, who are you?", GREEDY, system_message="")


# --- batches ----------------------------------------------------------------------------------------------------------


def test_batch_equals_single_question_by_question(call, tokenizer, model, red, blue):
    wide = model.load_image(picture((34, 150, 60), size=(900, 448)), max_num=2)
    assert wide.shape[0] == 3
    rows = [
        ("Describe the image.", red, [1], None),
        ("Hello, who are you?", None, [], None),
        ("<image>\nWhat color is the circle?", wide, [3], None),
        ("Image-1: <image>\nImage-2: <image>\nDescribe the two images.", torch.cat((red, blue)), [1, 1], None),
        ("How many shapes are there?", blue, [1], [("<image>\nDescribe the image.", "A blue square.")]),
        ("Thank you.", None, None, [("Hello!", "Hi!")]),
    ]
    single = [
        call(
            "chat", tokenizer, pixels, question, GREEDY, num_patches_list=patches, history=history, return_history=True
        )
        for question, pixels, patches, history in rows
    ]
    answers, histories = call(
        "batch_chat",
        tokenizer,
        torch.cat([pixels for _, pixels, _, _ in rows if pixels is not None]),
        [question for question, *_ in rows],
        GREEDY,
        num_patches_list=[patches for _, _, patches, _ in rows],
        history=[history for *_, history in rows],
        return_history=True,
    )
    assert answers == [answer for answer, _ in single]
    assert histories == [history for _, history in single]


def test_batch_as_in_the_model_cards(call, tokenizer, red, blue):
    questions = ["<image>\nDescribe the image."] * 2
    pixels = torch.cat((red, blue))
    expected = [call("chat", tokenizer, image, questions[0], GREEDY) for image in (red, blue)]
    for keywords in ({"num_patches_list": [1, 1]}, {"image_counts": [1, 1]}, {}, {"num_patches_list": [[1], (1,)]}):
        assert (
            call("batch_chat", tokenizer, pixels, questions=questions, generation_config=GREEDY, **keywords) == expected
        )
    text_only = ["Hello, who are you?", "Tell me a story."]
    expected = [call("chat", tokenizer, None, question, GREEDY) for question in text_only]
    assert call("batch_chat", tokenizer, None, text_only, GREEDY) == expected
    assert call("batch_chat", tokenizer, None, [], GREEDY) == []
    assert call("batch_chat", tokenizer, None, [], GREEDY, return_history=True) == ([], [])


# --- streaming --------------------------------------------------------------------------------------------------------


def test_stream_equals_chat(call, any_tokenizer, red):
    for pixels, question in ((red, "Describe the image."), (None, "Tell me a story.")):
        pieces = call("stream_chat", any_tokenizer, pixels, question, GREEDY)
        assert len(pieces) > 3 and all(pieces)
        assert "".join(pieces) == call("chat", any_tokenizer, pixels, question, GREEDY)


def test_stream_keeps_history(model, tokenizer, red):
    stream = model.stream_chat(tokenizer, red, "What shape is red?", GREEDY)
    text = "".join(stream)
    assert stream.text == text
    assert stream.history == model.chat(tokenizer, red, "What shape is red?", GREEDY, return_history=True)[1]
    assert list(stream) == []


def streaming_threads():
    return [thread for thread in threading.enumerate() if thread.name == "internvl-stream"]


@pytest.mark.parametrize("how", ["close", "with", "del"])
def test_a_stream_can_be_left(model, tokenizer, how):
    long = dict(max_new_tokens=5000, min_new_tokens=5000, do_sample=False)
    stream = model.stream_chat(tokenizer, None, "Tell me a story.", long)
    assert next(stream)
    (thread,) = streaming_threads()
    if how == "close":
        stream.close()
        assert list(stream) == []
    elif how == "with":
        with stream:
            pass
    else:
        del stream
    thread.join(timeout=60)
    assert not thread.is_alive()


def test_an_error_in_generation_reaches_the_consumer(model, tokenizer, monkeypatch):
    class Broken(RuntimeError):
        pass

    steps = iter(range(3))

    def criterion(input_ids, scores, **kwargs):
        if next(steps) == 2:
            raise Broken("in the middle of an answer")
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)

    stream = model.stream_chat(tokenizer, None, "Tell me a story.", {**GREEDY, "stopping_criteria": [criterion]})
    with pytest.raises(Broken, match="in the middle"):
        list(stream)
    assert list(stream) == [] and not streaming_threads()


def test_a_wrong_call_of_stream_chat_is_told_at_once(model, tokenizer):
    with pytest.raises(ValueError, match="1 <image>"):
        model.stream_chat(tokenizer, None, "<image>", GREEDY)
    with pytest.raises(ValueError, match="streamer"):
        model.stream_chat(tokenizer, None, "Hi", {"streamer": object()})


def test_the_published_way_of_streaming(model, tokenizer, red):
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=60)
    config = dict(num_beams=1, max_new_tokens=40, do_sample=False, streamer=streamer)
    keywords = dict(
        tokenizer=tokenizer,
        pixel_values=red,
        question="Describe the image.",
        history=None,
        return_history=False,
        generation_config=config,
    )
    thread = threading.Thread(target=model.chat, kwargs=keywords)
    thread.start()
    text = ""
    for piece in streamer:
        if piece == model.conv_template.sep:
            break
        text += piece
    thread.join()
    assert text == model.chat(tokenizer, red, "Describe the image.", GREEDY)
    assert config["streamer"] is streamer and len(config) == 4


# --- generation settings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        dict(max_new_tokens=12, do_sample=False),
        dict(max_new_tokens=12, do_sample=True, temperature=0.7, top_p=0.9, top_k=20),
        dict(num_beams=1, max_new_tokens=12, do_sample=False),
        dict(num_beams=3, max_new_tokens=12, do_sample=False),
        dict(max_length=100),
        dict(max_new_tokens=12, eos_token_id=5),
        GenerationConfig(max_new_tokens=12, do_sample=False),
        GenerationConfig(max_new_tokens=12, do_sample=True, temperature=0.5),
        None,
    ],
    ids=str,
)
def test_settings_in_every_form_without_a_warning(call, tokenizer, red, given, caplog, recwarn):
    with caplog.at_level(logging.WARNING), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        answer = call("chat", tokenizer, red, "Describe the image.", given)
    assert answer
    assert [record.getMessage() for record in caplog.records] == []


def test_wrong_settings(model, tokenizer):
    with pytest.raises(TypeError, match="generation_config must be a dict.*str"):
        model.chat(tokenizer, None, "Hi", "greedy")
    with pytest.raises(ValueError, match="not_a_setting"):
        model.chat(tokenizer, None, "Hi", dict(not_a_setting=1))


def test_max_length_counts_the_prompt(model, tokenizer):
    """With embeddings as input, releases disagree on what `max_length` counts."""
    prompt = model.count_tokens(tokenizer, None, "Tell me a story.")
    short = model.chat(tokenizer, None, "Tell me a story.", dict(max_length=prompt + 5, do_sample=False))
    assert short == model.chat(tokenizer, None, "Tell me a story.", dict(max_new_tokens=5, do_sample=False))
    with pytest.raises(ValueError, match=f"max_length={prompt} .* prompt of {prompt} tokens"):
        model.chat(tokenizer, None, "Tell me a story.", dict(max_length=prompt))


def test_ends_at_the_checkpoints_own_end_token_too(model, tokenizer, monkeypatch):
    """Published checkpoints name end tokens in generation_config.json that are not the template's."""
    full = model.chat(tokenizer, None, "Hello, who are you?", GREEDY)
    stop = tokenizer(full)["input_ids"][5]
    monkeypatch.setattr(model.generation_config, "eos_token_id", [stop])
    cut = model.chat(tokenizer, None, "Hello, who are you?", GREEDY)
    assert full.startswith(cut) and len(cut) < len(full)
    monkeypatch.setattr(model.generation_config, "eos_token_id", None)
    user_s = model.chat(tokenizer, None, "Hello, who are you?", {**GREEDY, "eos_token_id": stop})
    assert user_s == cut


def test_verbose_logs_and_does_not_print(call, tokenizer, red, caplog, capsys):
    with caplog.at_level(logging.INFO):
        answer = call("chat", tokenizer, red, "What shape is red?", GREEDY, verbose=True)
        call("batch_chat", tokenizer, red, ["What shape is red?"], GREEDY, verbose=True)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2 and all(answer in message and "What shape is red?" in message for message in messages)
    assert capsys.readouterr().out == ""


# --- counts -----------------------------------------------------------------------------------------------------------


def test_count_tokens(call, tokenizer, model, red):
    text = call("count_tokens", tokenizer, None, "Hello")
    one = call("count_tokens", tokenizer, red, "Hello")
    many = call("count_tokens", tokenizer, torch.cat([red] * 5), "Hello")
    frames = call("count_tokens", tokenizer, torch.cat([red] * 2), "<image><image>Hello", num_patches_list=[1, 1])
    assert many - one == 4 * model.num_image_token == 4 * 49
    assert one - text == 49 + 2 + len(tokenizer("user\n<image>\nHello")["input_ids"]) - len(
        tokenizer("user\n<image>Hello")["input_ids"]
    )
    assert frames == text + 2 * (49 + 2)
    assert call("count_tokens", tokenizer, None, "Hello", history=[("a", "b")]) > text


@pytest.mark.parametrize(
    "name, pixels, question, options, error, words",
    [
        ("chat", 2, "<image>", dict(num_patches_list=[1]), ValueError, ["1 tiles", "has 2"]),
        ("chat", 2, "<image><image>", dict(num_patches_list=[1, 2]), ValueError, ["3 tiles", "has 2"]),
        ("chat", 2, "<image><image>", {}, ValueError, ["2 <image>", "1 images"]),
        ("chat", 2, "Hi", dict(num_patches_list=[1, 1]), ValueError, ["0 <image>", "2 images"]),
        ("chat", 2, "<image><image>", dict(num_patches_list=[2, 0]), ValueError, ["at least one tile", "[2, 0]"]),
        ("chat", 0, "Hi", {}, ValueError, ["no tiles"]),
        ("chat", None, "", {}, ValueError, ["empty"]),
        ("chat", None, 3, {}, TypeError, ["int"]),
        ("chat", "a path", "Hi", {}, TypeError, ["tensor", "str"]),
        ("batch_chat", 2, ["a", "b", "c"], {}, ValueError, ["2 tiles", "3 questions"]),
        ("batch_chat", 2, ["a", "b"], dict(num_patches_list=[1]), ValueError, ["1 entries", "2 questions"]),
        ("batch_chat", 2, ["a", "b"], dict(num_patches_list=[1, 2]), ValueError, ["3 tiles", "has 2"]),
        ("batch_chat", None, ["a", "b"], dict(history=[None]), ValueError, ["1 histories", "2 questions"]),
        ("batch_chat", None, "a", {}, TypeError, ["list of strings"]),
        ("batch_chat", 1, ["a"], dict(num_patches_list=[1], image_counts=[1]), ValueError, ["image_counts"]),
        ("count_tokens", 1, "<image><image>", {}, ValueError, ["2 <image>", "1 images"]),
    ],
)
def test_counts_that_do_not_match_are_told_with_both_numbers(
    call, tokenizer, red, name, pixels, question, options, error, words
):
    pixel_values = red.expand(pixels, -1, -1, -1) if isinstance(pixels, int) else pixels
    arguments = (tokenizer, pixel_values, question) + (() if name == "count_tokens" else (GREEDY,))
    with pytest.raises(error) as raised:
        call(name, *arguments, **options)
    for word in words:
        assert word in str(raised.value), str(raised.value)


def test_pixels_of_another_dtype_are_converted(call, tokenizer, red):
    expected = call("chat", tokenizer, red, "Describe the image.", GREEDY)
    assert call("chat", tokenizer, red.double(), "Describe the image.", GREEDY) == expected
    assert call("chat", tokenizer, red.to(torch.bfloat16), "Describe the image.", GREEDY)


def test_media_by_the_configuration(model):
    image = picture("red", size=(1344, 448))
    assert model.load_image(image).shape == (4, 3, 448, 448)  # three tiles and the thumbnail
    assert model.load_image(image, max_num=1).shape[0] == 1
    assert model.load_image(image, use_thumbnail=False).shape[0] == 3
    pixels, patches = model.load_video([image, image.rotate(90)], max_num=1)
    assert pixels.shape == (2, 3, 448, 448) and patches == [1, 1]
    half = copy.copy(model.config)
    assert model.load_image(image).dtype == torch.float32 and half.dynamic_image_size


def test_grounding_marks_are_kept_in_answers(model, tokenizer, monkeypatch):
    """The family's tokenizers mark <ref> and <box> as special, and decoding would drop them."""
    text = "<ref>red circle</ref><box>[[1, 2, 3, 4]]</box>"
    ids = tokenizer(text + "<|im_end|>")["input_ids"]
    monkeypatch.setattr(model, "generate_new_tokens", lambda **kwargs: torch.tensor([ids]))
    assert model.chat(tokenizer, None, "Where?", GREEDY) == text
