"""`InternVLChatConfig`: published files survive, bad values are named, nothing of the caller's is changed."""

import copy
import json
import pickle

import pytest
import torch
import transformers
from published_configs import BASE_FIELDS, GENERATION_FIELDS, PUBLISHED

from internvl_chat import InternVisionConfig, InternVLChatConfig, InternVLChatModel


@pytest.fixture(params=PUBLISHED, ids=str)
def published(request):
    """(name, content of the published `config.json`)."""
    values = copy.deepcopy(PUBLISHED[request.param])
    architecture = values["llm_config"]["architectures"][0]
    if architecture != "InternLM2ForCausalLM" and not hasattr(transformers, architecture):
        pytest.skip(f"this transformers has no {architecture}")
    return request.param, values


def differences(actual, published, path="", left_out=()):
    """Published values that `actual` has lost or changed, as readable lines."""
    lines = []
    for key, value in published.items():
        if key in left_out or key == "attn_implementation":  # a setting of the machine that saved the file
            continue
        if key in ("vision_config", "llm_config"):
            lines += differences(actual[key], value, f"{key}.", left_out)
            continue
        found = actual.get(key, "absent")
        if key in GENERATION_FIELDS and found == "absent":
            continue
        if isinstance(found, torch.dtype):
            found = str(found).replace("torch.", "")
        if key == "id2label":
            found = {str(number): name for number, name in found.items()}
        if key == "rope_scaling" and isinstance(value, dict) and isinstance(found, dict):
            # Releases add the kind under its other name; "su" became "longrope".
            kinds = {value.get("rope_type", value.get("type"))}
            kinds |= {"longrope"} if kinds == {"su"} else set()
            if found.get("rope_type", found.get("type")) not in kinds:
                lines.append(f"{path}{key}: {found}")
            value = {name: content for name, content in value.items() if name not in ("type", "rope_type")}
            found = {name: found.get(name) for name in value}
        if found != value:
            lines.append(f"{path}{key}: {found!r} instead of {value!r}")
    return lines


def content(config):
    """Every value; not where the file was."""
    return {key: value for key, value in config.to_dict().items() if key != "_name_or_path"}


def test_published_files_survive(published, tmp_path):
    """`from_pretrained`, `save_pretrained`, `from_pretrained`: every value is there, unknown ones included."""
    _, values = published
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    (first / "config.json").write_text(json.dumps(values), encoding="utf-8")

    config = InternVLChatConfig.from_pretrained(first)
    assert differences(config.to_dict(), values) == []
    config.save_pretrained(second)
    written = json.loads((second / "config.json").read_text(encoding="utf-8"))
    # What equals the base class' default need not be written.
    assert differences(written, values, left_out=(*BASE_FIELDS, "system_message")) == []
    again = InternVLChatConfig.from_pretrained(second)
    assert differences(again.to_dict(), values) == []
    assert content(again) == content(config)

    config = transformers.AutoConfig.from_pretrained(second)
    assert type(config) is InternVLChatConfig
    assert content(config) == content(again)
    assert pickle.loads(pickle.dumps(config)).to_dict() == config.to_dict()
    assert copy.deepcopy(config).to_dict() == config.to_dict()


def test_the_callers_dictionary_is_left_as_it_is(published):
    _, values = published
    before = copy.deepcopy(values)
    config = InternVLChatConfig(**values)
    config.llm_config.hidden_size = 1
    config.vision_config.hidden_size = 1
    assert values == before


def test_the_callers_configurations_are_left_as_they_are():
    vision, llm = InternVisionConfig(num_hidden_layers=2), transformers.LlamaConfig(num_hidden_layers=2)
    before = vision.to_dict(), llm.to_dict()
    config = InternVLChatConfig(vision_config=vision, llm_config=llm)
    config.llm_config.hidden_size = config.vision_config.hidden_size = 1
    assert (vision.to_dict(), llm.to_dict()) == before
    assert type(config.llm_config) is transformers.LlamaConfig
    assert config.llm_config.architectures == ["LlamaForCausalLM"]


def test_default_configuration(tmp_path):
    config = InternVLChatConfig()
    config.check()
    assert config.llm_config.architectures == ["Qwen2ForCausalLM"]
    assert type(config.vision_config) is InternVisionConfig
    config.save_pretrained(tmp_path)
    assert content(InternVLChatConfig.from_pretrained(tmp_path)) == content(config)
    repr(config)  # compares with the defaults on the way


def test_text_config():
    config = InternVLChatConfig(**PUBLISHED["InternVL3-1B"])
    assert config.get_text_config() is config.llm_config
    assert config.get_text_config(decoder=True) is config.llm_config


def test_saved_long_rope_loads_on_every_release(tmp_path):
    """transformers 4 refuses a Phi-3 file whose `rope_scaling` has more than the three fields of its time."""
    if not hasattr(transformers, "Phi3ForCausalLM"):
        pytest.skip("this transformers has no Phi3")
    InternVLChatConfig(**copy.deepcopy(PUBLISHED["InternVL2-4B"])).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["llm_config"]
    assert set(written["rope_scaling"]) == {"type", "short_factor", "long_factor"}
    assert written["original_max_position_embeddings"] == 4096


