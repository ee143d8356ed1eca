"""The published checkpoints of the family: content of each `config.json`, parameter counts, and what is known how well.

Not every file could be read. A value that was not is *derived*: taken from the public base language model, from a
checkpoint of the same shape, or from the size of the weights. `Checkpoint.read` tells the two apart. A key that is
known from neither is left out of the configuration; a count that nobody published is None and is not compared.
"""

from dataclasses import dataclass
from typing import Optional


@dataclass(frozen=True)
class Checkpoint:
    """One published checkpoint.

    Attributes:
        config: content of its `config.json`.
        parameters: exact counts of vision tower, projector and language model with a head of its own, computed from the
            dimensions (not by this project).
        published: what was published about the size: "2.21B" parameters, or "7.42 GB" of 16-bit weights; else None.
        confidence: how much of the file was read: "full", "mostly", "partial", or "derived" for (nearly) nothing.
        read: what was read in the checkpoint's own file, the rest is derived. "vision", "llm" and "top" stand for all
            values of a part, a name for one of the language model or of the top, "vision.name" for one of the tower;
            "-name" takes one out again. `auto_map`, `model_type` and the architecture of the whole are not marked.
    """

    config: dict
    parameters: tuple
    published: Optional[str]
    confidence: str
    read: str

    def derived(self) -> set:
        """Names (`part.key`) of the values that were not read in the checkpoint's own file.

        Raises:
            ValueError: a word of `read` names nothing.
        """
        top = {key: value for key, value in self.config.items() if key not in ("vision_config", "llm_config")}
        parts = {"vision": self.config["vision_config"], "llm": self.config["llm_config"], "top": top}
        every = {f"{part}.{key}" for part in parts for key in parts[part] if key not in ("auto_map", "model_type")}
        every.discard("top.architectures")
        found = set(every)
        for word in self.read.split():
            name = word.lstrip("-")
            meant = {each for each in every if name in (each, each.split(".")[0])}
            meant |= {each for each in every if each in (f"llm.{name}", f"top.{name}")}
            if not meant:
                raise ValueError(f"{word!r} names nothing in the configuration")
            found = found | meant if word.startswith("-") else found - meant
        return found


# --- vision towers ----------------------------------------------------------------------------------------------------

VIT_300M = {
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "image_size": 448,
    "intermediate_size": 4096,
    "layer_norm_eps": 1e-6,
    "model_type": "intern_vit_6b",
    "norm_type": "layer_norm",
    "num_attention_heads": 16,
    "num_channels": 3,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "qk_normalization": False,
    "qkv_bias": True,
}
VIT_6B = {
    **VIT_300M,
    "hidden_size": 3200,
    "intermediate_size": 12800,
    "norm_type": "rms_norm",
    "num_attention_heads": 25,
    "num_hidden_layers": 45,
    "qk_normalization": True,
    "qkv_bias": False,
}
TOWER_PARAMETERS = {1024: 304012288, 3200: 5536496000}  # by hidden size
# By the hidden sizes of both towers.
PROJECTOR_PARAMETERS = {
    (1024, 896): 4482816,
    (1024, 1024): 5253120,
    (1024, 1536): 8662016,
    (1024, 2048): 12595200,
    (1024, 2560): 17052672,
    (1024, 2880): 20104832,
    (1024, 3072): 22034432,
    (1024, 3584): 27540480,
    (1024, 4096): 33570816,
    (1024, 5120): 47204352,
    (3200, 4096): 69239808,
    (3200, 5120): 91786240,
    (3200, 6144): 116429824,
    (3200, 7168): 143170560,
    (3200, 8192): 172008448,
}

