"""`python -m benchmarks` runs, at toy size: what it prints belongs to what was asked. No time is looked at."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import transformers

sys.path.append(str(Path(__file__).resolve().parent.parent))

if not hasattr(transformers, "InternVLForConditionalGeneration"):
    pytest.skip("this transformers has no native InternVL", allow_module_level=True)

from benchmarks import __main__, measuring  # noqa: E402

# Part -> the columns by which its rows are told apart, and their values at toy size.
ROWS = {
    "answers": (
        ("tiles", "model"),
        [(tiles, name) for tiles in (1, 2) for name in ("native", "ours", "ours, eager tower")],
    ),
    "rounds": (("round",), [(1,), (2,), (3,)]),
    "batches": (("questions",), [(4,)]),
    "memory": (("frames",), [(4,), (8,)]),
    "loading": (("door",), [("package",), ("bundle",), ("native",)]),
}


@pytest.fixture
def small_machine(monkeypatch):
    monkeypatch.setattr(measuring, "_MATRIX", 128)
    monkeypatch.setattr(measuring, "_READ_BYTES", 1 << 20)


@pytest.mark.parametrize("parts", [["answers", "rounds", "batches"], pytest.param(list(ROWS), marks=pytest.mark.slow)])
def test_parts(small_machine, tmp_path, capsys, parts):
    figures = tmp_path / "figures.json"
    arguments = [*parts, "--size", "tiny", "--rounds", "1", "--device", "cpu", "--dtype", "float32"]
    plot = ["--plot", str(tmp_path / "plot.png")] if importlib.util.find_spec("matplotlib") else []
    assert __main__.main([*arguments, "--json", str(figures), *plot]) == 0
    results, printed = json.loads(figures.read_text()), capsys.readouterr().out
    assert list(results) == ["machine", *parts] and results["machine"] in printed
    for part in parts:
        names, expected = ROWS[part]
        assert [tuple(row[name] for name in names) for row in results[part]] == expected
        assert all(value > 0 for row in results[part] for value in row.values() if not isinstance(value, str))
        assert f"## {part}" in printed
    assert not plot or (tmp_path / "plot.png").stat().st_size > 1000


@pytest.mark.parametrize("arguments", [["speed"], ["answers", "--rounds", "0"], ["--size", "70B"]])
def test_wrong_words(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        __main__.main(arguments)
    assert end.value.code == 2 and arguments[-1].strip("-") in capsys.readouterr().err
