"""The whole model at toy size: construction, pixel shuffle, features, merge, forward, saving."""

import inspect
import logging
import math

import pytest
import torch
import torch.nn.functional as F
import transformers
from toy_inputs import IMAGE_ID, SEED, TOKENS, image_ids, pixels, text_ids

from internvl_chat import InternVLChatConfig, InternVLChatModel


@pytest.fixture(scope="module")
def model(toy_model):
    """One toy model for the tests that leave it as it is."""
    return toy_model(seed=SEED)


# --- construction -----------------------------------------------------------------------------------------------------


def test_positional_order_of_forward_is_the_published_one():
    published = [
        "self", "pixel_values", "input_ids", "attention_mask", "position_ids", "image_flags", "past_key_values",
        "labels", "use_cache", "output_attentions", "output_hidden_states", "return_dict", "statistics", "loss_weight",
        "loss_reduction_all_gather",
    ]  # fmt: skip
    assert list(inspect.signature(InternVLChatModel.forward).parameters)[: len(published)] == published


def test_positional_order_of_generate_is_the_published_one():
    published = ["pixel_values", "input_ids", "attention_mask", "visual_features", "generation_config"]
    published.append("output_hidden_states")
    assert list(inspect.signature(InternVLChatModel.generate).parameters)[1:7] == published


def test_published_attributes(toy_model):
    model = toy_model(template="Hermes-2", downsample_ratio=0.25, select_layer=-2, ps_version="v1")
    assert (model.num_image_token, model.downsample_ratio) == (1, 0.25)
    assert (model.select_layer, model.ps_version, model.template) == (-2, "v1", "Hermes-2")
    assert model.conv_template.name == "Hermes-2"
    assert model.system_message == model.conv_template.system_message
    assert model.img_context_token_id == IMAGE_ID
    own = toy_model(system_message="Be brief.")
    assert own.system_message == own.conv_template.system_message == "Be brief."
    assert toy_model(system_message="").system_message == ""


@torch.no_grad()
def test_ready_towers_are_used_as_they_are(toy_config, toy_model):
    given = toy_model(seed=3)
    state = {name: tensor.clone() for name, tensor in given.state_dict().items()}
    model = InternVLChatModel(toy_config(), vision_model=given.vision_model, language_model=given.language_model)
    assert model.vision_model is given.vision_model and model.language_model is given.language_model
    for name, tensor in model.state_dict().items():
        assert name.startswith("mlp1.") or torch.equal(tensor, state[name]), name


def test_fresh_projector(toy_config):
    torch.manual_seed(0)
    model = InternVLChatModel(toy_config(text={"initializer_range": 0.05}))
    norm, first, _, second = model.mlp1
    assert torch.equal(norm.weight, torch.ones(128)) and not norm.bias.any()
    for layer in (first, second):
        assert layer.weight.std().item() == pytest.approx(0.05, rel=0.1)
        assert not layer.bias.any()


def test_built_without_storage(toy_config):
    """transformers 5 builds models on the meta device, where a tensor has no values to ask for."""
    with torch.device("meta"):
        model = InternVLChatModel(toy_config(vision={"drop_path_rate": 0.2}))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert [layer.drop_path1.rate for layer in model.vision_model.encoder.layers] == pytest.approx([0, 0.1, 0.2])


def test_building_leaves_the_configuration_as_it_is(toy_config):
    config = toy_config()
    before = config.to_json_string()
    InternVLChatModel(config)
    assert config.to_json_string() == before


def test_parts_that_other_code_asks_for(model):
    llm = model.language_model
    assert model.get_input_embeddings() is llm.model.embed_tokens
    assert model.get_output_embeddings() is llm.lm_head
    assert model.get_decoder() is llm.model
    assert model.mlp1[0].eps == 1e-5  # unlike the vision tower's norms; only nearly constant features would show it


