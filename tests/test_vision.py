"""The vision tower alone: its options, shapes, errors, fresh weights, saving and loading."""

import json
import logging

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file

from internvl_chat import InternVisionConfig, InternVisionModel

TOY = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "patch_size": 8,
    "image_size": 32,
    "qkv_bias": True,
}


@pytest.fixture
def tower(draw_weights):
    """`tower(seed=0, attention=None, **options)`: a toy tower with random weights, not training."""

    def make(seed=0, attention=None, **options):
        config = InternVisionConfig(**{**TOY, **options})
        if attention is not None:
            config._attn_implementation = attention
        return draw_weights(InternVisionModel(config), seed).eval()

    return make


def pixels(count=2, height=32, width=None, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, height, width or height, generator=generator)


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rate, layers, expected", [(0.2, 5, [0, 0.05, 0.1, 0.15, 0.2]), (0.3, 1, [0]), (0.0, 3, [0] * 3)]
)
def test_drop_path_grows_linearly(tower, rate, layers, expected):
    model = tower(drop_path_rate=rate, num_hidden_layers=layers)
    for branch in ("drop_path1", "drop_path2"):
        rates = [getattr(layer, branch).rate for layer in model.encoder.layers]
        assert rates == pytest.approx(expected)


@torch.no_grad()
def test_drop_path_only_while_training(tower):
    """A sample keeps a branch divided by the chance to keep it, or loses it as a whole; the mean stays the same."""
    plain, dropping = tower(num_hidden_layers=2), tower(num_hidden_layers=2, drop_path_rate=0.5)
    assert torch.equal(dropping(pixels()).last_hidden_state, plain(pixels()).last_hidden_state)

    torch.manual_seed(0)
    dropping.train()
    first, last = dropping.encoder.layers
    hidden = torch.randn(2000, 17, 32)
    torch.testing.assert_close(first(hidden), first.eval()(hidden))  # the first layer never drops
    kept = last.drop_path1(hidden)
    is_kept = kept.flatten(1).abs().sum(1) > 0
    torch.testing.assert_close(kept[is_kept], 2 * hidden[is_kept])
    assert 0.45 < is_kept.float().mean() < 0.55
    assert not kept[~is_kept].any()
    assert not torch.equal(dropping(pixels()).last_hidden_state, plain(pixels()).last_hidden_state)


@torch.no_grad()
def test_dropout_only_while_training(tower):
    plain = tower()(pixels()).last_hidden_state
    for options in ({"dropout": 0.5}, {"attention_dropout": 0.5}):
        for attention in ("eager", "sdpa"):
            model = tower(attention=attention, **options)
            torch.testing.assert_close(model(pixels()).last_hidden_state, plain)
            model.train()
            assert not torch.allclose(model(pixels()).last_hidden_state, plain)


@torch.no_grad()
def test_layer_scale_scales_each_branch(tower):
    model = tower()
    layer = model.encoder.layers[1]
    hidden = torch.randn(2, 17, 32)
    after_attention = hidden + layer.attn(layer.norm1(hidden)) * layer.ls1
    expected = after_attention + layer.mlp(layer.norm2(after_attention)) * layer.ls2
    torch.testing.assert_close(layer(hidden), expected)
    layer.ls1.zero_()
    layer.ls2.zero_()
    assert torch.equal(layer(hidden), hidden)


@pytest.mark.parametrize("factor, std", [(0.1, 0.02), (1.0, 1e-10)])
def test_fresh_weights(factor, std):
    torch.manual_seed(0)
    model = InternVisionModel(InternVisionConfig(**TOY, initializer_factor=factor, initializer_range=std))
    for name, parameter in model.named_parameters():
        kind = name.rpartition(".")[2]
        if kind in ("ls1", "ls2"):
            assert torch.equal(parameter, torch.full((32,), factor)), name
        elif "norm" in name:
            assert torch.equal(parameter, torch.ones_like(parameter) if kind == "weight" else torch.zeros(32)), name
        elif kind == "bias":
            assert not parameter.any(), name
        else:
            tolerance = 0.1 if parameter.numel() > 1000 else 0.5
            assert parameter.std().item() == pytest.approx(std, rel=tolerance), name


