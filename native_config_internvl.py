"""`config.json` of a published checkpoint as that of transformers' own InternVL, and back. Dictionaries in and out.

What the native configuration has no field for (prompt template, tiling, training options, InternLM2) is kept whole in
one entry of it, `internvl_chat`: {"config": the published `config.json`, and more that `native_processing_internvl.py`
puts there}. transformers carries unknown entries along, so that the record outlives training and saving a native model.
"""

import copy

from .compat_internvl import portable_config_dict
from .configuration_internvl_chat import LLM_CONFIGS, InternVLChatConfig, llm_config_class
from .modeling_internvl_chat import AUTO_MAP

RECORD = "internvl_chat"
NATIVE_ARCHITECTURE = "InternVLForConditionalGeneration"

# Field of the vision tower here -> native field, and the value that a native file means when it leaves the field out.
_VISION_FIELDS = {
    "hidden_size": ("hidden_size", 1024),
    "num_hidden_layers": ("num_hidden_layers", 24),
    "num_attention_heads": ("num_attention_heads", 16),
    "intermediate_size": ("intermediate_size", 4096),
    "num_channels": ("num_channels", 3),
    "qkv_bias": ("attention_bias", False),
    "qk_normalization": ("use_qk_norm", False),
    "hidden_act": ("hidden_act", "gelu"),
    "norm_type": ("norm_type", "layer_norm"),
    "layer_norm_eps": ("layer_norm_eps", 1e-6),
    "attention_dropout": ("attention_dropout", 0.0),
    "dropout": ("projection_dropout", 0.0),
    "initializer_range": ("initializer_range", 0.02),
    "initializer_factor": ("layer_scale_init_value", 0.1),
}
# Native fields that our tower has one value for.
_VISION_FIXED = {"use_mask_token": False, "use_absolute_position_embeddings": True, "use_mean_pooling": True}
_FIXED = {"projector_hidden_act": "gelu", "vision_feature_select_strategy": "default"}
_NATIVE_QK_EPS = 1e-6  # of the native query/key norms, which do not read `layer_norm_eps`

# InternLM2's fields that Llama has under the same name.
_LLAMA_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "use_cache",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "tie_word_embeddings",
    "rope_theta",
    "torch_dtype",
)
# Kind of language model in a native file -> the template of the published checkpoints with it (2.5 and later), for
# files that do not say where they come from.
_TEMPLATES = {"gpt_oss": "internvl3_5_gpt_oss", "phi3": "phi3-chat"}
_DEFAULT_TEMPLATE = "internvl2_5"
# No property of the model, or settled by the tensors: never taken for a change that somebody made.
_NOT_COMPARED = ("architectures", "auto_map", "tie_word_embeddings", "transformers_version", "_name_or_path")


def read_original(values: dict) -> InternVLChatConfig:
    """The configuration in a published `config.json`; `values` stay as they are.

    Raises:
        ValueError: it is of another kind of model, or a value cannot work.
    """
    if values.get("model_type") != InternVLChatConfig.model_type:
        raise ValueError(f"model_type is {values.get('model_type')!r}, expected {InternVLChatConfig.model_type!r}")
    return InternVLChatConfig.from_dict(copy.deepcopy(values))


# --- to native --------------------------------------------------------------------------------------------------------


def inexpressible(config: InternVLChatConfig) -> list:
    """Why the native layout cannot hold a model, one line for each reason; empty where it can."""
    vision, reasons = config.vision_config, []
    if config.ps_version != "v2":
        reasons.append(f"ps_version={config.ps_version!r}: the native pixel shuffle is 'v2', the order of the tokens")
    if int(1 / config.downsample_ratio) != round(1 / config.downsample_ratio):
        reasons.append(f"downsample_ratio={config.downsample_ratio!r}: the native model rounds its inverse down")
    if vision.qk_normalization and vision.layer_norm_eps != _NATIVE_QK_EPS:
        reasons.append(
            f"vision_config.layer_norm_eps={vision.layer_norm_eps!r} with qk_normalization: the native norms of "
            f"queries and keys have {_NATIVE_QK_EPS}"
        )
    if native_tiles(config)[1] > 1 and not config.use_thumbnail:
        reasons.append("use_thumbnail=False with dynamic_image_size: the native processor always adds the thumbnail")
    for name in ("use_backbone_lora", "use_llm_lora"):
        if getattr(config, name):
            reasons.append(f"{name}={getattr(config, name)}: merge the adapters first (model.merge_lora(), then save)")
    if any(getattr(part, "quantization_config", None) for part in (config, config.llm_config)):
        reasons.append("quantization_config: only plain weights can be dealt out anew")
    return reasons


