"""Our code in folders laid out as published checkpoints, with toy weights: every reader of the folder gets it, twice is
once, an error changes nothing, and the way back gives every byte."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import toy_tokenizers
import transformers
from folders import tree
from typer.testing import CliRunner

import internvl_chat
from internvl_chat import install_internvl
from internvl_chat.cli import app
from internvl_chat.conversation import get_conv_template
from internvl_chat.install_internvl import BACKUP, code_files, install
from internvl_chat.native_processing_internvl import token_ids

ROOT = Path(internvl_chat.__file__).parent
PUBLISHED_AUTO_MAP = {
    "AutoConfig": "configuration_internvl_chat.InternVLChatConfig",
    "AutoModel": "modeling_internvl_chat.InternVLChatModel",
    "AutoModelForCausalLM": "modeling_internvl_chat.InternVLChatModel",
}
INTERNLM2_AUTO_MAP = {
    "AutoConfig": "configuration_internlm2.InternLM2Config",
    "AutoModel": "modeling_internlm2.InternLM2ForCausalLM",
    "AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM",
}
PHI3_AUTO_MAP = {
    "AutoConfig": "configuration_phi3.Phi3Config",
    "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
}
# Stands for the published files: whoever runs them is told so, and they import each other as the published ones do.
CODE = {
    "configuration_intern_vit.py": "",
    "configuration_internvl_chat.py": "from .configuration_intern_vit import InternVisionConfig\n",
    "conversation.py": "",
    "modeling_intern_vit.py": "from .configuration_intern_vit import InternVisionConfig\n",
    "modeling_internvl_chat.py": "from .modeling_intern_vit import X\nfrom .conversation import get_conv_template\n",
}
INTERNLM2_CODE = {
    "configuration_internlm2.py": "",
    "modeling_internlm2.py": "from .configuration_internlm2 import InternLM2Config\n",
    "tokenization_internlm2.py": "",
    "tokenization_internlm2_fast.py": "from .tokenization_internlm2 import InternLM2Tokenizer\n",
}
PHI3_CODE = {"configuration_phi3.py": "", "modeling_phi3.py": "from .configuration_phi3 import Phi3Config\n"}
# Name -> language model, template, code beside CODE, `auto_map` of the language model, what writes the tokenizer.
LAYOUTS = {
    "InternVL2-1B": ("Qwen2", "Hermes-2", {}, None, toy_tokenizers.write_qwen2),
    "InternVL2-2B": (
        *("InternLM2", "internlm2-chat", INTERNLM2_CODE, INTERNLM2_AUTO_MAP),
        toy_tokenizers.write_internlm2,
    ),
    "InternVL3-2B": ("Qwen2", "internvl2_5", {}, None, toy_tokenizers.write_qwen2),
    "InternVL2-4B": ("Phi3", "phi3-chat", PHI3_CODE, PHI3_AUTO_MAP, toy_tokenizers.write_phi3),
}
ASKED = ("InternVL2-1B", "InternVL2-2B", "InternVL3-2B")
SETTINGS = {"max_new_tokens": 8, "do_sample": False}


def read(folder, name):
    return json.loads((folder / name).read_text(encoding="utf-8"))


def write(folder, name, values):
    (folder / name).write_text(json.dumps(values, indent=2), encoding="utf-8")


@pytest.fixture(scope="module")
def published(toy_model, tmp_path_factory):
    """`published(name)`: a folder with the layout of that checkpoint; not to be changed."""
    made = {}

    def make(name):
        if name in made:
            return made[name]
        llm, template, code, llm_map, write_tokenizer = LAYOUTS[name]
        folder = tmp_path_factory.mktemp("published") / name
        options = {"dynamic_image_size": True, "use_thumbnail": True, "max_dynamic_patch": 12}
        write_tokenizer(folder)
        model = toy_model(llm, text={"vocab_size": max(token_ids(folder).values()) + 1}, template=template, **options)
        model.save_pretrained(folder, max_shard_size="200KB")
        for path in folder.glob("*.py"):
            path.unlink()
        for file, text in {**CODE, **code}.items():
            (folder / file).write_text(text + 'raise RuntimeError("this is published code")\n')
        config = read(folder, "config.json")
        config["auto_map"] = PUBLISHED_AUTO_MAP
        del config["img_context_token_id"]
        if llm_map:
            config["llm_config"]["auto_map"] = llm_map
        write(folder, "config.json", config)
        tokenizer = {**read(folder, "tokenizer_config.json"), "chat_template": "{{ 'published' }}"}
        if llm == "InternLM2":
            classes = [
                "tokenization_internlm2.InternLM2Tokenizer",
                "tokenization_internlm2_fast.InternLM2TokenizerFast",
            ]
            tokenizer["auto_map"] = {"AutoTokenizer": classes}
        write(folder, "tokenizer_config.json", tokenizer)
        clip = {"feature_extractor_type": "CLIPFeatureExtractor", "crop_size": 448, "size": 448}
        write(folder, "preprocessor_config.json", clip)
        (folder / "README.md").write_text("# A model card\n")
        (folder / "my_script.py").write_text("print('mine')\n")
        made[name] = folder
        return folder

    return make


@pytest.fixture(params=LAYOUTS)
def folder(request, published, tmp_path):
    shutil.copytree(published(request.param), tmp_path / request.param)
    return tmp_path / request.param


@pytest.fixture
def simple(published, tmp_path):
    shutil.copytree(published("InternVL2-1B"), tmp_path / "simple")
    return tmp_path / "simple"


# --- what readers get -------------------------------------------------------------------------------------------------

ASK = """
import json, sys
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor, AutoTokenizer
answers = {}
for folder in json.loads(sys.argv[1]):
    trust = {"trust_remote_code": True}
    config = AutoConfig.from_pretrained(folder, **trust)
    model, info = AutoModel.from_pretrained(folder, torch_dtype=torch.float32, output_loading_info=True, **trust)
    tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=False, **trust)
    processor = AutoProcessor.from_pretrained(folder, **trust)
    causal = AutoModelForCausalLM.from_pretrained(folder, **trust)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    image = torch.ones(1, 3, 32, 32)
    answers[folder] = {
        "modules": [type(part).__module__ for part in (config, model, causal, processor)],
        "tokenizer": type(tokenizer).__name__,
        "text": model.eval().chat(tokenizer, None, "Hello", SETTINGS),
        "image": model.chat(tokenizer, image, "What is in the picture?", SETTINGS),
    }
