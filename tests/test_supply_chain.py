"""What runs and what is shipped: no pickle, no `eval`, no network, no process and no file written at import or while
loading; no code but ours; a list of what the wheel and a saved folder hold; the versions that were tested."""

import ast
import configparser
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import matrix
import pytest
import torch
import transformers

import internvl_chat

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(path.name for path in ROOT.glob("*.py"))

# Every file of the package: a new one is meant, and so is listed here and in the README.
SHIPPED = """
__init__.py answer_internvl.py attention_internvl.py chat_internvl.py chat_template_internvl.py cli.py
cli_checkpoint.py cli_convert.py cli_demo.py compat_internvl.py configuration_intern_vit.py configuration_internlm2.py
configuration_internvl_chat.py conversation.py convert_internvl.py demo_internvl.py demo_page_internvl.py
demo_texts_internvl.py device_map_internvl.py features_internvl.py history_internvl.py image_processing_internvl.py
install_internvl.py lora_internvl.py messages_internvl.py modeling_intern_vit.py modeling_internlm2.py
modeling_internvl_chat.py native_config_internvl.py native_processing_internvl.py native_tensors_internvl.py
preprocessing_internvl.py processing_internvl.py prompt_internvl.py registration_internvl.py session_internvl.py
tensor_files_internvl.py tokenization_internlm2.py tokenizer_json_internvl.py video_internvl.py
video_processing_internvl.py
""".split()
# Those that a saved model brings along, beside its own configuration and weights.
PACKAGE_ONLY = """
__init__.py cli.py cli_checkpoint.py cli_convert.py cli_demo.py convert_internvl.py demo_internvl.py
demo_page_internvl.py demo_texts_internvl.py device_map_internvl.py install_internvl.py native_config_internvl.py
native_processing_internvl.py native_tensors_internvl.py registration_internvl.py session_internvl.py
tensor_files_internvl.py tokenization_internlm2.py tokenizer_json_internvl.py
""".split()
SAVED = ["config.json", "generation_config.json", "model.safetensors"]


def test_the_package_holds_what_is_listed():
    """test_package.py builds the wheel, which holds these and nothing else."""
    assert MODULES == sorted(SHIPPED)


