"""Asks every supported release of transformers the same questions: `python -m tests.matrix`.

pip fills a folder for each older release, which is used beside the torch of this environment, and one process for each
runs `matrix_probe.py`. The answers are compared with those of this environment's own release, the newest. The table
goes to the standard output and, with `--write-readme`, into README.md.
"""

import argparse
import configparser
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
FOLDER = Path.home() / ".cache" / "internvl-chat-matrix"
BEGIN, END = "<!-- matrix -->", "<!-- end of matrix -->"
TIMEOUT = 1800  # seconds for one release


def lower_bounds() -> tuple:
    """What setup.cfg allows at the least, as pins; not transformers, whose releases these are, nor torch, which is this
    environment's."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = setup["options"]["install_requires"].split()
    return tuple(line.replace(">=", "==") for line in lines if not line.startswith(("torch", "transformers")))


# Older release -> what it needs and this environment has in another version, or not at all.
_HUB_0 = ("huggingface_hub==0.36.2", "requests", "urllib3", "certifi", "charset_normalizer")
_HUB_1 = ("huggingface_hub==1.33.0", "httpx==0.28.1", "httpcore==1.0.9", "certifi")
PINS = {
    "4.37.2": ("tokenizers==0.15.2", *_HUB_0, *lower_bounds()),  # the oldest of everything
    "4.40.2": ("tokenizers==0.19.1", *_HUB_0),
    "4.45.2": ("tokenizers==0.20.3", *_HUB_0),
    "4.48.3": ("tokenizers==0.21.4", *_HUB_0),
    "4.49.0": ("tokenizers==0.21.4", *_HUB_0),
    "4.51.3": ("tokenizers==0.21.4", *_HUB_0),
    "4.53.3": ("tokenizers==0.21.4", *_HUB_0),
    "4.57.6": ("tokenizers==0.22.2", *_HUB_0),
    "5.0.0": ("tokenizers==0.22.2", *_HUB_1, "typer-slim"),
    "5.10.4": ("tokenizers==0.22.2", *_HUB_1),
}


class Kind(NamedTuple):
    """A column: a small copy, with random weights, of a published checkpoint."""

    copied: str  # its name in `published_configs.py`
    tokenizer: str  # the writer in `toy_tokenizers.py` of one in that checkpoint's layout
    since: str = "4.37"  # first release that has the language model


SHIPPED = "shipped"  # a column too: the checkpoint of this folder, as it is
KINDS = {
    "Qwen2": Kind("InternVL3-1B", "write_qwen2"),
    "InternLM2": Kind("InternVL2-26B", "write_internlm2"),
    "Llama": Kind("InternVL2-Llama3-76B", "write_llama3"),
    "Phi3": Kind("InternVL2-4B", "write_phi3", since="4.41"),
    "Qwen3": Kind("InternVL3_5-1B", "write_qwen2", since="4.51"),
}
COLUMNS = [SHIPPED, *KINDS]
DOORS = ("bundle", "package")  # the bundle first: the package is imported after all that is to run without it
REFUSAL = "a refusal that names the language model"  # the one check where the release does not have it


def numbers(release: str) -> list:
    """[4, 37, 2] for "4.37.2"; what is behind the third number does not count."""
    return [int(part) if part.isdigit() else 0 for part in release.split(".")[:3]]


def lacks(release: str, column: str) -> bool:
    return column in KINDS and numbers(release) < numbers(KINDS[column].since)


# --- asking -----------------------------------------------------------------------------------------------------------


def build(release: str, folder: Path) -> Path:
    """The folder with an older release, filled by pip unless it is there."""
    target, unfinished = folder / release, folder / f"{release}.unfinished"
    if not target.is_dir():
        shutil.rmtree(unfinished, ignore_errors=True)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
        command += ["--only-binary", ":all:", "--target", str(unfinished), f"transformers=={release}", *PINS[release]]
        subprocess.run(command, check=True)
        os.replace(unfinished, target)
    return target


def run_probe(*arguments, home: Path, release_folder=None) -> str:
    """Runs `matrix_probe.py` in a process of its own; returns how it failed, or ""."""
    path = [str(release_folder)] if release_folder else []
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*path, os.environ.get("PYTHONPATH", "")]).strip(os.pathsep),
        "HF_HOME": str(home),
        "HF_MODULES_CACHE": str(home / "modules"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",  # the same sums in the same order
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, str(Path(__file__).with_name("matrix_probe.py")), *map(str, arguments)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return f"no answer after {TIMEOUT} seconds"
    return "" if done.returncode == 0 else (done.stdout + done.stderr)[-3000:]


def ask(release: str, columns, folder: Path, work: Path) -> dict:
    """{column: {door: {check: outcome}}} of one release, as `matrix_probe.py` writes it.

    Raises:
        RuntimeError: the process failed, or ran another release.
        subprocess.CalledProcessError: pip did.
    """
    start, answers = time.time(), work / f"{release}.json"
    release_folder = build(release, folder) if release in PINS else None
    failure = run_probe(
        *("ask", work / "checkpoints", answers, *columns), home=work / f"home-{release}", release_folder=release_folder
    )
    if failure:
        raise RuntimeError(f"transformers {release}: {failure}")
    found = json.loads(answers.read_text(encoding="utf-8"))
    if found["transformers"] != release:
        raise RuntimeError(f"asked transformers {release}, but {found['transformers']} answered")
    print(f"{release}: {time.time() - start:.0f} s", file=sys.stderr)
    return found["cells"]


# --- comparing --------------------------------------------------------------------------------------------------------


def same(left, right) -> bool:
    """Whether two answers, dictionaries of ids, texts and lists of numbers, are equal; floats up to 1e-3."""
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float) and isinstance(right, float):
        return abs(left - right) <= 1e-3  # False for nan
    return left == right


def fault(outcome: dict, wanted: dict) -> str:
    """What is wrong with the outcome of a check, or ""; `wanted` is that of the newest release."""
    if "error" in outcome:
        return outcome["error"]
    if "error" in wanted:
        return "the newest release has no answer"
    found, expected = outcome["answer"], wanted["answer"]
    if same(found, expected):
        return ""
    if isinstance(expected, dict):
        return "other " + ", ".join(key for key in expected if not same(found[key], expected[key]))
    return f"{found} instead of {expected}"[:300]


def judge(answers: dict) -> tuple:
    """({release: {column: cell}}, [fault]) of {release: answers}; the last release is the newest."""
    *_, newest = answers.values()
    table, lines = {}, []
    for release, columns in answers.items():
        table[release] = {}
        for column, found in columns.items():
            is_lacking = lacks(release, column)
            expected = {REFUSAL: {"answer": True}} if is_lacking else newest[column][DOORS[-1]]
            wrong = {}  # what is wrong -> where
            for door in DOORS:
                for check, wanted in expected.items():
                    what = fault(found[door].get(check, {"error": "not asked"}), wanted)
                    if what:
                        wrong.setdefault(what, []).append(f"{check} ({door})")
            table[release][column] = "✗" if wrong else "–" if is_lacking else "✓"
            lines += [f"{release}, {column}, {', '.join(where)}: {what}" for what, where in wrong.items()]
    return table, lines


# --- showing ----------------------------------------------------------------------------------------------------------


def render(table: dict, lines: list, checks, environment: str) -> str:
    """The block of the README, marks included. `checks` are their names, `environment` is what they were run with."""
    columns = list(next(iter(table.values())))
    meant = [KINDS[column].copied if column in KINDS else "this folder" for column in columns]
    rows = [["transformers", *columns], ["---"] * (len(columns) + 1), ["checkpoint", *meant]]
    rows += [[release, *cells.values()] for release, cells in table.items()]
    text = (
        "✓: the same ids, texts and logits as on the newest release, both as remote code and through the package, for "
        f"{', '.join(checks)}. –: this release does not have the language model, and loading says so. `{SHIPPED}` is "
        "the checkpoint of this folder; the others are small copies of published ones, with random weights. Written by "
        f"`python -m tests.matrix --write-readme` ({environment})."
    )
    wrapped = textwrap.wrap(text, 120, break_long_words=False, break_on_hyphens=False)
    listed = ["", *(f"- ✗ {line}" for line in lines)] if lines else []
    return "\n".join([BEGIN, *(f"| {' | '.join(row)} |" for row in rows), "", *wrapped, *listed, END])


def put_into(text: str, block: str) -> str:
    """`text` with `block` in the place of what is between the marks, marks included.

    Raises:
        ValueError: the marks are not there, each once and in order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in before + after:
        raise ValueError(f"the text needs {BEGIN} and {END}, each once and in this order")
    return before + block + after