# What files that were read in full say beyond it.
_RATES = {
    "attention_dropout": 0.0,
    "drop_path_rate": 0.0,
    "dropout": 0.0,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
}
_READ_TOWER = {**_RATES, "architectures": ["InternVisionModel"], "torch_dtype": "bfloat16", "use_flash_attn": True}
READ_300M = {**VIT_300M, **_READ_TOWER}
READ_6B = {**VIT_6B, **_READ_TOWER, "initializer_factor": 0.1, "initializer_range": 1e-10}
# InternVL3 names the options of a mixture of experts that no checkpoint uses.
READ_300M_V3 = {
    **READ_300M,
    "capacity_factor": 1.2,
    "drop_path_rate": 0.1,
    "initializer_factor": 0.1,
    "initializer_range": 1e-10,
    "moe_intermediate_size": 768,
    "num_experts": 8,
    "num_routed_experts": 4,
    "num_shared_experts": 4,
    "shared_expert_intermediate_size": 3072,
    "use_moe": False,
}

# --- top level --------------------------------------------------------------------------------------------------------

TOP = {
    "architectures": ["InternVLChatModel"],
    "auto_map": {
        "AutoConfig": "configuration_internvl_chat.InternVLChatConfig",
        "AutoModel": "modeling_internvl_chat.InternVLChatModel",
        "AutoModelForCausalLM": "modeling_internvl_chat.InternVLChatModel",
    },
    "downsample_ratio": 0.5,
    "dynamic_image_size": True,
    "force_image_size": 448,
    "max_dynamic_patch": 12,
    "min_dynamic_patch": 1,
    "model_type": "internvl_chat",
    "ps_version": "v2",
    "select_layer": -1,
    "use_thumbnail": True,
}
READ_TOP = {"torch_dtype": "bfloat16", "use_backbone_lora": 0, "use_llm_lora": 0}
# Older files write out every field of transformers' base class in their parts, settings of generation among them, which
# transformers 5 takes out of any configuration.
GENERATION_FIELDS = {
    "bad_words_ids": None,
    "do_sample": False,
    "early_stopping": False,
    "max_length": 20,
    "num_beams": 1,
    "temperature": 1.0,
    "top_k": 50,
}
BASE_FIELDS = {
    **GENERATION_FIELDS,
    "add_cross_attention": False,
    "chunk_size_feed_forward": 0,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "is_decoder": False,
    "is_encoder_decoder": False,
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "output_attentions": False,
    "output_hidden_states": False,
    "prefix": None,
    "problem_type": None,
    "return_dict": True,
    "torchscript": False,
}

# --- language models --------------------------------------------------------------------------------------------------

SU_SHORT = [1.05, 1.05, 1.05, 1.1, 1.1, 1.1, 1.25, 1.25, 1.4, 1.45, 1.55, 1.85, 1.9, *[2.0] * 19]
SU_SHORT += [2.1, 2.1, 2.2, 2.35, 2.35, 2.35, 2.35, 2.4, 2.4, 2.65, 2.7, 2.9, 2.95, 3.05, 3.05, 3.05]
# fmt: off
SU_LONG = [
    1.0299999713897705, 1.0499999523162842, 1.0499999523162842, 1.0799999237060547, 1.2299998998641968,
    1.2299998998641968, 1.2999999523162842, 1.4499999284744263, 1.5999999046325684, 1.6499998569488525,
    1.8999998569488525, 2.859999895095825, 3.68999981880188, 5.419999599456787, 5.489999771118164, 5.489999771118164,
    9.09000015258789, 11.579999923706055, 15.65999984741211, 15.769999504089355, 15.789999961853027,
    18.360000610351562, 21.989999771118164, 23.079999923706055, 30.009998321533203, 32.35000228881836,
    32.590003967285156, 35.56000518798828, 39.95000457763672, 53.840003967285156, 56.20000457763672, 57.95000457763672,
    59.29000473022461, 59.77000427246094, 59.920005798339844, 61.190006256103516, 61.96000671386719, 62.50000762939453,
    63.3700065612793, 63.48000717163086, 63.48000717163086, 63.66000747680664, 63.850006103515625, 64.08000946044922,
    64.760009765625, 64.80001068115234, 64.81001281738281, 64.81001281738281,
]
# fmt: on

