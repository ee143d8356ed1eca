"""Makes transformers' Auto classes use this package (the package door), without importing transformers or torch.

`install()` registers what is needed right after transformers' own auto modules have been imported, now or later: the
configurations after `configuration_auto`, the models after `modeling_auto`, and so on. Importing the package therefore
costs nothing, and a program that imports it before or after transformers gets the same.
"""

import functools
import importlib
import importlib.abc
import importlib.util
import sys

_PACKAGE = __name__.rpartition(".")[0]
_AUTO = "transformers.models.auto."

# Classes of ours that a checkpoint's `auto_map` may name: class name -> module.
CLASSES = {
    "InternVisionConfig": "configuration_intern_vit",
    "InternVisionModel": "modeling_intern_vit",
    "InternLM2Config": "configuration_internlm2",
    "InternLM2ForCausalLM": "modeling_internlm2",
    "InternVLChatConfig": "configuration_internvl_chat",
    "InternVLChatModel": "modeling_internvl_chat",
    "InternVLChatForConditionalGeneration": "modeling_internvl_chat",
    "InternLM2Tokenizer": "tokenization_internlm2",
    "InternVLChatImageProcessor": "image_processing_internvl",
    "InternVLChatProcessor": "processing_internvl",
    "InternVLChatVideoProcessor": "video_processing_internvl",
}
# Names in an `auto_map` that one of ours answers to. The fast InternLM2 tokenizer gives the ids of the slow one.
_ALSO_CALLED = {"InternLM2TokenizerFast": "InternLM2Tokenizer"}


def load_class(name: str):
    """One of ours, imported when it is asked for."""
    return getattr(importlib.import_module(f".{CLASSES[name]}", _PACKAGE), name)


def _register_configurations(module) -> None:
    for name in ("InternVisionConfig", "InternLM2Config", "InternVLChatConfig"):
        config_class = load_class(name)
        module.AutoConfig.register(config_class.model_type, config_class, exist_ok=True)


def _register_models(module) -> None:
    chat = load_class("InternVLChatConfig")
    rows = [
        ("AutoModel", load_class("InternVisionConfig"), "InternVisionModel"),
        ("AutoModel", chat, "InternVLChatModel"),
        ("AutoModelForCausalLM", chat, "InternVLChatModel"),
        ("AutoModelForCausalLM", load_class("InternLM2Config"), "InternLM2ForCausalLM"),
        ("AutoModelForImageTextToText", chat, "InternVLChatForConditionalGeneration"),
    ]
    for auto_name, config_class, model_name in rows:
        auto_class = getattr(module, auto_name, None)  # the last one came with transformers 4.46
        if auto_class is not None:
            auto_class.register(config_class, load_class(model_name), exist_ok=True)


def _register_tokenizers(module) -> None:
    module.AutoTokenizer.register(
        load_class("InternLM2Config"), slow_tokenizer_class=load_class("InternLM2Tokenizer"), exist_ok=True
    )
    _keep_slow_llama(module.AutoTokenizer, importlib.import_module(".compat_internvl", _PACKAGE))


def _keep_slow_llama(auto_class, compat) -> None:
    """Makes `AutoTokenizer` give the slow Llama tokenizer, transformers' or ours, for an InternVL checkpoint that ships
    one: only its ids are those that the checkpoint was trained with."""
    theirs = auto_class.from_pretrained.__func__
    about_the_class = ("config", "use_fast", "tokenizer_type", "trust_remote_code", "code_revision")

    @functools.wraps(theirs)
    def from_pretrained(cls, pretrained_model_name_or_path, *inputs, **kwargs):
        if not _ships_slow_llama(compat, pretrained_model_name_or_path, kwargs):
            return theirs(cls, pretrained_model_name_or_path, *inputs, **kwargs)
        kwargs = {key: value for key, value in kwargs.items() if key not in about_the_class}
        slow = compat.slow_llama_tokenizer()
        if slow is None:
            slow = importlib.import_module(".tokenization_internlm2", _PACKAGE).LlamaTokenizer
        tokenizer = slow.from_pretrained(pretrained_model_name_or_path, *inputs, **kwargs)
        tokenizer.init_kwargs.pop("auto_map", None)  # of an installed bundle: this one saves no code
        return tokenizer

    auto_class.from_pretrained = classmethod(from_pretrained)


def _ships_slow_llama(compat, name, kwargs: dict) -> bool:
    """Whether these arguments mean an InternVL checkpoint with Llama's class and `tokenizer.model`, and nobody asks for
    the `tokenizer.json` beside it. Reads files, runs no code."""
    if kwargs.get("tokenizer_type") or kwargs.get("gguf_file"):
        return False
    try:
        described = compat.stored_json(name, "tokenizer_config.json", kwargs) or {}
        if described.get("tokenizer_class") != "LlamaTokenizer":
            return False
        if kwargs.get("config") is not None:
            model_type = kwargs["config"].model_type
        else:
            model_type = (compat.stored_json(name, "config.json", kwargs) or {}).get("model_type")
        is_chat = model_type == load_class("InternVLChatConfig").model_type
        if not is_chat or compat.stored_file(name, "tokenizer.model", kwargs) is None:
            return False
        return not kwargs.get("use_fast", True) or compat.stored_file(name, "tokenizer.json", kwargs) is None
    except (OSError, ValueError):  # what is wrong, transformers says better
        return False


