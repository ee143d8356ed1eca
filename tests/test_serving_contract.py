"""What serving engines read from a folder: vLLM 0.32, SGLang 0.5, LMDeploy 0.18, transformers serve; without them.

`problems` restates what their loaders were seen to ask for; docs/serving.md tells which engine asks. The same function
must find each thing that is wrong with a spoilt copy, so that it cannot pass by looking away.
"""

import importlib
import json
import shutil

import jinja2
import pytest
import transformers
from safetensors import safe_open

from internvl_chat.convert_internvl import convert
from internvl_chat.install_internvl import install

CONFIG_FILES = ("configuration_intern_vit.py", "configuration_internlm2.py", "configuration_internvl_chat.py")
# Language models with which vLLM reads videos, and the token that stands for one there.
VIDEO_TOKENS = {
    "qwen2": "<|video_pad|>",
    "qwen3": "<|video_pad|>",
    "qwen3_moe": "<|video_pad|>",
    "gpt_oss": "<|reserved_200000|>",
}
IMAGE_TOKENS = ("<img>", "</img>", "<IMG_CONTEXT>")
PREFIXES = ("vision_model.", "mlp1.0.", "mlp1.1.", "mlp1.3.", "language_model.")
FIELDS = {
    "force_image_size": int,
    "select_layer": int,
    "downsample_ratio": float,
    "ps_version": str,
    "min_dynamic_patch": int,
    "max_dynamic_patch": int,
    "dynamic_image_size": bool,
    "use_thumbnail": bool,
}

PART = {"type": "image"}
LINK = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
TEXT = {"type": "text", "text": "What is this?"}
CONVERSATIONS = [
    ([{"role": "user", "content": "Hello"}], 0),
    ([{"role": "user", "content": "<image>\nWhat is this?"}], 1),  # vLLM puts placeholders into plain strings
    ([{"role": "user", "content": [TEXT]}], 0),
    ([{"role": "user", "content": [PART, TEXT]}], 1),
    ([{"role": "user", "content": [LINK, PART, TEXT]}], 2),
    (
        [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": [PART, TEXT]},
            {"role": "assistant", "content": "A circle."},
            {"role": "user", "content": "Which colour?"},
        ],
        1,
    ),
]


def problems(folder) -> list:
    """What an engine would stumble over, as sentences."""
    found = []

    def need(holds, sentence):
        if not holds:
            found.append(sentence)

    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    need(values.get("architectures") == ["InternVLChatModel"], "architectures name InternVLChatModel")
    module = values.get("auto_map", {}).get("AutoConfig", "").partition(".")[0]
    need(module and (folder / f"{module}.py").is_file(), "auto_map.AutoConfig names a module of the folder")
    for name, kind in FIELDS.items():
        need(isinstance(values.get(name), kind), f"{name} is there")
    llm, vision = values["llm_config"], values["vision_config"]
    need(llm.get("architectures") and llm.get("model_type"), "llm_config has architectures and model_type")
    need(values.get("force_image_size") == vision["image_size"], "force_image_size is the tower's image_size")
    need(values.get("select_layer") == -1, "select_layer is -1")
    need(values.get("ps_version") == "v2", "ps_version is v2")

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    video = VIDEO_TOKENS.get(llm.get("model_type"))
    for token in (*IMAGE_TOKENS, *([video] if video else [])):
        ids = tokenizer(token, add_special_tokens=False).input_ids
        need(token in tokenizer.get_vocab() and len(ids) == 1, f"{token} is one token")
    need(len(tokenizer) <= llm["vocab_size"], "every token has an embedding")

    for messages, images in CONVERSATIONS:
        try:
            prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except jinja2.TemplateError as error:
            need(False, f"the chat template takes {messages}: {error}")
            continue
        texts = [part["text"] for message in messages for part in message["content"] if part == TEXT]
        texts += [message["content"] for message in messages if isinstance(message["content"], str)]
        need(prompt.count("<image>") == images, f"the chat template has a placeholder for each image of {messages}")
        need(all(text in prompt for text in texts), f"the chat template has every text of {messages}")

    keys = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            keys |= set(file.keys())
    for prefix in PREFIXES:
        need(any(key.startswith(prefix) for key in keys), f"there are weights of {prefix}")
    strange = sorted(key for key in keys if not key.startswith(PREFIXES))
    need(not strange, f"every weight has a known prefix, not {strange[:3]}")
    tied = values.get("tie_word_embeddings") or llm.get("tie_word_embeddings")
    need(tied or "language_model.lm_head.weight" in keys, "there is a head, or it is tied")
    return found


@pytest.fixture
def copy(checkpoint, tmp_path):
    """`copy(code)`: the shipped checkpoint in a folder of its own, with our Python files or without any."""

    def make(name="copy", code=True):
        folder = tmp_path / name
        folder.mkdir()
        for pattern in (
            "*.json",
            "*.txt",
            "*.jinja",
            "*.safetensors",
            *(["*_*.py", "conversation.py"] if code else []),
        ):
            for path in checkpoint.glob(pattern):
                shutil.copyfile(path, folder / path.name)
        return folder

    return make


