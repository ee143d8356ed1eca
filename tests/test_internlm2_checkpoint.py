"""InternLM2's names and shapes, saving and loading, training helpers, and its configuration."""

import json

import pytest
import torch
from safetensors.torch import load_file

from internvl_chat.configuration_internlm2 import InternLM2Config
from internvl_chat.modeling_internlm2 import InternLM2ForCausalLM, InternLM2Model

TOY = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16,
    "bias": True,
}
LINEAR, DYNAMIC = {"type": "linear", "factor": 2.0}, {"rope_type": "dynamic", "factor": 3.0}


@pytest.fixture
def model(draw_weights):
    return lambda **changes: draw_weights(InternLM2ForCausalLM(InternLM2Config(**{**TOY, **changes}))).eval()


def prompt(*shape):
    return torch.randint(3, TOY["vocab_size"], shape, generator=torch.Generator().manual_seed(0))


# --- building, saving, loading ----------------------------------------------------------------------------------------

PUBLISHED_SHAPES = {
    "model.tok_embeddings.weight": (97, 32),
    "model.layers.0.attention.wqkv.weight": (64, 32),
    "model.layers.0.attention.wqkv.bias": (64,),
    "model.layers.0.attention.wo.weight": (32, 32),
    "model.layers.0.attention.wo.bias": (32,),
    "model.layers.0.feed_forward.w1.weight": (48, 32),
    "model.layers.0.feed_forward.w2.weight": (32, 48),
    "model.layers.0.feed_forward.w3.weight": (48, 32),
    "model.layers.0.attention_norm.weight": (32,),
    "model.layers.0.ffn_norm.weight": (32,),
    "model.norm.weight": (32,),
    "output.weight": (97, 32),
}


def test_names_and_shapes_are_the_published_ones():
    model = InternLM2ForCausalLM(InternLM2Config(**{**TOY, "num_hidden_layers": 1}))
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == PUBLISHED_SHAPES
    assert not list(model.buffers())  # nothing to compute while building, nor to move


@pytest.mark.parametrize("tied", [False, True])
def test_save_and_load(model, tmp_path, tied):
    ours, ids = model(tie_word_embeddings=tied, rope_scaling=DYNAMIC), prompt(1, 20)
    ours.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert ("output.weight" in stored) != tied
    loaded = InternLM2ForCausalLM.from_pretrained(tmp_path)
    state = loaded.state_dict()
    assert set(state) - set(stored) == ({"output.weight"} if tied else set())
    for name, tensor in stored.items():  # one release loads some weights and then draws them anew
        assert torch.equal(state[name], tensor), name
    assert (loaded.output.weight is loaded.model.tok_embeddings.weight) == tied
    kept = [{k: v for k, v in one.config.to_dict().items() if not k.startswith("_")} for one in (loaded, ours)]
    assert kept[0] == kept[1]
    with torch.no_grad():
        assert torch.equal(loaded.eval()(ids).logits, ours(ids).logits)
        decoder = InternLM2Model.from_pretrained(tmp_path).eval()  # the same file without the head
        assert torch.equal(decoder(ids).last_hidden_state, ours.model(ids).last_hidden_state)


def test_fresh_weights_follow_the_initializer_range():
    torch.manual_seed(0)
    model = InternLM2ForCausalLM(InternLM2Config(**{**TOY, "hidden_size": 256}, initializer_range=0.05))
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            assert (parameter == 1).all(), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        else:
            assert 0.045 < parameter.std() < 0.055, name


def test_embeddings_can_be_replaced_and_resized(model):
    ours = model(tie_word_embeddings=True)
    ours.resize_token_embeddings(105)
    assert ours.get_input_embeddings().weight is ours.get_output_embeddings().weight
    assert ours(torch.tensor([[104]])).logits.shape == (1, 1, 105)
    head = torch.nn.Linear(32, 7, bias=False)
    ours.set_output_embeddings(head)
    assert ours.get_output_embeddings() is head and ours.get_decoder() is ours.model


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(model, reentrant):
    ours, ids = model().train(), prompt(2, 12)
    mask = torch.tensor([[1] * 12, [0] * 4 + [1] * 8])

    def gradients():
        ours.zero_grad()
        ours(ids, attention_mask=mask, labels=ids).loss.backward()
        return {name: p.grad.clone() for name, p in ours.named_parameters()}

    plain = gradients()
    ours.gradient_checkpointing_enable({"use_reentrant": reentrant})
    ours.enable_input_require_grads()
    calls = []
    ours.model.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    checkpointed = gradients()
    assert len(calls) == 2  # once forward, once again while going back
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient)