def test_a_saved_folder_holds_what_is_listed(toy_model, tmp_path):
    toy_model().save_pretrained(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted({*SHIPPED, *SAVED} - {*PACKAGE_ONLY})


# --- by reading the code ----------------------------------------------------------------------------------------------

# What could run what it reads, or reach out. Module -> the only file of ours that may import it, and for what.
MODULES_OF_RISK = {
    **dict.fromkeys("pickle cPickle dill joblib marshal shelve ctypes code codeop runpy".split()),
    **dict.fromkeys("socket ftplib smtplib requests httpx aiohttp ssl webbrowser xmlrpc".split()),
    **dict.fromkeys("subprocess multiprocessing pty".split()),
    **dict.fromkeys(["urllib", "http"], "messages_internvl.py"),  # downloads, where a caller passes allow_urls=True
}
CALLS_OF_RISK = re.compile(
    r"^(eval|exec|compile|__import__|os\.(system|popen|exec\w*|spawn\w*|fork\w*)|torch\.(load|save|hub\.\w+))$"
)


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module


@pytest.mark.parametrize("name", MODULES)
def test_no_module_of_ours_can_run_data(name):
    tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
    roots = {module.partition(".")[0] for module in imported(tree)}
    assert [root for root in sorted(roots & set(MODULES_OF_RISK)) if MODULES_OF_RISK[root] != name] == []
    calls = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert [call for call in calls if CALLS_OF_RISK.match(call)] == []


def test_the_reader_of_the_code_sees():
    """Else the test above proves nothing."""
    tree = ast.parse(
        "import pickle as p\nfrom urllib.request import urlopen\ndef f():\n    return torch.load(eval('1'))"
    )
    assert list(imported(tree)) == ["pickle", "urllib.request"]
    calls = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert [bool(CALLS_OF_RISK.match(call)) for call in calls] == [True, True]


# --- by watching it run -----------------------------------------------------------------------------------------------

# Python tells what it is about to do (PEP 578). Loading and chatting goes on without HF_HUB_OFFLINE: nobody may try.
WATCHED = """
import os, sys
happened, watching = [], False
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
RISKS = set('''
socket.connect socket.getaddrinfo socket.bind urllib.Request subprocess.Popen os.system os.exec os.fork os.posix_spawn
pickle.find_class os.mkdir os.rename os.remove os.rmdir os.link os.symlink shutil.copyfile tempfile.mkstemp
tempfile.mkdtemp
'''.split())

def hook(event, arguments):
    if not watching:
        return
    if event == "open":
        path, mode, flags = arguments
        if flags & WRITES and path != os.devnull:
            happened.append((event, str(path)))
    elif event in RISKS:
        happened.append((event, str(arguments)[:200]))

sys.addaudithook(hook)
sys.dont_write_bytecode = True
"""
PROGRAM = (
    WATCHED
    + """
import importlib, torch, transformers, numpy, PIL.Image, av, rich.console, typer, safetensors.torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor, AutoTokenizer, GenerationMixin
import transformers.image_processing_utils, transformers.processing_utils, transformers.generation.utils
root, names = sys.argv[1:]
AutoConfig.for_model("qwen2"), transformers.Qwen2ForCausalLM  # what transformers imports is its own business

watching = True
import internvl_chat
for name in names.split():
    importlib.import_module("internvl_chat" if name == "__init__.py" else "internvl_chat." + name[:-3])
for name in internvl_chat.__all__:
    getattr(internvl_chat, name)
watching = False
print("import", happened)

AutoModel.from_pretrained(root)
watching = True
model = AutoModel.from_pretrained(root).eval()
tokenizer = AutoTokenizer.from_pretrained(root)
processor = AutoProcessor.from_pretrained(root)
pixels = model.load_image(root + "/examples/image1.jpg")
model.load_video(root + "/examples/moving_circle.mp4", num_segments=2)
processor(text="<image>", images=root + "/examples/image1.jpg")
assert model.chat(tokenizer, pixels, "Describe the image.", dict(max_new_tokens=4))
assert "".join(model.stream_chat(tokenizer, pixels, "Describe the image.", dict(max_new_tokens=4)))
watching = False
print("load", happened)
"""
)


def test_nothing_is_written_run_or_asked_for(tmp_path):
    """While our modules are imported, and while the checkpoint is loaded and talked to."""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")}
    environment.update(HF_HOME=str(tmp_path), TRANSFORMERS_VERBOSITY="error", HF_HUB_DISABLE_PROGRESS_BARS="1")
    # The demo's page needs Gradio, which is not there and opens files as it is imported; its test watches connections.
    names = [name for name in SHIPPED if name != "demo_page_internvl.py"]
    arguments = [sys.executable, "-c", PROGRAM, str(ROOT), " ".join(names)]
    done = subprocess.run(arguments, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["import []", "load []"]


def test_the_watch_sees(tmp_path):
    code = (
        WATCHED
        + """
import pickle, socket
class Thing: pass
data = pickle.dumps(Thing())
watching = True
pickle.loads(data)
open(sys.argv[1] + "/new", "w").close()
open(sys.argv[1] + "/new").close()
try:
    socket.create_connection(("127.0.0.1", 9), timeout=1)
except OSError:
    pass
watching = False
print(*(event for event, _ in happened))
"""
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["pickle.find_class", "open", "socket.getaddrinfo", "socket.connect"]


# --- pickled weights, strangers' code ---------------------------------------------------------------------------------


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (self.mark,))


def internlm2(toy_model):
    return toy_model("InternLM2").language_model


PICKLED = {
    "the whole": (lambda make: make(), lambda: internvl_chat.InternVLChatModel),
    "AutoModel": (lambda make: make(), lambda: transformers.AutoModel),
    "vision tower": (lambda make: make().vision_model, lambda: internvl_chat.InternVisionModel),
    "InternLM2": (internlm2, lambda: internvl_chat.InternLM2ForCausalLM),
}


@pytest.mark.parametrize("name", PICKLED)
def test_pickled_weights_are_not_read(name, toy_model, tmp_path):
    """Which transformers does by itself where there are no others; unpickling can run anything."""
    make, loader = PICKLED[name]
    model, mark = make(toy_model), tmp_path / "mark"
    model.config.save_pretrained(tmp_path)
    torch.save({**model.state_dict(), "evil": Evil(str(mark))}, tmp_path / "pytorch_model.bin")
    for options in ({}, {"use_safetensors": None}, {"use_safetensors": True}):
        with pytest.raises(OSError):
            loader().from_pretrained(tmp_path, **options)
    assert not mark.exists()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="pytorch_model.bin.*use_safetensors=False"):
        loader().from_pretrained(tmp_path)
    try:
        loaded = loader().from_pretrained(tmp_path, use_safetensors=False)
    except (ImportError, ValueError) as error:  # some releases of transformers and torch refuse those together
        pytest.skip(str(error))
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)


@pytest.mark.parametrize("part", ["tokenizer", "processor"])
def test_code_named_by_a_tokenizer_is_never_run(part, checkpoint, tmp_path):
    """Behind the user's back, that is: without `trust_remote_code`."""
    for path in checkpoint.iterdir():
        if path.suffix in (".json", ".txt", ".jinja"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    values = json.loads((tmp_path / "tokenizer_config.json").read_text())
    values["auto_map"] = {"AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(values))
    (tmp_path / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'mark')!r})\nclass EvilTokenizer: pass\n")
    if part == "tokenizer":
        found = transformers.AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=False)
    else:
        found = internvl_chat.InternVLChatProcessor.from_pretrained(tmp_path, trust_remote_code=False).tokenizer
    assert found("Hello")["input_ids"] and not (tmp_path / "mark").exists()


# --- versions ---------------------------------------------------------------------------------------------------------


def test_the_lower_bounds_are_those_of_the_oldest_leg():
    """What setup.cfg allows is what `python -m tests.matrix` asks the oldest release with; torch is not in it, see
    docs/reliability.md."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    bounds = dict(line.split(">=") for line in setup["options"]["install_requires"].split())
    oldest = min(matrix.PINS, key=matrix.numbers)
    assert bounds.pop("transformers") == oldest
    torch_bound = bounds.pop("torch")
    pins = dict(line.split("==") for line in matrix.PINS[oldest] if "==" in line)
    assert {name: pins.get(name) for name in bounds} == bounds
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    assert re.search(rf"torch {re.escape(torch_bound)}\b", page)
