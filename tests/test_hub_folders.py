"""Folders laid out like published repositories, with toy weights, through the package door: their code is not executed.

Every Python file of such a folder is poisoned: it leaves a mark and raises when it is run.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import toy_tokenizers
from published_configs import PUBLISHED
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

import internvl_chat

CHAT_CODE = (
    "configuration_intern_vit.py configuration_internvl_chat.py conversation.py modeling_intern_vit.py "
    "modeling_internvl_chat.py"
).split()
INTERNLM2_CODE = ["configuration_internlm2.py", "modeling_internlm2.py", "tokenization_internlm2.py"]

# Repository: its language model, its tokenizer, code beyond the chat model's, number of weight files.
REPOSITORIES = {
    "InternVL2_5-1B": ("Qwen2", "qwen2", [], 1),
    "InternVL2-8B": ("InternLM2", "internlm2", INTERNLM2_CODE, 3),
    "InternVL2-2B": ("InternLM2", "internlm2", [*INTERNLM2_CODE, "tokenization_internlm2_fast.py"], 1),
    "InternVL2-4B": ("Phi3", "phi3", ["configuration_phi3.py", "modeling_phi3.py"], 2),
    "InternVL2-40B": ("Llama", "yi", [], 2),
    "InternVL2-Llama3-76B": ("Llama", "llama3", [], 2),
    "InternVL3_5-GPT-OSS-20B-A4B-Preview": ("GptOss", "gpt_oss", [], 2),
}
LEFTOVERS = {  # of the published `config.json`, beyond what its fields are
    "_commit_hash": None,
    "_name_or_path": "./work_dirs/internvl_chat/checkpoint-100",
    "output_attentions": False,
    "transformers_version": None,
}
PREPROCESSOR = {
    "crop_size": 448,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "size": 448,
}
POISON = """
import os
with open({mark!r}, "a") as file:
    file.write(__file__ + "\\n")
