"""The vision tower of InternVL: patches in, one vector per patch out.

Knows its configuration and nothing of tiles, text or language models. Parameter names are those of the published
checkpoints (`embeddings.*`, `encoder.layers.N.{norm1,attn.qkv,attn.proj,norm2,mlp.fc1,mlp.fc2,ls1,ls2}`).
"""

import importlib
from typing import Optional

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling

from .attention_internvl import attention_in_blocks, blocks_pay
from .compat_internvl import (
    external_attention,
    flash_attention_available,
    is_initialized,
    requested_attention,
    safetensors_keywords,
    set_attention,
)
from .configuration_intern_vit import InternVisionConfig


class InternRMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32 and returned in the input's dtype."""

    def __init__(self, hidden_size: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        in_float = hidden_states.float()
        in_float = in_float * torch.rsqrt(in_float.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * in_float.to(hidden_states.dtype)


NORMS = {"rms_norm": InternRMSNorm, "layer_norm": nn.LayerNorm}


class DropPath(nn.Module):
    """Stochastic depth: while training, drops the whole residual branch of a sample with probability `rate`."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, branch: torch.Tensor) -> torch.Tensor:
        if not self.training or self.rate == 0.0:
            return branch
        keep = 1.0 - self.rate
        mask = branch.new_empty(branch.shape[0], *[1] * (branch.dim() - 1)).bernoulli_(keep)
        return branch * mask / keep


# Attention over (batch, heads, tokens, head size); the result is (batch, tokens, heads, head size).


def _eager_attention(query, key, value, scale, dropout):
    if blocks_pay(query, value, dropout):
        return attention_in_blocks(query, key, value, scale)
    scores = (query * scale) @ key.transpose(-2, -1)  # (batch, heads, tokens, tokens)
    weights = F.dropout(scores.softmax(dim=-1), dropout)
    return (weights @ value).transpose(1, 2)


def _sdpa_attention(query, key, value, scale, dropout):
    return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=scale).transpose(1, 2)


def _flash_attention(query, key, value, scale, dropout):
    if query.device.type != "cuda" or query.dtype not in (torch.float16, torch.bfloat16):
        return _sdpa_attention(query, key, value, scale, dropout)  # a model that was moved to the CPU still answers
    flash_attn_func = importlib.import_module("flash_attn").flash_attn_func
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return flash_attn_func(query, key, value, dropout_p=dropout, softmax_scale=scale)


ATTENTION = {"eager": _eager_attention, "sdpa": _sdpa_attention, "flash_attention_2": _flash_attention}


def _attention(name: str, module: nn.Module):
    """The attention function called `name`: one of ours, else one that transformers registers."""
    if name in ATTENTION:
        return ATTENTION[name]
    external = external_attention(name)
    if external is None:
        raise ValueError(f"unknown attn_implementation {name!r}; choices: {', '.join(ATTENTION)}")
    return lambda query, key, value, scale, dropout: external(
        module, query, key, value, None, scaling=scale, dropout=dropout, is_causal=False
    )[0]


# Not called "...Attention": transformers 5 takes a class of that name for one that cannot switch its backend, which
# this one can, since it looks the backend up at each call.
class InternVisionSelfAttn(nn.Module):
    """Multi-head self-attention with a fused projection and optional normalisation of queries and keys."""

    def __init__(self, config: InternVisionConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.is_causal = False
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.qkv_bias)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.proj_drop = nn.Dropout(config.dropout)
        if config.qk_normalization:  # over all heads together, not per head
            self.q_norm = InternRMSNorm(config.hidden_size, eps=config.layer_norm_eps)
            self.k_norm = InternRMSNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = hidden_states.shape
        query, key, value = self.qkv(hidden_states).chunk(3, dim=-1)
        if self.config.qk_normalization:
            query, key = self.q_norm(query), self.k_norm(key)
        # (batch, tokens, width) -> (batch, heads, tokens, head size)
        query, key, value = (
            x.reshape(batch, tokens, self.num_heads, self.head_dim).transpose(1, 2) for x in (query, key, value)
        )
        attend = _attention(requested_attention(self.config) or "sdpa", self)
        dropout = self.config.attention_dropout if self.training else 0.0
        context = attend(query, key, value, self.head_dim**-0.5, dropout)
        return self.proj_drop(self.proj(context.reshape(batch, tokens, width)))


class InternMLP(nn.Module):
    def __init__(self, config: InternVisionConfig):
        super().__init__()
        self.act = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(hidden_states)))


class InternVisionEncoderLayer(nn.Module):
    """Pre-norm transformer block with layer scale and stochastic depth."""

    def __init__(self, config: InternVisionConfig, drop_path_rate: float):
        super().__init__()
        norm = NORMS[config.norm_type]
        self.attn = InternVisionSelfAttn(config)
        self.mlp = InternMLP(config)
        self.norm1 = norm(config.hidden_size, eps=config.layer_norm_eps)
        self.norm2 = norm(config.hidden_size, eps=config.layer_norm_eps)
        self.ls1 = nn.Parameter(torch.full((config.hidden_size,), float(config.initializer_factor)))
        self.ls2 = nn.Parameter(torch.full((config.hidden_size,), float(config.initializer_factor)))
        self.drop_path1 = DropPath(drop_path_rate)
        self.drop_path2 = DropPath(drop_path_rate)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = hidden_states + self.drop_path1(self.attn(self.norm1(hidden_states)) * self.ls1)
        return hidden_states + self.drop_path2(self.mlp(self.norm2(hidden_states)) * self.ls2)


class InternVisionEncoder(nn.Module):
    def __init__(self, config: InternVisionConfig):
        super().__init__()
        # Plain numbers: the model may be under construction on the meta device, where a tensor has no values.
        steps = max(config.num_hidden_layers - 1, 1)
        rates = [config.drop_path_rate * index / steps for index in range(config.num_hidden_layers)]
        self.layers = nn.ModuleList(InternVisionEncoderLayer(config, rate) for rate in rates)
        self.gradient_checkpointing = False

    def forward(self, inputs_embeds: torch.Tensor, output_hidden_states: bool = False) -> BaseModelOutput:
        hidden_states = inputs_embeds
        collected = [hidden_states]
        for layer in self.layers:
            if self.gradient_checkpointing and self.training:
                hidden_states = self._gradient_checkpointing_func(layer.__call__, hidden_states)
            else:
                hidden_states = layer(hidden_states)
            if output_hidden_states:
                collected.append(hidden_states)
        return BaseModelOutput(
            last_hidden_state=hidden_states, hidden_states=tuple(collected) if output_hidden_states else None
        )


class InternVisionEmbeddings(nn.Module):
    """Patches to vectors, a class token in front, position table on top."""

    def __init__(self, config: InternVisionConfig):
        super().__init__()
        self.config = config
        grid = config.image_size // config.patch_size
        self.num_patches = grid**2
        self.class_embedding = nn.Parameter(torch.randn(1, 1, config.hidden_size))
        self.patch_embedding = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
        )
        self.position_embedding = nn.Parameter(torch.randn(1, self.num_patches + 1, config.hidden_size))

    def position_table(self, height: int, width: int) -> torch.Tensor:
        """The position table for a grid of `height` × `width` patches, (1, 1 + height * width, hidden).

        Another grid than the table's own is interpolated (bicubic, in float32 whatever the weights' dtype).
        """
        side = int(round((self.position_embedding.shape[1] - 1) ** 0.5))
        if (height, width) == (side, side):
            return self.position_embedding
        first, patches = self.position_embedding[:, :1], self.position_embedding[:, 1:]
        patches = patches.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)  # (1, hidden, side, side)
        patches = F.interpolate(patches, size=(height, width), mode="bicubic", align_corners=False)
        patches = patches.flatten(2).transpose(1, 2).to(first.dtype)  # (1, height * width, hidden)
        return torch.cat((first, patches), dim=1)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        patches = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype))
        height, width = patches.shape[-2:]
        patches = patches.flatten(2).transpose(1, 2)  # (batch, hidden, h, w) -> (batch, h * w, hidden)
        first = self.class_embedding.expand(patches.shape[0], -1, -1).to(patches.dtype)
        return torch.cat((first, patches), dim=1) + self.position_table(height, width).to(patches.dtype)


class InternVisionModel(PreTrainedModel):
    """InternViT: normalised `pixel_values` (tiles, 3, height, width) to vectors (tiles, 1 + patches, hidden).

    The attention backend follows `attn_implementation` (`eager`, `sdpa`, `flash_attention_2`, and what the installed
    transformers registers); the default is `sdpa`.
    """

    config_class = InternVisionConfig
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["InternVisionEncoderLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flash_attn_2 = True  # name of the line above before 4.54
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: InternVisionConfig):
        is_half = torch.get_default_dtype() in (torch.float16, torch.bfloat16)
        if requested_attention(config) is None and config.use_flash_attn and is_half and flash_attention_available():
            set_attention(config, "flash_attention_2")
        super().__init__(config)
        self.embeddings = InternVisionEmbeddings(config)
        self.encoder = InternVisionEncoder(config)
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As in transformers; pickled weights, which can run code, are read with `use_safetensors=False` only."""
        kwargs = safetensors_keywords(pretrained_model_name_or_path, kwargs)
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        fresh = {name: p for name, p in module.named_parameters(recurse=False) if not is_initialized(p)}
        with torch.no_grad():
            for name, parameter in fresh.items():
                if name in ("ls1", "ls2"):
                    parameter.fill_(self.config.initializer_factor)
                elif isinstance(module, (InternRMSNorm, nn.LayerNorm)):
                    parameter.fill_(1.0 if name == "weight" else 0.0)
                elif name == "bias":
                    parameter.zero_()
                else:
                    parameter.normal_(0.0, std)

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings

    def resize_pos_embeddings(self, old_size: int, new_size: int, patch_size: int) -> None:
        """Replaces the position table by one for images of `new_size` pixels, interpolated from the present one.

        Raises:
            ValueError: the present table is not one for `old_size`, or a size is not a multiple of `patch_size`.
        """
        present = self.embeddings.position_embedding
        if old_size % patch_size or new_size % patch_size:
            raise ValueError(f"sizes {old_size} and {new_size} must be multiples of patch_size={patch_size}")
        if present.shape[1] - 1 != (old_size // patch_size) ** 2:
            raise ValueError(f"the table has {present.shape[1] - 1} positions, not those of old_size={old_size}")
        grid = new_size // patch_size
        table = self.embeddings.position_table(grid, grid).detach().clone()
        self.embeddings.position_embedding = nn.Parameter(table, requires_grad=present.requires_grad)
        self.embeddings.num_patches = grid**2
        self.config.image_size = new_size

    def forward(
        self,
        pixel_values: Optional[torch.Tensor] = None,
        output_hidden_states: Optional[bool] = None,
        return_dict: Optional[bool] = None,
        pixel_embeds: Optional[torch.Tensor] = None,
    ):
        """Encodes images.

        Args:
            pixel_values: (tiles, channels, height, width) float, normalised; height and width are multiples of the
                patch size and need not be those of the configuration.
            output_hidden_states: return the input of the first layer and the output of each one.
            return_dict: return a tuple where false.
            pixel_embeds: (tiles, 1 + patches, hidden) instead of `pixel_values`: embeddings that skip the first stage.

        Returns:
            `BaseModelOutputWithPooling`: `last_hidden_state` (tiles, 1 + patches, hidden), `pooler_output` its class
            token (tiles, hidden), `hidden_states` a tuple of `num_hidden_layers + 1` where asked for.

        Raises:
            ValueError: not exactly one of the two inputs, or a shape that does not fit.
        """
        if (pixel_values is None) == (pixel_embeds is None):
            raise ValueError("give exactly one of pixel_values and pixel_embeds")
        if pixel_embeds is None:
            channels, patch = self.config.num_channels, self.config.patch_size
            if pixel_values.dim() != 4 or pixel_values.shape[1] != channels:
                raise ValueError(
                    f"pixel_values must be (tiles, {channels}, height, width), got {tuple(pixel_values.shape)}"
                )
            if pixel_values.shape[2] % patch or pixel_values.shape[3] % patch:
                raise ValueError(
                    f"height and width must be multiples of patch_size={patch}, got {tuple(pixel_values.shape)}"
                )
            pixel_embeds = self.embeddings(pixel_values)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        encoded = self.encoder(pixel_embeds, output_hidden_states=bool(output_hidden_states))
        output = BaseModelOutputWithPooling(
            last_hidden_state=encoded.last_hidden_state,
            pooler_output=encoded.last_hidden_state[:, 0],
            hidden_states=encoded.hidden_states,
        )
        return output if return_dict is None or return_dict else output.to_tuple()