_COMMON = {"hidden_act": "silu", "tie_word_embeddings": False}
QWEN2 = {
    **_COMMON,
    "architectures": ["Qwen2ForCausalLM"],
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "max_position_embeddings": 32768,
    "model_type": "qwen2",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
}
QWEN3 = {
    **QWEN2,
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "model_type": "qwen3",
    "rope_scaling": None,
    "rope_theta": 1000000,
}
QWEN3_MOE = {
    **QWEN3,
    "architectures": ["Qwen3MoeForCausalLM"],
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "norm_topk_prob": True,
    "num_experts": 128,
    "num_experts_per_tok": 8,
}
INTERNLM2 = {
    **_COMMON,
    "architectures": ["InternLM2ForCausalLM"],
    "bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "model_type": "internlm2",
    "pad_token_id": 2,
    "rms_norm_eps": 1e-5,
}
LLAMA = {
    **_COMMON,
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "model_type": "llama",
    "rms_norm_eps": 1e-5,
}
PHI3 = {
    **_COMMON,
    "architectures": ["Phi3ForCausalLM"],
    "attention_bias": False,
    "bias": False,
    "bos_token_id": 1,
    "eos_token_id": 32000,
    "max_position_embeddings": 131072,
    "model_type": "phi3",
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_scaling": {"type": "su", "short_factor": SU_SHORT, "long_factor": SU_LONG},
    "rope_theta": 10000.0,
}
GPT_OSS = {
    **_COMMON,
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "eos_token_id": 200002,
    "head_dim": 64,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "max_position_embeddings": 131072,
    "model_type": "gpt_oss",
    "num_experts_per_tok": 4,
    "num_local_experts": 32,
    "pad_token_id": 199999,
    "rms_norm_eps": 1e-5,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000.0,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
}
LLAMA_70B = {"bos_token_id": 128000, "max_position_embeddings": 8192, "rope_theta": 500000.0}
YI = {"bos_token_id": 1, "eos_token_id": 7, "max_position_embeddings": 4096, "pad_token_id": 0, "rope_theta": 5e6}


INTERNLM3 = {
    "max_position_embeddings": 32768,
    "rope_scaling": {"factor": 6.0, "rope_type": "dynamic"},
    "rope_theta": 50000000,
}


def _dynamic(factor):
    """InternLM2's rotary settings."""
    scaling = {"factor": factor, "type": "dynamic"}
    return {"max_position_embeddings": 32768, "rope_scaling": scaling, "rope_theta": 1000000}


