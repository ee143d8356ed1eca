"""Questions about scenes with their answers, in English and Chinese.

One small function a task finds what can be asked of a scene without ambiguity; the phrasings are in `phrases.py`,
several pictures and video in `examples.py`, conversations without a picture in `text.py`.
"""

from dataclasses import dataclass

from .phrases import COUNTS, ORDINALS, PHRASES, ZH_COLORS, ZH_SHAPES, ZONES
from .world import COLORS, HELD_OUT_PAIRS, SHAPES

# "What is on the left?" where two shapes are told apart, "the leftmost" among more.
SIDES = {
    "left": ("on the left", "leftmost", "左边", 0, 1),
    "right": ("on the right", "rightmost", "右边", 0, -1),
    "top": ("at the top", "topmost", "上面", 1, 1),
    "bottom": ("at the bottom", "bottommost", "下面", 1, -1),
}
RELATIONS = {"left of": (0, 1), "right of": (0, -1), "above": (1, 1), "below": (1, -1)}


@dataclass(frozen=True)
class Turn:
    """One round: the task's name, a question (with an `<image>` for each picture that comes with it), its answer."""

    task: str
    question: str
    answer: str


def a(name):
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def color_word(color, lang):
    return color if lang == "en" else ZH_COLORS[color] + "色"


def shape_word(shape, lang):
    return shape if lang == "en" else ZH_SHAPES[shape]


def name_word(pair, lang):
    color, shape = color_word(pair[0], lang), shape_word(pair[1], lang)
    return f"{color} {shape}" if lang == "en" else f"{color}的{shape}"


def there_are(count, lang):
    if lang == "zh":
        return "没有图形。" if count == 0 else f"一共有{COUNTS['zh'][count]}图形。"
    return "There is one shape." if count == 1 else f"There are {COUNTS['en'][count]} shapes."


def language(rng, task):
    return "zh" if "zh" in PHRASES.get(task, ()) and rng.random() < 0.2 else "en"


def make_turn(rng, task, lang, pair=None, verdict=None, **words):
    """A `Turn` of a task in `PHRASES`; `pair` gives color, shape and name, `verdict` picks the answer "no" or "yes"."""
    questions, answer = PHRASES[task][lang]
    if pair is not None:
        words.update(color=color_word(pair[0], lang), shape=shape_word(pair[1], lang), name=name_word(pair, lang))
        words["a_name"] = a(words["name"])
        words["A_name"] = a(words["name"]).capitalize()
    answer = answer if verdict is None else answer[verdict]
    return Turn(task, rng.choice(questions).format(**words), answer.format(**words))


# ------------------------------------------------------------------------------------- what can be said of a scene


def zone(scene, shape):
    """(row, column) of the nine parts of the picture that a shape's centre lies in; None near a border."""
    place = []
    for value, side in ((shape.y, scene.height), (shape.x, scene.width)):
        share = value / side
        if 0.36 <= share <= 0.4 or 0.6 <= share <= 0.64:
            return None
        place.append(0 if share < 0.36 else 2 if share > 0.64 else 1)
    return tuple(place)


def zone_word(scene, shape, lang):
    place = zone(scene, shape)
    return None if place is None else ZONES[lang][place[0]][place[1]]


def unique(scene, key):
    """The shapes whose `key` ("kind", "color" or "pair") no other shape shares."""
    values = [getattr(shape, key) for shape in scene.shapes]
    return [shape for shape, value in zip(scene.shapes, values) if values.count(value) == 1]


def ordered(scene, axis, margin=0.06):
    """The shapes along an axis (0 from the left, 1 from the top); None where two are too close to tell."""
    side = (scene.width, scene.height)[axis]
    shapes = sorted(scene.shapes, key=lambda shape: (shape.x, shape.y)[axis])
    places = [(shape.x, shape.y)[axis] / side for shape in shapes]
    return None if any(after - before < margin for before, after in zip(places, places[1:])) else shapes


def description(scene, lang):
    """The one full description of a scene, or None where it would be ambiguous."""
    names = {shape: name_word(shape.pair, lang) for shape in scene.shapes}
    quoted = " ".join(line.text for line in scene.texts)
    background = color_word(scene.background, lang)
    if lang == "zh":
        tail = f"，背景是{background}。" + (f"文字是“{quoted}”。" if quoted else "")
        if len(names) != 1 or (place := zone_word(scene, scene.shapes[0], lang)) is None:
            return None
        return f"{place}有一个{names[scene.shapes[0]]}{tail}"
    tail = f" on {a(background)} background." + (f' The text says "{quoted}".' if quoted else "")
    if not names:
        return f'The text "{quoted}" on {a(background)} background.'
    if len(names) == 1:
        place = zone_word(scene, scene.shapes[0], lang)
        return None if place is None else f"{a(names[scene.shapes[0]]).capitalize()} {place}{tail}"
    if len(names) == 2:
        first, second = scene.shapes
        lead = abs(first.x - second.x) / scene.width - abs(first.y - second.y) / scene.height
        if abs(lead) < 0.08:
            return None
        one, other = sorted(scene.shapes, key=lambda shape: shape.x if lead > 0 else shape.y)
        places = ("on the left", "on the right") if lead > 0 else ("at the top", "at the bottom")
        return f"{a(names[one]).capitalize()} {places[0]} and {a(names[other])} {places[1]}{tail}"
    row = ordered(scene, 0)
    if row is None:
        return None
    listed = [a(names[shape]) for shape in row]
    return f"From left to right: {_listed(listed)}{tail}"