def test_names_and_shapes_are_the_published_ones():
    config = InternVisionConfig(**TOY, qk_normalization=True, norm_type="layer_norm", num_channels=4)
    state = InternVisionModel(config).state_dict()
    layer = {
        "attn.qkv.weight": (96, 32),
        "attn.qkv.bias": (96,),
        "attn.q_norm.weight": (32,),
        "attn.k_norm.weight": (32,),
        "attn.proj.weight": (32, 32),
        "attn.proj.bias": (32,),
        "mlp.fc1.weight": (48, 32),
        "mlp.fc1.bias": (48,),
        "mlp.fc2.weight": (32, 48),
        "mlp.fc2.bias": (32,),
        "norm1.weight": (32,),
        "norm1.bias": (32,),
        "norm2.weight": (32,),
        "norm2.bias": (32,),
        "ls1": (32,),
        "ls2": (32,),
    }
    expected = {
        "embeddings.class_embedding": (1, 1, 32),
        "embeddings.patch_embedding.weight": (32, 4, 8, 8),
        "embeddings.patch_embedding.bias": (32,),
        "embeddings.position_embedding": (1, 17, 32),
    }
    expected.update({f"encoder.layers.{n}.{name}": shape for n in range(3) for name, shape in layer.items()})
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == expected
    lean = InternVisionModel(InternVisionConfig(**{**TOY, "qkv_bias": False}, qk_normalization=False)).state_dict()
    dropped = ("attn.qkv.bias", "attn.q_norm.weight", "attn.k_norm.weight", "norm1.bias", "norm2.bias")
    assert set(lean) == {name for name in expected if not name.endswith(dropped)}


