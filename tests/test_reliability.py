"""docs/reliability.md names tests that exist, and names every test of the files that are about reliability."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
NAMED = set(re.findall(r"`(tests/\w+\.py)::(\w+)`", PAGE))
WHOLE = (
    "test_hostile_text test_hostile_calls test_hostile_media test_concurrency test_no_drift test_soak test_supply_chain"
)


def functions_of(path) -> dict:
    """{name: whether it is marked slow}."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    return {node.name: any("mark.slow" in ast.unparse(mark) for mark in node.decorator_list) for node in found}


def test_every_test_that_is_named_exists():
    assert len(NAMED) > 60
    assert [f"{path}::{name}" for path, name in sorted(NAMED) if name not in functions_of(path)] == []


def test_slow_ones_are_called_slow():
    for path, name in NAMED:
        called = re.findall(rf"`{path}::{name}`( \(slow\))?", PAGE)
        assert [bool(mark) for mark in called] == [functions_of(path)[name]] * len(called), name


def test_every_test_of_these_files_is_named():
    left_out = [
        f"{file}::{name}"
        for file in WHOLE.split()
        for name in functions_of(f"tests/{file}.py")
        if (f"tests/{file}.py", name) not in NAMED
    ]
    assert left_out == []