assert "internvl_chat" not in sys.modules
print("ANSWERS" + json.dumps(answers))
"""


def test_every_reader_gets_our_code(published, tmp_path):
    """As remote code, in a process that does not have this package; the answers are those of the package."""
    folders = [shutil.copytree(published(name), tmp_path / name) for name in ASKED]
    expected = {}
    for folder in folders:
        model = internvl_chat.InternVLChatModel.from_pretrained(folder, torch_dtype=torch.float32).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, use_fast=False)
        image = torch.ones(1, 3, 32, 32)
        expected[str(folder)] = {
            "text": model.chat(tokenizer, None, "Hello", SETTINGS),
            "image": model.chat(tokenizer, image, "What is in the picture?", SETTINGS),
        }
        install(folder)
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_MODULES_CACHE", None)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            ASK.replace("SETTINGS", repr(SETTINGS)),
            json.dumps([str(folder) for folder in folders]),
        ],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    answers = json.loads(done.stdout.split("ANSWERS")[1])
    for folder, answer in answers.items():
        assert all(module.startswith("transformers_modules.") for module in answer.pop("modules")), answer
        assert answer.pop("tokenizer") == ("InternLM2Tokenizer" if "2-2B" in folder else "Qwen2Tokenizer")
        assert answer == expected[folder]


def test_published_code_would_have_run(simple):
    """The stand-ins for the published files do what the test above relies on."""
    with pytest.raises(RuntimeError, match="published code"):
        exec((simple / "modeling_internvl_chat.py").read_text().replace("from .", "# from ."))


def test_what_the_folder_holds(folder, published):
    before = published(folder.name)
    report = install(folder)
    tokenizer = read(folder, "tokenizer_config.json")
    for path in code_files(tokenizer):
        assert (folder / path.name).read_bytes() == (ROOT / path.name).read_bytes()
    llm = LAYOUTS[folder.name][0]
    own = {path.name for path in code_files(tokenizer)} | {"my_script.py"}
    assert {path.name for path in folder.glob("*.py")} == own
    slow = {"InternLM2": "InternLM2Tokenizer", "Phi3": "LlamaTokenizer"}.get(llm)  # transformers 5 has neither
    assert ("tokenization_internlm2.py" in own) == (slow is not None)
    # the published files, to the byte
    for path in before.iterdir():
        current = folder / path.name
        if not current.is_file() or current.read_bytes() != path.read_bytes():
            assert (folder / BACKUP / path.name).read_bytes() == path.read_bytes()
            assert sum(line.startswith(f"{path.name}: ") for line in report) == 1
    untouched = [path.name for path in before.iterdir() if path.suffix in (".safetensors", ".md", ".model", ".txt")]
    assert untouched and all((folder / name).read_bytes() == (before / name).read_bytes() for name in untouched)
    # what readers look at
    config = read(folder, "config.json")
    assert config["auto_map"] == internvl_chat.modeling_internvl_chat.AUTO_MAP
    assert config["architectures"] == ["InternVLChatModel"]
    kept = INTERNLM2_AUTO_MAP if llm == "InternLM2" else None
    assert config["llm_config"].pop("auto_map", None) == kept
    old = read(before, "config.json")
    old["llm_config"].pop("auto_map", None)
    assert {**config, "auto_map": None, "architectures": None} == {**old, "auto_map": None, "architectures": None}
    assert tokenizer.get("auto_map") == (slow and {"AutoTokenizer": [f"tokenization_internlm2.{slow}", None]})
    for name in ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"):
        for reference in read(folder, name)["auto_map"].values():
            assert (folder / (reference.split(".")[0] + ".py")).is_file()


def test_the_chat_template_is_that_of_chat(folder):
    install(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    conversation = get_conv_template(LAYOUTS[folder.name][1])
    conversation.append_message(conversation.roles[0], "<image>\nHello")
    conversation.append_message(conversation.roles[1], None)
    content = [{"type": "image"}, {"type": "text", "text": "Hello"}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    assert text == conversation.get_prompt()
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    assert read(folder, "tokenizer_config.json")["chat_template"] == template  # for releases before 4.48


# --- twice, back, and newer code --------------------------------------------------------------------------------------


def test_twice_is_once_and_the_way_back_gives_every_byte(folder, published):
    assert install(folder)
    installed = tree(folder)
    assert install(folder) == []
    assert tree(folder) == installed
    report = install(folder, undo=True)
    assert tree(folder) == tree(published(folder.name))
    assert any(line.startswith("config.json: brought back") for line in report)
    assert any(line.startswith("chat_template.jinja: removed") for line in report)
    with pytest.raises(ValueError, match="nothing to undo"):
        install(folder, undo=True)
    install(folder)
    assert tree(folder) == installed


def test_edits_survive_the_way_back(simple, published):
    install(simple)
    config = {**read(simple, "config.json"), "max_dynamic_patch": 24}
    write(simple, "config.json", config)
    (simple / "chat_template.jinja").write_text("mine")
    report = install(simple, undo=True)
    assert read(simple, "config.json.edited") == config
    assert (simple / "chat_template.jinja.edited").read_text() == "mine"
    assert sum("edited since" in line for line in report) == 2
    for name in ("config.json.edited", "chat_template.jinja.edited"):
        (simple / name).unlink()
    assert tree(simple) == tree(published("InternVL2-1B"))


def test_a_newer_package_brings_newer_code(simple, published, tmp_path, monkeypatch):
    install(simple)
    newer = tmp_path / "newer"
    newer.mkdir()
    for path in code_files({}):
        shutil.copyfile(path, newer / path.name)
    (newer / "modeling_internvl_chat.py").write_text("# newer\n")
    (newer / "brand_new.py").write_text("# new\n")
    monkeypatch.setattr(install_internvl, "code_files", lambda tokenizer: sorted(newer.glob("*.py")))
    assert install(simple) == ["brand_new.py: added", "modeling_internvl_chat.py: replaced"]
    assert (simple / "modeling_internvl_chat.py").read_text() == "# newer\n"
    assert "published code" in (simple / BACKUP / "modeling_internvl_chat.py").read_text()
    assert install(simple) == []
    install(simple, undo=True)
    assert tree(simple) == tree(published("InternVL2-1B"))


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()], ids=["error", "interruption"])
@pytest.mark.parametrize("number", [1, 2, 3, 9, "last"])
@pytest.mark.parametrize("state", ["fresh", "older"])
def test_an_error_in_between_changes_nothing(simple, monkeypatch, number, error, state):
    """At any replaced file, in a folder with published code and in one with an older version of ours."""
    if state == "older":
        install(simple)
        for name in ("modeling_internvl_chat.py", "chat_internvl.py", "compat_internvl.py"):
            (simple / name).write_text((simple / name).read_text() + "\n")
        write(simple, "config.json", {**read(simple, "config.json"), "auto_map": PUBLISHED_AUTO_MAP})
    before = tree(simple)
    calls, replace = [], os.replace

    def failing(source, target):
        calls.append(Path(target).name)
        if len(calls) == number or (number == "last" and calls[-1] == "config.json"):
            raise error
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    if state == "older" and number == 9:
        assert len(install(simple)) == 4  # fewer files than that
        return
    with pytest.raises(type(error)):
        install(simple)
    monkeypatch.undo()
    after = tree(simple)
    manifest = f"{BACKUP}/installed.json"  # may know of what was tried
    assert {**after, manifest: ""} == {**before, manifest: ""} if state == "older" else after == before
    assert not [path for path in simple.iterdir() if path.name.startswith(".")]
    install(simple)
    assert install(simple) == []


def test_an_error_on_the_way_back_changes_nothing(simple, published, monkeypatch):
    install(simple)
    before, unlink = tree(simple), Path.unlink

    def failing(path, *args):
        if path.name == "lora_internvl.py":
            raise OSError("busy")
        unlink(path, *args)

    monkeypatch.setattr(Path, "unlink", failing)
    with pytest.raises(OSError, match="busy"):
        install(simple, undo=True)
    monkeypatch.undo()
    assert tree(simple) == before
    install(simple, undo=True)
    assert tree(simple) == tree(published("InternVL2-1B"))


@pytest.mark.parametrize("undo", [False, True], ids=["finished", "undone"])
def test_a_killed_installation_can_be(simple, published, monkeypatch, undo):
    """A process that is killed between two files leaves the backup complete."""
    whole = install_internvl._apply

    def half(folder, changes):
        whole(folder, {name: changes[name] for name in sorted(changes)[: len(changes) // 2]})

    monkeypatch.setattr(install_internvl, "_apply", half)
    install(simple)
    monkeypatch.undo()
    if not undo:
        assert install(simple) and install(simple) == []
    install(simple, undo=True)
    assert tree(simple) == tree(published("InternVL2-1B"))


def edited(**changes):
    return lambda folder: write(folder, "config.json", {**read(folder, "config.json"), **changes})


@pytest.mark.parametrize(
    "step, words",
    [
        (lambda folder: (folder / "config.json").unlink(), ["config.json"]),
        (edited(model_type="internvl"), ["'internvl'", "'internvl_chat'"]),
        (edited(template="vicuna"), ["'vicuna'", "internvl2_5"]),
        (edited(llm_config={"architectures": ["GPT2LMHeadModel"]}), ["GPT2LMHeadModel", "Qwen2ForCausalLM"]),
    ],
)
def test_folders_that_are_refused(simple, step, words):
    step(simple)
    before = tree(simple)
    with pytest.raises(ValueError) as error:
        install(simple)
    assert all(word in str(error.value) for word in words), error.value
    assert tree(simple) == before


def test_the_package_is_not_installed_into_itself():
    with pytest.raises(ValueError, match="folder of this package"):
        install(ROOT)


def test_links_of_the_hub_s_cache_stay_out_of_it(published, tmp_path):
    """A downloaded snapshot is links to blobs that other snapshots share: the links are replaced, not the blobs."""
    shutil.copytree(published("InternVL3-2B"), tmp_path / "blobs")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in (tmp_path / "blobs").iterdir():
        (snapshot / path.name).symlink_to(path)
    before = tree(tmp_path / "blobs")
    install(snapshot)
    assert tree(tmp_path / "blobs") == before and not (snapshot / "config.json").is_symlink()
    install(snapshot, undo=True)
    assert tree(tmp_path / "blobs") == before and tree(snapshot) == before


def test_the_command(simple, tmp_path):
    run = CliRunner().invoke(app, ["install", str(simple)])
    assert run.exit_code == 0 and "\nconfig.json: changed (auto_map)\n" in run.output
    assert "modeling_internvl_chat.py: replaced\n" in run.output
    run = CliRunner().invoke(app, ["install", str(simple)])
    assert run.exit_code == 0 and "nothing to change" in run.output
    run = CliRunner().invoke(app, ["install", str(simple), "--undo"])
    assert run.exit_code == 0 and "config.json: brought back\n" in run.output
    run = CliRunner().invoke(app, ["install", str(tmp_path / "nowhere")])
    assert run.exit_code == 2 and run.output.startswith("internvl-chat: ") and len(run.output.splitlines()) == 1