def edit(folder, name="config.json", **changes):
    values = json.loads((folder / name).read_text(encoding="utf-8"))
    for key, value in changes.items():
        if value is None:
            del values[key]
        else:
            values[key] = {**values[key], **value} if isinstance(value, dict) else value
    (folder / name).write_text(json.dumps(values))


def test_the_folder_satisfies_the_engines(checkpoint):
    assert problems(checkpoint) == []


def test_a_published_folder_does_after_install(copy):
    """A published folder brings other code, another template and older token settings."""
    folder = copy("InternVL3-2B", code=False)
    edit(folder, auto_map={"AutoConfig": "configuration_internvl_chat.InternVLChatConfig"}, architectures=["Other"])
    (folder / "chat_template.jinja").unlink()
    edit(folder, "tokenizer_config.json", chat_template="{% for m in messages %}{{ m['content'] }}{% endfor %}")
    before = problems(folder)
    assert len(before) > 3
    install(folder)
    assert problems(folder) == []


SPOILT = [
    ({"architectures": ["InternVLForConditionalGeneration"]}, "architectures name InternVLChatModel"),
    ({"auto_map": None}, "auto_map.AutoConfig names a module of the folder"),
    ({"force_image_size": None}, "force_image_size is there"),
    ({"force_image_size": 336}, "force_image_size is the tower's image_size"),
    ({"select_layer": -4}, "select_layer is -1"),
    ({"ps_version": "v1"}, "ps_version is v2"),
    ({"use_thumbnail": None}, "use_thumbnail is there"),
    ({"llm_config": {"architectures": []}}, "llm_config has architectures and model_type"),
    ({"llm_config": {"model_type": "gpt_oss"}}, "<|reserved_200000|> is one token"),
    ({"llm_config": {"vocab_size": 1000}}, "every token has an embedding"),
]


@pytest.mark.parametrize("changes, sentence", SPOILT, ids=[sentence for _, sentence in SPOILT])
def test_what_is_wrong_is_found(copy, changes, sentence):
    folder = copy()
    edit(folder, **changes)
    assert sentence in problems(folder)


def test_the_configuration_loads_without_the_modeling_files(checkpoint, tmp_path, monkeypatch):
    """vLLM runs `auto_map.AutoConfig` and has models of its own: a folder without ours, as remote code."""
    folder = tmp_path / "only_configuration"
    folder.mkdir()
    sources = {path.name for path in checkpoint.glob("*.py")} & {*CONFIG_FILES, "compat_internvl.py", "conversation.py"}
    for name in ("config.json", *sources):
        shutil.copyfile(checkpoint / name, folder / name)
    load = importlib.import_module("transformers.dynamic_module_utils").get_class_from_dynamic_module
    config_class = load("configuration_internvl_chat.InternVLChatConfig", str(folder))
    assert config_class.__module__.startswith("transformers_modules.")
    config = config_class.from_pretrained(folder)
    assert config.get_text_config().model_type == "qwen2" and config.vision_config.num_hidden_layers == 4
    assert config.force_image_size == config.vision_config.image_size == 448


# --- transformers serve ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def native(checkpoint, tmp_path_factory):
    if not hasattr(transformers, "InternVLForConditionalGeneration"):
        pytest.skip("this transformers has no native InternVL")
    pytest.importorskip("torchvision")
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("target") / "native"
    for pattern in ("*.json", "*.txt", "*.jinja", "*.safetensors"):
        for path in checkpoint.glob(pattern):
            shutil.copyfile(path, source / path.name)
    convert(source, folder, to="native")
    return folder


def test_the_converted_folder_satisfies_transformers_serve(native):
    """`transformers serve` takes a class of transformers itself, by `architectures`, a processor with the tokenizer's
    image tokens, and messages with content as lists."""
    values = json.loads((native / "config.json").read_text(encoding="utf-8"))
    (name,) = values["architectures"]
    tables = importlib.import_module("transformers.models.auto.modeling_auto")
    assert name in tables.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values()
    assert "auto_map" not in values and not list(native.glob("*.py"))  # nothing to trust
    processor = transformers.AutoProcessor.from_pretrained(native)
    tokenizer = processor.tokenizer
    for attribute in ("start_image_token", "end_image_token", "context_image_token", "video_token"):
        token = getattr(tokenizer, attribute)
        assert len(tokenizer(token, add_special_tokens=False).input_ids) == 1, attribute
    prompt = processor.apply_chat_template([{"role": "user", "content": [PART, TEXT]}], add_generation_prompt=True)
    assert prompt.count(tokenizer.context_image_token) == 1 and TEXT["text"] in prompt


def test_the_published_layout_is_not_for_transformers_serve(checkpoint):
    """Why docs/serving.md says to convert: `architectures` names no class of transformers."""
    values = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    assert not hasattr(transformers, values["architectures"][0])
