"""Differences between `transformers` releases that the InternLM2 files need. Draft: to be merged into compat_internvl."""

import inspect

import torch
import torch.nn.functional as F
from transformers import DynamicCache, GenerationMixin

# --- key/value caches -------------------------------------------------------------------------------------------------


def cache_from_tuples(past_key_values) -> DynamicCache:
    """A `DynamicCache` with the keys and values of a tuple of (key, value) pairs, the format of releases before 4.42.
    `DynamicCache.from_legacy_cache` does the same where it exists; 5.0 removed it."""
    cache = DynamicCache()
    for layer_idx, (key, value) in enumerate(past_key_values):
        cache.update(key, value, layer_idx)
    return cache


def cache_to_tuples(cache) -> tuple:
    """The way back from `cache_from_tuples`. 4.54 moved the tensors from two lists into layer objects; 5.0 removed
    `to_legacy_cache`."""
    if hasattr(cache, "layers"):
        return tuple((layer.keys, layer.values) for layer in cache.layers)
    return tuple(zip(cache.key_cache, cache.value_cache))


def cache_capacity(cache):
    """Positions that a cache of fixed size allocates, or None for one that grows. The number moved from the cache to its
    layers in 4.54; of the methods that tell it, each release has another."""
    layers = getattr(cache, "layers", [cache])
    return getattr(layers[0], "max_cache_len", None) if layers else None


# --- generation -------------------------------------------------------------------------------------------------------


def _prepare_inputs_for_generation(
    self, input_ids, past_key_values=None, attention_mask=None, inputs_embeds=None, position_ids=None, **kwargs
):
    """What `GenerationMixin.prepare_inputs_for_generation` does since 5.0: drops the columns that the cache holds. Before
    4.46 each model writes its own, and the shared one of 4.46 to 4.50 cannot go on from a cache with embeddings.

    `attention_mask` covers all columns, those of the cache and of `inputs_embeds` included; `input_ids` may lack the
    columns that came as `inputs_embeds`. Releases before 4.45 never ask for the last logits only: a prompt given as
    embeddings gets it here (assisted decoding, which needs more of them, cannot start from embeddings).
    """
    past = 0
    if past_key_values is not None:
        is_tuple = isinstance(past_key_values, (tuple, list))
        past = past_key_values[0][0].shape[-2] if is_tuple else int(past_key_values.get_seq_length())
    total = input_ids.shape[1] if attention_mask is None else attention_mask.shape[1]
    new = total - past

    kwargs.pop("cache_position", None)  # the model derives it from the cache
    inputs = {"past_key_values": past_key_values, "attention_mask": attention_mask, **kwargs}
    if inputs_embeds is not None and past < inputs_embeds.shape[1]:
        inputs["inputs_embeds"] = inputs_embeds[:, -new:]
        if not {"logits_to_keep", "num_logits_to_keep"} & set(kwargs):
            inputs["logits_to_keep"] = 1
    else:
        inputs["input_ids"] = input_ids[:, -new:].contiguous()
    if position_ids is not None:  # the prompt's; each generated token is one further
        generated = torch.arange(1, total - position_ids.shape[1] + 1, device=position_ids.device)
        position_ids = torch.cat((position_ids, position_ids[:, -1:] + generated), dim=1)
        inputs["position_ids"] = position_ids[:, -new:]
    capacity = cache_capacity(past_key_values) if hasattr(past_key_values, "update") else None
    if capacity and attention_mask is not None:  # one width for all steps: a compiled forward pass serves them all
        inputs["attention_mask"] = F.pad(attention_mask, (0, max(capacity - total, 0)))
    return inputs


_KNOWS_FIRST_STEP = "is_first_iteration" in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
prepare_inputs_for_generation = (
    GenerationMixin.prepare_inputs_for_generation if _KNOWS_FIRST_STEP else _prepare_inputs_for_generation
)
