"""The README is true: its code runs, its commands exist, its file table names what is there."""

import re
from pathlib import Path

import pytest
from doc_pages import commands, run_command, run_python

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_blocks_run_one_after_the_other(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    namespace = run_python(README, "README.md")
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


@pytest.mark.parametrize("command", commands(README))
def test_command_lines_run(command):
    assert run_command(command, ROOT).strip()


def test_every_file_of_the_table_is_there_and_every_module_is_in_it():
    table = README.split("## Files")[1]
    named = {name for name in re.findall(r"`([\w./-]+)`", table) if "." in name or name.endswith("/")}
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
    assert {path.name for path in ROOT.glob("*.py")} - named == set()
