"""The README is true: its code runs, its commands exist, its file table names what is there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def test_python_blocks_run_one_after_the_other(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    namespace = {}
    for number, block in enumerate(blocks("python")):
        exec(compile(block, f"README.md, python block {number + 1}", "exec"), namespace)
    assert namespace["history"][0][0].startswith("<image>\n") and len(namespace["history"]) == 2
    assert len(namespace["responses"]) == 3 and all(namespace["responses"])
    assert namespace["stream"].text == namespace["responses"][0]
    assert "tokens" in capsys.readouterr().out


def test_two_commands_and_the_ci_script_agree():
    """.ci/run takes the commands from between the same two marks."""
    marked = README.split("<!-- two commands -->")[1].split("<!-- end -->")[0]
    commands = re.findall(r"^pip .*$", marked, flags=re.MULTILINE)
    assert commands == [
        "pip install -e . && python examples/quickstart.py",
        'pip install -e ".[test]" && pytest',
    ]
    assert "<!-- two commands -->" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("command", re.findall(r"^internvl-chat .*$", README, flags=re.MULTILINE))
def test_command_lines_run(command, tmp_path):
    arguments = [part.strip('"') for part in re.findall(r'"[^"]*"|\S+', command)[1:]]
    code = "import sys; from internvl_chat.cli import main; sys.argv[0] = 'internvl-chat'; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_every_file_of_the_table_is_there_and_every_module_is_in_it():
    table = README.split("## Files")[1]
    named = {name for name in re.findall(r"`([\w./-]+)`", table) if "." in name or name.endswith("/")}
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
    assert {path.name for path in ROOT.glob("*.py")} - named == set()
