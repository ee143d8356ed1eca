"""Counts, sizes and lengths that do not match are told before any heavy work, with both numbers: here no tower runs.
The other counts are in test_chat.py, test_prompt.py, test_modeling.py and test_processor_media.py."""

import copy

import pytest
import torch

from internvl_chat import InternVLChatConfig
from internvl_chat.compat_internvl import context_length

SIZE = 448
PER_TILE = 49
LIMIT = 8192


def tiles(count, shape=(3, SIZE, SIZE), dtype=torch.float32):
    """As many tiles as wanted, without memory."""
    return torch.zeros(1, dtype=dtype).expand(count, *shape)


@pytest.fixture(scope="module")
def idle(shipped_model):
    """The shipped model, which must not come to work."""

    def work(*args, **kwargs):
        raise AssertionError("heavy work before the error")

    model = copy.copy(shipped_model)
    model.generate_new_tokens = model.extract_feature = work
    return model


# Pixels, question, options, error, words of the message.
ONE = "<image>\nWhat?"
WRONG = {
    "smaller tiles": (tiles(1, (3, 224, 224)), ONE, {}, ValueError, ["(3, 448, 448)", "(1, 3, 224, 224)"]),
    "channels last": (tiles(1, (SIZE, SIZE, 3)), ONE, {}, ValueError, ["(3, 448, 448)", "(1, 448, 448, 3)"]),
    "one channel": (tiles(2, (1, SIZE, SIZE)), ONE, {}, ValueError, ["(3, 448, 448)", "(2, 1, 448, 448)"]),
    "no batch": (torch.zeros(3, SIZE, SIZE), ONE, {}, ValueError, ["(3, 448, 448)", "pixel_values is (3, 448, 448)"]),
    "a number": (torch.tensor(1.0), ONE, {}, ValueError, ["(3, 448, 448)", "()"]),
    "bytes": (tiles(1, dtype=torch.uint8), ONE, {}, TypeError, ["normalised floats", "torch.uint8"]),
    "no tiles": (tiles(0), ONE, {}, ValueError, ["no tiles"]),
    "half a tile": (tiles(2), ONE, {"num_patches_list": [1.5]}, TypeError, ["integers", "1.5"]),
    "a text": (tiles(2), ONE, {"num_patches_list": "2"}, TypeError, ["integers", "'2'"]),
    "a number as list": (tiles(2), ONE, {"num_patches_list": 2}, TypeError, ["integers", "2"]),
    "tiles of nobody": (None, "What?", {"num_patches_list": [1]}, ValueError, ["1 tiles", "has 0"]),
    "too many tiles": (
        tiles(170),
        ONE,
        {},
        ValueError,
        [str(LIMIT), f"{170 * PER_TILE + 2} of 1 images in 170 tiles", "0 earlier rounds", "max_num="],
    ),
    "too many frames": (
        tiles(168),
        "<image>" * 168,
        {"num_patches_list": [1] * 168},
        ValueError,
        [str(LIMIT), f"{168 * (PER_TILE + 2)} of 168 images in 168 tiles", "num_segments="],
    ),
    "a long text": (None, "many words " * 5000, {}, ValueError, [str(LIMIT), "0 of 0 images in 0 tiles"]),
    "a long history": (None, "What?", {"history": [("a " * 500, "b " * 500)] * 9}, ValueError, ["9 earlier rounds"]),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("door", ["chat", "stream_chat", "batch_chat"])
def test_what_does_not_match_is_told_before_the_work(idle, shipped_tokenizer, name, door):
    pixels, question, options, error, words = WRONG[name]
    if door == "batch_chat":
        if "num_patches_list" in options and not isinstance(options["num_patches_list"], list):
            pytest.skip("a list for each question")
        counts = options.get("num_patches_list", [] if pixels is None else [len(pixels) if pixels.dim() else 1])
        question, history = ["Hi", question], [None, options.get("history")]
        options = {"num_patches_list": [[], counts], "history": history}
    with pytest.raises(error) as caught:
        getattr(idle, door)(shipped_tokenizer, pixels, question, **options)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_the_number_of_tokens_in_the_message_is_that_of_count_tokens(idle, shipped_tokenizer):
    """Which also tells it where no answer would have room."""
    length = idle.count_tokens(shipped_tokenizer, tiles(170), ONE)
    assert length > LIMIT
    with pytest.raises(ValueError, match=f"the prompt has {length} tokens"):
        idle.chat(shipped_tokenizer, tiles(170), ONE)


def test_a_prompt_may_fill_the_context_but_for_one_token(shipped_model, shipped_tokenizer, monkeypatch):
    length = shipped_model.count_tokens(shipped_tokenizer, None, "Hello!")
    monkeypatch.setattr(shipped_model.config.llm_config, "max_position_embeddings", length + 1)
    assert shipped_model.chat(shipped_tokenizer, None, "Hello!", {"max_new_tokens": 1}) is not None
    monkeypatch.setattr(shipped_model.config.llm_config, "max_position_embeddings", length)
    with pytest.raises(ValueError, match=f"{length} tokens.*{length} that the model knows"):
        shipped_model.chat(shipped_tokenizer, None, "Hello!")


@pytest.mark.parametrize(
    "llm, values, expected",
    [
        ("Qwen2", {}, 256),
        ("Llama", {"rope_scaling": {"type": "linear", "factor": 2.0, "rope_type": "linear"}}, 512),
        ("InternLM2", {"rope_scaling": {"type": "dynamic", "factor": 3.0}}, 768),
        ("InternLM2", {"rope_scaling": None}, 256),
        (
            "Qwen2",
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}},
            512,
        ),
        (
            "Llama",
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 1.5,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 64,
                }
            },
            256,
        ),
    ],
)
def test_context_length(toy_values, llm, values, expected):
    """Scaled rotary embeddings reach further than the trained length; elsewhere the stated length holds."""
    try:
        config = InternVLChatConfig(**toy_values(llm, text=values))
    except ValueError as error:  # releases before 4.45 check the names of scalings
        pytest.skip(str(error))
    assert context_length(config.get_text_config()) == expected


def test_generate_counts_before_it_sees(toy_model, monkeypatch):
    """Also where prompt and pixels come from elsewhere, such as a processor."""
    model = toy_model()
    monkeypatch.setattr(model, "vision_model", None)
    pixels, ids = torch.zeros(3, 3, 32, 32), torch.full((1, 8), model.img_context_token_id)
    with pytest.raises(ValueError, match="8 image tokens, the images give 12"):
        model.generate(pixels, ids, max_new_tokens=1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes_are_converted(toy_model, dtype):
    model = toy_model()
    pixels, ids = torch.ones(1, 3, 32, 32, dtype=dtype), torch.full((1, 4), model.img_context_token_id)
    assert model.generate(pixels, ids, max_new_tokens=2).shape == (1, 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_pixels_and_ids_are_moved_to_the_model(toy_model):
    model = toy_model()
    pixels, ids = torch.ones(1, 3, 32, 32), torch.full((1, 4), model.img_context_token_id)
    expected = model.generate(pixels, ids, max_new_tokens=2).tolist()
    assert model.to("cuda").generate(pixels, ids, max_new_tokens=2).tolist() == expected
