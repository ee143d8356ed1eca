"""The package door: registration with the Auto classes, lazy exports, what the wheel holds."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import toy_tokenizers
import transformers

import internvl_chat

ROOT = Path(__file__).resolve().parent.parent


def run(code, tmp_path, *arguments):
    env = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=480
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


CHECK = f"""
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor, AutoTokenizer
import internvl_chat as ours
root = {str(ROOT)!r}
for trust in (None, False, True):
    keywords = {{}} if trust is None else {{"trust_remote_code": trust}}
    assert type(AutoConfig.from_pretrained(root, **keywords)) is ours.InternVLChatConfig
    for auto in (AutoModel, AutoModelForCausalLM):
        assert type(auto.from_pretrained(root, **keywords)) is ours.InternVLChatModel
    assert type(AutoProcessor.from_pretrained(root, **keywords)) is ours.InternVLChatProcessor
    tokenizer = AutoTokenizer.from_pretrained("internlm2", **keywords)
    assert type(tokenizer) is ours.InternLM2Tokenizer, type(tokenizer)
    tokenizer = AutoTokenizer.from_pretrained("phi3", use_fast=False, **keywords)
    assert not tokenizer.is_fast and type(tokenizer).__name__ == "LlamaTokenizer"
"""


ORDERS = [
    "import internvl_chat",
    "import transformers, internvl_chat",
    "from transformers import AutoModel; import internvl_chat",
    "import internvl_chat; internvl_chat.InternVLChatConfig",
    "import internvl_chat; internvl_chat.InternVLChatModel",
    "import internvl_chat; internvl_chat.InternVLChatProcessor",
    "import internvl_chat; internvl_chat.InternLM2ForCausalLM; internvl_chat.InternVisionModel",
    "import internvl_chat; from transformers import GenerationMixin, LlamaForCausalLM",
    "from transformers import AutoTokenizer; import internvl_chat",
    "import internvl_chat; internvl_chat.InternLM2Tokenizer",
]
# Each order in a process of its own, forked from one that has imported what takes longest and has no part in it.
FORKS = """
import os, sys
import torch, torchvision
for order in sys.argv[2:]:
    child = os.fork()
    if not child:
        exec(order + sys.argv[1], {})
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, order
"""


def test_auto_classes_use_the_package_in_any_import_order(tmp_path):
    """Our own modules import transformers' auto modules, which once met ours half imported."""
    for folder in (
        toy_tokenizers.write_internlm2(tmp_path / "internlm2"),
        toy_tokenizers.write_phi3(tmp_path / "phi3"),
    ):
        (folder / "config.json").write_text('{"model_type": "internvl_chat"}')
    run(FORKS, tmp_path, CHECK, *ORDERS)


def test_import_is_light(tmp_path):
    run(
        "import sys, internvl_chat\n"
        "heavy = {'torch', 'transformers', 'numpy', 'PIL', 'av', 'typer', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert internvl_chat.__version__",
        tmp_path,
    )


def test_every_export_exists():
    for name in internvl_chat.__all__:
        assert getattr(internvl_chat, name) is not None
    assert set(internvl_chat.__all__) <= set(dir(internvl_chat))
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        internvl_chat.nothing_of_the_kind  # noqa: B018


def test_version_is_the_distribution_s():
    metadata = pytest.importorskip("importlib.metadata")
    try:
        installed = metadata.version("internvl_chat")
    except metadata.PackageNotFoundError:
        pytest.skip("not installed")
    assert installed == internvl_chat.__version__


def test_wheel_holds_the_root_modules_and_nothing_else(tmp_path):
    pytest.importorskip("setuptools", minversion="61")
    source = tmp_path / "internvl-chat"  # a copy: building leaves files behind
    source.mkdir()
    for path in ROOT.glob("*"):
        if path.suffix in (".py", ".md", ".cfg", ".toml", ".json"):
            (source / path.name).write_bytes(path.read_bytes())
    subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from setuptools import build_meta as b; b.build_wheel(sys.argv[1])",
            tmp_path,
        ],
        cwd=source,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    modules = {f"internvl_chat/{path.name}" for path in ROOT.glob("*.py")}
    assert {name for name in names if ".dist-info/" not in name} == modules
    entry_points = (
        zipfile.ZipFile(wheel).read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    )
    assert "internvl-chat = internvl_chat.cli:main" in entry_points


def test_only_the_compatibility_file_knows_releases():
    """Elsewhere a comment may tell of a release; code may not ask for one."""
    for path in ROOT.glob("*.py"):
        if path.name != "compat_internvl.py":
            found = re.findall(r"transformers\.__version__|version\.parse|packaging", path.read_text())
            assert not found, (path.name, found)


def test_library_does_not_print_or_assert():
    for path in ROOT.glob("*.py"):
        if path.name != "cli.py":
            found = re.findall(r"^\s*(?:print\(|assert )", path.read_text(), flags=re.MULTILINE)
            assert not found, (path.name, found)


def test_vision_and_internlm2_are_registered_too(toy_config):
    vision = transformers.AutoModel.from_config(toy_config().vision_config)
    assert type(vision) is internvl_chat.InternVisionModel
    language = transformers.AutoModelForCausalLM.from_config(toy_config("InternLM2").llm_config)
    assert type(language) is internvl_chat.InternLM2ForCausalLM