raise RuntimeError("a file of the checkpoint was executed")
"""
SETTINGS = {"max_new_tokens": 6, "do_sample": False}


def toy_config(name, values, vocab_size):
    """The published `config.json` of a repository with the sizes of a toy."""
    published = PUBLISHED[name]
    llm = {**published["llm_config"], **values["llm_config"]}
    llm.update(LEFTOVERS, bos_token_id=1, eos_token_id=2, vocab_size=vocab_size)
    if llm["model_type"] == "phi3":
        width = llm["hidden_size"] // llm["num_attention_heads"] // 2
        factors = {kind: llm["rope_scaling"][kind][:width] for kind in ("short_factor", "long_factor")}
        llm.update(rope_scaling={"type": "su", **factors}, max_position_embeddings=131072, sliding_window=262144)
        code = {"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}
        llm.update(auto_map=code)
    elif llm["model_type"] == "qwen2":
        llm.update(tie_word_embeddings=True)  # as some published files say, whose weights have a head of their own
    elif llm["model_type"] == "gpt_oss":
        llm.update(layer_types=llm["layer_types"][: llm["num_hidden_layers"]], max_position_embeddings=131072)
    vision = {**published["vision_config"], **values["vision_config"], **LEFTOVERS}
    whole = {**published, **LEFTOVERS, "force_image_size": vision["image_size"]}
    return {**whole, "vision_config": vision, "llm_config": llm}


def write_weights(folder, tensors, count):
    """One file, or `count` with an index, in bfloat16 as published."""
    tensors = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in tensors.items()}
    if count == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return tensors
    weight_map = {}
    for number in range(count):
        file = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        part = dict(list(tensors.items())[number::count])
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    size = sum(tensor.numel() * 2 for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return tensors


class Repository:
    """A published folder and what is known of it: its tensors, and the answer of the model they were taken from."""

    def __init__(self, name, folder, values, draw_weights):
        _, tokenizer, code, files = REPOSITORIES[name]
        self.name, self.folder, self.mark = name, folder, folder.parent / f"{name}.executed"
        getattr(toy_tokenizers, f"write_{tokenizer}")(folder)
        added = json.loads((folder / "tokenizer_config.json").read_text())["added_tokens_decoder"]
        config = toy_config(name, values, vocab_size=max(map(int, added)) + 1)
        contents = {
            "config.json": config,
            "generation_config.json": {"_from_model_config": True, "transformers_version": "4.37.2"},
            "preprocessor_config.json": PREPROCESSOR,
        }
        for file, content in contents.items():
            (folder / file).write_text(json.dumps(content, indent=2))
        for file in (*CHAT_CODE, *code):
            (folder / file).write_text(POISON.format(mark=str(self.mark)))
        for file in ("README.md", ".gitattributes"):
            (folder / file).write_text("Leftovers\n")
        (folder / "runs").mkdir()
        untied = {**config, "llm_config": {**config["llm_config"], "tie_word_embeddings": False}}
        model = draw_weights(internvl_chat.InternVLChatModel(internvl_chat.InternVLChatConfig(**untied)))
        self.tensors = write_weights(folder, model.state_dict(), files)
        model.load_state_dict({key: value.float() for key, value in self.tensors.items()})  # as rounded in the files
        self.model = model.eval()
        self.pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))

    def answers(self, model, tokenizer):
        return [
            model.chat(tokenizer, None, "Hello world", SETTINGS),
            model.chat(tokenizer, self.pixels.to(model.dtype), "What is in the picture?", SETTINGS),
        ]


@pytest.fixture(scope="module")
def repository(tmp_path_factory, toy_values, draw_weights):
    made = {}

    def make(name):
        if name not in made:
            values = toy_values(REPOSITORIES[name][0])
            made[name] = Repository(name, tmp_path_factory.mktemp("hub") / name, values, draw_weights)
        return made[name]

    return make


@pytest.fixture(autouse=True)
def no_questions(monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run the code of the folder"))


ALL = pytest.mark.parametrize("name", REPOSITORIES)
TRUST = pytest.mark.parametrize("trust", [{}, {"trust_remote_code": False}, {"trust_remote_code": True}], ids=str)


@ALL
@TRUST
def test_loads_without_its_code(repository, name, trust):
    published = repository(name)
    folder = published.folder
    before = sorted(path.name for path in folder.rglob("*"))
    config = AutoConfig.from_pretrained(folder, **trust)
    assert type(config) is internvl_chat.InternVLChatConfig
    tokenizers = [AutoTokenizer.from_pretrained(folder, use_fast=use_fast, **trust) for use_fast in (True, False)]
    ids = [tokenizer("Hello <img><IMG_CONTEXT></img>\nworld")["input_ids"] for tokenizer in tokenizers]
    image = [tokenizers[0].convert_tokens_to_ids(token) for token in ("<img>", "<IMG_CONTEXT>", "</img>")]
    assert all(",".join(map(str, image)) in ",".join(map(str, row)) for row in ids)
    for auto in (AutoModel, AutoModelForCausalLM):
        model, info = auto.from_pretrained(folder, torch_dtype=torch.float32, output_loading_info=True, **trust)
        assert type(model) is internvl_chat.InternVLChatModel
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert model.img_context_token_id == image[1]  # which the published `config.json` does not say
        loaded = model.state_dict()
        assert loaded.keys() == published.tensors.keys()
        assert all(torch.equal(loaded[key], tensor.float()) for key, tensor in published.tensors.items())
    for tokenizer in tokenizers:
        answers = published.answers(published.model, tokenizer)
        assert any(answers) and published.answers(model.eval(), tokenizer) == answers
    assert not published.mark.exists(), published.mark.read_text()
    assert sorted(path.name for path in folder.rglob("*")) == before


@ALL
def test_the_lines_of_the_model_card(repository, name):
    published = repository(name)
    model = AutoModel.from_pretrained(
        published.folder,
        torch_dtype=torch.bfloat16,
        low_cpu_mem_usage=True,
        use_flash_attn=True,
        trust_remote_code=True,
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(published.folder, trust_remote_code=True, use_fast=False)
    assert model.dtype is torch.bfloat16
    answer, history = model.chat(
        tokenizer, published.pixels.to(torch.bfloat16), "What is this?", SETTINGS, history=None, return_history=True
    )
    assert list(history) == [("<image>\nWhat is this?", answer)]
    assert not published.mark.exists(), published.mark.read_text()


@pytest.mark.parametrize("name", ["InternVL2_5-1B", "InternVL2-8B", "InternVL2-40B"])
@TRUST
def test_loads_from_the_offline_cache(repository, name, trust):
    """As a repository of the Hub: the `auto_map` of such a one is qualified with its name on the way."""
    published = repository(name)
    commit = "0123456789abcdef0123456789abcdef01234567"
    cache = Path(os.environ["HF_HOME"]) / "hub" / f"models--OpenGVLab--{name}"
    if not cache.exists():
        (cache / "refs").mkdir(parents=True)
        (cache / "refs" / "main").write_text(commit)
        (cache / "snapshots").mkdir()
        (cache / "snapshots" / commit).symlink_to(published.folder, target_is_directory=True)
    hub_name = f"OpenGVLab/{name}"
    assert type(AutoConfig.from_pretrained(hub_name, **trust)) is internvl_chat.InternVLChatConfig
    model = AutoModel.from_pretrained(hub_name, torch_dtype=torch.float32, **trust).eval()
    assert type(model) is internvl_chat.InternVLChatModel
    here = AutoTokenizer.from_pretrained(published.folder, use_fast=False)
    tokenizer = AutoTokenizer.from_pretrained(hub_name, use_fast=False, **trust)
    assert type(tokenizer) is type(here)
    assert published.answers(model, tokenizer) == published.answers(published.model, here)
    assert not published.mark.exists(), published.mark.read_text()


@ALL
def test_saved_again_it_has_our_code(repository, name, tmp_path):
    """What was published as a poisoned folder comes out as one that runs."""
    published = repository(name)
    model = AutoModel.from_pretrained(published.folder, torch_dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(published.folder, use_fast=False)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert not any("executed" in path.read_text() for path in tmp_path.glob("*.py"))
    saved = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(saved[key], tensor.float()) for key, tensor in published.tensors.items())
    again = AutoModel.from_pretrained(tmp_path, torch_dtype=torch.float32).eval()
    assert again.img_context_token_id == tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")  # from whatever file has it
    tokenizer_again = AutoTokenizer.from_pretrained(tmp_path)
    assert published.answers(again, tokenizer_again) == published.answers(published.model, tokenizer)


def test_the_poison_works(repository, tmp_path):
    """Without this package the folder's own code is executed: the mark would be there if it were."""
    published = repository("InternVL2-8B")
    tokenizer = tmp_path / "tokenizer"  # in a folder of its own: transformers 5 asks for the configuration first
    shutil.copytree(published.folder, tokenizer)
    (tokenizer / "config.json").write_text('{"model_type": "internlm2"}')
    code = (
        "import sys; from transformers import AutoConfig, AutoTokenizer\n"
        "for auto, folder in zip((AutoConfig, AutoTokenizer), sys.argv[1:]):\n"
        "    try: auto.from_pretrained(folder, trust_remote_code=True)\n"
        "    except RuntimeError as error: print('RAISED', error)\n"
        "assert 'internvl_chat' not in sys.modules\n"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home")}
    environment.pop("HF_MODULES_CACHE", None)
    done = subprocess.run(
        [sys.executable, "-c", code, str(published.folder), str(tokenizer)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("RAISED a file of the checkpoint was executed") == 2, done.stdout
    executed = [Path(line).name for line in published.mark.read_text().split()]
    published.mark.unlink()
    assert executed[-1] == "tokenization_internlm2.py" and executed[0].startswith("configuration_")
