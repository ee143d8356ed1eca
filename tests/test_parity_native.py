"""Our model against an independent one: transformers' `InternVLForConditionalGeneration` with the same weights."""

import json

import pytest
import torch
import transformers
from toy_inputs import IMAGE_ID, SEED, image_ids, left_padded, pixels

from internvl_chat.native_tensors_internvl import name_in_memory, native_pieces

if not hasattr(transformers, "InternVLForConditionalGeneration"):
    pytest.skip("this transformers has no native InternVL", allow_module_level=True)

NEW_TOKENS = 6
SETTINGS = {"max_new_tokens": NEW_TOKENS, "do_sample": False}

LONG_ROPE = {"type": "su", "short_factor": [1.05, 1.1, 1.25, 1.4], "long_factor": [1.03, 1.5, 9.0, 30.0]}

# What is different from the toy model of `conftest.py`; the fields of the whole stand beside `vision` and `text`.
MODELS = {
    "Qwen2, untied, like 300M": {},
    "Qwen2, tied": {"text": {"tie_word_embeddings": True}},
    "Qwen2, dynamic rope beyond its length": {
        "text": {
            "rope_scaling": {"type": "dynamic", "rope_type": "dynamic", "factor": 2.0},
            "max_position_embeddings": 12,
        }
    },
    "Llama, like 6B": {
        "llm": "Llama",
        "vision": {"qkv_bias": False, "qk_normalization": True, "norm_type": "rms_norm"},
    },
    "Llama, tied, rms_norm alone": {
        "llm": "Llama",
        "text": {"tie_word_embeddings": True},
        "vision": {"norm_type": "rms_norm"},
    },
    "Phi3, qk_normalization with layer_norm": {"llm": "Phi3", "vision": {"qk_normalization": True}},
    "Phi3, long rope": {
        "llm": "Phi3",
        "text": {"rope_scaling": LONG_ROPE, "max_position_embeddings": 64, "original_max_position_embeddings": 16},
    },
    "Qwen3, no qkv_bias": {"llm": "Qwen3", "vision": {"qkv_bias": False}},
    "Qwen3, tied, ratio 1/4": {"llm": "Qwen3", "text": {"tie_word_embeddings": True}, "downsample_ratio": 0.25},
    "Qwen3, ratio 1": {"llm": "Qwen3", "downsample_ratio": 1.0},
    "Qwen3Moe": {"llm": "Qwen3Moe"},
    "GptOss": {"llm": "GptOss"},
}


def native_state(model):
    """The state dictionary of `model` under the names of the native model, by the table of the converter."""
    state = {}
    for name, tensor in model.state_dict().items():
        for target, ranges in native_pieces(name, tuple(tensor.shape)):
            state[name_in_memory(target)] = torch.cat([tensor[first:end] for first, end in ranges])
    return state


def native_model(values, model):
    """The native model made from the same plain values as `model`, with its weights."""
    vision, text = values["vision_config"], values["llm_config"]
    if (text.get("rope_scaling") or {}).get("type") == "su":
        text["rope_scaling"]["type"] = "longrope"  # the name since 4.43; later releases need it
    text_class = transformers.CONFIG_MAPPING[text["model_type"]]
    config = transformers.InternVLConfig(
        vision_config=transformers.InternVLVisionConfig(
            hidden_size=vision["hidden_size"],
            num_hidden_layers=vision["num_hidden_layers"],
            num_attention_heads=vision["num_attention_heads"],
            intermediate_size=vision["intermediate_size"],
            attention_bias=vision["qkv_bias"],
            use_qk_norm=vision["qk_normalization"],
            norm_type=vision["norm_type"],
            image_size=[vision["image_size"]] * 2,
            patch_size=[vision["patch_size"]] * 2,
        ),
        text_config=text_class(**{key: text[key] for key in text if key not in ("model_type", "torch_dtype")}),
        image_token_id=values["img_context_token_id"],
        downsample_ratio=values.get("downsample_ratio", 0.5),
        tie_word_embeddings=text["tie_word_embeddings"],
    )
    native = transformers.InternVLForConditionalGeneration(config).eval()
    native.load_state_dict(native_state(model), strict=True)
    return native


@pytest.fixture(scope="module", params=MODELS, ids=str)
def pair(request, toy_values, toy_model):
    """(ours, native), with equal weights."""
    ours = toy_model(**MODELS[request.param], seed=SEED)
    native = native_model(toy_values(**MODELS[request.param]), ours)
    tied = ours.config.llm_config.tie_word_embeddings
    for model in (ours, native):
        head, table = model.get_output_embeddings().weight, model.get_input_embeddings().weight
        assert (head.data_ptr() == table.data_ptr()) == tied
    return ours, native


def prompt(model, *tiles_of_images, seed=2):
    return image_ids(*tiles_of_images, tokens=model.num_image_token, seed=seed)


