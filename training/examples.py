"""Training and test examples: some pictures with several independent conversations about them.

`KINDS` names the ways in which pictures and conversations come together: one picture, one in many tiles, a page of
print, two pictures, a second picture in a later round, a video, text alone. `draw_example` draws one; the example says
all that there is to know, pixels and tokens come later (`data.py`).
"""

from dataclasses import dataclass, replace
from random import Random

from internvl_chat import frame_prefix

from .phrases import COUNTS
from .questions import (
    ONE_PICTURE,
    Turn,
    a,
    ask_background,
    ask_color,
    ask_count,
    ask_shape,
    description,
    follow_up,
    name_word,
    unique,
)
from .text import chat
from .world import TILE, draw_scene, draw_video

PAIR_PREFIX = "Image-1: <image>\nImage-2: <image>\n"
FRAMES = 8


@dataclass(frozen=True)
class Example:
    """Scenes, in the order of their `<image>` placeholders, and conversations that each begin anew.

    `max_num` is the largest number of tiles of a picture; `combined` means that all pictures stand behind one
    placeholder, as the model cards show.
    """

    kind: str
    scenes: tuple
    dialogues: tuple
    max_num: int = 1
    combined: bool = False


def draw_example(seed, kind, split="train", questions=8, simple=False) -> Example:
    """The example of a kind that belongs to `seed` (anything that can be printed). Same seed, same example.

    Args:
        seed: `split` is part of it too, so that "train" and "new" never share a scene by construction.
        kind: a key of `KINDS`.
        split: see `world.SPLITS`.
        questions: conversations about the pictures.
        simple: single pictures have two or three shapes, which are looked up by color, shape or place: the beginning
            of training. What is learnt last comes first.
    """
    rng = Random(f"{seed}|{kind}|{split}")
    return KINDS[kind](rng, split, questions, simple)


# ------------------------------------------------------------------------------------------------------ one picture

# How often each task is asked: what is learnt last comes most often.
_WEIGHTS = {
    **dict(color=0.4, shape=0.4, where=1.5, each=0.6, side=1.6, relation=1.5, exists=1.6, count=1.5, background=0.2),
    **dict(describe=3.5, ground=3.5, text=3.0, follow_up=0.5),
}
_LOOK_UPS = dict(color=1, shape=1, where=2, each=2)


def _conversations(rng, scene, number, weights=_WEIGHTS):
    """`number` conversations about one scene, fewer where little can be asked; no two begin alike."""
    dialogues, tasks, asked = [], list(weights), set()
    for _ in range(8 * number):
        if len(dialogues) == number:
            break
        task = rng.choices(tasks, list(weights.values()))[0]
        if task == "follow_up":
            turns = follow_up(rng, scene, rng.choice((2, 2, 3)))
        else:
            turns = [ONE_PICTURE[task](rng, scene)]
            if rng.random() < 0.12:  # a second round that does not depend on the first
                turns.append(ask(rng, scene) if (ask := ONE_PICTURE.get(rng.choice(tasks))) else None)
        if turns and None not in turns and (key := tuple(turn.question for turn in turns)) not in asked:
            asked.add(key)
            dialogues.append(turns)
    return dialogues


def _shown(dialogues, prefix="<image>\n"):
    """The conversations with the pictures in front of their first question."""
    return tuple((Turn(first.task, prefix + first.question, first.answer), *others) for first, *others in dialogues)


def _single(rng, split, questions, simple):
    lines = 1 if not simple and rng.random() < 0.3 else 0
    count = rng.choice((0, 0, 1, 2)) if lines else rng.choice((2, 2, 3)) if simple else None
    # Mostly drawn at the size of a tile, else as the user's pictures come: at any size that is one tile.
    side = TILE if rng.random() < 0.8 else rng.randint(200, 630)
    scene = draw_scene(rng, split, count, (side, side), lines)
    return Example("single", (scene,), _shown(_conversations(rng, scene, questions, _LOOK_UPS if simple else _WEIGHTS)))


# Of the pictures that people have; 4:3 alone makes twelve tiles.
_ASPECTS = (4 / 3, 4 / 3, 3 / 4, 3 / 2, 2 / 3, 16 / 9, 2, 1 / 2, 3, 1 / 3, 1)


