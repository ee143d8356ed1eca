"""Which tensor of a published checkpoint is which in the layout of transformers' own InternVL: the one table of names.

Published names ("original") are those of our model; native names are those of `-hf` checkpoints on disk, which every
release that has the model reads: `vision_tower.`, `multi_modal_projector.`, `language_model.model.` and
`language_model.lm_head.`. In memory, and in some files, they are called otherwise (`name_in_memory`).

No value changes on the way: a tensor keeps its name's content, or its rows (first dimension) are dealt out to several.
"""

import re

# "*" is a layer's number; a list means that the rows are dealt out to these, in equal shares.
VISION_NAMES = {
    "embeddings.class_embedding": "embeddings.cls_token",
    "embeddings.patch_embedding.weight": "embeddings.patch_embeddings.projection.weight",
    "embeddings.patch_embedding.bias": "embeddings.patch_embeddings.projection.bias",
    "embeddings.position_embedding": "embeddings.position_embeddings",
    "encoder.layers.*.ls1": "encoder.layer.*.lambda_1",
    "encoder.layers.*.ls2": "encoder.layer.*.lambda_2",
    "encoder.layers.*.attn.qkv.weight": [f"encoder.layer.*.attention.{x}_proj.weight" for x in "qkv"],
    "encoder.layers.*.attn.qkv.bias": [f"encoder.layer.*.attention.{x}_proj.bias" for x in "qkv"],
    "encoder.layers.*.attn.q_norm.weight": "encoder.layer.*.attention.q_norm.weight",
    "encoder.layers.*.attn.k_norm.weight": "encoder.layer.*.attention.k_norm.weight",
    "encoder.layers.*.attn.proj.weight": "encoder.layer.*.attention.projection_layer.weight",
    "encoder.layers.*.attn.proj.bias": "encoder.layer.*.attention.projection_layer.bias",
    "encoder.layers.*.mlp.fc1.weight": "encoder.layer.*.mlp.fc1.weight",
    "encoder.layers.*.mlp.fc1.bias": "encoder.layer.*.mlp.fc1.bias",
    "encoder.layers.*.mlp.fc2.weight": "encoder.layer.*.mlp.fc2.weight",
    "encoder.layers.*.mlp.fc2.bias": "encoder.layer.*.mlp.fc2.bias",
    "encoder.layers.*.norm1.weight": "encoder.layer.*.layernorm_before.weight",
    "encoder.layers.*.norm1.bias": "encoder.layer.*.layernorm_before.bias",
    "encoder.layers.*.norm2.weight": "encoder.layer.*.layernorm_after.weight",
    "encoder.layers.*.norm2.bias": "encoder.layer.*.layernorm_after.bias",
}
PROJECTOR_NAMES = {
    "0.weight": "layer_norm.weight",
    "0.bias": "layer_norm.bias",
    "1.weight": "linear_1.weight",
    "1.bias": "linear_1.bias",
    "3.weight": "linear_2.weight",
    "3.bias": "linear_2.bias",
}
# InternLM2 becomes Llama. The rows of `wqkv` come in one group for each key/value head: its query heads, key, value.
INTERNLM2_NAMES = {
    "model.tok_embeddings.weight": "model.embed_tokens.weight",
    "model.layers.*.attention.wqkv.weight": [f"model.layers.*.self_attn.{x}_proj.weight" for x in "qkv"],
    "model.layers.*.attention.wqkv.bias": [f"model.layers.*.self_attn.{x}_proj.bias" for x in "qkv"],
    "model.layers.*.attention.wo.weight": "model.layers.*.self_attn.o_proj.weight",
    "model.layers.*.attention.wo.bias": "model.layers.*.self_attn.o_proj.bias",
    "model.layers.*.feed_forward.w1.weight": "model.layers.*.mlp.gate_proj.weight",
    "model.layers.*.feed_forward.w3.weight": "model.layers.*.mlp.up_proj.weight",
    "model.layers.*.feed_forward.w2.weight": "model.layers.*.mlp.down_proj.weight",
    "model.layers.*.attention_norm.weight": "model.layers.*.input_layernorm.weight",
    "model.layers.*.ffn_norm.weight": "model.layers.*.post_attention_layernorm.weight",
    "model.norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
HEADS = ("language_model.lm_head.weight", "language_model.output.weight")
TABLES = ("language_model.model.embed_tokens.weight", "language_model.model.tok_embeddings.weight")


def native_pieces(name: str, shape, internlm2_heads=None) -> list:
    """Where the rows of an original tensor are in the native layout.

    Args:
        name: its name in a published checkpoint.
        shape: its shape.
        internlm2_heads: for a checkpoint with InternLM2, its numbers of query heads and of key/value heads.

    Returns:
        [(native name, [(first row, row after the last), ...]), ...]: the rows of each native tensor, in its order.

    Raises:
        ValueError: the native layout has no place for it, or its rows cannot be dealt out.
    """
    rows = shape[0] if shape else 1
    part, _, rest = name.partition(".")
    if part == "language_model" and internlm2_heads is None:
        return [(name, [(0, rows)])]
    prefix, table = {
        "vision_model": ("vision_tower.", VISION_NAMES),
        "mlp1": ("multi_modal_projector.", PROJECTOR_NAMES),
        "language_model": ("language_model.", INTERNLM2_NAMES),
    }.get(part, ("", {}))
    numbered = re.search(r"\blayers\.(\d+)\.", rest)
    layer = numbered[1] if numbered else ""
    target = table.get(rest.replace(f"layers.{layer}.", "layers.*.", 1) if layer else rest)
    if target is None:
        raise ValueError(f"tensor {name} has no place in the native layout")
    if isinstance(target, str):
        return [(prefix + target.replace("*", layer), [(0, rows)])]
    targets = [prefix + each.replace("*", layer) for each in target]
    heads, groups = internlm2_heads if part == "language_model" else (1, 1)
    shares = (heads // groups, 1, 1)  # of a group's rows, in heads, for query, key and value
    if rows % (groups * sum(shares)):
        raise ValueError(f"tensor {name} has {rows} rows, which {groups} groups of {sum(shares)} heads do not divide")
    size = rows // (groups * sum(shares))
    pieces = []
    for index, target in enumerate(targets):
        before, share = sum(shares[:index]), shares[index]
        starts = [(group * sum(shares) + before) * size for group in range(groups)]
        pieces.append((target, [(start, start + share * size) for start in starts]))
    return pieces


def name_in_memory(name: str) -> str:
    """The name of a native tensor in transformers' model, from its name on disk."""
    if name.startswith("language_model.lm_head."):
        return name[len("language_model.") :]
    if name.startswith("language_model.model."):
        return "model.language_model." + name[len("language_model.model.") :]
    return "model." + name


def name_on_disk(name: str) -> str:
    """The way back from `name_in_memory`; a name that is used on disk stays as it is."""
    if name.startswith("lm_head."):
        return "language_model." + name
    if name.startswith("model.language_model."):
        return "language_model.model." + name[len("model.language_model.") :]
    return name[len("model.") :] if name.startswith("model.") else name


def with_separate_experts(shapes: dict) -> dict:
    """{name: shape} of an original Qwen3-MoE with a matrix for each expert, as files have them, in place of the fused
    ones that transformers 5 has in memory: gate and up in one (experts, 2 × inner, hidden), down (experts, hidden,
    inner)."""
    separate = {}
    for name, shape in shapes.items():
        layer, found, kind = name.partition(".mlp.experts.")
        kinds = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}.get(kind if found else None)
        if kinds is None or len(shape) != 3:
            separate[name] = shape
            continue
        count, rows, columns = shape
        for number in range(count):
            for each in kinds:
                separate[f"{layer}.mlp.experts.{number}.{each}.weight"] = (rows // len(kinds), columns)
    return separate