# Name of the case -> the tiles of each image, one tuple a row of the batch.
PROMPTS = {
    "text": [()],
    "one image": [(1,)],
    "several tiles": [(4,)],
    "several images": [(1, 3, 1)],
    "left-padded batch": [(), (2,), (1, 1)],
}


@pytest.mark.parametrize("case", PROMPTS, ids=str)
@torch.no_grad()
def test_equal_logits_and_greedy_tokens(pair, case):
    ours, native = pair
    rows = [prompt(ours, *images, seed=seed) for seed, images in enumerate(PROMPTS[case])]
    ids, mask = left_padded(*rows)
    count = sum(map(sum, PROMPTS[case]))
    inputs = {"input_ids": ids, "attention_mask": mask}
    if count:
        inputs["pixel_values"] = pixels(count)

    expected = native(**inputs).logits
    actual = ours(**inputs).logits
    assert expected[mask.bool()].std() > 0.1  # the comparison is not one of zeros
    torch.testing.assert_close(actual[mask.bool()], expected[mask.bool()], atol=1e-5, rtol=0)

    expected = native.generate(**inputs, **SETTINGS)[:, ids.shape[1] :]
    actual = ours.generate(**inputs, **SETTINGS)
    assert actual.shape == (len(rows), NEW_TOKENS)
    assert actual.tolist() == expected.tolist()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("side", [32, 64, 16], ids=["own size", "larger", "smaller"])
@torch.no_grad()
def test_equal_vision_tower(toy_values, toy_model, attention, side):
    """Every hidden state, for both backends and for sizes that need another position table."""
    options = {"vision": {"qk_normalization": True, "norm_type": "rms_norm"}}
    ours = toy_model(**options, attn_implementation=attention)
    native = native_model(toy_values(**options), ours).model.vision_tower
    native.config._attn_implementation = "eager"
    pixel_values = pixels(3, side)
    actual = ours.vision_model(pixel_values, output_hidden_states=True)
    # The native tower records what its encoder returns under other rules from release to release: listen to its layers.
    heard = []
    for layer in native.encoder.layer:
        layer.register_forward_hook(lambda _module, _args, out: heard.append(out[0] if isinstance(out, tuple) else out))
    expected = native(pixel_values)
    assert len(heard) == len(actual.hidden_states) - 1 == 3
    torch.testing.assert_close(actual.last_hidden_state, expected.last_hidden_state, atol=1e-5, rtol=0)
    first = native.embeddings(pixel_values)
    heard.insert(0, first[0] if isinstance(first, tuple) else first)
    for ours_state, native_state_ in zip(actual.hidden_states, heard):
        torch.testing.assert_close(ours_state, native_state_, atol=1e-5, rtol=0)


@torch.no_grad()
def test_equal_loss_and_features(toy_values, toy_model):
    ours = toy_model()
    native = native_model(toy_values(), ours)
    ids, pixel_values = prompt(ours, 2), pixels(2)
    labels = torch.where(ids == IMAGE_ID, -100, ids)
    expected = native(input_ids=ids, pixel_values=pixel_values, labels=labels).loss
    torch.testing.assert_close(ours(pixel_values, ids, labels=labels).loss, expected, atol=1e-5, rtol=0)
    features = native.get_image_features(pixel_values=pixel_values)
    features = getattr(features, "pooler_output", features)
    torch.testing.assert_close(ours.extract_feature(pixel_values), features, atol=1e-5, rtol=0)


@torch.no_grad()
def test_equal_on_the_shipped_checkpoint(checkpoint, shipped_model, shipped_tokenizer):
    """Trained weights at 448 pixels: a red disc on white."""
    values = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    native = native_model(values, shipped_model)
    axis = torch.linspace(-1, 1, 448)
    disc = (axis[:, None] ** 2 + axis**2 < 0.3).float()
    pixel_values = torch.stack((2.2 - 0 * disc, 2.4 - 4.4 * disc, 2.6 - 4.4 * disc))[None]
    text = "<|im_start|>user\n<img>{}</img>\nDescribe the image.<|im_end|>\n<|im_start|>assistant\n"
    text = text.format("<IMG_CONTEXT>" * shipped_model.num_image_token)
    inputs = {**shipped_tokenizer(text, return_tensors="pt"), "pixel_values": pixel_values}
    inputs = {name: inputs[name] for name in ("pixel_values", "input_ids", "attention_mask")}
    torch.testing.assert_close(shipped_model(**inputs).logits, native(**inputs).logits, atol=1e-4, rtol=1e-5)
    settings = {**SETTINGS, "max_new_tokens": 16, "eos_token_id": 2, "pad_token_id": 0}
    expected = native.generate(**inputs, **settings)[:, inputs["input_ids"].shape[1] :]
    assert shipped_model.generate(**inputs, **settings).tolist() == expected.tolist()
    assert expected.shape[1] > 1
