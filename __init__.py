"""InternVL checkpoints, run by our own implementation.

Importing this package makes transformers' Auto classes load InternVL checkpoints with the classes below instead of with
the Python files of the checkpoint. Nothing heavy is imported until it is used.
"""

import importlib

__version__ = "0.1.0"

_EXPORTS = {
    "configuration_intern_vit": ["InternVisionConfig"],
    "configuration_internlm2": ["InternLM2Config"],
    "configuration_internvl_chat": ["InternVLChatConfig"],
    "conversation": ["Conversation", "get_conv_template", "register_conv_template", "conv_template_names"],
    "device_map_internvl": ["split_model"],
    "image_processing_internvl": ["InternVLChatImageProcessor"],
    "modeling_intern_vit": ["InternVisionModel"],
    "modeling_internlm2": ["InternLM2ForCausalLM"],
    "modeling_internvl_chat": ["InternVLChatModel", "InternVLChatForConditionalGeneration"],
    "preprocessing_internvl": [
        "ImageLoadError",
        "MediaLoadError",
        "VideoLoadError",
        "build_transform",
        "count_tiles",
        "dynamic_preprocess",
        "find_closest_aspect_ratio",
        "load_image",
        "load_images",
        "open_image",
        "tile_grid",
    ],
    "processing_internvl": ["InternVLChatProcessor"],
    "prompt_internvl": ["frame_prefix"],
    "tokenization_internlm2": ["InternLM2Tokenizer"],
    "video_internvl": ["get_index", "load_video", "read_frames"],
    "video_processing_internvl": ["InternVLChatVideoProcessor"],
}
_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = ["__version__", *sorted(_MODULE_OF)]


def __getattr__(name):
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    if name in _EXPORTS:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *__all__})


# Under another name (a test runner that imports this file by its path) there is nothing to register.
if __name__ == "internvl_chat":
    importlib.import_module(".registration_internvl", __name__).install()
