"""The guard of `no_drift.py` is there and sees what it is there to see; a call that failed leaves nothing behind."""

import copy

import no_drift
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import GenerationConfig

import internvl_chat

SETTINGS = dict(max_new_tokens=3, do_sample=False)


def test_the_guard_is_installed():
    for name, calls in no_drift.CALLS.items():
        for call in calls:
            assert getattr(internvl_chat, name).__dict__[call].__wrapped__, (name, call)


CHANGES = {
    "dictionary": lambda model, given: given["settings"].update(max_new_tokens=4),
    "order of a dictionary": lambda model, given: given["settings"].update(top_k=given["settings"].pop("top_k")),
    "nested list": lambda model, given: given["history"][0].append("x"),
    "settings": lambda model, given: setattr(given["config"], "temperature", 2.0),
    "tensor": lambda model, given: given["pixels"].add_(1),
    "tensor, by another name": lambda model, given: given["pixels"].numpy().fill(3),
    "array": lambda model, given: given["array"].fill(3),
    "padding side": lambda model, given: setattr(given["tokenizer"], "padding_side", given["tokenizer"].eos_token),
    "new token": lambda model, given: given["tokenizer"].add_tokens(["<new>"]),
    "attribute": lambda model, given: setattr(model, "img_context_token_id", 4),
    "system message": lambda model, given: setattr(model, "system_message", "x"),
    "conversation": lambda model, given: model.conv_template.append_message("user", "x"),
    "own settings": lambda model, given: setattr(model.generation_config, "eos_token_id", 1),
    "language model's settings": lambda model, given: setattr(
        model.language_model.generation_config, "eos_token_id", 1
    ),
    "configuration": lambda model, given: setattr(model.config.llm_config, "vocab_size", 1),
    "weights": lambda model, given: model.mlp1[1].weight.mul_(1.0),
    "mode": lambda model, given: model.vision_model.train(),
}


@pytest.mark.parametrize("name", [None, *CHANGES])
@pytest.mark.parametrize("fails", [False, True])
def test_the_guard_sees(toy_model, checkpoint, name, fails):
    """Each change, also where the call ends with an error; and none where there is none."""
    tokenizer = internvl_chat.InternVLChatProcessor.from_pretrained(checkpoint).tokenizer
    given = {
        "settings": {"top_k": 1, "max_new_tokens": 3},
        "history": [["a", "b"]],
        "config": GenerationConfig(),
        "pixels": torch.zeros(3),
        "array": np.zeros(3),
        "tokenizer": tokenizer,
    }

    def method(self, given):
        with torch.no_grad():
            if name is not None:
                CHANGES[name](self, given)
        if fails:
            raise KeyError("fails")

    call = no_drift.guarded("method", method)
    with pytest.raises(
        KeyError if name is None and fails else AssertionError if name is not None else ZeroDivisionError
    ):
        call(toy_model(), given)
        raise ZeroDivisionError


def test_pictures_are_left_as_they_are(shipped_model):
    image = Image.new("P", (900, 448), 3)
    image.info["transparency"] = 3
    before = (image.mode, image.size, image.tobytes(), dict(image.info))
    shipped_model.load_image(image)
    shipped_model.load_video([image, image])
    assert before == (image.mode, image.size, image.tobytes(), dict(image.info))


class Fault(RuntimeError):
    pass


@pytest.mark.parametrize("where", ["vision_model", "language_model", "mlp1"])
def test_a_model_answers_after_an_error_as_before(shipped_model, shipped_tokenizer, where):
    """The error comes from inside: in the vision tower, between the towers, in the middle of an answer."""
    pixels = shipped_model.load_image(Image.new("RGB", (448, 448), "red"))
    model = copy.copy(shipped_model)

    def answers():
        config = GenerationConfig(max_new_tokens=6, do_sample=False)
        single = model.chat(shipped_tokenizer, pixels, "Describe the image.", config, return_history=True)
        batch = model.batch_chat(shipped_tokenizer, pixels, ["What is it?", "Hi"], SETTINGS, num_patches_list=[1, 0])
        return single, batch, "".join(model.stream_chat(shipped_tokenizer, pixels, "Describe the image.", SETTINGS))

    expected = answers()
    long = {**SETTINGS, "min_new_tokens": 3}

    def fail(*_):
        if next(calls) == (where == "language_model"):  # there at the second step
            raise Fault(where)

    for ask in (
        lambda: model.chat(shipped_tokenizer, pixels, "Describe the image.", long),
        lambda: model.batch_chat(shipped_tokenizer, pixels, ["a", "b"], long, num_patches_list=[1, 0]),
        lambda: list(model.stream_chat(shipped_tokenizer, pixels, "Describe the image.", long)),
    ):
        calls = iter(range(1000))
        hook = getattr(model, where).register_forward_pre_hook(fail)
        try:
            with pytest.raises(Fault):
                ask()
        finally:
            hook.remove()
    assert answers() == expected
