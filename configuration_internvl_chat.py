"""Configuration of the whole model: `InternVLChatConfig`, with the published `config.json` schema.

The language model's configuration class is picked from one table. Beside the values it knows the names of the prompt
templates, so that a wrong name is reported when the configuration is made and not at the first question.
"""

import copy

from transformers import AutoConfig, PretrainedConfig

from .compat_internvl import portable_config_dict, readable_config_dict, set_attention, transformers_class
from .configuration_intern_vit import InternVisionConfig
from .configuration_internlm2 import InternLM2Config
from .conversation import Conversation, conv_template_names, get_conv_template

# Architecture (`llm_config.architectures[0]`) -> configuration class: ours, or the name of transformers' own.
LLM_CONFIGS = {
    "Qwen2ForCausalLM": "Qwen2Config",
    "InternLM2ForCausalLM": InternLM2Config,
    "LlamaForCausalLM": "LlamaConfig",
    "Phi3ForCausalLM": "Phi3Config",
    "Qwen3ForCausalLM": "Qwen3Config",
    "Qwen3MoeForCausalLM": "Qwen3MoeConfig",
    "GptOssForCausalLM": "GptOssConfig",
}
DEFAULT_LLM = "Qwen2ForCausalLM"
PS_VERSIONS = ("v1", "v2")

# Settings of the machine that trained the checkpoint, not properties of the weights: published files name backends
# (`flash_attention_2`) that the reader may not have.
_STALE_LLM_KEYS = ("attn_implementation", "_attn_implementation", "_attn_implementation_autoset")


def llm_config_class(architecture: str):
    """The configuration class of a language model architecture.

    Raises:
        ValueError: the architecture is unknown, or the installed transformers does not have it.
    """
    if architecture not in LLM_CONFIGS:
        raise ValueError(f"unsupported language model architecture {architecture!r}; choices: {', '.join(LLM_CONFIGS)}")
    entry = LLM_CONFIGS[architecture]
    found = transformers_class(entry) if isinstance(entry, str) else entry
    if found is None:
        raise ValueError(f"architecture {architecture!r} needs a newer transformers (one that has {entry})")
    return found


def _llm_config(given):
    """`given` (None, dictionary or configuration) as a configuration of our own, the caller's untouched."""
    if isinstance(given, PretrainedConfig):
        given = copy.deepcopy(given)
        architecture = (given.architectures or [None])[0] or _architecture_of(given.model_type)
        llm_config_class(architecture)
        given.architectures = [architecture]
        return given
    values = _values("llm_config", given)
    architecture = (values.get("architectures") or [None])[0] or _architecture_of(values.get("model_type"))
    values["architectures"] = [architecture]
    config_class = llm_config_class(architecture)
    values.pop("model_type", None)
    return config_class(**readable_config_dict(values))


def _values(name, given) -> dict:
    """A part's dictionary, as our own copy and without the machine's settings."""
    if given is not None and not isinstance(given, dict):
        raise TypeError(f"{name} must be a dictionary or a configuration, got {given!r}")
    return {key: value for key, value in copy.deepcopy(given or {}).items() if key not in _STALE_LLM_KEYS}


def _architecture_of(model_type):
    """The architecture that goes with an LLM's `model_type` (an LLM configuration may lack `architectures`)."""
    if not model_type:
        return DEFAULT_LLM
    for architecture, entry in LLM_CONFIGS.items():
        config_class = transformers_class(entry) if isinstance(entry, str) else entry
        if config_class is not None and config_class.model_type == model_type:
            return architecture
    raise ValueError(f"unsupported llm_config.model_type {model_type!r}; architectures: {', '.join(LLM_CONFIGS)}")


def _vision_config(given):
    if isinstance(given, PretrainedConfig):
        return copy.deepcopy(given)
    values = _values("vision_config", given)
    values.pop("model_type", None)
    return InternVisionConfig(**values)


