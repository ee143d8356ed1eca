"""Attention as a processor likes it: scores that stay in its cache, and heads that share keys in one product.

Functions of tensors, for the vision tower and the language models. On a GPU the kernels that torch picks are better.
"""

import torch
import torch.nn.functional as F

from .compat_internvl import external_attention, register_attention

is_compiling = getattr(torch.compiler, "is_compiling", lambda: False)  # what older torch lacks

GROUPED = "sdpa_grouped"  # what transformers knows `grouped_attention` by

_SCORES_BYTES = 8 << 20  # of attention scores at a time

# What transformers' sdpa may be handed beside the usual, and `grouped_step` knows nothing of.
_EXTRAS = ("softcap", "position_bias", "cache", "s_aux")


def blocks_pay(query: torch.Tensor, value: torch.Tensor, dropout: float) -> bool:
    """Whether `attention_in_blocks` is the faster form for such states, and right: it has neither gradients nor
    dropout, and one dtype."""
    is_plain = query.dtype == value.dtype and not dropout and not torch.is_grad_enabled()
    return is_plain and query.device.type == "cpu" and not is_compiling()


def attention_in_blocks(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """softmax(q · kᵀ · scale) · v of (batch, heads, tokens, size), the result as (batch, tokens, heads, size).

    The plain form, for as many heads at a time as a processor's cache can hold the scores of. All at once they go
    through memory, which each layer gets anew from the system: that costs more than the products.
    """
    batch, heads, tokens, size = query.shape
    query, key, value = (x.reshape(batch * heads, tokens, size) for x in (query * scale, key, value))
    at_once = max(1, _SCORES_BYTES // (tokens * tokens * query.element_size()))
    scores = query.new_empty(min(at_once, batch * heads), tokens, tokens)
    context = torch.empty_like(query)
    for start in range(0, batch * heads, at_once):
        block = slice(start, start + at_once)
        own = scores[: len(query[block])]
        torch.bmm(query[block], key[block].transpose(1, 2), out=own)
        torch.softmax(own, dim=-1, out=own)
        torch.bmm(own, value[block], out=context[block])
    return context.view(batch, heads, tokens, size).transpose(1, 2)


def is_grouped_step(query: torch.Tensor, key: torch.Tensor) -> bool:
    """Whether this is one new token on a CPU whose query heads share keys: what `grouped_step` is for."""
    return query.device.type == "cpu" and query.shape[2] == 1 and query.shape[1] != key.shape[1]


def grouped_step(query, key, value, mask, scale: float) -> torch.Tensor:
    """Attention of one new token: the query heads of one key head are the rows of one product.

    torch's kernel for a CPU goes through the keys once for each query head otherwise, in bfloat16 at a tenth of the
    speed (torch 2.15, seven heads a key head).

    Args:
        query: (batch, heads, 1, size).
        key, value: (batch, key heads, keys, size).
        mask: None, or (batch, 1 or heads, 1, keys), true to attend or added to the scores.
        scale: factor of the scores.

    Returns:
        (batch, 1, heads, size).
    """
    batch, heads, _, size = query.shape
    shared = (batch, key.shape[1], heads // key.shape[1])
    if mask is not None and mask.shape[1] != 1:
        mask = mask.reshape(*shared, mask.shape[-1])
    context = F.scaled_dot_product_attention(query.reshape(*shared, size), key, value, attn_mask=mask, scale=scale)
    return context.reshape(batch, 1, heads, size)


def grouped_attention(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **extras):
    """transformers' own `sdpa`, with `grouped_step` for what that is for."""
    if dropout or not is_grouped_step(query, key) or any(extras.get(name) is not None for name in _EXTRAS):
        own = external_attention("sdpa")
        return own(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **extras)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return grouped_step(query, key, value, attention_mask, scale), None


GROUPED_IS_KNOWN = register_attention(GROUPED, grouped_attention, masks_of="sdpa")