# --- position table ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("height, width", [(48, 48), (16, 16), (24, 56), (32, 64)])
@torch.no_grad()
def test_position_table_is_interpolated_in_float32(tower, dtype, height, width):
    embeddings = tower().to(dtype).embeddings
    table = embeddings.position_embedding
    grid = torch.empty(1, 32, 4, 4)
    for row in range(4):
        for column in range(4):
            grid[0, :, row, column] = table[0, 1 + 4 * row + column].float()
    wanted = F.interpolate(grid, size=(height // 8, width // 8), mode="bicubic", align_corners=False)
    wanted = [wanted[0, :, row, column] for row in range(height // 8) for column in range(width // 8)]
    wanted = torch.cat((table, torch.stack(wanted).to(dtype)[None]), dim=1)
    wanted = torch.cat((wanted[:, :1], wanted[:, 17:]), dim=1)  # class token, then the new grid in reading order

    images = pixels(2, height, width)
    patches = F.conv2d(images.to(dtype), embeddings.patch_embedding.weight, embeddings.patch_embedding.bias, stride=8)
    patches = torch.cat((embeddings.class_embedding.expand(2, 1, -1), patches.flatten(2).transpose(1, 2)), dim=1)
    actual = embeddings(images)
    assert actual.dtype == dtype
    assert torch.equal(actual, patches + wanted)
    assert torch.equal(table, embeddings.position_embedding), "the weights are as before"


@torch.no_grad()
def test_resize_pos_embeddings(tower):
    """The new table gives what the old one gave for that size, and the tower saves and loads with it."""
    model = tower().bfloat16()
    images = pixels(2, 48)
    expected = model(images).last_hidden_state
    old = model.embeddings.position_embedding.clone()
    model.resize_pos_embeddings(32, 48, 8)
    assert model.embeddings.position_embedding.shape == (1, 37, 32)
    assert model.embeddings.position_embedding.dtype == torch.bfloat16
    assert isinstance(model.embeddings.position_embedding, torch.nn.Parameter)
    assert torch.equal(model.embeddings.position_embedding[:, 0], old[:, 0])
    assert torch.equal(model(images).last_hidden_state, expected)
    assert InternVisionModel(model.config).embeddings.position_embedding.shape == (1, 37, 32)


@torch.no_grad()
def test_resize_to_the_same_size_changes_nothing(tower):
    model = tower()
    old = model.embeddings.position_embedding.clone()
    model.resize_pos_embeddings(32, 32, 8)
    assert torch.equal(model.embeddings.position_embedding, old)


def test_resize_keeps_a_frozen_table_frozen(tower):
    model = tower()
    model.requires_grad_(False)
    model.resize_pos_embeddings(32, 48, 8)
    assert not model.embeddings.position_embedding.requires_grad


@pytest.mark.parametrize(
    "sizes, named", [((48, 64, 8), "old_size=48"), ((32, 50, 8), "50"), ((30, 64, 8), "30")], ids=str
)
def test_resize_errors(tower, sizes, named):
    with pytest.raises(ValueError, match=named):
        tower().resize_pos_embeddings(*sizes)


# --- outputs ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_outputs(tower):
    model = tower()
    output = model(pixels(3), output_hidden_states=True)
    assert output.last_hidden_state.shape == (3, 17, 32)
    assert torch.equal(output.pooler_output, output.last_hidden_state[:, 0])
    assert len(output.hidden_states) == 4
    hidden = model.embeddings(pixels(3))
    for state, layer in zip(output.hidden_states, model.encoder.layers):
        torch.testing.assert_close(state, hidden)
        hidden = layer(hidden)
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    assert model(pixels(3)).hidden_states is None

    model.config.output_hidden_states = True
    assert len(model(pixels(3)).hidden_states) == 4
    assert model(pixels(3), output_hidden_states=False).hidden_states is None


@torch.no_grad()
def test_outputs_as_tuple(tower):
    model = tower()
    output = model(pixels(), output_hidden_states=True)
    last, pooled, hidden = model(pixels(), output_hidden_states=True, return_dict=False)
    assert torch.equal(last, output.last_hidden_state)
    assert torch.equal(pooled, output.pooler_output)
    assert all(map(torch.equal, hidden, output.hidden_states)) and len(hidden) == 4
    assert len(model(pixels(), return_dict=False)) == 2


@torch.no_grad()
def test_pixel_embeds_skip_the_first_stage(tower):
    model = tower()
    embeds = model.embeddings(pixels())
    assert torch.equal(model(pixel_embeds=embeds).last_hidden_state, model(pixels()).last_hidden_state)


@torch.no_grad()
def test_pixels_are_cast_to_the_weights(tower):
    model = tower()
    expected = model(pixels().half().float()).last_hidden_state
    assert torch.equal(model(pixels().half()).last_hidden_state, expected)
    output = model.bfloat16()(pixels(), output_hidden_states=True)
    assert {state.dtype for state in (*output.hidden_states, output.pooler_output)} == {torch.bfloat16}


@torch.no_grad()
def test_tiles_do_not_see_each_other(tower):
    model = tower()
    together = model(pixels(4)).last_hidden_state
    for index in range(4):
        torch.testing.assert_close(model(pixels(4)[index : index + 1]).last_hidden_state[0], together[index])


@pytest.mark.parametrize(
    "arguments, named",
    [
        (lambda: {}, "exactly one"),
        (lambda: {"pixel_values": pixels(), "pixel_embeds": torch.zeros(1, 17, 32)}, "exactly one"),
        (lambda: {"pixel_values": pixels()[0]}, r"\(tiles, 3, height, width\), got \(3, 32, 32\)"),
        (lambda: {"pixel_values": torch.zeros(1, 4, 32, 32)}, r"got \(1, 4, 32, 32\)"),
        (lambda: {"pixel_values": pixels(1, 32, 36)}, r"patch_size=8, got \(1, 3, 32, 36\)"),
    ],
    ids=["nothing", "both", "no batch", "channels", "not a multiple"],
)
def test_forward_errors(tower, arguments, named):
    with pytest.raises(ValueError, match=named):
        tower()(**arguments())


@pytest.mark.parametrize(
    "options, named",
    [
        ({"norm_type": "batch_norm"}, "norm_type='batch_norm'.*rms_norm, layer_norm"),
        ({"num_attention_heads": 5}, "hidden_size=32.*num_attention_heads=5"),
        ({"image_size": 30}, "image_size=30.*patch_size=8"),
    ],
    ids=str,
)
def test_configuration_errors(options, named):
    with pytest.raises(ValueError, match=named):
        InternVisionConfig(**{**TOY, **options})


# --- attention backends -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"qk_normalization": False}, {"num_attention_heads": 1}], ids=str)
@torch.no_grad()
def test_eager_equals_sdpa(tower, options):
    expected = tower(attention="sdpa", **options)(pixels(), output_hidden_states=True)
    actual = tower(attention="eager", **options)(pixels(), output_hidden_states=True)
    for ours, theirs in zip(actual.hidden_states, expected.hidden_states):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def calls_of_sdpa(model, monkeypatch):
    """How often a forward pass calls torch's fused attention."""
    calls = []
    fused = F.scaled_dot_product_attention

    def counted(*args, **kwargs):
        calls.append(1)
        return fused(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", counted)
        with torch.no_grad():
            model(pixels())
    return len(calls)


def test_sdpa_is_the_default(tower, monkeypatch):
    assert calls_of_sdpa(tower(), monkeypatch) == 3
    assert calls_of_sdpa(tower(attention="eager"), monkeypatch) == 0


def test_set_attn_implementation_switches(tower, monkeypatch):
    model = tower()
    if not hasattr(model, "set_attn_implementation"):
        pytest.skip("this transformers cannot switch the backend of a model")
    model.set_attn_implementation("eager")
    assert calls_of_sdpa(model, monkeypatch) == 0
    model.set_attn_implementation("sdpa")
    assert calls_of_sdpa(model, monkeypatch) == 3


def test_unknown_backend(tower):
    model = tower()
    model.config._attn_implementation_internal = "no_such_attention"
    with pytest.raises(ValueError, match="no_such_attention.*eager, sdpa, flash_attention_2"):
        model(pixels())


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_gradient_checkpointing_gives_equal_gradients(tower, attention):
    def gradients(checkpointing):
        model = tower(attention=attention).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            assert model.is_gradient_checkpointing
        entered = []
        model.encoder.layers[1].norm1.register_forward_hook(lambda *_: entered.append(1))
        model(pixels()).last_hidden_state.square().mean().backward()
        return {name: parameter.grad for name, parameter in model.named_parameters()}, len(entered)

    (plain, once), (saving, twice) = gradients(False), gradients(True)
    assert (once, twice) == (1, 2), "a checkpointed layer runs again on the way back"
    for name, gradient in plain.items():
        assert gradient is not None and gradient.abs().sum() > 0, name
        torch.testing.assert_close(saving[name], gradient, msg=name)


# --- saving and loading -----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_save_and_load_through_auto_model(tower, tmp_path):
    model = tower(drop_path_rate=0.25, qk_normalization=False)
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is InternVisionModel
    assert not loaded.training
    assert torch.equal(loaded(pixels()).last_hidden_state, model(pixels()).last_hidden_state)
    assert [layer.drop_path2.rate for layer in loaded.encoder.layers] == [0, 0.125, 0.25]
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert type(config) is InternVisionConfig
    assert {name: getattr(config, name) for name in TOY} == TOY
    assert (config.drop_path_rate, config.qk_normalization) == (0.25, False)


def test_load_in_bfloat16(tower, tmp_path):
    model = tower()
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    state = model.state_dict()
    assert all(torch.equal(tensor, state[name].bfloat16()) for name, tensor in loaded.state_dict().items())


def test_incomplete_checkpoint_keeps_what_it_has(tower, tmp_path, caplog):
    """Fresh weights are drawn for the missing tensors alone, not for the whole module that lacks one."""
    model = tower()
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    missing = ["encoder.layers.1.ls1", "encoder.layers.2.attn.proj.bias", "encoder.layers.0.norm1.weight"]
    kept = {name: tensor for name, tensor in state.items() if name not in missing}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with caplog.at_level(logging.ERROR):
        loaded, info = InternVisionModel.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == set(missing)
    values = loaded.state_dict()
    for name, tensor in kept.items():
        assert torch.equal(values[name], tensor), name
    assert torch.equal(values["encoder.layers.1.ls1"], torch.full((32,), model.config.initializer_factor))
    assert not values["encoder.layers.2.attn.proj.bias"].any()
    assert torch.equal(values["encoder.layers.0.norm1.weight"], torch.ones(32))


def test_published_vision_config_of_its_own(tmp_path):
    """The towers are published alone too: such a `config.json` names remote code, which the package does not need."""
    published = {
        **TOY,
        "architectures": ["InternVisionModel"],
        "auto_map": {
            "AutoConfig": "configuration_intern_vit.InternVisionConfig",
            "AutoModel": "modeling_intern_vit.InternVisionModel",
        },
        "model_type": "intern_vit_6b",
        "torch_dtype": "bfloat16",
    }
    (tmp_path / "config.json").write_text(json.dumps(published), encoding="utf-8")
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert type(config) is InternVisionConfig
    assert {name: getattr(config, name) for name in TOY} == TOY
