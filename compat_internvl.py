"""The only file that knows `transformers` releases (4.37.2 and later). It imports nothing of ours.

Each function is one difference between releases; its docstring names the release and the reason, so that it can be
deleted when that release is no longer supported. Features are probed where possible; version numbers are not compared.
"""

import copy
import importlib
import importlib.util
import inspect
import json
from functools import cache, lru_cache, partial
from pathlib import Path

import transformers

# --- configurations ---------------------------------------------------------------------------------------------------


def portable_config_dict(values: dict) -> dict:
    """A configuration's dictionary with the keys that every release reads.

    5.0 and later hold the rotary settings in one dictionary `rope_parameters` and the dtype in `dtype`; releases before
    read `rope_theta`, `rope_scaling` and `torch_dtype`, and silently fall back to their defaults without them. All
    releases read the old names, and so do the published files, so they are what is written.
    """
    values = dict(values)
    rope = values.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:  # nested ones (one per layer type) have no old form
        rope = dict(values.pop("rope_parameters"))
        values["rope_theta"] = rope.pop("rope_theta")
        if "partial_rotary_factor" in rope:
            values["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
        is_plain = rope.get("rope_type", "default") == "default" and not set(rope) - {"rope_type", "type"}
        if rope.get("rope_type") == "longrope":  # Phi-3 of 4.x: these three fields, and "su", which all of them take
            values["original_max_position_embeddings"] = rope.pop("original_max_position_embeddings")
            rope = {"type": "su", **{name: rope[name] for name in rope if name.endswith("_factor")}}
        elif not is_plain:
            rope.setdefault("type", rope.get("rope_type"))
        values["rope_scaling"] = None if is_plain else rope
    if values.get("model_type") == "qwen3_moe" and "num_local_experts" in values:  # what 5.10 calls them
        values["num_experts"] = values.pop("num_local_experts")
    if values.get("dtype") is not None:
        values["torch_dtype"] = values.pop("dtype")
    values.pop("_pre_quantization_dtype", None)  # a torch.dtype, which no file can hold: a quantised model's before 5.0
    return values


def readable_config_dict(values: dict) -> dict:
    """A language model's dictionary from a file as the installed release can read it.

    5.0 and later know Phi-3's rotary scaling by its new name only, and want the trained length inside it.
    """
    scaling = values.get("rope_scaling")
    if not isinstance(scaling, dict) or scaling.get("type") != "su":
        return values
    if not hasattr(transformers.PretrainedConfig, "convert_rope_params_to_dict"):
        return values
    scaling = {name: value for name, value in scaling.items() if name != "type"}
    scaling["rope_type"] = "longrope"
    if "original_max_position_embeddings" in values:
        scaling["original_max_position_embeddings"] = values["original_max_position_embeddings"]
    return {**values, "rope_scaling": scaling}


# --- building and loading models --------------------------------------------------------------------------------------


def transformers_class(name: str):
    """The class `name` of `transformers`, or None in a release that does not have it (Phi3 came with 4.41, Qwen3 with
    4.51, GPT-OSS with 4.55)."""
    return getattr(transformers, name, None)


def tied_weights_of_parts(names):
    """The class attribute `_tied_weights_keys` of a model whose part has the tied head: its names before 5.0; None
    since, when a mapping is collected from the parts themselves."""
    return None if collects_tied_weights() else list(names)


def tied_weights_keys(tied_to_source: dict):
    """The class attribute `_tied_weights_keys` of a model with a tied head: a list of the tied names before 5.0, a
    mapping to their sources since."""
    return dict(tied_to_source) if collects_tied_weights() else list(tied_to_source)


def collects_tied_weights() -> bool:
    """Whether `_tied_weights_keys` is a mapping {tied: source} (5.0 and later) and not a list of the tied names."""
    return hasattr(transformers.PreTrainedModel, "get_expanded_tied_weights_keys")


def refresh_tied_weights(model) -> None:
    """Has a model whose parts were replaced collect its tied weights anew: 5.0 and later keep their names from the time
    when it was built."""
    if collects_tied_weights():
        model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)


