"""`generate` in its two meanings at toy size: new tokens only, as published, and transformers' own."""

import pytest
import torch
import transformers
from toy_inputs import SEED, image_ids, left_padded, pixels, text_ids

from internvl_chat import InternVLChatForConditionalGeneration

SETTINGS = {"max_new_tokens": 5, "do_sample": False}


@pytest.fixture(scope="module")
def model(toy_model):
    """One toy model for the tests that leave it as it is."""
    return toy_model(seed=SEED)


@torch.no_grad()
def greedy(model, images, ids, steps):
    """A plain loop over full passes, without a cache."""
    new = []
    for _ in range(steps):
        new.append(model(images, ids).logits[:, -1].argmax(-1, keepdim=True))
        ids = torch.cat((ids, new[-1]), dim=1)
    return torch.cat(new, dim=1)


@pytest.mark.parametrize("images, ids", [(None, text_ids()), (pixels(3), image_ids(2, 1))], ids=["text", "images"])
@pytest.mark.parametrize("llm", ["Qwen2", "Phi3", "GptOss", "InternLM2"])
def test_generate_equals_a_greedy_loop(toy_model, llm, images, ids):
    model = toy_model(llm, seed=SEED)
    expected = greedy(model, images, ids, 5)
    assert expected.unique().numel() > 1
    assert model.generate(images, ids, **SETTINGS).tolist() == expected.tolist()
    assert model.generate(pixel_values=images, input_ids=ids, use_cache=False, **SETTINGS).tolist() == expected.tolist()
    if images is not None:
        features = model.extract_feature(images)
        assert model.generate(input_ids=ids, visual_features=features, **SETTINGS).tolist() == expected.tolist()
        flat = features.flatten(0, 1)
        assert model.generate(input_ids=ids, visual_features=flat, **SETTINGS).tolist() == expected.tolist()


def test_generate_in_a_left_padded_batch(model):
    rows = [(None, text_ids()), (pixels(1), image_ids(1)), (pixels(2, seed=5), image_ids(1, 1))]
    ids, mask = left_padded(*(ids for _, ids in rows))
    actual = model.generate(torch.cat([pixels(1), pixels(2, seed=5)]), ids, mask, **SETTINGS)
    for row, (images, own_ids) in zip(actual, rows):
        assert row.tolist() == greedy(model, images, own_ids, 5)[0].tolist()


def test_generate_takes_settings_in_both_ways(model):
    expected = greedy(model, pixels(1), image_ids(1), 5).tolist()
    config = transformers.GenerationConfig(max_new_tokens=5, do_sample=False, eos_token_id=None, pad_token_id=0)
    before = config.to_dict()
    assert model.generate(pixels(1), image_ids(1), None, None, config).tolist() == expected
    assert config.to_dict() == before
    stop = expected[0][2]
    stopped = model.generate(pixels(1), image_ids(1), eos_token_id=stop, **SETTINGS)[0].tolist()
    assert stopped == expected[0][: expected[0].index(stop) + 1]


def test_generate_with_details(model):
    output = model.generate(
        pixels(1),
        image_ids(1),
        output_hidden_states=True,
        return_dict_in_generate=True,
        output_scores=True,
        **SETTINGS,
    )
    assert output.sequences.tolist() == greedy(model, pixels(1), image_ids(1), 5).tolist()
    assert len(output.scores) == len(output.hidden_states) == 5


def test_beams(model):
    """Two beams find an answer at least as likely as the greedy one, over new tokens only."""
    beams = model.generate(pixels(1), image_ids(1), num_beams=3, **SETTINGS)

    def likelihood(new):
        logits = model(pixels(1), torch.cat((image_ids(1), new), dim=1)).logits[:, -6:-1].log_softmax(-1)
        return logits.gather(-1, new[..., None]).sum().item()

    assert beams.shape == (1, 5)
    assert likelihood(beams) >= likelihood(greedy(model, pixels(1), image_ids(1), 5)) - 1e-5


@pytest.mark.parametrize(
    "arguments, named",
    [
        ({}, "input_ids"),
        ({"input_ids": image_ids(1), "pixel_values": pixels(1), "visual_features": torch.zeros(1, 4, 32)}, "not both"),
    ],
    ids=["no ids", "two kinds of images"],
)
def test_generate_errors(model, arguments, named):
    with pytest.raises(ValueError, match=named):
        model.generate(**arguments, **SETTINGS)


def test_arguments_are_left_as_they_are(model):
    images, ids = pixels(1), image_ids(1)
    mask, features = torch.ones_like(ids), model.extract_feature(images).detach()
    before = [tensor.clone() for tensor in (images, ids, mask, features)]
    model.generate(images, ids, mask, **SETTINGS)
    model.generate(input_ids=ids, visual_features=features, **SETTINGS)
    with torch.inference_mode():
        model(images, ids, mask)
    assert all(map(torch.equal, before, (images, ids, mask, features)))


@pytest.mark.parametrize("images, ids", [(None, text_ids()), (pixels(3), image_ids(2, 1))], ids=["text", "images"])
@pytest.mark.parametrize("llm", ["Qwen2", "Phi3", "Qwen3", "InternLM2"])
def test_standard_generate_returns_the_prompt_too(toy_model, llm, images, ids):
    """`InternVLChatForConditionalGeneration` keeps transformers' meaning of `generate`, with the same new tokens."""
    model = toy_model(llm, seed=SEED, model_class=InternVLChatForConditionalGeneration)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if images is not None:
        inputs["pixel_values"] = images
    output = model.generate(**inputs, **SETTINGS)
    assert output[:, : ids.shape[1]].tolist() == ids.tolist()
    assert output[:, ids.shape[1] :].tolist() == greedy(model, images, ids, 5).tolist()
    assert model.generate(**inputs, use_cache=False, **SETTINGS).tolist() == output.tolist()


def test_standard_generate_in_a_left_padded_batch(toy_model):
    model = toy_model(seed=SEED, model_class=InternVLChatForConditionalGeneration)
    ids, mask = left_padded(text_ids(), image_ids(1))
    output = model.generate(input_ids=ids, attention_mask=mask, pixel_values=pixels(1), **SETTINGS)
    assert output[0, 10:].tolist() == greedy(model, None, text_ids(), 5)[0].tolist()
    assert output[1, 10:].tolist() == greedy(model, pixels(1), image_ids(1), 5)[0].tolist()
