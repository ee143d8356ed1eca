"""`examples/batch_inference_ray.py`: one actor's work in this process, and real actors (slow; needs Ray)."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

SCRIPT = Path(__file__).resolve().parent.parent / "examples" / "batch_inference_ray.py"
QUESTION = "What color is it?"
COLORS = ("red", "green", "blue", "yellow", "purple", "orange")


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("batch_inference_ray", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Pictures, and two files that are none."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(22):
        image = Image.new("RGB", (224 + 30 * (number % 5), 224), "white")
        place = 20 + 5 * number
        ImageDraw.Draw(image).ellipse((place, 40, place + 90, 130), fill=COLORS[number % len(COLORS)])
        image.save(folder / f"{number:02}.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    (folder / "empty.png").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def expected(images, shipped_model, shipped_tokenizer):
    """The answers of one process, question by question."""
    settings = {"max_new_tokens": 16, "do_sample": False}
    return {
        path.name: shipped_model.chat(shipped_tokenizer, shipped_model.load_image(path), QUESTION, settings)
        for path in sorted(images.glob("[0-9]*.png"))
    }


def start(source, target, folder):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    arguments = ["--question", QUESTION, "--max-new-tokens", "16", "--batch-size", "2", "--actors", "2"]
    with open(folder / "log", "a") as log:
        command = [sys.executable, str(SCRIPT), str(source), str(target), *arguments]
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)


def actors_below(pid) -> list:
    """Process ids of the actors among the descendants of a process."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = []
    for child in parents:
        ancestor = child
        while ancestor and ancestor != pid:
            ancestor = parents.get(ancestor, 0)
        try:
            if ancestor == pid and b"Answerer" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(child)
        except OSError:
            continue
    return found


def lines(target) -> list:
    return target.read_text(encoding="utf-8").splitlines() if target.exists() else []


def check(target, expected, bad=("broken.jpg", "empty.png")):
    rows = {}
    for line in lines(target):
        row = json.loads(line)
        assert row["id"] not in rows, row["id"]
        rows[row["id"]] = row
    assert rows.keys() == {*expected, *bad}
    assert {name: rows[name]["answer"] for name in expected} == expected
    for name, row in rows.items():
        assert bool(row["error"]) == (name in bad), row
        assert name not in bad or (name in row["error"] and not row["answer"])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for the actors in /proc")
def test_a_killed_actor_and_a_killed_program(images, expected, tmp_path):
    """Two actors of which one is killed: every row once, as from one process. Then the program is killed, with half a
    line at the end of its file: the same after it was run again."""
    pytest.importorskip("ray.data", reason="needs ray[data]")
    target = tmp_path / "answers.jsonl"
    process = start(images, target, tmp_path)
    while len(lines(target)) < 3 or not (victims := actors_below(process.pid)):
        assert process.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.05)
    assert len(victims) == 2 and len(lines(target)) < len(expected)
    os.kill(victims[0], signal.SIGKILL)
    assert process.wait(500) == 0, (tmp_path / "log").read_text()
    check(target, expected)

    kept = lines(target)[:7]
    target.write_text("\n".join(kept) + "\n" + '{"id": "half a', encoding="utf-8")
    process = start(images, target, tmp_path)
    assert process.wait(500) == 0, (tmp_path / "log").read_text()
    check(target, expected)
    assert lines(target)[:7] == kept
    assert f"{len(expected) + 2 - 7} rows to ask, 7 answered before" in (tmp_path / "log").read_text()


def test_rows_of_a_table(script, tmp_path):
    rows = [
        {"question": "Hello?"},
        {"id": "b", "question": "What?", "image": "one.png"},
        {"id": "c", "question": None, "image": ["one.png", "sub/two.png"]},
    ]
    (tmp_path / "table.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    one, two = str(tmp_path / "one.png"), str(tmp_path / "sub" / "two.png")
    wanted = [
        {"id": "0", "question": "Hello?", "images": []},
        {"id": "b", "question": "What?", "images": [one]},
        {"id": "c", "question": "Else?", "images": [one, two]},
    ]
    assert script.read_rows(tmp_path / "table.jsonl", "Else?") == wanted
    (tmp_path / "table.jsonl").write_text('{"id": 1, "question": "a"}\n{"id": "1", "question": "b"}\n')
    for source in (tmp_path / "table.jsonl", tmp_path / "table.csv"):
        with pytest.raises(SystemExit, match=re.escape(source.name)):
            script.read_rows(source, "Else?")


def test_a_batch_with_bad_rows(script, checkpoint, images, expected):
    """One actor's work, in this process: a bad image, wrong placeholders, two images, none."""
    answerer = script.Answerer(str(checkpoint), 16, 2)
    good, other = (str(images / name) for name in ("00.png", "01.png"))
    batch = {
        "id": ["a", "b", "c", "d", "e"],
        "question": [QUESTION, QUESTION, "<image><image> What?", "Describe the two images.", "Hello, who are you?"],
        "images": [[good], [str(images / "broken.jpg")], [good], [good, other], []],
    }
    done = answerer(batch)
    assert done["answer"][0] == expected["00.png"]
    assert "broken.jpg" in done["error"][1] and "2 <image> placeholders" in done["error"][2]
    assert [bool(answer) for answer in done["answer"]] == [True, False, False, True, True]
    assert [bool(error) for error in done["error"]] == [False, True, True, False, False]


def test_rows_of_parquet(script, tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {"question": ["Hello?", None], "image": [None, ["one.png", "sub/two.png"]]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "table.parquet")
    images = [str(tmp_path / "one.png"), str(tmp_path / "sub" / "two.png")]
    wanted = [{"id": "0", "question": "Hello?", "images": []}, {"id": "1", "question": "Else?", "images": images}]
    assert script.read_rows(tmp_path / "table.parquet", "Else?") == wanted