_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
# name: (kind, (hidden, layers, heads, key/value heads, intermediate), vocabulary, further values, parameters)
LLMS = {
    "Qwen2-0.5B": (QWEN2, (896, 24, 14, 2, 4864), 151655, {}, 629663872),
    "Qwen2.5-0.5B": (QWEN2, (896, 24, 14, 2, 4864), 151674, {}, 629697920),
    "Qwen2.5-1.5B": (QWEN2, (1536, 28, 12, 2, 8960), 151674, {}, 1776283136),
    "Qwen2.5-3B": (QWEN2, (2048, 36, 16, 2, 11008), 151674, {}, 3396030464),
    "Qwen2.5-7B": (QWEN2, (3584, 28, 28, 4, 18944), 151674, {}, 7612820992),
    "Qwen2.5-14B": (QWEN2, (5120, 48, 40, 8, 13824), 151674, {}, 14766040064),
    "Qwen2.5-32B": (QWEN2, (5120, 64, 40, 8, 27648), 151674, {}, 32759882752),
    "Qwen2.5-72B": (QWEN2, (8192, 80, 64, 8, 29568), 151674, {}, 72699813888),
    "internlm2-1.8b": (INTERNLM2, (2048, 24, 16, 8, 8192), 92553, _dynamic(2.0), 1889146880),
    "internlm2-7b": (INTERNLM2, (4096, 32, 32, 8, 14336), 92553, _dynamic(2.0), 7737782272),
    "internlm2-20b": (INTERNLM2, (6144, 48, 48, 8, 16384), 92553, _dynamic(3.0), 19861260288),
    "internlm2.5-20b": (INTERNLM2, (6144, 48, 48, 8, 16384), 92553, {}, 19861260288),  # rotary settings unknown
    # The vocabulary of the checkpoint is unknown; this is its base's, with which the count was computed.
    "internlm3-8b": (INTERNLM2, (4096, 48, 32, 2, 10240), 128512, INTERNLM3, 8804241408),
    "Phi-3-mini": (PHI3, (3072, 32, 32, 32, 8192), 32020, {}, 3820809216),
    "Yi-34B": (LLAMA, (7168, 60, 56, 8, 20480), 64007, YI, 34389017600),
    "Llama-3-70B": (LLAMA, (8192, 80, 64, 8, 28672), 128265, LLAMA_70B, 70553853952),
    "Qwen3-0.6B": (QWEN3, (1024, 28, 16, 8, 3072), 151936, {}, 751632384),
    "Qwen3-1.7B": (QWEN3, (2048, 28, 16, 8, 6144), 151936, {}, 2031739904),
    "Qwen3-4B": (QWEN3, (2560, 36, 32, 8, 9728), 151936, {}, 4411424256),
    "Qwen3-8B": (QWEN3, (4096, 36, 32, 8, 12288), 151936, {}, 8190735360),
    "Qwen3-14B": (QWEN3, (5120, 40, 40, 8, 17408), 151936, {}, 14768307200),
    "Qwen3-32B": (QWEN3, (5120, 64, 64, 8, 25600), 151936, {}, 32762123264),
    "Qwen3-30B-A3B": (QWEN3_MOE, (2048, 48, 32, 4, 6144), 151936, {"moe_intermediate_size": 768}, 30532122624),
    "Qwen3-235B-A22B": (QWEN3_MOE, (4096, 94, 64, 4, 12288), 151936, {"moe_intermediate_size": 1536}, 235093634560),
    "gpt-oss-20b": (GPT_OSS, (2880, 24, 64, 8, 2880), 201088, {}, 20914757184),
}

# --- checkpoints ------------------------------------------------------------------------------------------------------

_TILES = "template downsample_ratio force_image_size dynamic_image_size"
# Further values of files that were read in full.
_READ_QWEN2 = {"attention_dropout": 0.0, "initializer_range": 0.02, "torch_dtype": "bfloat16", "use_cache": True}
_READ_INTERNLM2 = {
    "auto_map": {
        "AutoConfig": "configuration_internlm2.InternLM2Config",
        "AutoModel": "modeling_internlm2.InternLM2ForCausalLM",
        "AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM",
    },
    "torch_dtype": "bfloat16",
}
# Qwen2 inside InternVL3: another end token than the chat's, and rotary scaling whose kind has one name or two.
_QWEN2_V3 = {"eos_token_id": 151643, "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"}}
_QWEN2_V3_OLD = {**_QWEN2_V3, "rope_scaling": {"factor": 2.0, "type": "dynamic"}}


def _row(vision, llm, template, published=None, known="derived: template", text=None, top=None) -> Checkpoint:
    """`known` is "confidence: read"; `text` and `top` are further values of the two parts."""
    kind, sizes, vocab_size, more, parameters = LLMS[llm]
    llm_config = {**kind, **dict(zip(_SIZES, sizes)), "vocab_size": vocab_size, **more, **(text or {})}
    hidden = vision["hidden_size"]
    counts = (TOWER_PARAMETERS[hidden], PROJECTOR_PARAMETERS[hidden, sizes[0]], parameters)
    config = {**TOP, "template": template, **(top or {}), "vision_config": vision, "llm_config": llm_config}
    return Checkpoint(config, counts, published, *known.split(": "))


def _full(vision, llm, template, published, text, top=None) -> Checkpoint:
    """A row whose file was read in full."""
    return _row(vision, llm, template, published, "full: vision llm top", text, {**READ_TOP, **(top or {})})


