"""Models at published sizes with random weights: ours, and transformers' own InternVL over the same tensors."""

import torch
import transformers

import internvl_chat
from internvl_chat.native_tensors_internvl import name_in_memory, native_pieces

ROOT = internvl_chat.__path__[0]

# InternViT-300M-448px-V2.5 and the language models of InternVL3-1B and 2B, as published.
VISION_300M = {
    **dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096, image_size=448),
    **dict(patch_size=14, qkv_bias=True, qk_normalization=False, norm_type="layer_norm", hidden_act="gelu"),
}
QWEN2_05B = {
    **dict(hidden_size=896, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2, vocab_size=151674),
    **dict(intermediate_size=4864, rope_theta=1e6, rms_norm_eps=1e-6, max_position_embeddings=32768),
    **dict(tie_word_embeddings=False, bos_token_id=None, eos_token_id=None, pad_token_id=0),
}
QWEN2_15B = {**QWEN2_05B, "hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12}
QWEN2_15B["intermediate_size"] = 8960
TINY_VISION = {**VISION_300M, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 32}
TINY_VISION["intermediate_size"] = 256
TINY_LLM = {**QWEN2_05B, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256}
SIZES = {"1B": (VISION_300M, QWEN2_05B), "2B": (VISION_300M, QWEN2_15B), "tiny": (TINY_VISION, TINY_LLM)}


def shipped_tokenizer():
    """The tokenizer of the root: ids are what matters here, not words."""
    return transformers.AutoTokenizer.from_pretrained(ROOT)


def our_model(size: str, machine, tokenizer, **settings):
    """`InternVLChatModel` of a size in `SIZES`, random weights, in the machine's dtype and on its device."""
    vision, text = SIZES[size]
    config = internvl_chat.InternVLChatConfig(
        vision_config=dict(vision),
        llm_config={**text, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"},
        template="internvl2_5",
        force_image_size=448,
        downsample_ratio=0.5,
        ps_version="v2",
        img_context_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        **settings,
    )
    return _made(lambda: internvl_chat.InternVLChatModel(config), machine)


def native_vision(vision: dict, attention: str):
    """transformers' vision tower of the given size, without weights that mean anything."""
    return transformers.InternVLVisionModel(_native_vision_config(vision, attention))


def native_model(ours, size: str):
    """transformers' `InternVLForConditionalGeneration` over the tensors of our model (no copies)."""
    vision, text = SIZES[size]
    config = transformers.InternVLConfig(
        vision_config=_native_vision_config(vision, "sdpa"),
        text_config=transformers.Qwen2Config(**text),
        image_token_id=ours.img_context_token_id,
        downsample_ratio=0.5,
    )
    with torch.device("meta"):
        native = transformers.InternVLForConditionalGeneration(config)
    state = {}
    for name, tensor in ours.state_dict().items():
        for target, rows in native_pieces(name, tuple(tensor.shape)):
            ((first, end),) = rows
            state[name_in_memory(target)] = tensor[first:end]
    native.load_state_dict(state, assign=True)
    for module in native.modules():  # what is computed and not stored: the rotary frequencies
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            module.__init__(config.text_config)
            module.to(ours.device)
    return native.eval()


def _native_vision_config(vision, attention):
    config = transformers.InternVLVisionConfig(
        **{name: vision[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")},
        intermediate_size=vision["intermediate_size"],
        attention_bias=vision["qkv_bias"],
        image_size=[vision["image_size"]] * 2,
        patch_size=[vision["patch_size"]] * 2,
    )
    config._attn_implementation = attention
    return config


def _made(make, machine):
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(machine.dtype)
    try:
        with machine.device:
            return make().eval()
    finally:
        torch.set_default_dtype(before)