@pytest.mark.parametrize("grid", [1, 2, 3, 6, 7, 14, 16, 32, 49, 98])
def test_number_of_image_tokens(toy_values, grid):
    """Every ratio that divides the grid gives a whole square of tokens, whatever its digits."""
    for merged in (n for n in range(1, grid + 1) if grid % n == 0):
        for ratio in (1 / merged, float(f"{1 / merged:.9g}")):
            values = toy_values(vision={"image_size": 8 * grid}, downsample_ratio=ratio)
            assert InternVLChatConfig(**values).num_image_token == (grid // merged) ** 2, (merged, ratio)


def test_tile_size(toy_values):
    config = InternVLChatConfig(**toy_values(force_image_size=64))
    assert (config.tile_size, config.num_image_token) == (64, 16)
    config = InternVLChatConfig(**toy_values(force_image_size=None))
    assert (config.tile_size, config.num_image_token) == (32, 4)


@pytest.mark.parametrize(
    "layer, fine", [(-4, True), (-1, True), (0, True), (3, True), (-5, False), (4, False), (100, False)]
)
def test_select_layer_range(toy_values, layer, fine):
    """Three layers have four hidden states."""
    if fine:
        assert InternVLChatConfig(**toy_values(select_layer=layer)).select_layer == layer
    else:
        with pytest.raises(ValueError, match=f"select_layer={layer} .*-4 to 3"):
            InternVLChatConfig(**toy_values(select_layer=layer))


ALL_LLMS = "Qwen2ForCausalLM.*InternLM2ForCausalLM.*LlamaForCausalLM.*Phi3ForCausalLM.*Qwen3ForCausalLM.*"
BAD_VALUES = [
    ({"ps_version": "v3"}, "'v3'.*v1, v2"),
    ({"ps_version": None}, "None.*v1, v2"),
    ({"template": "vicuna"}, "'vicuna'.*Hermes-2, internlm2-chat, phi3-chat, internvl2_5, internvl3_5_gpt_oss"),
    ({"template": None}, "None.*Hermes-2"),
    ({"downsample_ratio": 0.3}, "downsample_ratio=0.3 .*4 patches.*1/1, 1/2, 1/4$"),
    ({"downsample_ratio": 1 / 3}, "downsample_ratio=0.333.*1/1, 1/2, 1/4$"),
    ({"downsample_ratio": 0}, "downsample_ratio=0 "),
    ({"downsample_ratio": -0.5}, "downsample_ratio=-0.5 "),
    ({"downsample_ratio": 2.0}, "downsample_ratio=2.0 "),
    ({"downsample_ratio": float("nan")}, "downsample_ratio=nan "),
    ({"downsample_ratio": "0.5"}, "downsample_ratio='0.5'"),
    ({"downsample_ratio": None}, "downsample_ratio=None"),
    ({"select_layer": "last"}, "select_layer='last'"),
    ({"select_layer": 1.5}, "select_layer=1.5"),
    ({"force_image_size": 36}, "force_image_size=36.*8"),
    ({"force_image_size": -32}, "force_image_size=-32"),
    ({"force_image_size": [32, 32]}, r"force_image_size=\[32, 32\]"),
    ({"min_dynamic_patch": 0}, "min_dynamic_patch=0"),
    ({"min_dynamic_patch": 7, "max_dynamic_patch": 6}, "min_dynamic_patch=7.*max_dynamic_patch=6"),
    ({"max_dynamic_patch": None}, "max_dynamic_patch=None"),
    ({"llm_config": {"architectures": ["FalconForCausalLM"]}}, "'FalconForCausalLM'.*" + ALL_LLMS),
    ({"llm_config": {"model_type": "falcon"}}, "'falcon'.*" + ALL_LLMS),
    ({"llm_config": transformers.GPT2Config()}, "'gpt2'.*" + ALL_LLMS),
    ({"llm_config": "qwen2"}, "llm_config.*'qwen2'"),
    ({"vision_config": "300M"}, "vision_config.*'300M'"),
    ({"vision_config": {"norm_type": "batch_norm"}}, "'batch_norm'.*rms_norm, layer_norm"),
    ({"vision_config": {"patch_size": 0}}, "patch_size=0"),
    ({"vision_config": {"num_attention_heads": 0}}, "num_attention_heads=0"),
]


@pytest.mark.parametrize("change, named", BAD_VALUES, ids=lambda value: str(value)[:60])
def test_bad_values_are_named(toy_values, change, named):
    values = {**toy_values(), **change}
    with pytest.raises((ValueError, TypeError)) as caught:
        InternVLChatConfig(**values)
    assert caught.match(f"(?s){named}")


@pytest.mark.parametrize(
    "change, named",
    [({"ps_version": "v3"}, "'v3'"), ({"select_layer": 9}, "select_layer=9"), ({"downsample_ratio": 0.3}, "0.3")],
    ids=str,
)
def test_bad_values_that_come_later_are_named_too(toy_config, change, named, tmp_path):
    """Set on a finished configuration, or given to `from_pretrained`, which sets them after construction."""
    config = toy_config()
    config.save_pretrained(tmp_path)
    for key, value in change.items():
        setattr(config, key, value)
    with pytest.raises(ValueError, match=named):
        InternVLChatModel(config)
    with pytest.raises(ValueError, match=named):
        InternVLChatModel(InternVLChatConfig.from_pretrained(tmp_path, **change))


def test_keywords_of_from_pretrained_replace_values(toy_config, tmp_path):
    toy_config().save_pretrained(tmp_path)
    config = InternVLChatConfig.from_pretrained(tmp_path, max_dynamic_patch=3, system_message="Be brief.")
    assert (config.max_dynamic_patch, config.system_message) == (3, "Be brief.")


@pytest.mark.parametrize("message", [None, "", "Be brief."])
def test_system_message_survives(toy_config, tmp_path, message):
    toy_config(system_message=message).save_pretrained(tmp_path)
    assert InternVLChatConfig.from_pretrained(tmp_path).system_message == message


def test_values_at_todays_defaults_are_written(toy_values, tmp_path):
    """A default may move in a later release: the file must not depend on it."""
    InternVLChatConfig(**toy_values()).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    for key in ("downsample_ratio", "select_layer", "template", "ps_version", "min_dynamic_patch", "max_dynamic_patch"):
        assert key in written
    for key in ("layer_norm_eps", "hidden_act", "dropout", "drop_path_rate", "initializer_factor"):
        assert key in written["vision_config"]
    for key in ("hidden_act", "rms_norm_eps", "rope_theta", "initializer_range", "attention_dropout", "use_cache"):
        assert key in written["llm_config"]
    assert written["vision_config"]["model_type"] == "intern_vit_6b"
    assert written["llm_config"]["model_type"] == "qwen2"
    # The defaults of these differ between releases.
    assert {"bos_token_id", "eos_token_id", "pad_token_id"} <= set(written["llm_config"])
    for tied in (False, True):
        InternVLChatConfig(**toy_values(text={"tie_word_embeddings": tied})).save_pretrained(tmp_path)
        written = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
        assert written["tie_word_embeddings"] is written["llm_config"]["tie_word_embeddings"] is tied


def test_stale_attention_backends_are_dropped(toy_values, tmp_path):
    """InternVL3 files name flash attention in `llm_config`: a setting of the machine that saved them."""
    values = toy_values()
    stale = {"attn_implementation": "flash_attention_2", "_attn_implementation_autoset": True}
    for part in ("vision_config", "llm_config"):
        values[part].update(stale, _attn_implementation="flash_attention_2")
    config = InternVLChatConfig(**values)
    for part in (config.vision_config, config.llm_config):
        assert getattr(part, "_attn_implementation_internal", None) in (None, "eager", "sdpa")
        assert not hasattr(part, "attn_implementation") or part.attn_implementation != "flash_attention_2"
    config.save_pretrained(tmp_path)
    assert "attn_implementation" not in (tmp_path / "config.json").read_text(encoding="utf-8")


def test_code_named_inside_llm_config_is_never_run(toy_values, tmp_path):
    """Published InternLM2 and Phi-3 files carry an `auto_map` in `llm_config`; its code is not ours to run."""
    marker = tmp_path / "was_run"
    code = f"open({str(marker)!r}, 'w').close()\nclass Config: pass\nclass Model: pass\n"
    (tmp_path / "own_llm.py").write_text(code, encoding="utf-8")
    values = toy_values()
    for part in ("llm_config", "vision_config"):
        values[part]["auto_map"] = {
            "AutoConfig": "own_llm.Config",
            "AutoModel": "own_llm.Model",
            "AutoModelForCausalLM": "own_llm.Model",
        }
    (tmp_path / "config.json").write_text(json.dumps({**values, "model_type": "internvl_chat"}), encoding="utf-8")
    for load in (InternVLChatConfig.from_pretrained, transformers.AutoConfig.from_pretrained):
        config = load(tmp_path, trust_remote_code=True)
        assert type(config.llm_config) is transformers.Qwen2Config
    model = transformers.AutoModel.from_config(config, trust_remote_code=True)
    assert type(model.language_model) is transformers.Qwen2ForCausalLM
    assert not marker.exists()


@pytest.mark.parametrize("tied", [False, True])
def test_one_truth_about_the_tied_head(toy_values, tied):
    """The language model's word counts, also against the whole's: `tie_word_embeddings` defaults to True there."""
    for given in ({}, {"tie_word_embeddings": True}, {"tie_word_embeddings": False}):
        config = InternVLChatConfig(**toy_values(text={"tie_word_embeddings": tied}), **given)
        assert config.tie_word_embeddings is config.llm_config.tie_word_embeddings is tied
        assert config.to_dict()["tie_word_embeddings"] is tied


def test_llm_architecture_is_found_from_either_name(toy_values):
    for dropped in ("architectures", "model_type"):
        values = toy_values("Llama")
        del values["llm_config"][dropped]
        config = InternVLChatConfig(**values)
        assert type(config.llm_config) is transformers.LlamaConfig
        assert config.llm_config.architectures == ["LlamaForCausalLM"]
        assert config.llm_config.model_type == "llama"