# ------------------------------------------------------------------------------------------- tasks of one picture
# Each takes (rng, scene) and returns a Turn, or None where the scene does not suit the task.


def ask_color(rng, scene):
    shapes, lang = unique(scene, "kind"), language(rng, "color")
    return make_turn(rng, "color", lang, rng.choice(shapes).pair) if shapes else None


def ask_shape(rng, scene):
    shapes, lang = unique(scene, "color"), language(rng, "shape")
    return make_turn(rng, "shape", lang, rng.choice(shapes).pair) if shapes else None


def ask_background(rng, scene):
    lang = language(rng, "background")
    return make_turn(rng, "background", lang, background=color_word(scene.background, lang))


def ask_count(rng, scene):
    lang = language(rng, "count")
    return make_turn(rng, "count", lang, there_are=there_are(len(scene.shapes), lang))


def ask_where(rng, scene):
    shapes, lang = [shape for shape in unique(scene, "pair") if zone(scene, shape)], language(rng, "where")
    if not shapes:
        return None
    shape = rng.choice(shapes)
    return make_turn(rng, "where", lang, shape.pair, zone=zone_word(scene, shape, lang))


def ask_exists(rng, scene):
    if not scene.shapes:
        return None
    lang, present = language(rng, "exists"), {shape.pair for shape in scene.shapes}
    if rng.random() < 0.5:
        return make_turn(rng, "exists", lang, rng.choice(sorted(present)), verdict=1)
    return make_turn(rng, "exists", lang, absent_pair(rng, present), verdict=0)


def absent_pair(rng, present):
    """A pair that is not there, mostly one that shares its color or its shape with one that is.

    A held-out pair is named only where the scene itself has one, which training scenes never do."""
    allowed = present & HELD_OUT_PAIRS
    while True:
        color, shape = rng.choice(sorted(present))
        form = rng.random()
        color = rng.choice(tuple(COLORS)) if form > 0.4 else color
        shape = rng.choice(SHAPES) if not 0.4 < form < 0.8 else shape
        if (color, shape) not in present and (allowed or (color, shape) not in HELD_OUT_PAIRS):
            return color, shape


def ask_side(rng, scene):
    """What is on the left (right, top, bottom): of two shapes, or the outermost of more."""
    side = rng.choice(tuple(SIDES))
    of_two, of_many, zh, axis, sign = SIDES[side]
    if len(scene.shapes) < 2:
        return None
    reach = (scene.width, scene.height)[axis]
    shapes = sorted(scene.shapes, key=lambda shape: sign * (shape.x, shape.y)[axis])
    places = [(shape.x, shape.y)[axis] / reach for shape in shapes]
    if abs(places[1] - places[0]) < 0.1:
        return None
    lang = "zh" if len(shapes) == 2 and rng.random() < 0.2 else "en"
    name = name_word(shapes[0].pair, lang)
    if lang == "zh":
        return Turn("side", f"{zh}是什么？", f"{name}。")
    if len(shapes) == 2:
        question = rng.choice((f"What is {of_two}?", f"Which shape is {of_two}?"))
    else:
        question = f"What is the {of_many} shape?"
    return Turn("side", question, f"{a(name).capitalize()}.")


def ask_relation(rng, scene):
    shapes = unique(scene, "pair")
    if len(shapes) < 2:
        return None
    one, other = rng.sample(shapes, 2)
    word = rng.choice(tuple(RELATIONS))
    axis, sign = RELATIONS[word]
    distance = sign * ((other.x - one.x) / scene.width if axis == 0 else (other.y - one.y) / scene.height)
    if abs(distance) < 0.12:
        return None
    names = dict(other=name_word(other.pair, "en"), relation=word)
    return make_turn(rng, "relation", "en", one.pair, verdict=int(distance > 0), **names)