def main(arguments=None) -> int:
    """Returns the exit status: 1 where a cell is not as it should be."""
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=__doc__.split("\n")[0])
    parser.add_argument("--releases", nargs="*", default=list(PINS), choices=list(PINS), help="besides the installed")
    parser.add_argument("--columns", nargs="+", default=COLUMNS, choices=COLUMNS)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the releases are kept, default %(default)s")
    parser.add_argument("--jobs", type=int, default=2, help="releases asked at a time")
    parser.add_argument("--write-readme", action="store_true", help="needs all releases and columns")
    options = parser.parse_args(arguments)
    if options.write_readme and (set(PINS) - set(options.releases) or set(COLUMNS) - set(options.columns)):
        parser.error("--write-readme needs all releases and columns")

    installed = importlib.metadata.version("transformers")
    releases = [*(release for release in PINS if release in options.releases and release != installed), installed]
    with tempfile.TemporaryDirectory(prefix="internvl-chat-matrix-") as work:
        work = Path(work)
        failure = run_probe("make", work / "checkpoints", *options.columns, home=work / "home")
        if failure:
            sys.exit(f"could not make the checkpoints:\n{failure}")
        with ThreadPoolExecutor(options.jobs) as pool:
            found = pool.map(lambda release: ask(release, options.columns, options.folder.resolve(), work), releases)
            answers = dict(zip(releases, found))

    table, lines = judge(answers)
    checks = list(answers[installed][options.columns[0]][DOORS[-1]])
    environment = f"Python {platform.python_version()}, torch {importlib.metadata.version('torch').partition('+')[0]}"
    block = render(table, lines, checks, environment)
    print(block)
    if options.write_readme:
        README.write_text(put_into(README.read_text(encoding="utf-8"), block), encoding="utf-8")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