def _register_processors(module) -> None:
    module.AutoProcessor.register(load_class("InternVLChatConfig"), load_class("InternVLChatProcessor"), exist_ok=True)


def _register_image_processors(module) -> None:
    register = importlib.import_module(".compat_internvl", _PACKAGE).register_image_processor
    register(module.AutoImageProcessor, load_class("InternVLChatConfig"), load_class("InternVLChatImageProcessor"))


def _register_video_processors(module) -> None:
    chat, video = load_class("InternVLChatConfig"), load_class("InternVLChatVideoProcessor")
    module.AutoVideoProcessor.register(chat, video, exist_ok=True)


def _prefer_ours(module) -> None:
    """Up to 5.0 `trust_remote_code=True` runs a folder's files even where its class is registered. With this package
    imported the registered class is what the user asked for; later releases see it that way by themselves."""
    from_folder = getattr(module, "get_class_from_dynamic_module", None)
    if from_folder is None or getattr(from_folder, "prefers_internvl_chat", False):
        return

    def get_class_from_dynamic_module(class_reference, *args, **kwargs):
        name = class_reference.rpartition(".")[2]
        name = _ALSO_CALLED.get(name, name)
        return load_class(name) if name in CLASSES else from_folder(class_reference, *args, **kwargs)

    get_class_from_dynamic_module.prefers_internvl_chat = True
    module.get_class_from_dynamic_module = get_class_from_dynamic_module


_PROCESSOR_MODULES = [
    *(f"{_PACKAGE}.configuration_internvl_chat", f"{_PACKAGE}.image_processing_internvl"),
    *(f"{_PACKAGE}.video_processing_internvl", f"{_PACKAGE}.processing_internvl"),
]
# transformers' module -> what to do once it is imported, and the modules that must not be half imported then: ours,
# which import transformers themselves, and those of transformers that ours need and that import the auto modules
# (4.37, 4.40).
_STEPS = {
    _AUTO + "configuration_auto": (_register_configurations, [f"{_PACKAGE}.configuration_internvl_chat"]),
    _AUTO + "modeling_auto": (
        _register_models,
        [
            f"{_PACKAGE}.configuration_internvl_chat",
            f"{_PACKAGE}.modeling_intern_vit",
            f"{_PACKAGE}.modeling_internlm2",
            f"{_PACKAGE}.modeling_internvl_chat",
            "transformers.generation.utils",
            "transformers.modeling_utils",
        ],
    ),
    _AUTO + "tokenization_auto": (
        _register_tokenizers,
        [f"{_PACKAGE}.configuration_internlm2", f"{_PACKAGE}.tokenization_internlm2"],
    ),
    _AUTO + "processing_auto": (_register_processors, _PROCESSOR_MODULES),
    _AUTO + "image_processing_auto": (_register_image_processors, _PROCESSOR_MODULES),
    _AUTO + "video_processing_auto": (_register_video_processors, _PROCESSOR_MODULES),
}
_PREFERRING = (
    *(_AUTO + "configuration_auto", _AUTO + "auto_factory", _AUTO + "tokenization_auto"),
    *(_AUTO + "processing_auto", _AUTO + "image_processing_auto", _AUTO + "video_processing_auto"),
)
_WATCHED = {*_STEPS, *_PREFERRING, *(name for _, whole in _STEPS.values() for name in whole)}
_done = set()


def _register() -> None:
    """Takes each step whose modules are there, once; called after the import of each watched module."""
    for name in _PREFERRING:
        if _is_imported(name):
            _prefer_ours(sys.modules[name])
    for name, (act, whole) in _STEPS.items():
        half_imported = [other for other in whole if other in sys.modules and not _is_imported(other)]
        if name not in _done and _is_imported(name) and not half_imported:
            _done.add(name)
            act(sys.modules[name])


def _is_imported(name: str) -> bool:
    module = sys.modules.get(name)
    return module is not None and not getattr(module.__spec__, "_initializing", False)


class _AfterImport(importlib.abc.MetaPathFinder):
    """Finds nothing itself: lets the other finders find, and registers once the module has been executed."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname not in _WATCHED:
            return None
        for finder in sys.meta_path:
            if finder is not self and hasattr(finder, "find_spec"):
                spec = finder.find_spec(fullname, path, target)
                if spec is not None:
                    break
        else:
            return None
        if spec.loader is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    """A loader that registers after the one it stands for."""

    def __init__(self, loader):
        self._loader = loader

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        self._loader.exec_module(module)
        module.__loader__ = module.__spec__.loader = self._loader
        module.__spec__._initializing = False
        _register()


def install() -> None:
    """Registers the classes, at once where transformers' auto modules are imported already, else when they are."""
    _register()
    if not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())
