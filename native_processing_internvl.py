"""Tokenizer, processor, chat template and generation settings of a converted folder, in either direction.

The files are plain JSON and are written as such, in the form that all releases with the native model read (the newest
would write a form of its own, which the older ones do not know); tests load them through transformers' classes.
"""

import json
from pathlib import Path

import transformers

from .chat_template_internvl import jinja_template
from .compat_internvl import added_token_ids
from .configuration_internvl_chat import InternVLChatConfig
from .conversation import Conversation
from .image_processing_internvl import InternVLChatImageProcessor, settings_text
from .native_config_internvl import native_tiles, read_original
from .preprocessing_internvl import IMAGENET_MEAN, IMAGENET_STD
from .processing_internvl import SETTINGS_FILE, InternVLChatProcessor
from .tokenizer_json_internvl import fast_tokenizer, reads_whole_texts
from .video_processing_internvl import InternVLChatVideoProcessor

# Copied as they are; what a folder lacks is left out.
VOCABULARY_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
)
# Attributes that the native processor asks the tokenizer for.
NATIVE_TOKENS = {
    "context_image_token": "<IMG_CONTEXT>",
    "end_image_token": "</img>",
    "start_image_token": "<img>",
    "video_token": "<video>",
}
# What stands for an image in a rendered message: in the original layout, and where the native processor looks for it.
_IMAGE_MARK, _NATIVE_IMAGE_MARK = "'<image>\\n'", "'<IMG_CONTEXT>\\n'"
_BICUBIC = 3  # Pillow's number
_PROCESSOR_FILES = ("preprocessor_config", "video_preprocessor_config", "processor_config")
# Entries of tokenizer_config.json that mean something else in the two layouts: never carried over.
_NATIVE_ALONE = (
    *("auto_map", "chat_template", "extra_special_tokens", "model_input_names", "processor_class", *NATIVE_TOKENS),
    "model_specific_special_tokens",  # what newer releases call ours when they save a tokenizer
)
_SENTENCEPIECE = ("InternLM2Tokenizer", "LlamaTokenizer")
_NEWEST = "TokenizersBackend"  # what transformers 5 calls PreTrainedTokenizerFast, which all releases know
INTERNLM2_AUTO_MAP = {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]}


def read_json(path):
    """Content of a JSON file, a dictionary, or None where there is none.

    Raises:
        ValueError: it is no such file; the message names it.
    """
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds {type(values).__name__}, expected an object")
    return values


def as_json(values) -> str:
    """`values` as the text of a JSON file."""
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def token_ids(folder) -> dict:
    """Id of each added token of a tokenizer, {text: id}, from its files, without making one."""
    return added_token_ids(lambda name: read_json(Path(folder) / name))


def image_token_id(folder, config: InternVLChatConfig) -> int:
    """Id of `<IMG_CONTEXT>`: the tokenizer's, else the configuration's.

    Raises:
        ValueError: neither has one.
    """
    found = token_ids(folder).get(NATIVE_TOKENS["context_image_token"], config.img_context_token_id)
    if found is None:
        raise ValueError(f"{folder} has no tokenizer with <IMG_CONTEXT> and no img_context_token_id in config.json")
    return found


def native_template(conversation: Conversation) -> str:
    """The chat template as the native processor needs it: it puts the tiles of an image where `<IMG_CONTEXT>` is."""
    text = jinja_template(conversation)
    if text.count(_IMAGE_MARK) != 1:
        raise RuntimeError(f"the chat template is expected to have {_IMAGE_MARK} once")
    return text.replace(_IMAGE_MARK, _NATIVE_IMAGE_MARK)


# --- to native --------------------------------------------------------------------------------------------------------


def native_files(folder, config: InternVLChatConfig) -> tuple:
    """Small files of a native folder, and what must be remembered to undo them.

    Args:
        folder: the original checkpoint.
        config: its configuration.

    Returns:
        ({name: text}, record): the record goes into the native `config.json`, beside the configuration.

    Raises:
        ValueError: the tokenizer lacks a token of the family, or is code that only the checkpoint has.
    """
    folder = Path(folder)
    names = ("generation_config", *_PROCESSOR_FILES)
    record = {name: read_json(folder / f"{name}.json") for name in names if (folder / f"{name}.json").is_file()}
    conversation = config.conversation()
    files = {"generation_config.json": as_json(_native_generation(folder, record, conversation, config))}
    tokenizer = read_json(folder / "tokenizer_config.json")
    if tokenizer is None:
        return files, record
    known = token_ids(folder)
    for name, token in NATIVE_TOKENS.items():
        if token not in known and name != "video_token":  # replaced by frames before the text is cut into tokens
            raise ValueError(f"the tokenizer of {folder} has no token {token}")
    if (folder / "chat_template.jinja").is_file():
        record["chat_template"] = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    changed = {key: value for key, value in tokenizer.items() if key not in _NATIVE_ALONE}
    kind, has_file = changed.get("tokenizer_class"), (folder / "tokenizer.json").is_file()
    is_everywhere = kind != _NEWEST and hasattr(transformers, str(kind))
    if kind in _SENTENCEPIECE and not has_file:
        files["tokenizer.json"] = as_json(fast_tokenizer(folder / "tokenizer.model", tokenizer))
        record["made"] = ["tokenizer.json"]
        tokens, normalized = changed.get("added_tokens_decoder") or {}, reads_whole_texts(tokenizer)
        changed["added_tokens_decoder"] = {key: {**token, "normalized": normalized} for key, token in tokens.items()}
    elif not is_everywhere and not has_file:
        raise ValueError(
            f"the tokenizer of {folder} is {kind!r}, which is not one of transformers: it needs a tokenizer.json"
        )
    if "made" in record or not is_everywhere:
        changed["tokenizer_class"] = "PreTrainedTokenizerFast"
        changed["model_input_names"] = ["input_ids", "attention_mask"]
    changed["extra_special_tokens"] = NATIVE_TOKENS
    changed["processor_class"] = "InternVLProcessor"
    record["tokenizer_config"] = {"tokenizer_class": kind}
    record["tokenizer_config"].update((key, value) for key, value in tokenizer.items() if changed.get(key) != value)
    files["tokenizer_config.json"] = as_json(dict(sorted(changed.items())))
    files["chat_template.jinja"] = native_template(conversation)
    files["preprocessor_config.json"] = as_json(_image_processor(config))
    files["video_preprocessor_config.json"] = as_json(_video_processor(config))
    processor = {"image_seq_length": config.num_image_token, "processor_class": "InternVLProcessor"}
    files["processor_config.json"] = as_json(processor)
    return files, record


