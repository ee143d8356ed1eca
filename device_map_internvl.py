"""`split_model`: which GPU holds which part of a checkpoint that is too large for one."""

import copy
import math

import torch
from transformers import PretrainedConfig

from .configuration_internvl_chat import InternVLChatConfig
from .modeling_internvl_chat import language_model_class


def split_model(model_name_or_config, world_size=None, **config_keywords) -> dict:
    """A `device_map` for `from_pretrained` over several GPUs, by the rule of the model cards.

    The layers of the language model are spread evenly; the first GPU counts as half of one, because it also holds the
    vision tower, the projector, the embeddings, the final norm, the head and the last layer: input and output of the
    model meet on one device.

    Args:
        model_name_or_config: folder, Hub id or `InternVLChatConfig`.
        world_size: number of GPUs; None means those that torch sees.
        config_keywords: passed to `InternVLChatConfig.from_pretrained` (`revision=`, `token=`, ...).

    Returns:
        Module name -> device index. Exactly the modules that exist for this language model in the installed
        transformers are named, so that every parameter is covered once.

    Raises:
        ValueError: `world_size` is below 1, or not given where there is no GPU.
    """
    config = model_name_or_config
    if not isinstance(config, PretrainedConfig):
        config_keywords.pop("trust_remote_code", None)  # the model cards pass it; no remote code is needed here
        config = InternVLChatConfig.from_pretrained(config, **config_keywords)
    if world_size is None:
        world_size = torch.cuda.device_count()
        if world_size == 0:
            raise ValueError(
                "torch sees no GPU: pass world_size, the number of GPUs of the machine that will run the model"
            )
    if world_size < 1:
        raise ValueError(f"world_size must be at least 1, got {world_size}")

    device_map = {"vision_model": 0, "mlp1": 0}
    num_layers = config.llm_config.num_hidden_layers
    per_gpu = math.ceil(num_layers / (world_size - 0.5))
    on_first = math.ceil(per_gpu * 0.5)
    for layer in range(num_layers):
        gpu = min(1 + (layer - on_first) // per_gpu, world_size - 1) if layer >= on_first else 0
        device_map[f"language_model.model.layers.{layer}"] = gpu
    device_map[f"language_model.model.layers.{num_layers - 1}"] = 0
    for name in _modules_beside_layers(config.llm_config):
        device_map[f"language_model.{name}"] = 0
    return device_map


def _modules_beside_layers(llm_config) -> list:
    """Names of the language model's modules other than its layers, read off a one-layer model without memory."""
    llm_config = copy.deepcopy(llm_config)
    llm_config.num_hidden_layers = 1
    if getattr(llm_config, "layer_types", None):
        llm_config.layer_types = llm_config.layer_types[:1]
    with torch.device("meta"):
        model = language_model_class(llm_config)(llm_config)
    inner = [f"model.{name}" for name, _ in model.model.named_children() if name != "layers"]
    return inner + [name for name, _ in model.named_children() if name != "model"]
