"""Names and shapes of the tensors in published checkpoints, for a configuration of any size.

Written from the published files, not from this library's classes; layers and experts are numbered in full.
"""

import torch


def published_tensors(values: dict) -> dict:
    """What the files of a checkpoint hold, as {name: shape}; `values` is the content of its `config.json`."""
    vision, llm = values["vision_config"], values["llm_config"]
    tensors = {f"vision_model.{name}": shape for name, shape in _vision(vision).items()}
    merged = round(1 / values["downsample_ratio"]) ** 2 * vision["hidden_size"]
    hidden = llm["hidden_size"]
    tensors.update(_linear("mlp1.1", hidden, merged), **_linear("mlp1.3", hidden, hidden))
    tensors.update({"mlp1.0.weight": (merged,), "mlp1.0.bias": (merged,)})
    tensors.update({f"language_model.{name}": shape for name, shape in _language(llm).items()})
    return tensors


def fused(tensors: dict) -> dict:
    """`tensors` (or shapes), with those of the experts of a layer of Qwen3-MoE as one: {name: tensor}.

    Files have matrices for each expert; transformers 5 keeps gate and up as (experts, 2 × inner, hidden), down as
    (experts, hidden, inner). What is fused already, and any other kind of model, comes back as it is.
    """
    result, experts = {}, {}
    for name, tensor in tensors.items():
        layer, found, rest = name.partition(".experts.")
        if found and rest.endswith("_proj.weight"):
            number, part, _ = rest.split(".")
            experts.setdefault(layer, {}).setdefault(part, {})[int(number)] = tensor
        else:
            result[name] = tensor
    for layer, parts in experts.items():
        gate, up, down = ([parts[name][number] for number in sorted(parts[name])] for name in _GATED)
        if torch.is_tensor(gate[0]):
            both = torch.stack([torch.cat(pair) for pair in zip(gate, up)])
            down = torch.stack(down)
        else:
            inner, hidden = gate[0]
            both, down = (len(gate), 2 * inner, hidden), (len(down), hidden, inner)
        result[f"{layer}.experts.gate_up_proj"], result[f"{layer}.experts.down_proj"] = both, down
    return result


_GATED = ("gate_proj", "up_proj", "down_proj")


def _linear(name, rows, columns, bias=True) -> dict:
    tensors = {f"{name}.weight": (rows, columns)}
    return {**tensors, f"{name}.bias": (rows,)} if bias else tensors


def _layers(prefix, count, layer) -> dict:
    return {f"{prefix}.{number}.{name}": shape for number in range(count) for name, shape in layer.items()}


