"""The folder as a Hugging Face model: loading as remote code from wherever it lies, saving and loading again."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import internvl_chat
from internvl_chat.modeling_internvl_chat import AUTO_MAP, BUNDLE_FILES

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINT_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)

# Runs without this package imported: transformers copies the folder's files and executes those.
ASK = """
import json, sys
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
answers = []
for name in json.loads(sys.argv[1]):
    config = AutoConfig.from_pretrained(name, trust_remote_code=True)
    for auto in (AutoModel, AutoModelForCausalLM):
        model, info = auto.from_pretrained(
            name, trust_remote_code=True, torch_dtype=torch.float32, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
        settings = dict(max_new_tokens=24, do_sample=False)
        answers.append({
            "name": name,
            "config": type(config).__name__,
            "module": type(model).__module__,
            "problems": [key for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[key]],
            "hello": model.eval().chat(tokenizer, None, "Hello, who are you?", settings),
            "image": model.chat(tokenizer, model.load_image("examples/image1.jpg"), "Describe the image.", settings),
        })
assert "internvl_chat" not in sys.modules
print("ANSWERS" + json.dumps(answers))
"""


def run_python(code, *arguments, home, **environment):
    """Runs `code` in a fresh interpreter with a fresh cache, in the repository's folder; returns its output."""
    env = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", **environment}
    env.pop("HF_MODULES_CACHE", None)
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=env, cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def copy_checkpoint(target: Path) -> Path:
    target.mkdir(parents=True)
    for name in (*CHECKPOINT_FILES, *BUNDLE_FILES):
        shutil.copyfile(ROOT / name, target / name)
    return target


def test_loads_as_remote_code_from_everywhere(tmp_path, shipped_model, shipped_tokenizer):
    home = tmp_path / "home"
    dotted = copy_checkpoint(tmp_path / "a.b-c")
    commit = "0123456789abcdef0123456789abcdef01234567"
    hub = home / "hub" / "models--someone--tiny-internvl.v1"
    copy_checkpoint(hub / "snapshots" / commit)
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text(commit)

    names = [str(ROOT), str(dotted), "someone/tiny-internvl.v1"]
    answers = json.loads(run_python(ASK, json.dumps(names), home=home).split("ANSWERS")[1])

    settings = dict(max_new_tokens=24, do_sample=False)
    image = shipped_model.load_image(ROOT / "examples" / "image1.jpg")
    expected = {
        "hello": shipped_model.chat(shipped_tokenizer, None, "Hello, who are you?", settings),
        "image": shipped_model.chat(shipped_tokenizer, image, "Describe the image.", settings),
    }
    assert [answer["name"] for answer in answers] == [name for name in names for _ in range(2)]
    for answer in answers:
        assert answer["module"].startswith("transformers_modules."), answer
        assert answer["problems"] == []
        assert {key: answer[key] for key in expected} == expected


RELOAD = """
import json, sys
from transformers import AutoModel, AutoTokenizer
source, target = sys.argv[1:]
model = AutoModel.from_pretrained(source, trust_remote_code=True)
model.save_pretrained(target)
again = AutoModel.from_pretrained(target, trust_remote_code=True)
values = again.state_dict()
assert all((values[name] == tensor).all() for name, tensor in model.state_dict().items())
again.save_pretrained(target)  # over the folder that it came from
third = AutoModel.from_pretrained(target, trust_remote_code=True)
values = third.state_dict()
assert all((values[name] == tensor).all() for name, tensor in model.state_dict().items())
assert "internvl_chat" not in sys.modules
"""


def test_a_model_loaded_as_remote_code_saves_a_whole_folder(tmp_path):
    target = tmp_path / "saved"
    run_python(RELOAD, str(ROOT), str(target), home=tmp_path / "home")
    assert {*BUNDLE_FILES, "config.json", "generation_config.json", "model.safetensors"} <= set(os.listdir(target))
    for name in BUNDLE_FILES:
        assert (target / name).read_bytes() == (ROOT / name).read_bytes()
    saved, original = load_file(target / "model.safetensors"), load_file(ROOT / "model.safetensors")
    assert saved.keys() == original.keys() and all(torch.equal(saved[name], original[name]) for name in saved)
    # and through the package door
    again = internvl_chat.InternVLChatModel.from_pretrained(target)
    assert torch.equal(again.mlp1[1].weight.detach(), original["mlp1.1.weight"].to(again.dtype))


def test_save_over_its_own_folder_keeps_what_was_there(tmp_path, toy_model):
    folder = tmp_path / "model"
    model = toy_model()
    (tmp_path / "model").mkdir()
    (folder / "notes.txt").write_text("mine")
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    loaded = internvl_chat.InternVLChatModel.from_pretrained(folder)
    loaded.save_pretrained(folder)
    assert [path.name for path in folder.glob("*.safetensors*")] == ["model.safetensors"]  # no shard is left
    assert (folder / "notes.txt").read_text() == "mine"
    assert not list(tmp_path.glob(".saving-*"))
    again = internvl_chat.InternVLChatModel.from_pretrained(folder).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())


