"""What a page in Markdown shows is run as it stands: its Python blocks and its `internvl-chat` lines."""

import os
import re
import shlex

from typer.testing import CliRunner

from internvl_chat.cli import app

_BLOCK = r"^```{}\n(.*?)^```"


def blocks(text, language) -> list:
    """The content of the page's blocks in `language`, in order."""
    return re.findall(_BLOCK.format(language), text, flags=re.MULTILINE | re.DOTALL)


def commands(text) -> list:
    """The page's lines that begin with `internvl-chat`, in order."""
    return re.findall(r"^internvl-chat .*$", text, flags=re.MULTILINE)


def run_python(text, name) -> dict:
    """Runs the Python blocks one after the other, as one program; returns its names."""
    namespace = {}
    for number, block in enumerate(blocks(text, "python")):
        exec(compile(block, f"{name}, python block {number + 1}", "exec"), namespace)
    return namespace


def run_command(command, folder) -> str:
    """Runs an `internvl-chat` line in `folder`; returns what it wrote to stdout."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        done = CliRunner().invoke(app, shlex.split(command, comments=True)[1:])
    finally:
        os.chdir(before)
    assert done.exit_code == 0, f"{command}\n{done.output}"
    return done.stdout