def _vision(config) -> dict:
    hidden, inner, patch = config["hidden_size"], config["intermediate_size"], config["patch_size"]
    layer = {
        "ls1": (hidden,),
        "ls2": (hidden,),
        "norm1.weight": (hidden,),
        "norm2.weight": (hidden,),
        **_linear("attn.qkv", 3 * hidden, hidden, config["qkv_bias"]),
        **_linear("attn.proj", hidden, hidden),
        **_linear("mlp.fc1", inner, hidden),
        **_linear("mlp.fc2", hidden, inner),
    }
    if config["norm_type"] == "layer_norm":
        layer.update({"norm1.bias": (hidden,), "norm2.bias": (hidden,)})
    if config["qk_normalization"]:  # over all heads together
        layer.update({"attn.q_norm.weight": (hidden,), "attn.k_norm.weight": (hidden,)})
    return {
        "embeddings.class_embedding": (1, 1, hidden),
        "embeddings.patch_embedding.weight": (hidden, config["num_channels"], patch, patch),
        "embeddings.patch_embedding.bias": (hidden,),
        "embeddings.position_embedding": (1, 1 + (config["image_size"] // patch) ** 2, hidden),
        **_layers("encoder.layers", config["num_hidden_layers"], layer),
    }


def _language(config) -> dict:
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    architecture = config["architectures"][0]
    is_internlm2 = architecture == "InternLM2ForCausalLM"
    return {
        f"model.{'tok_embeddings' if is_internlm2 else 'embed_tokens'}.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
        f"{'output' if is_internlm2 else 'lm_head'}.weight": (vocab, hidden),
        **_layers("model.layers", config["num_hidden_layers"], _LAYERS[architecture](config)),
    }


def _sizes(config):
    """Hidden size, the width of one head, and the widths of all query and of all key (or value) heads."""
    heads = config["num_attention_heads"]
    head = config.get("head_dim") or config["hidden_size"] // heads
    return config["hidden_size"], head, heads * head, config["num_key_value_heads"] * head


def _attention(config, bias=False, out_bias=False) -> dict:
    hidden, _, queries, keys = _sizes(config)
    return {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        **_linear("self_attn.q_proj", queries, hidden, bias),
        **_linear("self_attn.k_proj", keys, hidden, bias),
        **_linear("self_attn.v_proj", keys, hidden, bias),
        **_linear("self_attn.o_proj", hidden, queries, out_bias),
    }


def _gated(name, inner, hidden) -> dict:
    shapes = ((inner, hidden), (inner, hidden), (hidden, inner))
    return {f"{name}.{part}.weight": shape for part, shape in zip(_GATED, shapes)}


def _llama(config, bias=False) -> dict:
    return {**_attention(config, bias), **_gated("mlp", config["intermediate_size"], config["hidden_size"])}


def _qwen2(config) -> dict:
    return _llama(config, bias=True)


def _head_norms(config) -> dict:
    head = config["head_dim"]
    return {"self_attn.q_norm.weight": (head,), "self_attn.k_norm.weight": (head,)}


def _qwen3(config) -> dict:
    return {**_llama(config), **_head_norms(config)}


def _qwen3_moe(config) -> dict:
    hidden, inner = config["hidden_size"], config["moe_intermediate_size"]
    layer = {**_attention(config), **_head_norms(config), "mlp.gate.weight": (config["num_experts"], hidden)}
    for expert in range(config["num_experts"]):
        layer.update(_gated(f"mlp.experts.{expert}", inner, hidden))
    return layer


def _phi3(config) -> dict:
    hidden, _, queries, keys = _sizes(config)
    inner = config["intermediate_size"]
    return {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "self_attn.qkv_proj.weight": (queries + 2 * keys, hidden),
        "self_attn.o_proj.weight": (hidden, queries),
        "mlp.gate_up_proj.weight": (2 * inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }


def _internlm2(config) -> dict:
    hidden, _, queries, keys = _sizes(config)
    inner = config["intermediate_size"]
    return {
        "attention_norm.weight": (hidden,),
        "ffn_norm.weight": (hidden,),
        "attention.wqkv.weight": (queries + 2 * keys, hidden),
        "attention.wo.weight": (hidden, queries),
        "feed_forward.w1.weight": (inner, hidden),
        "feed_forward.w2.weight": (hidden, inner),
        "feed_forward.w3.weight": (inner, hidden),
    }


def _gpt_oss(config) -> dict:
    """The names are those of transformers' class: the files of the one checkpoint were not seen."""
    hidden, inner, experts = config["hidden_size"], config["intermediate_size"], config["num_local_experts"]
    return {
        **_attention(config, bias=True, out_bias=True),
        **_linear("mlp.router", experts, hidden),
        "self_attn.sinks": (config["num_attention_heads"],),
        "mlp.experts.gate_up_proj": (experts, hidden, 2 * inner),
        "mlp.experts.gate_up_proj_bias": (experts, 2 * inner),
        "mlp.experts.down_proj": (experts, inner, hidden),
        "mlp.experts.down_proj_bias": (experts, hidden),
    }


_LAYERS = {
    "GptOssForCausalLM": _gpt_oss,
    "InternLM2ForCausalLM": _internlm2,
    "LlamaForCausalLM": _llama,
    "Phi3ForCausalLM": _phi3,
    "Qwen2ForCausalLM": _qwen2,
    "Qwen3ForCausalLM": _qwen3,
    "Qwen3MoeForCausalLM": _qwen3_moe,
}