def test_old_flash_flag_falls_back_with_one_warning(toy_config, caplog):
    if torch.cuda.is_available():
        pytest.skip("flash attention may be there")
    with caplog.at_level(logging.WARNING):
        models = [InternVLChatModel(toy_config(), use_flash_attn=True) for _ in range(2)]
    assert sum("use_flash_attn" in record.message for record in caplog.records) <= 1
    for model in models:
        assert model(input_ids=text_ids()).logits.shape == (1, 6, 96)


def test_stale_backends_of_the_parts_are_ignored(toy_values):
    values = toy_values()
    for part in ("vision_config", "llm_config"):
        values[part].update(attn_implementation="flash_attention_2", _attn_implementation="flash_attention_2")
    with torch.no_grad():
        output = InternVLChatModel(InternVLChatConfig(**values))(pixels(1), image_ids(1))
    assert output.logits.isfinite().all()


def test_switching_the_backend_reaches_both_towers(toy_model):
    model = toy_model()
    if not hasattr(model, "set_attn_implementation"):
        pytest.skip("this transformers cannot switch the backend of a model")
    inputs = {"pixel_values": pixels(), "input_ids": image_ids(2)}
    with torch.no_grad():
        expected = model(**inputs).logits
        for name in ("eager", "sdpa"):
            model.set_attn_implementation(name)
            assert model.vision_model.config._attn_implementation == name
            assert model.language_model.config._attn_implementation == name
            torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-5, rtol=0)


# --- pixel shuffle and features ---------------------------------------------------------------------------------------


