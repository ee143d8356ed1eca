"""InternLM2: the decoder of InternVL checkpoints that transformers does not have.

Token ids or embeddings in, logits and a key/value cache out. Knows its configuration and nothing of images or prompts.
Parameter names and shapes are those of the published checkpoints: `model.tok_embeddings`, `model.layers.N.
{attention_norm,attention.wqkv,attention.wo,ffn_norm,feed_forward.w1,feed_forward.w2,feed_forward.w3}`, `model.norm`,
`output`. Nothing is computed in `__init__`: the model may be under construction on the meta device.
"""

import importlib
import logging
from functools import partial
from typing import Callable, NamedTuple, Optional, Union

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .attention_internvl import grouped_step, is_compiling, is_grouped_step
from .compat_internvl import (
    cache_capacity,
    cache_from_tuples,
    cache_to_tuples,
    external_attention,
    inputs_for_generation,
    requested_attention,
    safetensors_keywords,
    tied_weights_keys,
)
from .configuration_internlm2 import InternLM2Config

logger = logging.getLogger(__name__)
# What older torch lacks.
SDPA_TAKES_GROUPS = "enable_gqa" in (F.scaled_dot_product_attention.__doc__ or "")

# --- rotary positions -------------------------------------------------------------------------------------------------


def rotary_tables(config: InternLM2Config, position_ids: torch.Tensor, dtype: torch.dtype):
    """Cosines and sines of the rotary embedding, each (batch, 1, tokens, head_dim), computed in float32.

    `linear` divides the positions by the factor. `dynamic` raises the base once a row is longer than the
    `max_position_embeddings` of training, from that row's own length (the published rule; it takes the longest row's
    length for all, so that a row's answer depends on its neighbours):

        base = rope_theta * (factor * length / max_position_embeddings - (factor - 1)) ** (head_dim / (head_dim - 2))

    Source: the NTK-aware scaling of bloc97 and emozilla (r/LocalLLaMA, 2023), as in the published InternLM2 code.

    Args:
        position_ids: (batch or 1, tokens), integers or fractions.
    """
    rope, size = config.rope_parameters, config.head_dim
    positions, base = position_ids.float(), rope["rope_theta"]
    if rope["rope_type"] == "linear":
        positions = positions / rope["factor"]
    elif rope["rope_type"] == "dynamic":
        factor, trained = rope["factor"], config.max_position_embeddings
        length = (positions.amax(dim=-1, keepdim=True) + 1).clamp(min=trained)  # (batch, 1)
        base = base * (factor * length / trained - (factor - 1)) ** (size / (size - 2))
    exponents = torch.arange(0, size, 2, device=positions.device, dtype=torch.float32) / size
    frequencies = 1.0 / base**exponents  # (head_dim / 2) or, dynamic, (batch, head_dim / 2)
    angles = positions[..., None] * frequencies[..., None, :]  # (batch, tokens, head_dim / 2)
    angles = torch.cat((angles, angles), dim=-1)[:, None]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Applies the rotary embedding to `states` (batch, heads, tokens, head_dim)."""
    cos, sin = cos.to(states.dtype), sin.to(states.dtype)  # nothing to do, unless autocast chose another dtype
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat((-second, first), dim=-1) * sin


# --- attention --------------------------------------------------------------------------------------------------------
# query (batch, heads, tokens, head_dim), key and value (batch, kv_heads, keys, head_dim); the result is
# (batch, tokens, heads, head_dim) and the weights, where the backend has them.


def _repeat_heads(query, *states):
    groups = query.shape[1] // states[0].shape[1]
    return [x.repeat_interleave(groups, dim=1) if groups > 1 else x for x in states]


def _eager_attention(module, query, key, value, mask):
    key, value = _repeat_heads(query, key, value)
    scores = query @ key.transpose(-2, -1) * module.head_dim**-0.5  # (batch, heads, tokens, keys)
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    elif mask is not None:
        scores = scores + mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype)
    return (weights @ value).transpose(1, 2), weights


def _sdpa_attention(module, query, key, value, mask):
    if is_grouped_step(query, key):
        return grouped_step(query, key, value, mask, module.head_dim**-0.5), None
    options = {"attn_mask": mask, "is_causal": mask is None and query.shape[2] > 1}
    # CUDA has no fast kernel for grouped heads under a mask.
    if SDPA_TAKES_GROUPS and (mask is None or query.device.type == "cpu"):
        options["enable_gqa"] = query.shape[1] != key.shape[1]
    else:
        key, value = _repeat_heads(query, key, value)
    if mask is not None:  # torch 2.1 on CUDA gives wrong results for a mask with strided inputs
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    return F.scaled_dot_product_attention(query, key, value, **options).transpose(1, 2), None


def _flash_attention(module, query, key, value, mask):
    """The package flash-attn (2.1 or later, whose causal mask is aligned to the last key), directly.

    `mask` is None or (batch, keys), true for the keys to see; the queries are the last columns of it.
    """
    flash_attn = importlib.import_module("flash_attn")
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))  # (batch, tokens, heads, head_dim)
    if mask is None:
        return flash_attn.flash_attn_func(query, key, value, causal=True), None
    # Rows of different lengths, end to end: (batch, tokens, heads, head_dim) -> (visible tokens, heads, head_dim)
    mask = mask.bool()
    query_mask = mask[:, -query.shape[1] :]
    packed = flash_attn.flash_attn_varlen_func(
        query[query_mask],
        key[mask],
        value[mask],
        cu_seqlens_q=F.pad(query_mask.sum(dim=1).cumsum(dim=0), (1, 0)).int(),
        cu_seqlens_k=F.pad(mask.sum(dim=1).cumsum(dim=0), (1, 0)).int(),
        max_seqlen_q=query.shape[1],
        max_seqlen_k=key.shape[1],
        causal=True,
    )
    context = torch.zeros_like(query)
    context[query_mask] = packed
    return context, None


def _registered_attention(function, module, query, key, value, mask):
    return function(module, query, key, value, mask, scaling=module.head_dim**-0.5, dropout=0.0)


ATTENTION = {"eager": _eager_attention, "sdpa": _sdpa_attention, "flash_attention_2": _flash_attention}


def attention_backend(name: str, states: torch.Tensor):
    """The attention function called `name` for inputs like `states`, and whether it is of the flash kind, which takes
    the padding mask as it is. A flash kind that transformers registers goes before our own call of the package; off the
    GPU and in float32, where there is no flash attention, `sdpa` stands in.

    Raises:
        ValueError: nothing goes by that name.
    """
    if "flash" in name and (states.device.type != "cuda" or states.dtype not in (torch.float16, torch.bfloat16)):
        name = "sdpa"
    if "flash" in name and external_attention(name) is not None:
        return partial(_registered_attention, external_attention(name)), True
    if name not in ATTENTION:
        raise ValueError(f"unknown attn_implementation {name!r} for InternLM2; choices: {', '.join(ATTENTION)}")
    return ATTENTION[name], "flash" in name


class AttentionPlan(NamedTuple):
    """What all layers of one forward pass share."""

    attend: Callable
    mask: Optional[torch.Tensor]  # in the backend's own form; None: plainly causal
    slots: torch.Tensor  # (tokens,) columns of the cache that the new tokens take
    rotary: tuple  # cosines and sines
    key_length: Optional[int] = None  # use only so many keys of a cache of fixed size


def causal_mask(attention_mask: Optional[torch.Tensor], slots: torch.Tensor, key_length: int) -> torch.Tensor:
    """Which keys each query sees: bool (batch or 1, 1, tokens, key_length), true to see.

    A key is seen when it is not later than the query and not padding. A query always sees itself, so that the softmax
    of a padding query is not over nothing; no other query sees that one.

    Args:
        attention_mask: (batch, columns), 0 for padding; missing columns at the end are padding.
        slots: (tokens,) columns of the queries.
    """
    keys = torch.arange(key_length, device=slots.device)
    mask = keys <= slots[:, None]  # (tokens, key_length)
    if attention_mask is None:
        return mask[None, None]
    visible = attention_mask[:, :key_length].bool()
    visible = F.pad(visible, (0, key_length - visible.shape[1]))
    mask = mask & visible[:, None] | (keys == slots[:, None])  # (batch, tokens, key_length)
    return mask[:, None]


# --- layers -----------------------------------------------------------------------------------------------------------


class InternLM2RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32 and returned in the input's dtype."""

    def __init__(self, hidden_size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        in_float = hidden_states.float()
        in_float = in_float * torch.rsqrt(in_float.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * in_float.to(hidden_states.dtype)


# Not called "...Attention": newer transformers takes a class of that name for one that cannot switch its backend, which
# this one can, since the backend is looked up at each forward pass.
class InternLM2SelfAttn(nn.Module):
    """Grouped-query attention. The rows of `wqkv` come in one group per key/value head: its query heads, the key head,
    the value head."""

    is_causal = True  # read by the flash attention of transformers

    def __init__(self, config: InternLM2Config, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_heads = config.num_key_value_heads
        heads = config.num_attention_heads + 2 * config.num_key_value_heads
        self.wqkv = nn.Linear(config.hidden_size, heads * config.head_dim, bias=config.bias)
        self.wo = nn.Linear(config.hidden_size, config.hidden_size, bias=config.bias)

    def forward(self, hidden_states: torch.Tensor, plan: AttentionPlan, cache=None):
        batch, tokens, width = hidden_states.shape
        grouped = self.wqkv(hidden_states).view(batch, tokens, self.num_key_value_heads, -1, self.head_dim)
        query = grouped[..., :-2, :].flatten(2, 3).transpose(1, 2)  # (batch, heads, tokens, head_dim)
        key, value = grouped[..., -2, :].transpose(1, 2), grouped[..., -1, :].transpose(1, 2)
        query, key = rotate(query, *plan.rotary), rotate(key, *plan.rotary)
        if cache is not None:  # (batch, kv_heads, tokens, head_dim) -> (batch, kv_heads, keys, head_dim)
            key, value = cache.update(key, value, self.layer_idx, {"cache_position": plan.slots})
        if plan.key_length is not None:
            key, value = key[:, :, : plan.key_length], value[:, :, : plan.key_length]
        context, weights = plan.attend(self, query, key, value, plan.mask)
        return self.wo(context.reshape(batch, tokens, width)), weights


class InternLM2MLP(nn.Module):
    """Gated feed-forward block: w2(act(w1 x) * w3 x)."""

    def __init__(self, config: InternLM2Config):
        super().__init__()
        if config.hidden_act not in ACT2FN:
            raise ValueError(f"unknown hidden_act {config.hidden_act!r}; choices: {', '.join(sorted(ACT2FN))}")
        self.w1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w3 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.w2(self.act_fn(self.w1(hidden_states)) * self.w3(hidden_states))


class InternLM2DecoderLayer(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: InternLM2Config, layer_idx: int):
        super().__init__()
        self.attention = InternLM2SelfAttn(config, layer_idx)
        self.feed_forward = InternLM2MLP(config)
        self.attention_norm = InternLM2RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.ffn_norm = InternLM2RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden_states: torch.Tensor, plan: AttentionPlan, cache=None):
        attended, weights = self.attention(self.attention_norm(hidden_states), plan, cache)
        hidden_states = hidden_states + attended
        return hidden_states + self.feed_forward(self.ffn_norm(hidden_states)), weights


# --- models -----------------------------------------------------------------------------------------------------------


class InternLM2PreTrainedModel(PreTrainedModel):
    config_class = InternLM2Config
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["InternLM2DecoderLayer"]
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flash_attn_2 = True  # older name of the line above
    _supports_cache_class = True
    _supports_quantized_cache = True
    _supports_static_cache = True
    _can_compile_fullgraph = True  # newer name of the line above

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As in transformers; pickled weights, which can run code, are read with `use_safetensors=False` only."""
        kwargs = safetensors_keywords(pretrained_model_name_or_path, kwargs)
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    def _init_weights(self, module: nn.Module) -> None:
        # Through `nn.init`: newer transformers runs this after loading too, and makes `nn.init` skip what is loaded.
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, InternLM2RMSNorm):
            nn.init.ones_(module.weight)


class InternLM2Model(InternLM2PreTrainedModel):
    """The decoder without its head: the last layer's normed hidden states, (batch, tokens, hidden_size)."""

    def __init__(self, config: InternLM2Config):
        super().__init__(config)
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(InternLM2DecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = InternLM2RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.tok_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.tok_embeddings = value

    def _plan(self, hidden_states, attention_mask, position_ids, cache, cache_position, is_eager) -> AttentionPlan:
        """Backend, positions and mask of one forward pass."""
        tokens, device = hidden_states.shape[1], hidden_states.device
        attention_mask = None if attention_mask is None else attention_mask.to(device)
        past = cache.get_seq_length() if cache is not None else 0  # a tensor for a cache of fixed size
        slots = cache_position
        if slots is None:
            slots = torch.arange(tokens, device=device) + past
        capacity = cache_capacity(cache) if cache is not None else None
        key_length = capacity or past + tokens
        shape = tuple(attention_mask.shape) if attention_mask is not None else ()
        if len(shape) not in (0, 2, 4) or (len(shape) == 2 and not capacity and shape[1] != key_length):
            raise ValueError(
                f"attention_mask has shape {shape}: expected (batch, {key_length}), {past} cached and {tokens} new "
                f"columns, or (batch, 1, {tokens}, {key_length})."
            )
        if position_ids is None and len(shape) == 2:
            position_ids = (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)[:, slots]
        elif position_ids is None:
            position_ids = slots[None]
        rotary = rotary_tables(self.config, position_ids.to(device), hidden_states.dtype)
        name = "eager" if is_eager else requested_attention(self.config) or "sdpa"
        attend, is_flash = attention_backend(name, hidden_states)

        if len(shape) == 4:
            if is_flash:
                raise ValueError(f"flash attention takes an attention_mask of (batch, columns) only, got {shape}.")
            dtype = hidden_states.dtype if attention_mask.is_floating_point() else torch.bool
            return AttentionPlan(attend, attention_mask[..., :key_length].to(dtype), slots, rotary)
        used = int(slots[-1]) + 1 if is_flash and capacity else None
        if attention_mask is not None and used:
            attention_mask = attention_mask[:, :used]
        # Looking at values makes the host wait for the GPU, once per forward pass; a compiled graph cannot look.
        if attention_mask is not None and not is_compiling() and bool(attention_mask.all()):
            attention_mask = None
        if is_flash:
            return AttentionPlan(attend, attention_mask, slots, rotary, used)
        # The whole causal triangle, or a single last row, which sees everything.
        is_plain = attention_mask is None and not capacity and (tokens == 1 or tokens == key_length)
        if is_plain and (tokens == 1 or attend is _sdpa_attention):
            return AttentionPlan(attend, None, slots, rotary)
        return AttentionPlan(attend, causal_mask(attention_mask, slots, key_length), slots, rotary)

    def forward(
        self,
        input_ids: Optional[torch.LongTensor] = None,
        attention_mask: Optional[torch.Tensor] = None,
        position_ids: Optional[torch.Tensor] = None,
        past_key_values=None,
        inputs_embeds: Optional[torch.Tensor] = None,
        use_cache: Optional[bool] = None,
        output_attentions: Optional[bool] = None,
        output_hidden_states: Optional[bool] = None,
        return_dict: Optional[bool] = None,
        **kwargs,
    ):
        """Runs the decoder.

        Args:
            input_ids: (batch, tokens) the new tokens; or `inputs_embeds`, not both.
            attention_mask: (batch, cached + new tokens), 0 for padding; or (batch, 1, tokens, keys), bool (true to
                see) or added to the scores.
            position_ids: (batch, tokens); by default counted along `attention_mask`, padding left out.
            past_key_values: a `Cache`, extended in place, or a tuple of (key, value) per layer, in which case a new
                tuple is returned.
            inputs_embeds: (batch, tokens, hidden_size).
            use_cache: return the cache (a new `DynamicCache` where none is given).
            output_attentions: return the weights, (batch, heads, tokens, keys) per layer; computed eagerly.
            output_hidden_states: return each layer's input and the normed output of the last.
            return_dict: return a tuple where false.
            kwargs: `cache_position`, (tokens,) columns of the new tokens, from callers that know it; others have no
                effect.

        Returns:
            `BaseModelOutputWithPast`.

        Raises:
            ValueError: not exactly one of the two inputs, or a mask whose shape does not fit.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        config = self.config
        use_cache = config.use_cache if use_cache is None else use_cache
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        is_checkpointed = self.gradient_checkpointing and self.training
        if is_checkpointed and use_cache:
            logger.debug("use_cache=True does not go with gradient checkpointing: no cache is kept")
            use_cache = False

        hidden_states = self.tok_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        as_tuples = isinstance(past_key_values, (tuple, list))
        cache = cache_from_tuples(past_key_values) if as_tuples else past_key_values
        if cache is None and use_cache:
            cache = DynamicCache()
        cache_position = kwargs.get("cache_position")
        plan = self._plan(hidden_states, attention_mask, position_ids, cache, cache_position, bool(output_attentions))

        all_hidden_states, all_weights = [], []
        for layer in self.layers:
            if output_hidden_states:
                all_hidden_states.append(hidden_states)
            if is_checkpointed:
                hidden_states, weights = self._gradient_checkpointing_func(layer.__call__, hidden_states, plan, cache)
            else:
                hidden_states, weights = layer(hidden_states, plan, cache=cache)
            if output_attentions:
                all_weights.append(weights)
        hidden_states = self.norm(hidden_states)

        if not use_cache:
            cache = None
        output = BaseModelOutputWithPast(
            last_hidden_state=hidden_states,
            past_key_values=cache_to_tuples(cache) if as_tuples and use_cache else cache,
            hidden_states=(*all_hidden_states, hidden_states) if output_hidden_states else None,
            attentions=tuple(all_weights) if output_attentions else None,
        )
        return output if (config.return_dict if return_dict is None else return_dict) else output.to_tuple()


class InternLM2ForCausalLM(InternLM2PreTrainedModel, GenerationMixin):
    """InternLM2 with its language-model head."""

    _tied_weights_keys = tied_weights_keys({"output.weight": "model.tok_embeddings.weight"})
    prepare_inputs_for_generation = inputs_for_generation()

    def __init__(self, config: InternLM2Config):
        super().__init__(config)
        self.model = InternLM2Model(config)
        self.output = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.tok_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.tok_embeddings = value

    def get_output_embeddings(self) -> nn.Module:
        return self.output

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.output = new_embeddings

    def get_decoder(self) -> InternLM2Model:
        return self.model

    def set_decoder(self, decoder: InternLM2Model) -> None:
        self.model = decoder

    @staticmethod
    def _reorder_cache(past_key_values, beam_idx: torch.Tensor):
        """The cache with its rows taken in the order of `beam_idx`, as beam search of older releases asks for it."""
        if hasattr(past_key_values, "reorder_cache"):
            past_key_values.reorder_cache(beam_idx)
            return past_key_values
        return tuple(tuple(x.index_select(0, beam_idx.to(x.device)) for x in layer) for layer in past_key_values)

    def forward(
        self,
        input_ids: Optional[torch.LongTensor] = None,
        attention_mask: Optional[torch.Tensor] = None,
        position_ids: Optional[torch.Tensor] = None,
        past_key_values=None,
        inputs_embeds: Optional[torch.Tensor] = None,
        labels: Optional[torch.LongTensor] = None,
        use_cache: Optional[bool] = None,
        output_attentions: Optional[bool] = None,
        output_hidden_states: Optional[bool] = None,
        return_dict: Optional[bool] = None,
        logits_to_keep: Union[int, torch.Tensor] = 0,
        num_logits_to_keep: Optional[int] = None,
        **kwargs,
    ):
        """Runs the decoder and its head. Arguments not listed are those of `InternLM2Model.forward`.

        Args:
            labels: (batch, tokens) token ids, -100 where there is no loss; the label of a token is the next one's id.
            logits_to_keep: compute the logits of that many last tokens, of the tokens at these indices, or of all (0).
            num_logits_to_keep: older name of `logits_to_keep`.
            kwargs: `num_items_in_batch`: divide the summed loss by it instead of by the number of labels.

        Returns:
            `CausalLMOutputWithPast`; the logits are float32, (batch, tokens kept, vocab_size).

        Raises:
            ValueError: `labels` together with `logits_to_keep`, or what `InternLM2Model.forward` raises.
        """
        if num_logits_to_keep is not None:
            logits_to_keep = num_logits_to_keep
        is_all = isinstance(logits_to_keep, int) and logits_to_keep == 0
        if labels is not None and not is_all:
            raise ValueError(f"labels need the logits of all tokens: logits_to_keep must be 0, got {logits_to_keep!r}")
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.output(outputs.last_hidden_state[:, kept]).float()
        output = CausalLMOutputWithPast(
            loss=None if labels is None else _next_token_loss(logits, labels, kwargs.get("num_items_in_batch")),
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()


def _next_token_loss(logits: torch.Tensor, labels: torch.Tensor, num_items_in_batch=None) -> torch.Tensor:
    logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten().to(logits.device)
    if num_items_in_batch is None:
        return F.cross_entropy(logits, labels)
    return F.cross_entropy(logits, labels, reduction="sum") / num_items_in_batch
