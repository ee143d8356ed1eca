"""Measures a checkpoint on pictures that it has never seen: `python -m training.evaluate [--model FOLDER]`.

Everything goes through `model.batch_chat`, rounds one after another with the model's own answers as history, so that
the table says what users get. Columns:

    new        new draws of what training could show
    held out   compositions that training never showed: color and shape pairs, words, numbers, names
    shuffled   the new questions about another example's pictures: what can be guessed without looking

For pictures with small things, `max_num=12` against `max_num=1` shows what the tiles are needed for.
"""

import argparse
import json
import re
from collections import defaultdict
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

from .data import num_patches
from .examples import draw_example
from .questions import color_word, shape_word
from .recipe import ROOT
from .world import HELD_OUT_PAIRS, is_held_out_text, render

# Row of the table -> (kinds that have it, tasks, least share of right answers asked for by the project).
ROWS = {
    "color": (("single",), ("color",), 0.97),
    "shape": (("single",), ("shape",), 0.97),
    "background": (("single",), ("background",), 0.97),
    "count 1-4": (("single",), ("count",), 0.93),
    "left/right/top/bottom": (("single",), ("side",), 0.95),
    "where (nine places)": (("single",), ("where",), 0.95),
    "left of/above": (("single",), ("relation",), 0.95),
    "presence": (("single",), ("exists",), 0.95),
    "several look-ups": (("single",), ("each",), None),
    "description": (("single",), ("describe",), 0.85),
    "words": (("single",), ("word",), 0.80),
    "numbers": (("single",), ("number",), 0.80),
    "lines of a page": (("document",), ("line",), 0.80),
    "grounding, IoU 0.5": (("single",), ("ground",), 0.80),
    "second round": (("single",), ("followup2",), 0.90),
    "third round": (("single",), ("followup3",), 0.90),
    "two images: which": (("pair",), ("pair_which",), 0.90),
    "two images: color": (("pair",), ("pair_color",), 0.90),
    "two images: background": (("pair",), ("pair_background",), 0.90),
    "two images: count": (("pair",), ("pair_count",), 0.90),
    "two images: compared": (("pair",), ("pair_compare",), 0.90),
    "two images: described": (("pair",), ("pair_describe",), None),
    "new image in a later round": (("later",), ("new_image",), 0.85),
    "video: direction": (("video",), ("video_motion",), 0.90),
    "video: what, color": (("video",), ("video_what", "video_color"), 0.90),
    "video: described": (("video",), ("video_describe",), None),
    "large image": (("tiles",), ("color", "shape", "where", "count", "side", "exists"), None),
    "large image: text": (("tiles",), ("word", "number", "line"), None),
    "small shapes": (("small",), ("color", "shape", "exists"), None),
    "small text": (("small",), ("word", "number", "line"), None),
    "small talk": (("text",), ("chat",), None),
}
# Their questions and answers name no pair of a color and a shape.
_NAMELESS = ("background", "count 1-4", "second round", "third round", "two images: background")
_NAMELESS += ("two images: count", "two images: compared", "new image in a later round", "large image")
_SMALL = ("small shapes", "small text")
_BOX = re.compile(r"^<ref>(.*)</ref><box>\[\[(\d+),(\d+),(\d+),(\d+)\]\]</box>$")
# The longest answer of the world, two descriptions, has fewer tokens than this.
_SETTINGS = dict(max_new_tokens=128, do_sample=False)


def overlap(one, other) -> float:
    """Intersection over union of two (x1, y1, x2, y2)."""
    wide = max(0, min(one[2], other[2]) - max(one[0], other[0]))
    high = max(0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (one, other)]
    union = sum(areas) - wide * high
    return wide * high / union if union > 0 else 0.0


def is_right(task, answer, expected) -> bool:
    """Exactly the expected answer; for boxes the right name and an IoU of at least 0.5."""
    if task != "ground":
        return answer == expected
    given, wanted = _BOX.match(answer), _BOX.match(expected)
    if given is None or given[1] != wanted[1]:
        return False
    return overlap(*([int(match[index]) for index in range(2, 6)] for match in (given, wanted))) >= 0.5


def row_of(kind, task):
    """The row of the table that a task of a kind of example belongs to, or None."""
    task = "chat" if task.startswith("chat_") else task
    return next((row for row, (kinds, tasks, _) in ROWS.items() if kind in kinds and task in tasks), None)


def gather(split, number, rows=tuple(ROWS)) -> list:
    """`(row, example, dialogue, round)`: `number` questions for each of the rows, one a dialogue, few a picture."""
    found, wanted = defaultdict(list), set(rows)
    for kind in sorted({kind for row in rows for kind in ROWS[row][0]}):
        open_rows = {row for row in wanted if kind in ROWS[row][0]}
        # Some tasks are rare, and some rows need compositions that a split may not have: give up at some point.
        for index in range(40 * number):
            if not open_rows:
                break
            example = draw_example(f"evaluate/{index}", kind, split)
            seen = set()
            for dialogue in example.dialogues:
                for place, turn in enumerate(dialogue):
                    row = row_of(kind, turn.task)
                    if row in open_rows and row not in seen and _shows_split(example, turn, split, row):
                        seen.add(row)
                        found[row].append((row, example, dialogue, place))
            open_rows -= {row for row in open_rows if len(found[row]) >= number}
    return [item for row in rows for item in found[row][:number]]