def published_pixel_shuffle(x, r, version):
    """The published chain of views and permutations, one number at a time.

    view (n, w, h/r, c*r), permute 0 2 1 3, view (n, h/r, w/r, c*r*r), and for v2 permute 0 2 1 3 once more.
    """
    n, w, h, c = x.shape
    first = torch.zeros(n, w, h // r, c * r)
    for a in range(n):
        for i in range(w):
            for j in range(h):
                for k in range(c):
                    first[a, i, j // r, (j % r) * c + k] = x[a, i, j, k]
    second = torch.zeros(n, h // r, w // r, c * r * r)
    for a in range(n):
        for j in range(h // r):
            for i in range(w):
                for k in range(c * r):
                    second[a, j, i // r, (i % r) * c * r + k] = first[a, i, j, k]
    if version == "v1":
        return second
    third = torch.zeros(n, w // r, h // r, c * r * r)
    for i in range(w // r):
        for j in range(h // r):
            third[:, i, j] = second[:, j, i]
    return third


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize(
    "shape, r",
    [((2, 4, 4, 3), 1), ((2, 4, 4, 3), 2), ((1, 4, 4, 1), 4), ((1, 6, 6, 2), 3), ((1, 2, 6, 1), 2), ((1, 6, 12, 2), 3)],
    ids=str,
)
def test_pixel_shuffle(toy_model, version, shape, r):
    x = torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)
    actual = toy_model(ps_version=version).pixel_shuffle(x, scale_factor=1 / r)
    assert torch.equal(actual, published_pixel_shuffle(x, r, version))


@pytest.mark.parametrize(
    "options, tokens",
    [
        ({}, 4),
        ({"ps_version": "v1"}, 4),
        ({"select_layer": -2}, 4),
        ({"select_layer": 1}, 4),
        ({"select_layer": 0, "ps_version": "v1"}, 4),
        ({"downsample_ratio": 1.0}, 16),
        ({"downsample_ratio": 0.25}, 1),
        ({"downsample_ratio": 1 / 3, "vision": {"image_size": 48}}, 4),
        ({"force_image_size": 48}, 9),
    ],
    ids=str,
)
@torch.no_grad()
def test_extract_feature_by_hand(toy_model, options, tokens):
    model = toy_model(**options)
    images = pixels(3, model.config.tile_size)
    hidden = model.vision_model(images, output_hidden_states=True).hidden_states[model.config.select_layer][:, 1:]
    side = math.isqrt(hidden.shape[1])
    r = round(1 / model.config.downsample_ratio)
    merged = published_pixel_shuffle(hidden.reshape(3, side, side, 32), r, model.config.ps_version).flatten(1, 2)
    norm, first, _, second = model.mlp1
    merged = F.layer_norm(merged, (32 * r * r,), norm.weight, norm.bias, eps=1e-5)
    merged = F.linear(merged, first.weight, first.bias)
    merged = 0.5 * merged * (1 + torch.erf(merged / math.sqrt(2)))
    expected = F.linear(merged, second.weight, second.bias)
    actual = model.extract_feature(images)
    assert actual.shape == (3, tokens, 32) and model.num_image_token == tokens
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_features_do_not_depend_on_the_batch_size(model):
    expected = model.extract_feature(pixels(7))
    for size in (1, 2, 3, 7, 100):
        torch.testing.assert_close(model.extract_feature(pixels(7), vision_batch_size=size), expected)
    with pytest.raises(ValueError, match="vision_batch_size.*0"):
        model.extract_feature(pixels(), vision_batch_size=0)


@torch.no_grad()
def test_long_videos_go_through_the_tower_in_chunks(model):
    """64 frames need no more of the tower's activations than 8: no call sees more than the default chunk."""
    seen = []
    handle = model.vision_model.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    try:
        assert model.extract_feature(pixels(70)).shape == (70, TOKENS, 32)
    finally:
        handle.remove()
    assert sum(seen) == 70 and max(seen) <= 32


@torch.no_grad()
def test_half_precision_features(toy_model):
    model = toy_model().bfloat16()
    features = model.extract_feature(pixels())
    assert features.dtype == torch.bfloat16
    torch.testing.assert_close(features.float(), toy_model().extract_feature(pixels()), atol=0.3, rtol=0.1)


# --- forward ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def by_hand(model, images, ids, mask=None):
    """Logits of the language model with the features written over the image tokens, position by position."""
    embeddings = model.language_model.get_input_embeddings()(ids).clone()
    if images is not None:
        features = model.extract_feature(images).reshape(-1, embeddings.shape[-1])
        places = (ids == IMAGE_ID).nonzero().tolist()
        assert len(places) == len(features)
        for (row, column), feature in zip(places, features):
            embeddings[row, column] = feature
    return model.language_model(inputs_embeds=embeddings, attention_mask=mask).logits


@pytest.mark.parametrize(
    "images, ids",
    [
        (None, text_ids(rows=2)),
        (pixels(1), image_ids(1)),
        (pixels(3), image_ids(2, 1)),
        (pixels(3), torch.cat((image_ids(2), torch.cat((image_ids(1), text_ids(TOKENS)), dim=1)))),
    ],
    ids=["text", "image", "two images", "batch"],
)
@torch.no_grad()
def test_forward_by_hand(model, images, ids):
    torch.testing.assert_close(model(images, ids).logits, by_hand(model, images, ids), atol=1e-5, rtol=0)
    named = model(input_ids=ids, pixel_values=images, attention_mask=torch.ones_like(ids))
    torch.testing.assert_close(named.logits, by_hand(model, images, ids), atol=1e-5, rtol=0)


@torch.no_grad()
def test_image_flags(model):
    """Tiles flagged 0 fill up a training batch: they leave no trace."""
    expected = model(pixels(3)[[0, 2]], image_ids(2)).logits
    for flags in (torch.tensor([1, 0, 1]), torch.tensor([[1], [0], [1]])):
        assert torch.equal(model(pixels(3), image_ids(2), image_flags=flags).logits, expected)
    text = model(input_ids=text_ids()).logits
    assert torch.equal(model(pixels(1), text_ids(), image_flags=torch.tensor([0])).logits, text)
    everything = model(pixels(2), image_ids(2), image_flags=torch.tensor([1, 1])).logits
    assert torch.equal(everything, model(pixels(2), image_ids(2)).logits)


def test_image_flags_of_another_length_are_named(model):
    with pytest.raises(ValueError, match=r"(?s)3.*2|2.*3"):
        model(pixels(3), image_ids(2), image_flags=torch.tensor([1, 1]))


@pytest.mark.parametrize("given, tokens", [(1, 2), (3, 2), (2, 0)])
def test_placeholders_and_features_must_match(model, given, tokens):
    ids = image_ids(tokens) if tokens else text_ids()
    pattern = rf"\b{tokens * TOKENS} image tokens.*\b{given * TOKENS}\b"
    with pytest.raises(ValueError, match=pattern):
        model(pixels(given), ids)
    with pytest.raises(ValueError, match=pattern):
        model.generate(pixels(given), ids, max_new_tokens=1)
    with pytest.raises(ValueError, match=pattern):
        model.generate(input_ids=ids, visual_features=model.extract_feature(pixels(given)), max_new_tokens=1)


def test_unknown_image_token(toy_model):
    model = toy_model(img_context_token_id=None)
    assert model(input_ids=text_ids()).logits.shape == (1, 6, 96)
    with pytest.raises(ValueError, match="IMG_CONTEXT.*img_context_token_id"):
        model(pixels(1), image_ids(1))
    model.img_context_token_id = IMAGE_ID  # the published way
    assert model(pixels(1), image_ids(1)).logits.shape == (1, 10, 96)


@torch.no_grad()
def test_inputs_embeds(model):
    ids = image_ids(2)
    embeds = model.merge_embeddings(ids, model.extract_feature(pixels()))
    assert torch.equal(model(inputs_embeds=embeds).logits, model(pixels(), ids).logits)
    table = model.get_input_embeddings().weight.clone()
    model.merge_embeddings(ids, model.extract_feature(pixels()))
    assert torch.equal(model.get_input_embeddings().weight, table)


@pytest.mark.parametrize(
    "arguments, named",
    [
        ({}, "exactly one of input_ids and inputs_embeds"),
        ({"input_ids": text_ids(), "inputs_embeds": torch.zeros(1, 6, 32)}, "exactly one"),
        ({"pixel_values": pixels(1), "inputs_embeds": torch.zeros(1, 6, 32)}, "pixel_values needs input_ids"),
    ],
    ids=["nothing", "both", "pixels without ids"],
)
def test_forward_errors(model, arguments, named):
    with pytest.raises(ValueError, match=named):
        model(**arguments)


@pytest.mark.parametrize("llm", ["Qwen2", "Llama", "Phi3", "Qwen3", "Qwen3Moe", "GptOss", "InternLM2"])
@torch.no_grad()
def test_steps_with_a_cache_equal_the_full_pass(toy_model, llm):
    model = toy_model(llm)
    ids = torch.cat((image_ids(2), text_ids(4, seed=9)), dim=1)
    full = model(pixels(), ids).logits
    known = ids.shape[1] - 4
    output = model(pixels(), ids[:, :known], use_cache=True)
    torch.testing.assert_close(output.logits, full[:, :known], atol=1e-5, rtol=0)
    for position in range(known, ids.shape[1]):
        output = model(
            input_ids=ids[:, position : position + 1],
            attention_mask=torch.ones(1, position + 1, dtype=torch.long),
            position_ids=torch.tensor([[position]]),
            past_key_values=output.past_key_values,
            use_cache=True,
        )
        torch.testing.assert_close(output.logits[:, 0], full[:, position], atol=1e-5, rtol=0)


@torch.no_grad()
def test_padding_on_either_side_changes_nothing(model):
    row = image_ids(1)
    expected = model(pixels(1), row).logits
    ones, zeros = torch.ones_like(row), torch.zeros(1, 3, dtype=torch.long)
    right = model(pixels(1), torch.cat((row, zeros), 1), torch.cat((ones, zeros), 1)).logits[:, :-3]
    torch.testing.assert_close(right, expected, atol=1e-5, rtol=0)
    positions = torch.cat((zeros, torch.arange(row.shape[1])[None]), dim=1)
    left = model(pixels(1), torch.cat((zeros, row), 1), torch.cat((zeros, ones), 1), positions).logits[:, 3:]
    torch.testing.assert_close(left, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_logits_to_keep(model):
    ids = image_ids(2)
    full = model(pixels(), ids).logits
    for count in (1, 3):
        kept = model(pixels(), ids, logits_to_keep=count).logits
        assert kept.shape == (1, count, 96)
        torch.testing.assert_close(kept, full[:, -count:], atol=1e-5, rtol=0)
    assert model(pixels(), ids, logits_to_keep=0).logits.shape == full.shape
    if "logits_to_keep" in inspect.signature(type(model.language_model).forward).parameters:
        kept = model(pixels(), ids, logits_to_keep=torch.tensor([0, 5])).logits
        torch.testing.assert_close(kept, full[:, [0, 5]], atol=1e-5, rtol=0)


@torch.no_grad()
def test_outputs(model):
    ids = image_ids(1)
    output = model(pixels(1), ids, labels=ids, use_cache=True, output_hidden_states=True)
    assert output.logits.shape == (1, 10, 96)
    assert [tuple(state.shape) for state in output.hidden_states] == [(1, 10, 32)] * 3
    as_tuple = model(pixels(1), ids, labels=ids, use_cache=True, output_hidden_states=True, return_dict=False)
    assert isinstance(as_tuple, tuple) and len(as_tuple) == 4
    assert torch.equal(as_tuple[0], output.loss) and torch.equal(as_tuple[1], output.logits)
    without_loss = model(pixels(1), ids, use_cache=False, return_dict=False)
    assert torch.equal(without_loss[0], output.logits)


@torch.no_grad()
def test_output_attentions(toy_model):
    model = toy_model(attn_implementation="eager")
    attentions = model(pixels(1), image_ids(1), output_attentions=True).attentions
    assert [tuple(weights.shape) for weights in attentions] == [(1, 4, 10, 10)] * 2
    torch.testing.assert_close(attentions[0].sum(-1), torch.ones(1, 4, 10))


# --- embeddings, saving and loading -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
@torch.no_grad()
def test_resized_vocabulary_is_saved(toy_model, tmp_path, tied):
    model = toy_model(text={"tie_word_embeddings": tied})
    old = model(input_ids=text_ids()).logits
    model.resize_token_embeddings(100)
    assert model.get_input_embeddings().weight.shape == model.get_output_embeddings().weight.shape == (100, 32)
    assert model.config.llm_config.vocab_size == 100
    torch.testing.assert_close(model(input_ids=text_ids()).logits[..., :96], old, atol=1e-5, rtol=0)
    model.save_pretrained(tmp_path)
    loaded = InternVLChatModel.from_pretrained(tmp_path)
    assert torch.equal(loaded(input_ids=text_ids() + 4).logits, model(input_ids=text_ids() + 4).logits)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("llm", ["Qwen2", "Llama", "Phi3", "Qwen3", "InternLM2"])
@torch.no_grad()
def test_saved_model_loads_with_every_weight(toy_model, tmp_path, llm, tied):
    model = toy_model(llm, text={"tie_word_embeddings": tied}, select_layer=-2, ps_version="v1")
    model.save_pretrained(tmp_path)
    loaded, info = transformers.AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is InternVLChatModel
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    state = model.state_dict()
    assert set(loaded.state_dict()) == set(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
    head, table = loaded.get_output_embeddings().weight, loaded.get_input_embeddings().weight
    assert (head.data_ptr() == table.data_ptr()) == tied
    assert torch.equal(loaded(pixels(), image_ids(2)).logits, model(pixels(), image_ids(2)).logits)