def test_an_interrupted_save_leaves_the_folder_as_it_was(tmp_path, toy_model, monkeypatch):
    folder = tmp_path / "model"
    model = toy_model()
    model.save_pretrained(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr("internvl_chat.modeling_internvl_chat.shutil.copyfile", _raise)
    with pytest.raises(KeyboardInterrupt):
        toy_model(seed=1).save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def _raise(*args):
    raise KeyboardInterrupt


def test_saving_into_a_file_is_refused(tmp_path, toy_model):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file"):
        toy_model().save_pretrained(tmp_path / "file")


def test_saved_config_names_the_code(tmp_path, toy_model):
    model = toy_model(model_class=internvl_chat.InternVLChatForConditionalGeneration)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["auto_map"] == AUTO_MAP == json.loads((ROOT / "config.json").read_text())["auto_map"]
    assert config["architectures"] == ["InternVLChatModel"]
    assert not hasattr(model.config, "auto_map")  # the model in memory is not what was changed


def relative_imports(path):
    return {f"{name}.py" for name in re.findall(r"^from \.(\w+) import", path.read_text(), flags=re.MULTILINE)}


def test_every_entry_file_imports_all_files_it_needs():
    """transformers before 5 copies only the files that the entry file itself imports."""
    for entry in {reference.split(".")[0] + ".py" for reference in AUTO_MAP.values()}:
        direct = relative_imports(ROOT / entry)
        needed, new = set(), direct
        while new:
            needed |= new
            new = {name for found in new for name in relative_imports(ROOT / found)} - needed
        assert needed == direct, f"{entry} must import {sorted(needed - direct)} itself"
    assert relative_imports(ROOT / "modeling_internvl_chat.py") | {"modeling_internvl_chat.py"} == set(BUNDLE_FILES)


@pytest.mark.parametrize("name", sorted({*BUNDLE_FILES, "tokenization_internlm2.py"}))
def test_remote_code_rules(name):
    """No import inside a function or under `if` (taken for a requirement), none in a docstring, no star import."""
    source = (ROOT / name).read_text()
    allowed = set()
    for node in ast.parse(source).body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            allowed.add(node)
        elif isinstance(node, ast.Try):
            allowed.update(n for n in node.body if isinstance(n, (ast.Import, ast.ImportFrom)))
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    lines = {node.lineno for node in allowed}
    assert [node.lineno for node in imports if node.lineno not in lines] == []
    text_lines = re.findall(r"^\s*(?:from|import)\s+\S+", source, flags=re.MULTILINE)
    assert len(text_lines) == len(imports), "a docstring line looks like an import"


def test_code_without_pillow_and_torchvision_still_loads(tmp_path):
    """The model files need torch and transformers only."""
    code = """
import sys
class Gone:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("PIL", "torchvision", "av", "decord", "torchcodec"):
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Gone())
from transformers import AutoModel, AutoTokenizer
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
print(model.chat(tokenizer, None, "Hello!", dict(max_new_tokens=4, do_sample=False)))
try:
    model.load_image("examples/image1.jpg")
except ImportError as error:
    print("ImportError", error)
"""
    lines = run_python(code, str(ROOT), home=tmp_path / "home").splitlines()
    assert len(lines) == 2 and lines[0] and lines[1].startswith("ImportError") and "illow" in lines[1], lines