class InternVLChatConfig(PretrainedConfig):
    """The configuration of `InternVLChatModel`; fields and names are those of the published checkpoints.

    Args:
        vision_config: dictionary or `InternVisionConfig`.
        llm_config: dictionary or configuration of the language model; `architectures[0]` selects the class.
        use_backbone_lora, use_llm_lora: rank of the LoRA adapters of the two towers, 0 for none.
        select_layer: hidden state of the vision tower that goes to the projector; -1 is the last layer's output.
        force_image_size: side of a tile in pixels; None means `vision_config.image_size`.
        downsample_ratio: pixel shuffle merges (1 / downsample_ratio)² patches into one token.
        template: name of the prompt template (`conversation.py`).
        dynamic_image_size: cut images into tiles; where false an image is one tile.
        use_thumbnail: add the whole image as a last tile where it was cut.
        ps_version: pixel shuffle layout, `"v1"` (transposed, first releases) or `"v2"`.
        min_dynamic_patch, max_dynamic_patch: fewest and most tiles of an image, without the thumbnail.
        system_message: system message in place of the template's; None keeps the template's, "" means none.
        img_context_token_id: id of `<IMG_CONTEXT>`; None means that the tokenizer is asked (`chat`).
        kwargs: any other field of the file, kept as it is.

    Raises:
        ValueError: a value cannot work; the message names it and the choices.
    """

    model_type = "internvl_chat"
    is_composition = True
    has_no_defaults_at_init = True  # the name of the line above since 4.54: write every value of the parts
    sub_configs = {"vision_config": InternVisionConfig, "llm_config": AutoConfig}

    def __init__(
        self,
        vision_config=None,
        llm_config=None,
        use_backbone_lora=0,
        use_llm_lora=0,
        select_layer=-1,
        force_image_size=None,
        downsample_ratio=0.5,
        template="internvl2_5",
        dynamic_image_size=False,
        use_thumbnail=False,
        ps_version="v1",
        min_dynamic_patch=1,
        max_dynamic_patch=6,
        system_message=None,
        img_context_token_id=None,
        **kwargs,
    ):
        # Before the base class runs: it hands `attn_implementation` on to the parts.
        self.vision_config = _vision_config(vision_config)
        self.llm_config = _llm_config(llm_config)
        # One truth: whether the head is tied is the language model's business.
        kwargs["tie_word_embeddings"] = self.llm_config.tie_word_embeddings
        super().__init__(**kwargs)
        self.tie_word_embeddings = self.llm_config.tie_word_embeddings
        self.use_backbone_lora = use_backbone_lora
        self.use_llm_lora = use_llm_lora
        self.select_layer = select_layer
        self.force_image_size = force_image_size
        self.downsample_ratio = downsample_ratio
        self.template = template
        self.dynamic_image_size = dynamic_image_size
        self.use_thumbnail = use_thumbnail
        self.ps_version = ps_version
        self.min_dynamic_patch = min_dynamic_patch
        self.max_dynamic_patch = max_dynamic_patch
        self.system_message = system_message
        self.img_context_token_id = img_context_token_id
        self.check()

    @property
    def tile_size(self) -> int:
        """Side of a tile in pixels."""
        return self.force_image_size or self.vision_config.image_size

    @property
    def num_image_token(self) -> int:
        """Tokens that one tile takes in the prompt, e.g. 256 for 448 pixels, patches of 14 and a ratio of 0.5."""
        return (self.tile_size // self.vision_config.patch_size // round(1 / self.downsample_ratio)) ** 2

    def check(self) -> None:
        """Raises `ValueError` for values that cannot work, naming value and choices."""
        if self.ps_version not in PS_VERSIONS:
            raise ValueError(f"ps_version={self.ps_version!r} is unknown; choices: {', '.join(PS_VERSIONS)}")
        if self.template not in conv_template_names():
            raise ValueError(f"template={self.template!r} is unknown; choices: {', '.join(conv_template_names())}")
        patch = self.vision_config.patch_size
        if not _is_whole(self.tile_size, 1) or self.tile_size % patch:
            raise ValueError(f"force_image_size={self.tile_size!r} is not a multiple of patch_size={patch}")
        grid = self.tile_size // patch
        divisors = [number for number in range(1, grid + 1) if grid % number == 0]
        ratio = self.downsample_ratio
        if not isinstance(ratio, (int, float)) or not any(abs(number * ratio - 1) < 1e-6 for number in divisors):
            raise ValueError(
                f"downsample_ratio={ratio!r} does not divide the grid of {grid} patches a side; "
                f"choices: {', '.join(f'1/{number}' for number in divisors)}"
            )
        layers = self.vision_config.num_hidden_layers
        if not _is_whole(self.select_layer, -(layers + 1)) or self.select_layer > layers:
            raise ValueError(
                f"select_layer={self.select_layer!r} is out of range; choices: {-(layers + 1)} to {layers} "
                f"for {layers} vision layers"
            )
        fewest, most = self.min_dynamic_patch, self.max_dynamic_patch
        if not _is_whole(fewest, 1) or not _is_whole(most, fewest):
            raise ValueError(
                f"min_dynamic_patch={fewest!r} and max_dynamic_patch={most!r} must be integers with 1 <= min <= max"
            )

    def get_text_config(self, decoder=None, encoder=None):
        """The language model's configuration, whichever of its parts is asked for: the LLM is decoder-only."""
        return self.llm_config

    def conversation(self) -> Conversation:
        """The prompt template `template`, with `system_message` where the checkpoint has its own."""
        conversation = get_conv_template(self.template)
        if self.system_message is not None:
            conversation.set_system_message(self.system_message)
        return conversation

    def set_attention(self, vision, llm) -> None:
        """Sets the attention backend of each tower; None leaves it to the tower."""
        set_attention(self.vision_config, vision)
        set_attention(self.llm_config, llm)

    def to_dict(self) -> dict:
        """All values as a dictionary in the published form, which every release of transformers reads back."""
        values = super().to_dict()
        values["vision_config"] = portable_config_dict(self.vision_config.to_dict())
        values["llm_config"] = portable_config_dict(self.llm_config.to_dict())
        return portable_config_dict(values)

    def to_diff_dict(self) -> dict:
        """What is saved: every value, the parts' included. A value left out because it equals today's default is lost
        on the day when the default moves; only the defaults of the base class itself are left out."""
        values = self.to_dict()
        base = PretrainedConfig().to_dict()
        for part in (values["vision_config"], values["llm_config"], values):
            for key in [key for key in part if key in base and part[key] == base[key] and not _always_written(key)]:
                del part[key]
            for key in ("_name_or_path", *_STALE_LLM_KEYS):
                part.pop(key, None)
        values["llm_config"].pop("transformers_version", None)
        values["vision_config"].pop("transformers_version", None)
        return values


def _is_whole(value, least) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _always_written(key: str) -> bool:
    """Keys whose default differs between releases, or between the base class and a language model's."""
    return key in ("tie_word_embeddings", "transformers_version", "model_type") or key.endswith("_token_id")