def native_tiles(config: InternVLChatConfig) -> tuple:
    """Fewest and most tiles of an image, thumbnail not counted, as the native image processor takes them."""
    if not config.dynamic_image_size:
        return 1, 1
    return config.min_dynamic_patch, config.max_dynamic_patch


def native_config(config: InternVLChatConfig, image_token_id: int, tied: bool) -> dict:
    """The native `config.json`, without the record.

    Args:
        config: of the published checkpoint.
        image_token_id: id of `<IMG_CONTEXT>`.
        tied: whether the head is the embedding table.

    Raises:
        ValueError: the native layout cannot hold the model; the message has every reason.
    """
    reasons = inexpressible(config)
    if reasons:
        raise ValueError("the native layout cannot hold this model: " + "; ".join(reasons))
    values = config.to_diff_dict()
    vision = {native: values["vision_config"][ours] for ours, (native, _) in _VISION_FIELDS.items()}
    for native, ours in (("image_size", "image_size"), ("patch_size", "patch_size")):
        vision[native] = [values["vision_config"][ours]] * 2
    vision.update(_VISION_FIXED, architectures=["InternVLVisionModel"], model_type="internvl_vision")
    vision["hidden_dropout_prob"] = vision["projection_dropout"]
    text = _native_text(values["llm_config"], config.llm_config)
    text["tie_word_embeddings"] = tied
    native = {
        "architectures": [NATIVE_ARCHITECTURE],
        "model_type": "internvl",
        "downsample_ratio": config.downsample_ratio,
        "image_seq_length": config.num_image_token,
        "image_token_id": image_token_id,
        "text_config": text,
        "tie_word_embeddings": tied,
        "vision_config": vision,
        "vision_feature_layer": config.select_layer,
        **_FIXED,
    }
    if "torch_dtype" in values:
        native["torch_dtype"] = values["torch_dtype"]
    return native


def _native_text(values: dict, config) -> dict:
    """The language model's dictionary under names that every release with the native model reads."""
    if config.architectures[0] == "InternLM2ForCausalLM":
        text = {key: values[key] for key in _LLAMA_FIELDS if key in values}
        text.update(architectures=["LlamaForCausalLM"], model_type="llama", mlp_bias=False)
        text.update(attention_bias=config.bias, head_dim=config.head_dim, rope_scaling=None)
        if config.rope_parameters["rope_type"] != "default":
            kind, factor = config.rope_parameters["rope_type"], config.rope_parameters["factor"]
            text["rope_scaling"] = {"type": kind, "rope_type": kind, "factor": factor}
        return text
    text = {key: value for key, value in values.items() if key != "auto_map"}
    text["architectures"], text["model_type"] = list(config.architectures), type(config).model_type
    if (text.get("rope_scaling") or {}).get("type") == "su":  # the name until 4.43
        text["rope_scaling"] = {**text["rope_scaling"], "type": "longrope"}
    return text


# --- to original ------------------------------------------------------------------------------------------------------