def test_the_backend_can_be_switched(model):
    ours, ids = model(), prompt(1, 6)
    with torch.no_grad():
        expected = ours(ids).logits
        for name in ("eager", "sdpa"):
            if hasattr(ours, "set_attn_implementation"):
                ours.set_attn_implementation(name)
            else:
                ours.config._attn_implementation = name
            assert ours.config._attn_implementation == name
            torch.testing.assert_close(ours(ids).logits, expected)


# --- configuration ----------------------------------------------------------------------------------------------------

PUBLISHED = {  # llm_config of InternVL2-2B, and a key of no meaning to us
    "architectures": ["InternLM2ForCausalLM"],
    "auto_map": {"AutoConfig": "configuration_internlm2.InternLM2Config"},
    "bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 32768,
    "model_type": "internlm2",
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "pad_token_id": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {"factor": 2.0, "type": "dynamic"},
    "rope_theta": 1000000,
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": 92553,
    "a_key_of_tomorrow": {"nested": [1, None]},
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rope_scaling": None},
        {"rope_scaling": {"rope_type": "linear", "factor": 4}},
        {"rope_scaling": {"rope_type": "dynamic", "type": "dynamic", "factor": 6.0, "more": 1}},
        {"tie_word_embeddings": True, "bias": True, "pad_token_id": None, "use_cache": False},
    ],
    ids=str,
)
def test_configuration_keeps_every_value(tmp_path, changes):
    values = {**PUBLISHED, **changes}
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
    (tmp_path / "first" / "config.json").write_text(json.dumps(values))
    config = InternLM2Config.from_pretrained(tmp_path / "first")
    config.save_pretrained(tmp_path / "second")
    saved = json.loads((tmp_path / "second" / "config.json").read_text())
    assert {key: saved.get(key, "missing") for key in values} == values
    assert InternLM2Config.from_pretrained(tmp_path / "second").to_diff_dict() == config.to_diff_dict()
    for key, value in values.items():
        assert getattr(config, key) == value


@pytest.mark.parametrize(
    "given, parameters, scaling",
    [
        ({}, {"rope_type": "default", "rope_theta": 10000}, None),
        ({"rope_theta": 5, "rope_scaling": {}}, {"rope_type": "default", "rope_theta": 5}, {}),
        ({"rope_scaling": LINEAR}, {"rope_type": "linear", "rope_theta": 10000, "factor": 2.0}, LINEAR),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 7, "factor": 2.0}},
            {"rope_type": "dynamic", "rope_theta": 7, "factor": 2.0},
            {"rope_type": "dynamic", "factor": 2.0},
        ),
        (
            {"rope_theta": 3, "rope_parameters": {"rope_type": "default"}},
            {"rope_type": "default", "rope_theta": 3},
            None,
        ),
    ],
    ids=str,
)
def test_rotary_settings_in_both_forms(given, parameters, scaling):
    config = InternLM2Config(**given)
    assert config.rope_parameters == parameters
    assert config.rope_scaling == scaling
    assert config.rope_theta == parameters["rope_theta"]
    assert "rope_parameters" not in config.to_dict()


def test_defaults_are_valid():
    config = InternLM2Config()
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (2, 1, 2)
    assert (config.head_dim, config.num_key_value_heads, config.tie_word_embeddings) == (128, 32, False)


@pytest.mark.parametrize(
    "given, words",
    [
        ({"num_hidden_layers": 0}, ["num_hidden_layers", "0"]),
        ({"vocab_size": "92553"}, ["vocab_size", "'92553'"]),
        ({"intermediate_size": True}, ["intermediate_size", "True"]),
        ({"hidden_size": 100, "num_attention_heads": 3}, ["hidden_size", "100", "3"]),
        ({"num_key_value_heads": 5}, ["num_key_value_heads", "5", "32"]),
        ({"head_dim": 64}, ["head_dim", "64", "128"]),
        ({"pad_token_id": 103168}, ["pad_token_id", "103168"]),
        ({"rope_theta": 0}, ["rope_theta", "0"]),
        ({"rope_scaling": "dynamic"}, ["rope_scaling", "'dynamic'"]),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, ["'yarn'", "linear", "dynamic"]),
        ({"rope_scaling": {"factor": 2.0}}, ["None", "linear", "dynamic"]),
        ({"rope_scaling": {"type": "linear"}}, ["factor", "None"]),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, ["factor", "'2'"]),
        ({"rope_scaling": {"type": "dynamic", "factor": 0.5}}, ["factor", "0.5"]),
    ],
    ids=str,
)
def test_bad_configurations(given, words):
    with pytest.raises(ValueError) as error:
        InternLM2Config(**given)
    assert all(word in str(error.value) for word in words), error.value