def _tiles(rng, split, questions, simple):
    """A picture of any size, which is cut into tiles, with shapes and print in proportion: the thumbnail shows all."""
    aspect, side = rng.choice(_ASPECTS) * _stretch(rng), rng.randint(360, 900)
    size = (round(side * aspect), side) if aspect > 1 else (side, round(side / aspect))
    return _large(rng, split, questions, "tiles", size)


def _small(rng, split, questions, simple):
    """A large picture with shapes and print that are too small for the thumbnail; no edge of a tile cuts the print."""
    columns, rows = rng.choice(((2, 2), (3, 2), (2, 3), (3, 2), (3, 3), (4, 3), (3, 4)))
    size = round(columns * TILE * _stretch(rng)), rows * TILE
    return _large(rng, split, questions, "small", size, radii=(14, 26), letters=(63, 100), grid=(columns, rows))


def _stretch(rng):
    """A factor for one side: sides are seldom whole numbers of tiles."""
    return 1 if rng.random() < 0.7 else rng.uniform(0.92, 1.08)


def _large(rng, split, questions, kind, size, **bounds):
    lines = rng.choice((0, 0, 1))
    count = rng.choice((0, 1, 2)) if lines else None
    scene = draw_scene(rng, split, count, size, lines, **bounds)
    weights = {**_WEIGHTS, "ground": 0.3}
    return Example(kind, (scene,), _shown(_conversations(rng, scene, questions, weights)), max_num=12)


def _document(rng, split, questions, simple):
    """A page of print."""
    scene = draw_scene(rng, split, 0, lines=rng.choice((2, 2, 3, 3, 4)), letters=(60, 90))
    weights = dict(text=6.0, describe=0.5, background=0.5)
    return Example("document", (scene,), _shown(_conversations(rng, scene, questions, weights)))


# ------------------------------------------------------------------------------------------------ several pictures


def _pair(rng, split, questions, simple):
    scenes = tuple(draw_scene(rng, split, rng.choice((1, 1, 2, 2, 3))) for _ in range(2))
    asked = [ask(rng, scenes) for ask in _OF_TWO for _ in range(2)]
    turns = list({turn.question: turn for turn in asked if turn is not None}.values())
    combined = rng.random() < 0.15
    prefix = "<image>\n" if combined else PAIR_PREFIX
    return Example("pair", scenes, _shown(_rounds(rng, turns)[:questions], prefix), combined=combined)


def _rounds(rng, turns):
    """The turns in random order, as conversations of one to three rounds."""
    rng.shuffle(turns)
    dialogues = []
    while turns:
        rounds = rng.choice((1, 1, 1, 2, 3))
        dialogues.append(turns[:rounds])
        turns = turns[rounds:]
    return dialogues


def _which(rng, scenes):
    index = rng.randrange(2)
    own, other = scenes[index], {shape.pair for shape in scenes[1 - index].shapes}
    pairs = [shape.pair for shape in own.shapes if shape.pair not in other]
    if not pairs:
        return None
    name = a(name_word(rng.choice(pairs), "en"))
    return Turn("pair_which", f"Which image has {name}?", f"{name.capitalize()} is in Image-{index + 1}.")


def _pair_color(rng, scenes):
    index = rng.randrange(2)
    shapes = unique(scenes[index], "kind")
    if not shapes:
        return None
    shape = rng.choice(shapes)
    question = f"What color is the {shape.kind} in Image-{index + 1}?"
    return Turn("pair_color", question, f"The {shape.kind} in Image-{index + 1} is {shape.color}.")


def _pair_background(rng, scenes):
    index = rng.randrange(2)
    question = f"What color is the background of Image-{index + 1}?"
    return Turn("pair_background", question, f"The background of Image-{index + 1} is {scenes[index].background}.")


def _pair_count(rng, scenes):
    index = rng.randrange(2)
    count = len(scenes[index].shapes)
    noun = "one shape" if count == 1 else f"{COUNTS['en'][count]} shapes"
    return Turn("pair_count", f"How many shapes are in Image-{index + 1}?", f"Image-{index + 1} has {noun}.")


# What is compared is said first: a small model finds the verdict by reading its own answer.


def _pair_more(rng, scenes):
    counts = [len(scene.shapes) for scene in scenes]
    told = [f"Image-{index + 1} has {COUNTS['en'][count]}" for index, count in enumerate(counts)]
    verdict = "the same" if counts[0] == counts[1] else f"Image-{1 if counts[0] > counts[1] else 2}"
    return Turn("pair_compare", "Which image has more shapes?", f"{' and '.join(told)}: {verdict}.")