def ask_each(rng, scene):
    """The color, shape or place of several shapes at once: many look-ups in one answer."""
    form = rng.choice(("color", "shape", "where"))
    key = {"color": "kind", "shape": "color", "where": "pair"}[form]
    shapes = [shape for shape in unique(scene, key) if form != "where" or zone(scene, shape)]
    if len(shapes) < 2:
        return None
    shapes = rng.sample(shapes, rng.randint(2, len(shapes)))
    if form == "color":
        asked, told = [f"the {s.kind}" for s in shapes], [f"the {s.kind} is {s.color}" for s in shapes]
        question = f"What color are {_listed(asked)}?"
    elif form == "shape":
        asked, told = [s.color for s in shapes], [a(s.name) for s in shapes]
        question = f"What shapes are {_listed(asked)}?"
    else:
        asked = [f"the {s.name}" for s in shapes]
        told = [f"the {s.name} is {zone_word(scene, s, 'en')}" for s in shapes]
        question = f"Where are {_listed(asked)}?"
    answer = f"{_listed(told)}."
    return Turn("each", question, answer[0].upper() + answer[1:])


def _listed(words):
    return f"{', '.join(words[:-1])} and {words[-1]}"


def ask_describe(rng, scene):
    lang = "zh" if len(scene.shapes) == 1 and rng.random() < 0.3 else "en"
    text = description(scene, lang)
    return None if text is None else make_turn(rng, "describe", lang, description=text)


def ask_text(rng, scene):
    """The task is named "word" or "number" after what one line shows, "line" where there are several."""
    if not scene.texts:
        return (
            Turn("no_text", rng.choice(PHRASES["text"]["en"][0]), "There is no text.") if rng.random() < 0.05 else None
        )
    if len(scene.texts) == 1:
        text = scene.texts[0].text
        turn = make_turn(rng, "text", language(rng, "text"), text=text)
        return Turn("number" if text.isdigit() else "word", turn.question, turn.answer)
    index = rng.randrange(len(scene.texts))
    ordinal = "last" if index == len(scene.texts) - 1 and rng.random() < 0.5 else ORDINALS[index]
    return make_turn(rng, "line", "en", ordinal=ordinal, text=scene.texts[index].text)


def ask_ground(rng, scene):
    shapes = unique(scene, "pair")
    if not shapes:
        return None
    shape = rng.choice(shapes)
    return make_turn(rng, "ground", "en", shape.pair, box=",".join(map(str, scene.box(shape))))


ONE_PICTURE = {
    "color": ask_color,
    "shape": ask_shape,
    "background": ask_background,
    "count": ask_count,
    "where": ask_where,
    "exists": ask_exists,
    "side": ask_side,
    "relation": ask_relation,
    "each": ask_each,
    "describe": ask_describe,
    "text": ask_text,
    "ground": ask_ground,
}


# ------------------------------------------------------------------------------------------------------ follow-ups

_ABOUT_IT = {
    "color": ("What color is it?", lambda scene, shape: f"It is {shape.color}."),
    "shape": ("What shape is it?", lambda scene, shape: f"It is a {shape.kind}."),
    "where": ("Where is it?", lambda scene, shape: f"It is {zone_word(scene, shape, 'en')}."),
}


def follow_up(rng, scene, rounds):
    """A conversation whose later questions ("What color is it?", "And the star?") need the earlier rounds; or None."""
    shapes = [s for s in unique(scene, "kind") if s in unique(scene, "color") and zone(scene, s)]
    if not shapes:
        return None
    shape = rng.choice(shapes)
    place = zone_word(scene, shape, "en")
    openings = {  # topic -> (task, question, answer, what is known of the shape then)
        "color": (
            "color",
            f"What color is the {shape.kind}?",
            f"The {shape.kind} is {shape.color}.",
            {"color", "shape"},
        ),
        "shape": ("shape", f"What shape is {shape.color}?", f"{a(shape.name).capitalize()}.", {"color", "shape"}),
        "where": ("where", f"Where is the {shape.kind}?", f"The {shape.kind} is {place}.", {"shape", "where"}),
        "kind": ("exists", f"Is there a {shape.kind}?", f"Yes, there is a {shape.kind}.", {"shape"}),
        "tint": ("exists", f"Is there {a(shape.color)} shape?", f"Yes, there is {a(shape.color)} shape.", {"color"}),
    }
    topic = rng.choice(tuple(openings))
    *first, known = openings[topic]
    turns = [Turn(*first)]
    while len(turns) < rounds:
        task = f"followup{len(turns) + 1}"
        others = [s for s in shapes if s.kind != shape.kind]
        unknown = sorted({"color", "shape", "where"} - known)
        if others and topic in ("color", "where") and (not unknown or rng.random() < 0.4):
            shape = rng.choice(others)
            answer = shape.color if topic == "color" else zone_word(scene, shape, "en")
            turns.append(Turn(task, f"And the {shape.kind}?", f"The {shape.kind} is {answer}."))
            known = {"shape", topic}
        elif unknown:
            topic = rng.choice(unknown)
            question, answer = _ABOUT_IT[topic]
            turns.append(Turn(task, question, answer(scene, shape)))
            known = known | {topic}
        else:
            break
    return turns
