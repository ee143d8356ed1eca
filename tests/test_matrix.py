"""The matrix of releases, without network: how answers are judged, and that the README shows what a run writes."""

import copy
import re
import subprocess

import matrix
import pytest

NEWEST = "5.23.0"
RELEASES = [*matrix.PINS, NEWEST]
GOOD = {"ids": [[5, 6]], "answer": "a b"}
CHECKS = {"text": {"answer": GOOD}, "`forward`": {"answer": [0.5, -2.0]}}


@pytest.fixture
def answers():
    """All releases and columns as they should be."""
    refused = {matrix.REFUSAL: {"answer": True}}
    found = {
        release: {
            column: dict.fromkeys(matrix.DOORS, refused if matrix.lacks(release, column) else CHECKS)
            for column in matrix.COLUMNS
        }
        for release in RELEASES
    }
    return {release: copy.deepcopy(columns) for release, columns in found.items()}


def test_all_good(answers):
    table, lines = matrix.judge(answers)
    assert lines == []
    assert set(table[NEWEST].values()) == {"✓"}
    assert [column for column, cell in table["4.37.2"].items() if cell == "–"] == ["Phi3", "Qwen3"]
    assert {cell for release in RELEASES for cell in table[release].values()} == {"✓", "–"}


# Release, column, check, its outcome there, what is said of it.
FAULTS = {
    "another id": ("4.49.0", "Llama", "text", {"answer": {**GOOD, "ids": [[5, 7]]}}, "other ids"),
    "an id too few": ("4.49.0", "Llama", "text", {"answer": {**GOOD, "ids": [[5]]}}, "other ids"),
    "all another": ("4.49.0", "Llama", "text", {"answer": {"ids": [], "answer": "a"}}, "other ids, answer"),
    "a logit": ("4.49.0", "Llama", "`forward`", {"answer": [0.5, -2.002]}, "[0.5, -2.002] instead of [0.5, -2.0]"),
    "not a number": ("4.49.0", "Llama", "`forward`", {"answer": [0.5, float("nan")]}, "[0.5, nan] instead of"),
    "an error": ("4.49.0", "Llama", "text", {"error": "TypeError: no"}, "TypeError: no"),
    "no refusal": ("4.37.2", "Phi3", matrix.REFUSAL, {"error": "loaded"}, "loaded"),
}


@pytest.mark.parametrize("case", FAULTS)
@pytest.mark.parametrize("door", matrix.DOORS)
def test_one_fault(case, door, answers):
    release, column, check, outcome, said = FAULTS[case]
    answers[release][column] = {**answers[release][column], door: {**answers[release][column][door], check: outcome}}
    table, (line,) = matrix.judge(answers)
    assert line.startswith(f"{release}, {column}, {check} ({door}): {said}")
    assert table[release].pop(column) == "✗"
    assert not any("✗" in cells.values() for cells in table.values())
    assert f"- ✗ {line}\n" in matrix.render(table, [line], CHECKS, "")


def test_what_was_not_asked_is_a_fault(answers):
    answers["4.37.2"]["Qwen2"] = {door: {matrix.REFUSAL: {"answer": True}} for door in matrix.DOORS}
    answers["4.57.6"]["Phi3"]["bundle"] = {}
    table, lines = matrix.judge(answers)
    assert table["4.37.2"]["Qwen2"] == table["4.57.6"]["Phi3"] == "✗"
    assert len(lines) == 2 and all(line.endswith(": not asked") for line in lines)


def test_an_error_of_the_newest_makes_nobody_right(answers):
    answers[NEWEST]["Qwen2"] = {door: {**CHECKS, "text": {"error": "ValueError: no"}} for door in matrix.DOORS}
    table, lines = matrix.judge(answers)
    assert {cells["Qwen2"] for cells in table.values()} == {"✗"} and len(lines) == len(RELEASES)


@pytest.mark.parametrize(
    "left, right, expected",
    [
        (1.0, 1.0009, True),
        (1.0, 1.002, False),
        (float("nan"), float("nan"), False),
        ([1, [2.0]], [1, [2.0005]], True),
        ([1, 2], [1], False),
        ({"a": 1}, {"a": 1, "b": 1}, False),
        ({"a": [1]}, {"a": [2]}, False),
        ("a", "a", True),
        ([], {}, False),
    ],
)
def test_same(left, right, expected):
    assert matrix.same(left, right) is expected


def test_the_readme_shows_a_good_run(answers):
    """Every release and column of the tables, each cell as it should be or explained below."""
    text = matrix.README.read_text(encoding="utf-8")
    block = matrix.BEGIN + text.partition(matrix.BEGIN)[2].partition(matrix.END)[0] + matrix.END
    rows = [line.strip("| ").split(" | ") for line in block.splitlines() if re.match(r"\| \d", line)]
    assert [row[0] for row in rows[:-1]] == list(matrix.PINS)
    table = {release: dict(zip(matrix.COLUMNS, cells)) for release, *cells in rows}
    expected, _ = matrix.judge(answers)
    lines = re.findall(r"^- ✗ (.*)$", block, flags=re.MULTILINE)
    for release in matrix.PINS:
        for column, cell in table[release].items():
            is_explained = any(line.startswith(f"{release}, {column}, ") for line in lines)
            assert cell == ("✗" if is_explained else expected[release][column])
    one_line = " ".join(block.split())
    checks = re.search(r"the package, for (.*?)\. –", one_line)[1].split(", ")
    assert len(checks) > 10
    environment = re.search(r"\((Python 3\.\d+\.\d+, torch \d\S+)\)", one_line)[1]
    assert block == matrix.render(table, lines, checks, environment)
    assert matrix.put_into(text, block) == text


def test_put_into():
    text = f"before\n{matrix.BEGIN}\nold\n{matrix.END}\nafter\n"
    assert matrix.put_into(text, "new") == "before\nnew\nafter\n"
    for wrong in ("", matrix.BEGIN, matrix.END + matrix.BEGIN, text + matrix.BEGIN, text + text):
        with pytest.raises(ValueError, match="each once"):
            matrix.put_into(wrong, "new")


def test_folders_are_built_once_and_whole(tmp_path, monkeypatch):
    calls = []

    def pip(command, check):
        calls.append(command)
        target = tmp_path / command[command.index("--target") + 1]
        assert check and not target.exists()
        target.mkdir()
        if len(calls) == 1:
            raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(matrix.subprocess, "run", pip)
    with pytest.raises(subprocess.CalledProcessError):
        matrix.build("4.40.2", tmp_path)
    for _ in range(2):
        assert matrix.build("4.40.2", tmp_path) == tmp_path / "4.40.2" and (tmp_path / "4.40.2").is_dir()
    assert len(calls) == 2
    assert {"--no-deps", "transformers==4.40.2", "tokenizers==0.19.1"} <= set(calls[1])


def test_arguments(capsys):
    for wrong in (["--releases", "4.0"], ["--columns", "GPT"], ["--write-readme", "--columns", "Qwen2"]):
        with pytest.raises(SystemExit) as error:
            matrix.main(wrong)
        assert error.value.code == 2
    assert "needs all releases and columns" in capsys.readouterr().err


@pytest.mark.slow
def test_the_installed_release(capsys):
    """One column through both doors, in processes of their own; .ci/run asks other releases too."""
    assert matrix.main(["--releases", "--columns", "Qwen2"]) == 0
    assert f"| {matrix.importlib.metadata.version('transformers')} | ✓ |" in capsys.readouterr().out
