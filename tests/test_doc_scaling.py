"""The figures of docs/scaling.md are those that `python -m benchmarks.scaling` computes."""

import importlib
import re
import sys

import pytest

import internvl_chat


@pytest.fixture(scope="module")
def scaling(checkpoint):
    """The module behind `python -m benchmarks.scaling`, which runs in the repository's root."""
    sys.path.insert(0, str(checkpoint))
    try:
        yield importlib.import_module("benchmarks.scaling")
    finally:
        sys.path.remove(str(checkpoint))


@pytest.fixture(scope="module")
def page(checkpoint):
    return (checkpoint / "docs" / "scaling.md").read_text(encoding="utf-8")


def test_every_published_checkpoint_has_a_line(scaling, page):
    table = re.findall(r"^\| (\S+) \| [\d.]+ [MB] \|", page, flags=re.MULTILINE)
    assert table == list(scaling.FAMILY)
    assert scaling.HEADER in page


@pytest.mark.parametrize("name", ["InternVL3-1B", "InternVL2_5-2B"])
def test_lines(scaling, page, name):
    assert scaling.row(name, scaling.FAMILY[name].config) in page


@pytest.mark.slow
def test_all_lines(scaling, page):
    missing = [line for line in scaling.rows() if line not in page]
    assert not missing


def test_example(scaling, page):
    """The arithmetic of the text, from the figures of the line."""
    cells = re.search(r"^\| InternVL3-8B \|.*$", page, flags=re.MULTILINE).group().split("|")
    weights, token, tile = (float(cells[index].split()[0]) for index in (3, 4, 5))
    at_once = internvl_chat.modeling_internvl_chat.VISION_BATCH_SIZE
    cache, activations = 16 * 4 * token / 1024, at_once * tile / 1024
    said = re.search(r"Example: InternVL3-8B.*?\n\n", page, flags=re.DOTALL).group()
    assert f"{weights} GiB" in said and f"16 x 4 x {token:.0f} MiB = {cache:.1f} GiB" in said
    assert f"{at_once} tiles at a time {activations:.1f} GiB: {weights + cache + activations:.0f} GiB" in said


def test_tokens(page):
    """A tile is 256 tokens in every published checkpoint, and the tiles of the page are what `count_tiles` says."""
    large = {limit: internvl_chat.count_tiles(4000, 3000, max_num=limit) for limit in (12, 6)}
    lines = re.findall(r"^\| .* \| (\d+) \| ([\d,]+) \|$", page, flags=re.MULTILINE)
    counted = [(int(tiles), int(tokens.replace(",", ""))) for tiles, tokens in lines]
    assert counted and all(tokens == 256 * tiles for tiles, tokens in counted)
    assert (large[12], 256 * large[12]) in counted and (large[6], 256 * large[6]) in counted