def _pair_same(rng, scenes):
    one, other = (scene.background for scene in scenes)
    answer = f"Image-1 is {one} and Image-2 is {other}: {'yes' if one == other else 'no'}."
    return Turn("pair_compare", "Do the two images have the same background color?", answer)


def _pair_describe(rng, scenes):
    texts = [description(scene, "en") for scene in scenes]
    if None in texts:
        return None
    questions = (
        "Describe the two images.",
        "Describe the two images in detail.",
        "What is the difference between the two images?",
        "What are the similarities and differences between these two images.",
    )
    return Turn("pair_describe", rng.choice(questions), f"Image-1: {texts[0]} Image-2: {texts[1]}")


def _pair_any(rng, scenes):
    """A color, a shape or the number of all shapes, wherever they are."""
    shapes = (*scenes[0].shapes, *scenes[1].shapes)
    asks = [ask_color, ask_shape] + [ask_count] * (len(shapes) <= 4)
    turn = rng.choice(asks)(rng, replace(scenes[0], shapes=shapes))
    return turn and replace(turn, task="pair_count" if turn.task == "count" else "pair_color")


_OF_TWO = (_which, _pair_color, _pair_background, _pair_count, _pair_any, _pair_more, _pair_same, _pair_describe)


def _later(rng, split, questions, simple):
    """A second picture in the second round; a third round may ask for either."""
    scenes = tuple(draw_scene(rng, split, rng.choice((1, 1, 2))) for _ in range(2))
    dialogues = []
    while len(dialogues) < max(1, questions // 3):
        task = rng.choice(("color", "shape", "background", "count", "where", "describe"))
        turn = ONE_PICTURE[task](rng, scenes[0])
        again = task in ("background", "count", "describe") and rng.random() < 0.4  # the same of the second picture
        other = task if again else rng.choice(("color", "shape", "background", "count", "describe", "side"))
        asked = ONE_PICTURE[other](rng, scenes[1])
        if turn is None or asked is None or (again and turn.answer.isascii() != asked.answer.isascii()):
            continue
        question = "What about this one?" if again else asked.question
        second = Turn("new_image", "<image>\n" + question, asked.answer)
        turns = [Turn(turn.task, "<image>\n" + turn.question, turn.answer), second]
        if rng.random() < 0.5:
            index = rng.randrange(2)
            word = ("first", "second")[index]
            background = f"The background of the {word} image is {scenes[index].background}."
            turns.append(Turn("new_image", f"What color is the background of the {word} image?", background))
        dialogues.append(tuple(turns))
    return Example("later", scenes, tuple(dialogues))


_MOVES = {"left": "moves to the left", "right": "moves to the right", "up": "moves up", "down": "moves down"}


def _video(rng, split, questions, simple):
    motion, scenes = draw_video(rng, split, FRAMES)
    mover = scenes[0].shapes[0]
    name, moves = mover.name, _MOVES[motion]
    doing = rng.choice((f"What is the {name} doing?", f"How does the {name} move?"))
    turns = [
        Turn("video_motion", doing, f"The {name} {moves}."),
        Turn("video_motion", f"In which direction does the {mover.kind} move?", f"The {mover.kind} {moves}."),
        Turn("video_what", rng.choice(("What is moving?", "Which shape moves?")), f"{a(name).capitalize()}."),
        Turn("video_color", f"What color is the {mover.kind}?", f"The {mover.kind} is {mover.color}."),
        Turn(
            "video_describe",
            rng.choice(("Describe the video.", "Describe this video in detail.", "What happens in the video?")),
            f"{a(name).capitalize()} {moves} on {a(scenes[0].background)} background.",
        ),
        replace(ask_background(rng, scenes[0]), task="video_color"),
    ]
    return Example("video", tuple(scenes), _shown(_rounds(rng, turns)[:questions], frame_prefix(FRAMES)))


def _text(rng, split, questions, simple):
    return Example("text", (), tuple(tuple(chat(rng, split, rng.choice((1, 1, 2, 3)))) for _ in range(questions)))


KINDS = {
    "single": _single,
    "tiles": _tiles,
    "small": _small,
    "document": _document,
    "pair": _pair,
    "later": _later,
    "video": _video,
    "text": _text,
}
