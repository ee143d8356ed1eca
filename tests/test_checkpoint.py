"""What the shipped checkpoint has learnt, on pictures that it has never seen: what random weights cannot show.

`training/RESULTS.md` has the whole table. Here a few questions of each kind, by the same code, keep it true: the least
shares lie well below the measured ones, and far above what can be guessed.
"""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parent.parent))

from training import evaluate  # noqa: E402
from training.examples import PAIR_PREFIX  # noqa: E402
from training.world import COLORS, Scene, Shape, render  # noqa: E402

GREEDY = dict(max_new_tokens=64, do_sample=False)
# Row of the evaluation -> least share of right answers to 16 questions.
LEAST = {
    "color": 0.85,
    "shape": 0.85,
    "background": 0.9,
    "count 1-4": 0.75,
    "where (nine places)": 0.75,
    "left/right/top/bottom": 0.75,
    "description": 0.6,
    "words": 0.5,
    "numbers": 0.55,
    "lines of a page": 0.5,
    "grounding, IoU 0.5": 0.5,
    "two images: compared": 0.7,
}


@pytest.fixture(scope="module")
def asked(shipped_model, shipped_tokenizer):
    """Row -> (share right, share right with another picture)."""
    items = evaluate.gather("new", 16, tuple(LEAST))
    runs = [evaluate.ask(shipped_model, shipped_tokenizer, items, shuffled=shuffled) for shuffled in (False, True)]
    marks = [evaluate.score(items, answers) for answers in runs]
    return {row: tuple(mark[row][0] / mark[row][1] for mark in marks) for row in LEAST}


@pytest.mark.parametrize("row", list(LEAST))
def test_answers_are_right_and_not_guessed(row, asked):
    right, guessed = asked[row]
    assert right >= LEAST[row] and guessed <= 0.5


@pytest.mark.parametrize("row, least, most", [("small shapes", 0.6, 0.6), ("small text", 0.6, 0.1)])
def test_tiles_matter(row, least, most, shipped_model, shipped_tokenizer):
    """In a large picture: shapes that are a few pixels wide in its thumbnail, print that cannot be read there."""
    items = evaluate.gather("new", 48, (row,))
    shares = {}
    for max_num in (1, 12):
        answers = evaluate.ask(shipped_model, shipped_tokenizer, items, max_num=max_num)
        right, asked = evaluate.score(items, answers)[row]
        shares[max_num] = right / asked
    assert shares[12] >= least and shares[1] <= most and shares[12] >= shares[1] + 0.15, shares


def scene(*shapes, background="white", width=448):
    rgb = {"white": (255, 255, 255), "light blue": (185, 220, 250)}[background]
    drawn = tuple(Shape(kind, color, x, y, radius, COLORS[color]) for color, kind, x, y, radius in shapes)
    return Scene(background, rgb, width, shapes=drawn)


RED = scene(("red", "circle", 224, 224, 110))
BLUE = scene(("blue", "square", 224, 224, 110), background="light blue")


@pytest.fixture(scope="module")
def say(shipped_model, shipped_tokenizer):
    """`say(scenes, question, **options)`: the greedy answer, each scene an image of its own."""

    def run(scenes, question, **options):
        images = [shipped_model.load_image(render(shown)) for shown in scenes]
        return shipped_model.chat(
            shipped_tokenizer,
            torch.cat(images) if images else None,
            question,
            GREEDY,
            num_patches_list=[len(image) for image in images],
            **options,
        )

    return run


def test_the_order_of_images_matters(say):
    question = PAIR_PREFIX + "What color is the background of Image-2?"
    assert say([RED, BLUE], question) == "The background of Image-2 is light blue."
    assert say([BLUE, RED], question) == "The background of Image-2 is white."


def test_the_history_matters(say):
    """The same last question about the same picture; only the round before differs."""
    both = scene(("red", "circle", 110, 110, 70), ("blue", "star", 330, 330, 70))
    rounds = {
        "color": ("What color is the circle?", "The circle is red.", "The star is blue."),
        "place": ("Where is the circle?", "The circle is at the top left.", "The star is at the bottom right."),
    }
    for opening, answer, expected in rounds.values():
        assert say([both], "And the star?", history=[("<image>\n" + opening, answer)]) == expected


def test_a_name_is_remembered(say):
    history = [("My name is Anna.", "Nice to meet you, Anna.")]
    assert say([], "What is my name?", history=history) == "Your name is Anna."