def _shows_split(example, turn, split, row):
    """Whether a question of the split "held_out" is about what is held out, where it names anything at all."""
    if split != "held_out" or not example.scenes:
        return True
    said = (turn.question + turn.answer).lower()
    printed = [line.text for scene in example.scenes for line in scene.texts]
    if any(is_held_out_text(text) and text.lower() in said for text in printed):
        return True
    pairs = {shape.pair for scene in example.scenes for shape in scene.shapes} & HELD_OUT_PAIRS
    if row in _NAMELESS:
        return bool(pairs)
    words = [(color_word(color, lang), shape_word(kind, lang)) for color, kind in pairs for lang in ("en", "zh")]
    return any(color in said and kind in said for color, kind in words)


class Pictures:
    """The tiles of examples as the model's own loader makes them; remembers the last example."""

    def __init__(self, model):
        self._model, self._last = model, (None, None, None)

    def __call__(self, example, max_num):
        """`(tiles of each scene, number of tiles of each <image>)`."""
        if self._last[0] is not example or self._last[1] != max_num:
            tiles = [self._model.load_image(render(scene), max_num=max_num) for scene in example.scenes]
            self._last = (example, max_num, tiles)
        tiles = self._last[2]
        counts = [len(part) for part in tiles]
        return tiles, [sum(counts)] if example.combined else counts


def ask(model, tokenizer, items, max_num=None, shuffled=False, batch_size=16) -> list:
    """The model's answers to the questions of `gather`, in order; `shuffled` shows it another example's pictures."""
    others = _other_examples(items) if shuffled else [example for _, example, _, _ in items]
    load, answers = Pictures(model), [None] * len(items)
    # Questions with prompts of about one length go together.
    order = sorted(range(len(items)), key=lambda i: (sum(num_patches(others[i])), items[i][3], i))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        histories = [[] for _ in chosen]
        pictures = [load(others[i], others[i].max_num if max_num is None else max_num) for i in chosen]
        for place in range(max(items[i][3] for i in chosen) + 1):
            live = [n for n, i in enumerate(chosen) if items[i][3] >= place]
            questions = [items[chosen[n]][2][place].question for n in live]
            tiles, patches = [], []
            for n, question in zip(live, questions):
                asked = "".join([said for said, _ in histories[n]] + [question]).count("<image>")
                shown = len(pictures[n][0]) if others[chosen[n]].combined and asked else asked
                tiles += pictures[n][0][:shown]
                patches.append(pictures[n][1][:asked])
            said = model.batch_chat(
                tokenizer,
                torch.cat(tiles) if tiles else None,
                questions,
                _SETTINGS,
                num_patches_list=patches,
                history=[histories[n] for n in live],
            )
            for n, question, answer in zip(live, questions, said):
                histories[n] = [*histories[n], (question, answer)]
                answers[chosen[n]] = answer
    return answers


def _other_examples(items):
    """For each item another item's example with as many placeholders."""
    groups = defaultdict(list)
    for index, (row, example, _, _) in enumerate(items):
        groups[row, len(example.scenes), example.combined].append(index)
    others = [None] * len(items)
    for members in groups.values():
        for here, there in zip(members, [*members[1:], members[0]]):
            others[here] = items[there][1]
    return others


def score(items, answers) -> dict:
    """Row -> (right, asked)."""
    table = defaultdict(lambda: [0, 0])
    for (row, _, dialogue, place), answer in zip(items, answers):
        turn = dialogue[place]
        table[row][0] += is_right(turn.task, answer, turn.answer)
        table[row][1] += 1
    return {row: tuple(counts) for row, counts in table.items()}


def evaluate(model, tokenizer, number=200, rows=tuple(ROWS), batch_size=16) -> dict:
    """Column -> row -> (right, asked), for all columns of the table."""
    new, held_out = gather("new", number, rows), gather("held_out", number, rows)
    with_pictures = [item for item in new if item[1].scenes]
    small = [item for item in new if item[0] in _SMALL]
    runs = {
        "new": (new, {}),
        "held out": (held_out, {}),
        "shuffled": (with_pictures, dict(shuffled=True)),
        "max_num=1": (small, dict(max_num=1)),
    }
    return {
        column: score(items, ask(model, tokenizer, items, batch_size=batch_size, **options))
        for column, (items, options) in runs.items()
    }


def table(results) -> str:
    """The results as a Markdown table."""
    lines = ["| task | " + " | ".join((*results, "asked", "target")) + " |", "|---" * (len(results) + 3) + "|"]
    for row, (_, _, target) in ROWS.items():
        if row not in results["new"]:
            continue
        cells = []
        for column in results.values():
            right, asked = column.get(row, (0, 0))
            cells.append(f"{right / asked:.3f}" if asked else "")
        cells += [str(results["new"][row][1]), "" if target is None else f"{target:.2f}"]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=ROOT, help="folder of the checkpoint, default the repository's")
    parser.add_argument("--number", type=int, default=200, help="questions a row and column")
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS), metavar="ROW")
    parser.add_argument("--json", type=Path, help="write the numbers there too")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--show", type=int, default=0, help="print so many wrong answers a row")
    options = parser.parse_args(arguments)
    model = AutoModel.from_pretrained(options.model, torch_dtype=getattr(torch, options.dtype)).eval()
    if torch.cuda.is_available():
        model = model.cuda()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    results = evaluate(model, tokenizer, options.number, options.rows, options.batch_size)
    print(table(results))
    if options.json:
        values = {
            column: {row: {"right": right, "asked": asked} for row, (right, asked) in rows.items()}
            for column, rows in results.items()
        }
        options.json.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    if options.show:
        items = gather("new", options.number, options.rows)
        shown = defaultdict(int)
        for (row, _, dialogue, place), answer in zip(items, ask(model, tokenizer, items)):
            turn = dialogue[place]
            if not is_right(turn.task, answer, turn.answer) and shown[row] < options.show:
                shown[row] += 1
                print(f"{row}: {turn.question!r} -> {answer!r}, expected {turn.answer!r}")


if __name__ == "__main__":
    main()