def _native_generation(folder, record, conversation, config) -> dict:
    """The checkpoint's own settings, with every id that ends an answer in `chat`: the native model has no template."""
    values = {key: value for key, value in record.get("generation_config", {}).items() if key != "_from_model_config"}
    known = token_ids(folder)
    stops = [known[mark] for mark in conversation.end_marks() if mark in known]
    for given in (values.get("eos_token_id"), config.llm_config.eos_token_id):
        stops += given if isinstance(given, list) else [given]
    stops = list(dict.fromkeys(number for number in stops if number is not None))
    if stops:
        values["eos_token_id"] = stops
    pad = (read_json(folder / "tokenizer_config.json") or {}).get("pad_token")
    pad = known.get(pad["content"] if isinstance(pad, dict) else pad)
    if values.get("pad_token_id") is None and pad is not None:
        values["pad_token_id"] = pad
    return values


def _pictures(config) -> dict:
    return {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
        "processor_class": "InternVLProcessor",
        "resample": _BICUBIC,
        "rescale_factor": 1 / 255,
        "size": {"height": config.tile_size, "width": config.tile_size},
    }


def _image_processor(config) -> dict:
    fewest, most = native_tiles(config)
    kind = {"image_processor_type": "GotOcr2ImageProcessorFast", "crop_to_patches": True}
    return {**_pictures(config), **kind, "min_patches": fewest, "max_patches": most}


def _video_processor(config) -> dict:
    return {**_pictures(config), "video_processor_type": "InternVLVideoProcessor", "do_sample_frames": False}


# --- to original ------------------------------------------------------------------------------------------------------


def tiles_of(folder) -> tuple:
    """((fewest, most) tiles, side of a tile in pixels) of a native folder's image processor; None where it says
    nothing."""
    found = (read_json(Path(folder) / "processor_config.json") or {}).get("image_processor")
    found = found or read_json(Path(folder) / "preprocessor_config.json")
    if found is None:
        return None, None
    size = found.get("size") or {}
    sides = {size.get("height"), size.get("width")}
    side = sides.pop() if len(sides) == 1 else None
    return (found.get("min_patches", 1), found.get("max_patches", 12)), side


def original_files(folder, record: dict, values: dict) -> dict:
    """Small files of an original folder, {name: text}.

    Args:
        folder: the native checkpoint.
        record: what `native_files` remembered; empty for a checkpoint that came from elsewhere.
        values: content of the new `config.json`.
    """
    folder, files = Path(folder), {}
    generation = record.get("generation_config") if record else read_json(folder / "generation_config.json")
    if generation is not None:
        files["generation_config.json"] = as_json(generation)
    files.update({f"{name}.json": as_json(record[name]) for name in _PROCESSOR_FILES if name in record})
    tokenizer = read_json(folder / "tokenizer_config.json")
    if tokenizer is None:
        return files
    if not record:
        config = read_original(values)
        files.update(processor_files(config))
    changed = {key: value for key, value in tokenizer.items() if key not in _NATIVE_ALONE}
    if isinstance(tokenizer.get("extra_special_tokens"), list):  # newer releases: not ours, the tokenizer's own
        changed["extra_special_tokens"] = tokenizer["extra_special_tokens"]
    before = dict(record.get("tokenizer_config", {}))
    # Saved anew by transformers, which leaves the file of the other class behind; or a class that is the source's code.
    is_model_lost = "made" in record and not (folder / "tokenizer.model").is_file()
    if is_model_lost or ("auto_map" in before and before["tokenizer_class"] not in _SENTENCEPIECE):
        for key in ("added_tokens_decoder", "auto_map", "tokenizer_class"):
            before.pop(key, None)
    elif "auto_map" in before:
        before["auto_map"] = INTERNLM2_AUTO_MAP  # the code that goes along is ours
    changed.update(before)
    template = record.get("chat_template")
    if not record:
        template = changed["chat_template"] = jinja_template(config.conversation())
    if template is not None:
        files["chat_template.jinja"] = template
    files["tokenizer_config.json"] = as_json(dict(sorted(changed.items())))
    return files


def processor_files(config: InternVLChatConfig) -> dict:
    """The files of our processor in an original folder, {name: text}: `AutoProcessor` finds it by them."""
    parts = [cls(**cls.settings_of_model(config)) for cls in (InternVLChatImageProcessor, InternVLChatVideoProcessor)]
    settings = {part.settings_file: part.to_dict() for part in parts}
    settings[SETTINGS_FILE] = InternVLChatProcessor.settings(config.num_image_token)
    return {name: settings_text(values) for name, values in settings.items()}