def original_config(native: dict, tiles=None, tile_size=None, template=None, has_head=True) -> dict:
    """The published form of a native `config.json`.

    With a record in it, that is the recorded configuration, with whatever was changed in the native one since (another
    vocabulary, more positions, ...). Without one it is derived; what no native file tells is then as in the published
    checkpoints with that kind of language model.

    Args:
        native: content of the native `config.json`.
        tiles: fewest and most tiles of an image, from the native image processor; None where there is none, and the
            recorded ones count, else 1 and 12.
        tile_size: side of a tile in pixels, from the same place; None means the recorded one, else the vision tower's.
        template: name of the prompt template; None means the recorded one, else by the kind of language model.
        has_head: whether the files have a head of its own.

    Raises:
        ValueError: it is of another kind of model, or has values that the published layout has no field for.
    """
    record = (native.get(RECORD) or {}).get("config")
    if record is None:
        return _derived(native, tiles or (1, 12), tile_size, template, has_head)
    config, result = read_original(record), copy.deepcopy(record)
    recorded = (native_tiles(config), config.tile_size, config.template, has_head)
    before = _derived(native_config(config, native["image_token_id"], not has_head), *recorded)
    _overlay(result, before, _derived(native, tiles or recorded[0], tile_size or recorded[1], *recorded[2:]))
    if template is not None:
        result["template"] = template
    if not has_head:  # a head of its own is loaded whatever the flag says, but a missing one needs it
        result["tie_word_embeddings"] = result["llm_config"]["tie_word_embeddings"] = True
    return result


def _overlay(result: dict, before: dict, now: dict) -> None:
    """Puts into `result` what is different in `now` from `before`."""
    for key, value in now.items():
        if key in _NOT_COMPARED or (key in before and before[key] == value):
            continue
        if isinstance(value, dict) and isinstance(result.get(key), dict) and isinstance(before.get(key), dict):
            if key.endswith("_config"):
                _overlay(result[key], before[key], {k: v for k, v in value.items() if k != "torch_dtype"})
                continue
        result[key] = value


def _derived(native, tiles, tile_size, template, has_head) -> dict:
    if native.get("model_type") != "internvl":
        raise ValueError(f"model_type is {native.get('model_type')!r}, expected 'internvl'")
    vision = native.get("vision_config") or {}
    text = portable_config_dict({"model_type": "qwen2", **(native.get("text_config") or {})})
    for given, fixed in ((vision, _VISION_FIXED), (native, _FIXED)):
        for key, value in fixed.items():
            if given.get(key, value) != value:
                raise ValueError(f"{key}={given[key]!r} has no place in the published layout, which has {value!r}")
    layer = native.get("vision_feature_layer", -1)
    if not isinstance(layer, int):
        raise ValueError(f"vision_feature_layer={layer!r}: the published layout takes the features of one layer")
    sides = {key: _side(key, vision.get(key, default)) for key, default in (("image_size", 448), ("patch_size", 14))}
    fewest, most = tiles
    config = InternVLChatConfig(
        vision_config={**{ours: vision.get(key, value) for ours, (key, value) in _VISION_FIELDS.items()}, **sides},
        llm_config={
            **{key: value for key, value in text.items() if key != "_name_or_path"},
            "architectures": [_architecture(text["model_type"])],
            "tie_word_embeddings": not has_head,
        },
        template=template or _TEMPLATES.get(text["model_type"], _DEFAULT_TEMPLATE),
        select_layer=layer,
        downsample_ratio=native.get("downsample_ratio", 0.5),
        force_image_size=tile_size or sides["image_size"],
        dynamic_image_size=most > 1,
        use_thumbnail=most > 1,
        min_dynamic_patch=fewest,
        max_dynamic_patch=most,
        ps_version="v2",
        img_context_token_id=native.get("image_token_id", 151667),
    )
    values = config.to_diff_dict()
    values.pop("transformers_version", None)
    values["vision_config"]["architectures"] = ["InternVisionModel"]
    values.update(architectures=["InternVLChatModel"], auto_map=dict(AUTO_MAP), model_type=config.model_type)
    dtype = native.get("torch_dtype", native.get("dtype"))
    if dtype is not None:
        values["torch_dtype"] = dtype
    return values


def _side(name, value) -> int:
    sides = set(value) if isinstance(value, (list, tuple)) else {value}
    if len(sides) != 1:
        raise ValueError(f"vision_config.{name}={value!r}: tiles and patches of the published layout are square")
    return sides.pop()


def _architecture(model_type: str) -> str:
    for architecture in LLM_CONFIGS:
        if architecture == "InternLM2ForCausalLM":
            continue  # native files have no such model
        try:
            if llm_config_class(architecture).model_type == model_type:
                return architecture
        except ValueError:  # not in this release
            continue
    raise ValueError(f"text_config.model_type={model_type!r} is none of the family; known: {', '.join(LLM_CONFIGS)}")