FAMILY = {
    "InternVL2-1B": _full(
        {**READ_300M, **BASE_FIELDS},
        "Qwen2-0.5B",
        "Hermes-2",
        "938M",
        # The weights hold a head of their own: tied there would be 802M parameters.
        {**_READ_QWEN2, **BASE_FIELDS, "max_window_layers": 24, "tie_word_embeddings": True},
    ),
    "InternVL2-2B": _full(READ_300M, "internlm2-1.8b", "internlm2-chat", "2.21B", _READ_INTERNLM2),
    "InternVL2-4B": _row(
        VIT_300M,
        "Phi-3-mini",
        "phi3-chat",
        "4.2B",  # rounded up from 4.147
        "partial: architectures hidden_size num_hidden_layers intermediate_size max_position_embeddings "
        f"hidden_act bos_token_id eos_token_id {_TILES}",
    ),
    "InternVL2-8B": _full(READ_300M, "internlm2-7b", "internlm2-chat", "8.08B", _READ_INTERNLM2),
    "InternVL2-26B": _full(READ_6B, "internlm2-20b", "internlm2-chat", "25.5B", _READ_INTERNLM2),
    "InternVL2-40B": _row(VIT_6B, "Yi-34B", "Hermes-2", "40.1B", "derived: num_hidden_layers template"),
    "InternVL2-Llama3-76B": _row(  # the template is that of the training script
        VIT_6B,
        "Llama-3-70B",
        "internlm2-chat",
        "76.3B",
        f"partial: llm -vocab_size -rope_theta -tie_word_embeddings {_TILES} -template",
    ),
    "InternVL2_5-1B": _row(
        VIT_300M,
        "Qwen2.5-0.5B",
        "internvl2_5",
        "938M",
        "partial: architectures hidden_size num_attention_heads intermediate_size eos_token_id top -use_thumbnail",
    ),
    "InternVL2_5-2B": _full(READ_300M, "internlm2-1.8b", "internvl2_5", "2.2B", _READ_INTERNLM2),
    "InternVL2_5-4B": _row(VIT_300M, "Qwen2.5-3B", "internvl2_5", "7.42 GB"),
    "InternVL2_5-8B": _row(
        VIT_300M,
        "internlm2-7b",
        "internvl2_5",
        "8.08B",
        f"partial: llm -rope_theta -rope_scaling -rms_norm_eps -max_position_embeddings -pad_token_id {_TILES}",
    ),
    "InternVL2_5-26B": _row(VIT_6B, "internlm2.5-20b", "internvl2_5", "25.5B"),
    "InternVL2_5-38B": _row(
        VIT_6B,
        "Qwen2.5-32B",
        "internvl2_5",
        None,
        f"partial: architectures hidden_size intermediate_size hidden_act bos_token_id eos_token_id {_TILES}",
    ),
    "InternVL2_5-78B": _row(VIT_6B, "Qwen2.5-72B", "internvl2_5"),
    "InternVL3-1B": _full(
        READ_300M_V3,
        "Qwen2.5-0.5B",
        "internvl2_5",
        None,
        {**_READ_QWEN2, **_QWEN2_V3, "attn_implementation": "flash_attention_2"},
        {"hidden_size": 896, "pad2square": False, "system_message": None, "tie_word_embeddings": False},
    ),
    "InternVL3-2B": _row(
        VIT_300M,
        "Qwen2.5-1.5B",
        "internvl2_5",
        None,
        "partial: hidden_size num_hidden_layers num_attention_heads num_key_value_heads vocab_size template",
        _QWEN2_V3,
    ),
    "InternVL3-8B": _row(
        VIT_300M,
        "Qwen2.5-7B",
        "internvl2_5",
        "15.89 GB",
        "partial: vision.num_hidden_layers llm -architectures -tie_word_embeddings -hidden_act -bos_token_id "
        "-eos_token_id template select_layer downsample_ratio ps_version",
        {**_QWEN2_V3_OLD, "rope_theta": 1000000},
    ),
    "InternVL3-9B": _row(
        VIT_300M,
        "internlm3-8b",
        "internvl2_5",
        None,
        f"partial: architectures hidden_size bias bos_token_id eos_token_id {_TILES}",
        top={"hidden_size": 4096},
    ),
    "InternVL3-14B": _row(
        VIT_300M,
        "Qwen2.5-14B",
        "internvl2_5",
        None,
        "partial: hidden_size num_hidden_layers num_attention_heads num_key_value_heads intermediate_size rope_theta "
        "rms_norm_eps max_position_embeddings template",
        _QWEN2_V3,
    ),
    "InternVL3-38B": _row(VIT_6B, "Qwen2.5-32B", "internvl2_5", text=_QWEN2_V3),
    "InternVL3-78B": _row(
        VIT_6B,
        "Qwen2.5-72B",
        "internvl2_5",
        None,
        f"partial: llm -tie_word_embeddings {_TILES}",
        {**_QWEN2_V3_OLD, "rope_theta": 1000000},
    ),
    "InternVL3_5-1B": _row(
        VIT_300M,
        "Qwen3-0.6B",
        "internvl2_5",
        "1.1B",
        "mostly: llm -tie_word_embeddings top -select_layer -ps_version -pad2square",
        top={"eos_token_id": 151645, "pad2square": False},
    ),
    "InternVL3_5-2B": _row(VIT_300M, "Qwen3-1.7B", "internvl2_5", "2.3B"),
    "InternVL3_5-4B": _row(
        VIT_300M,
        "Qwen3-4B",
        "internvl2_5",
        "4.7B",
        f"partial: architectures hidden_size attention_bias hidden_act bos_token_id eos_token_id {_TILES}",
    ),
    "InternVL3_5-8B": _row(
        VIT_300M,
        "Qwen3-8B",
        "internvl2_5",
        "8.5B",
        "mostly: llm -tie_word_embeddings top -select_layer",
        top={"eos_token_id": 151645, "pad2square": False},
    ),
    "InternVL3_5-14B": _row(VIT_300M, "Qwen3-14B", "internvl2_5", "15.1B"),
    "InternVL3_5-38B": _row(VIT_6B, "Qwen3-32B", "internvl2_5", "38.4B"),
    "InternVL3_5-30B-A3B": _row(VIT_300M, "Qwen3-30B-A3B", "internvl2_5", "30.8B"),
    "InternVL3_5-241B-A28B": _row(VIT_6B, "Qwen3-235B-A22B", "internvl2_5", "240.7B"),
    "InternVL3_5-GPT-OSS-20B-A4B-Preview": _row(
        VIT_300M,
        "gpt-oss-20b",
        "internvl3_5_gpt_oss",
        "21.2B",
        "derived: llm -architectures -vocab_size top -min_dynamic_patch",  # most of it read in the base's file
    ),
    "Mini-InternVL-Chat-2B-V1-5": _row(
        VIT_300M,
        "internlm2-1.8b",
        "internlm2-chat",
        "2.21B",
        "derived: template ps_version use_thumbnail max_dynamic_patch",
    ),
    "InternVL-Chat-V1-5": _row(
        VIT_6B,
        "internlm2-20b",
        "internlm2-chat",
        "25.5B",
        f"partial: architectures {_TILES}",
        top={"auto_map": {name: TOP["auto_map"][name] for name in ("AutoConfig", "AutoModel")}},
    ),
    "VisualPRM-8B": _row(VIT_300M, "internlm2-7b", "internvl2_5", "8B", "derived: "),
    "V2PE": _row(  # in its folders V2PE-32K and V2PE-256K
        {**VIT_300M, **_RATES},
        "internlm2-1.8b",
        "internlm2-chat",
        None,
        "derived: architectures bias bos_token_id top -template -select_layer -ps_version -use_thumbnail "
        "-min_dynamic_patch -max_dynamic_patch -use_backbone_lora -use_llm_lora",
        top={
            "chunk_num": 1,
            "compress_seq": False,
            "dynamic_max_patch": False,
            "interaction": True,
            "use_backbone_lora": 0,
            "use_llm_lora": 0,
        },
    ),
}

# Their weights have a head of their own where the file, or the base language model, says that it is tied to the table.
OWN_HEADS = ("InternVL2-1B", "InternVL2_5-4B", "InternVL3_5-1B", "InternVL3_5-2B", "InternVL3_5-4B")

PUBLISHED = {name: checkpoint.config for name, checkpoint in FAMILY.items()}