def _hub_keywords(keywords: dict) -> dict:
    """Those of the keywords of `from_pretrained` that say where on the Hub; a missing file is None and no error."""
    names = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
    found = {name: keywords[name] for name in names if keywords.get(name) is not None}
    return {**found, "_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}


def lend_offloaded_weight(model, source: str, tied: str) -> None:
    """Lets accelerate's hooks read the weight `tied` from where `source` lies on the disk.

    A tied head is in the file under the table's name only. Releases up to 5.10 at least do not tell accelerate, which
    then raises KeyError when it comes to the head.
    """
    for part in model.modules():
        hook = getattr(part, "_hf_hook", None)
        for one in getattr(hook, "hooks", [hook]):
            loader = getattr(getattr(one, "weights_map", None), "dataset", None)
            index = getattr(loader, "index", {})
            if tied not in index and "safetensors_file" in index.get(source, ()):
                index[tied] = index[source]
                loader.all_keys.append(tied)


def stored_tensors(folder_or_id, names, keywords: dict) -> dict:
    """Those of the tensors `names` that a checkpoint's safetensors files hold, as {name: tensor}.

    `keywords` are those of `from_pretrained`; what concerns the Hub is taken from them.
    """
    hub = _hub_keywords(keywords)
    find = importlib.import_module("transformers.utils.hub").cached_file
    index = find(folder_or_id, "model.safetensors.index.json", **hub)
    files = dict.fromkeys(names, "model.safetensors")
    if index is not None:
        with open(index, encoding="utf-8") as file:
            files = json.load(file)["weight_map"]
    safe_open = importlib.import_module("safetensors").safe_open
    found = {}
    for name in names:
        path = find(folder_or_id, files[name], **hub) if name in files else None
        if path is not None:
            with safe_open(path, framework="pt") as weights:
                if name in weights.keys():
                    found[name] = weights.get_tensor(name)
    return found


@cache
def _layouts_of_the_whole_only():
    """The module of transformers that maps the layout of files to that in memory, if it asks for the whole model's type
    only (5.0 to 5.3 at least), else None: later releases ask for each part's."""
    if importlib.util.find_spec("transformers.conversion_mapping") is None:
        return None
    layouts = importlib.import_module("transformers.conversion_mapping")
    return None if "modules()" in inspect.getsource(layouts.get_model_conversion_mapping) else layouts


def use_layout_of(config) -> None:
    """Has the tensors of the next model of the type of `config` read and written in the layout of its language model.

    Files of Qwen3-MoE have matrices for each expert, 5.0 and later one for all. Without this the first of those
    releases leave the experts of a published checkpoint at random values and write files that no other release reads.
    """
    layouts = _layouts_of_the_whole_only()
    if layouts is not None:
        layout = layouts.get_checkpoint_conversion_mapping(config.llm_config.model_type)
        layouts.register_checkpoint_conversion_mapping(config.model_type, layout, overwrite=True)


def is_initialized(tensor) -> bool:
    """Whether `tensor` was read from a checkpoint. 5.0 and later call `_init_weights` after loading and mark what is
    loaded; drawing it anew would silently undo the loading."""
    return getattr(tensor, "_is_hf_initialized", False)


def safetensors_keywords(folder_or_id, keywords: dict) -> dict:
    """Loading keywords that keep transformers from pickled weights (`pytorch_model.bin`), which can run code. It falls
    back to them on every release where it is not told otherwise; 4.37 does so in a local folder even where it is.
    `use_safetensors=False` asks for them.

    Raises:
        OSError: a folder with pickled weights and no others.
    """
    if keywords.get("use_safetensors") is not None:
        return keywords
    variant = f".{keywords['variant']}" if keywords.get("variant") else ""
    folder = Path(folder_or_id or "", keywords.get("subfolder") or "")
    pickled = sorted(path.name for path in folder.glob("pytorch_model*.bin")) if folder_or_id else []
    names = (f"model{variant}.safetensors", f"model.safetensors.index{variant}.json")
    if pickled and not any((folder / name).is_file() for name in names):
        raise OSError(
            f"{folder} has no {names[0]}, only {pickled[0]}: a pickle, which can run code. Pass use_safetensors=False "
            "if you trust where it comes from"
        )
    return {**keywords, "use_safetensors": True}


# Fields of the quantization configurations that name what is left alone; None asks the library for its own guess.
_SKIP_FIELDS = ("llm_int8_skip_modules", "modules_to_not_convert")


def quantization_keywords(keywords: dict, skip_modules) -> dict:
    """Loading keywords with `load_in_8bit=` and `load_in_4bit=` turned into a `quantization_config`.

    The model cards use the short form; releases since 5.0 no longer know it. `skip_modules` (names) stay unquantised,
    also with a `quantization_config` that does not say what should; the guess of transformers spares the head only.
    The caller's dictionary and configuration are left as they are.

    Raises:
        ImportError: the package bitsandbytes is missing.
        ValueError: both widths, or a width together with a `quantization_config`, were asked for.
    """
    bits = {name: keywords[name] for name in ("load_in_8bit", "load_in_4bit") if name in keywords}
    keywords = {name: value for name, value in keywords.items() if name not in bits}
    given = keywords.get("quantization_config")
    if not any(bits.values()):
        return keywords if given is None else {**keywords, "quantization_config": _sparing(given, skip_modules)}
    if all(bits.get(name) for name in ("load_in_8bit", "load_in_4bit")) or given:
        raise ValueError("ask for one of load_in_8bit, load_in_4bit and quantization_config, not for several")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError("loading in 8 or 4 bits needs bitsandbytes: pip install 'internvl_chat[quantization]'")
    return {**keywords, "quantization_config": _sparing(transformers.BitsAndBytesConfig(**bits), skip_modules)}


def _sparing(config, skip_modules):
    """A copy of a quantization configuration that leaves `skip_modules` alone, if it does not name others."""
    if isinstance(config, dict):
        is_bits = config.get("load_in_8bit") or config.get("load_in_4bit")
        skipped = config.get("llm_int8_skip_modules")
        return {**config, "llm_int8_skip_modules": skipped or list(skip_modules)} if is_bits else config
    config = copy.copy(config)
    for field in _SKIP_FIELDS:
        if getattr(config, field, ()) is None:
            setattr(config, field, list(skip_modules))
    return config


def context_length(config):
    """Most tokens that a language model's configuration provides for, or None where it does not say.

    Scaled rotary embeddings reach beyond `max_position_embeddings` where that is the trained length (linear, dynamic
    and yarn scaling as published). 5.0 and later call the settings `rope_parameters`; there they may be one dictionary
    for each type of layer, which name no such factor of the whole.
    """
    trained = getattr(config, "max_position_embeddings", None)
    scaling = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    factor = scaling.get("factor") if isinstance(scaling, dict) else None
    if trained is None or not factor:
        return trained
    return max(trained, int(factor * (scaling.get("original_max_position_embeddings") or trained)))


# --- attention --------------------------------------------------------------------------------------------------------


def flash_attention_available() -> bool:
    """Whether the package flash-attn and a CUDA device are there. The package is found, not imported: a broken binary
    then fails where it is used, with its own message."""
    if importlib.util.find_spec("flash_attn") is None:
        return False
    return importlib.import_module("torch").cuda.is_available()


def requested_attention(config):
    """The attention backend set on a configuration by its owner, or None. The property `_attn_implementation` of 4.37
    to 4.47 answers "eager" where nothing was set; the internal field tells the two apart on every release."""
    return getattr(config, "_attn_implementation_internal", None)


def set_attention(config, name) -> None:
    """Sets the attention backend of one configuration (and, where the release recurses, of its parts)."""
    config._attn_implementation = name


def external_attention(name: str):
    """An attention function that `transformers` registers under `name` (4.48 and later: flex attention, kernels from
    the Hub), or None. Signature: `f(module, q, k, v, mask, scaling=, dropout=, is_causal=)`, returns (output, weights)
    with the output as (batch, tokens, heads, head size)."""
    modeling_utils = importlib.import_module("transformers.modeling_utils")
    return getattr(modeling_utils, "ALL_ATTENTION_FUNCTIONS", {}).get(name)


def register_attention(name: str, function, masks_of: str) -> bool:
    """Makes `function` (signature as in `external_attention`) an attention backend called `name` of the language models
    of transformers, with the masks of the backend `masks_of`. False before 4.53, which has no register of masks."""
    try:
        masks = importlib.import_module("transformers.masking_utils").ALL_MASK_ATTENTION_FUNCTIONS
    except (ImportError, AttributeError):
        return False
    importlib.import_module("transformers.modeling_utils").ALL_ATTENTION_FUNCTIONS.register(name, function)
    masks.register(name, masks[masks_of])
    return True


# --- key/value caches -------------------------------------------------------------------------------------------------


def cache_length(past_key_values) -> int:
    """Tokens that a key/value cache holds: tuples of tensors before 4.42, `Cache` objects since."""
    if past_key_values is None:
        return 0
    if hasattr(past_key_values, "get_seq_length"):
        return int(past_key_values.get_seq_length())
    return past_key_values[0][0].shape[-2] if past_key_values else 0


def cache_from_tuples(past_key_values):
    """A `DynamicCache` with the keys and values of a tuple of (key, value) pairs, the format of releases before 4.42.
    `DynamicCache.from_legacy_cache` does the same where it exists; 5.0 removed it."""
    cache = transformers.DynamicCache()
    for layer_idx, (key, value) in enumerate(past_key_values):
        cache.update(key, value, layer_idx)
    return cache


def cache_to_tuples(cache) -> tuple:
    """The way back from `cache_from_tuples`. 4.54 moved the tensors from two lists into layer objects; 5.0 removed
    `to_legacy_cache`. What is tuples already (a generation's before 4.47) stays as it is."""
    if isinstance(cache, tuple):
        return cache
    if hasattr(cache, "layers"):
        return tuple((layer.keys, layer.values) for layer in cache.layers)
    return tuple(zip(cache.key_cache, cache.value_cache))


def cache_capacity(cache):
    """Positions that a cache of fixed size allocates, or None for one that grows. The number moved from the cache to
    its layers in 4.54; of the methods that tell it, each release has another.

    Raises:
        ValueError: a `StaticCache` of 4.38 to 4.41, which holds one layer and so cannot be a model's.
    """
    if hasattr(getattr(cache, "key_cache", None), "shape"):
        raise ValueError(f"a {type(cache).__name__} of this transformers holds a single layer: pass a DynamicCache")
    layers = getattr(cache, "layers", [cache])
    return getattr(layers[0], "max_cache_len", None) if layers else None


def keeps_every_key(config) -> bool:
    """Whether a language model of this configuration attends to all earlier tokens and so caches them all. Since 4.54 a
    layer with a sliding window drops what has left it, and `layer_types` says which those are; some configurations name
    a window that they do not use, or one as long as the longest text."""
    window = getattr(config, "sliding_window", None)
    if window is None or not getattr(config, "use_sliding_window", True):
        return True
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    return window >= config.max_position_embeddings or all(kind == "full_attention" for kind in kinds)


def rotary_limit(config):
    """Tokens up to which the rotary embedding of a token is the same in a longer text, or None where that is always so.
    Beyond it the scalings called "dynamic" and "longrope" turn all tokens anew, so that cached keys are not those of
    the longer text. 5.0 renamed `rope_scaling` to `rope_parameters`."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kind = rope.get("rope_type", rope.get("type"))
    if kind == "dynamic":
        return config.max_position_embeddings
    if kind in ("longrope", "su"):
        trained = rope.get("original_max_position_embeddings")
        return trained or getattr(config, "original_max_position_embeddings", 0)
    return None


# --- generation -------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def prompt_width_of_embeddings() -> int:
    """Columns that stand for the prompt in the output of `generate(inputs_embeds=...)`: none since 4.39, before one bos
    token that nobody asked for."""
    initialize = getattr(transformers.GenerationMixin, "_maybe_initialize_input_ids_for_generation", None)
    return 0 if initialize is None or "inputs_embeds" in inspect.getsource(initialize) else 1


@cache  # asked at every step of a generation
def logits_to_keep_keyword(forward) -> str:
    """Name of the argument that asks a language model for the last logits only, or "" where it has none: none before
    4.45, `num_logits_to_keep` from 4.45, `logits_to_keep` from 4.48 on."""
    parameters = inspect.signature(forward).parameters
    for name in ("logits_to_keep", "num_logits_to_keep"):
        if name in parameters:
            return name
    return ""


def is_prefill(past_key_values, generation_inputs: dict) -> bool:
    """Whether a generation step is the first one. 5.0 and later say so; 4.39 to 4.57 give the positions; earlier
    releases have nothing but the cache."""
    if not generation_inputs.get("use_cache", True):
        return True  # without a cache the whole row goes in again at every step
    if "is_first_iteration" in generation_inputs:
        return bool(generation_inputs["is_first_iteration"])
    positions = generation_inputs.get("cache_position")
    if positions is not None:
        return int(positions[0]) == 0
    return cache_length(past_key_values) == 0


def _prepare_inputs_for_generation(
    model, input_ids, past_key_values=None, attention_mask=None, inputs_embeds=None, position_ids=None, **kwargs
):
    """Drops the columns that the cache holds already.

    `attention_mask` covers all columns, those of the cache and of `inputs_embeds` included; `input_ids` may lack the
    columns that came as `inputs_embeds`. Releases before 4.45 never ask for the last logits only: a prompt given as
    embeddings gets it here (assisted decoding, which needs more of them, cannot start from embeddings).
    """
    torch = importlib.import_module("torch")
    total = input_ids.shape[1] if attention_mask is None else attention_mask.shape[1]
    if attention_mask is None and position_ids is not None:  # 5.x takes a mask without padding away, and counts on
        total = position_ids.shape[1]
    past = cache_length(past_key_values)
    new = total - past

    for name in ("cache_position", "is_first_iteration", "next_sequence_length"):  # they follow from the cache
        kwargs.pop(name, None)
    inputs = {"past_key_values": past_key_values, "attention_mask": attention_mask, **kwargs}
    if inputs_embeds is not None and past < inputs_embeds.shape[1]:
        inputs["inputs_embeds"] = inputs_embeds[:, -new:]
        keep_name = logits_to_keep_keyword(type(model).forward)
        if keep_name and not {"logits_to_keep", "num_logits_to_keep"} & set(kwargs):
            inputs[keep_name] = 1
    else:
        inputs["input_ids"] = input_ids[:, -new:].contiguous()
    if position_ids is not None:  # the prompt's; each generated token is one further
        generated = torch.arange(1, total - position_ids.shape[1] + 1, device=position_ids.device)
        position_ids = torch.cat((position_ids, position_ids[:, -1:] + generated), dim=1)
        inputs["position_ids"] = position_ids[:, -new:]
    capacity = cache_capacity(past_key_values)
    if capacity and attention_mask is not None:  # one width for all steps: a compiled forward pass serves them all
        inputs["attention_mask"] = torch.nn.functional.pad(attention_mask, (0, max(capacity - total, 0)))
    return inputs


def inputs_for_generation():
    """The method `prepare_inputs_for_generation` of a language model: that of transformers where `generate` tells it
    how many tokens to take (since one of the releases after 5.0). Before 4.46 each model writes its own; the shared one
    of 4.46 to 4.50 cannot go on from a cache with embeddings; up to 5.0, where the caller gave positions, it gives
    every new token the last position of the prompt."""
    shared = transformers.GenerationMixin.prepare_inputs_for_generation
    is_told = "next_sequence_length" in inspect.signature(shared).parameters
    return shared if is_told else _prepare_inputs_for_generation


def going_on_from(prefix, language_model, attention_mask) -> tuple:
    """How `generate` goes on from keys and values with a prompt given as embeddings: `(language model, keywords)`.

    No release before those of `inputs_for_generation` can, for every model: some take the ids instead, or give the new
    tokens wrong positions. The language model returned has the weights of the given one, which stays as it is, since
    others may be generating with it.

    Args:
        prefix: (key, value) of each layer for the first columns.
        attention_mask: (batch, columns), 0 for padding.
    """
    language_model = getattr(language_model, "_orig_mod", language_model)  # `torch.compile` would hand the next line on
    model = copy.copy(language_model)
    model.prepare_inputs_for_generation = partial(_prepare_inputs_for_generation, language_model)
    positions = (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)
    return model, {"past_key_values": cache_from_tuples(prefix), "position_ids": positions}


@cache
def goes_on_beside_padding() -> bool:
    """Whether a batch with padding may go on from a cache with several tokens at once. On 4.37 the masks for sdpa
    take the padding's columns for rows of the new tokens, and uncover what those must not see."""
    masks = importlib.import_module("transformers.modeling_attn_mask_utils").AttentionMaskConverter
    uncover = getattr(masks, "_unmask_unattended", None)
    return uncover is None or "attention_mask" not in inspect.signature(uncover).parameters


def returns_cache(generation_config) -> None:
    """Has `generate` return its cache; that as tuples, which 4.42 to 4.46 do unless told, comes with a warning."""
    generation_config.return_dict_in_generate = True
    if hasattr(generation_config, "return_legacy_cache"):
        generation_config.return_legacy_cache = False


# --- tokenizers -------------------------------------------------------------------------------------------------------


def slow_llama_tokenizer():
    """The slow `LlamaTokenizer` of transformers, or None since 5.0, where a fast one has the name and `use_fast=False`
    means nothing. The fast ones give other ids around spaces and added tokens, not the same on every release: 4.37 even
    renumbers Yi's tokens, and 5.0.0 does not read `tokenizer.model` as one."""
    return None if hasattr(transformers, "TokenizersBackend") else transformers.LlamaTokenizer


# --- processors -------------------------------------------------------------------------------------------------------


def processor_bases() -> tuple:
    """The base classes of a processor and of its image and video parts.

    The one for videos came with 4.52; where it is missing, or where torchvision, which it needs, is missing or does not
    fit the installed torch, the base of image processors stands in its place.
    """
    processor = importlib.import_module("transformers.processing_utils").ProcessorMixin
    image = importlib.import_module("transformers.image_processing_utils").BaseImageProcessor
    try:
        video = importlib.import_module("transformers.video_processing_utils").BaseVideoProcessor
    # A torchvision built for another torch fails with RuntimeError rather than ImportError.
    except (ImportError, RuntimeError, AttributeError):
        video = image
    return processor, image, video


def stored_json(folder_or_id, name: str, keywords: dict):
    """Content of the JSON file `name` of a folder or Hub id as a dictionary, or None where there is none.

    `keywords` are those of `from_pretrained`; what concerns the Hub is taken from them.
    """
    text = stored_text(folder_or_id, name, keywords)
    return None if text is None else json.loads(text)


def stored_file(folder_or_id, name: str, keywords: dict):
    """Path of the file `name` of a folder or Hub id, or None where there is none; see `stored_json`."""
    return importlib.import_module("transformers.utils.hub").cached_file(folder_or_id, name, **_hub_keywords(keywords))


def stored_text(folder_or_id, name: str, keywords: dict):
    """Content of the text file `name` of a folder or Hub id, or None where there is none; see `stored_json`."""
    path = stored_file(folder_or_id, name, keywords)
    if path is None:
        return None
    with open(path, encoding="utf-8") as file:
        return file.read()


def stored_token_id(folder_or_id, token: str, keywords: dict):
    """Id of an added token of the tokenizer in a folder or Hub id, from its files; None where there is no such token.
    5.0 and later write the added tokens into `tokenizer.json` only. See `stored_json`."""
    return added_token_ids(lambda name: stored_json(folder_or_id, name, keywords), token).get(token)


def added_token_ids(read, wanted=None) -> dict:
    """{text: id} of the added tokens of a tokenizer, from its JSON files. `read` gives the content of one by its name,
    None where it is missing; the big file is not asked for where the others have the token that is `wanted`."""
    found = read("added_tokens.json") or {}
    decoder = (read("tokenizer_config.json") or {}).get("added_tokens_decoder") or {}
    found = {**found, **{token["content"]: int(index) for index, token in decoder.items()}}
    if wanted is not None and wanted in found:
        return found
    whole = (read("tokenizer.json") or {}).get("added_tokens", ())
    return {**{token["content"]: token["id"] for token in whole}, **found}


def check_template_variables(tokenizer, variables: dict) -> None:
    """Raises ValueError for variables of a chat template, such as `tools`, that would silently be lost: 4.37 takes them
    for the tokenizer's own keywords, 4.40 and later hand them on."""
    is_handed_on = "kwargs" in inspect.signature(tokenizer.apply_chat_template).parameters
    lost = [name for name, value in variables.items() if value and name != "add_generation_prompt"]
    if lost and not is_handed_on:
        raise ValueError(
            f"transformers {transformers.__version__} hands {', '.join(lost)} to no chat template: 4.40 or later does"
        )


def register_image_processor(auto_class, config_class, image_class) -> None:
    """Tells `AutoImageProcessor` of a class. Its argument was the second one before 4.40, where slow and fast classes
    were told apart, and since 5.x there is one for each backend; ours serves any."""
    names = inspect.signature(auto_class.register).parameters
    if "image_processor_classes" in names:
        given = {"image_processor_classes": {"pil": image_class, "torchvision": image_class}}
    else:
        given = {
            "slow_image_processor_class" if "slow_image_processor_class" in names else "image_processor_class": (
                image_class
            )
        }
    auto_class.register(config_class, exist_ok=True, **given)


def multimodal_token_counts(**counts):
    """What `_get_num_multimodal_tokens` returns: `MultiModalData` where the release has it (4.53), else a dictionary;
    both are read with `[name]`."""
    kind = getattr(importlib.import_module("transformers.processing_utils"), "MultiModalData", dict)
    return kind(**counts)


def register_for_pipeline(config_class, processor_class) -> None:
    """Tells `AutoProcessor` of a processor that is remote code, where `pipeline` loads none for a configuration unknown
    to it: 4.46 to 4.56. Elsewhere `trust_remote_code=True` does without, and nothing is registered."""
    if not config_class.__module__.startswith("transformers_modules."):
        return
    with open(importlib.util.find_spec("transformers.pipelines").origin, encoding="utf-8") as file:
        if "load_processor = type(model_config) in PROCESSOR_MAPPING" in file.read():
            transformers.AutoProcessor.register(config_class, processor_class, exist_ok=True)
