"""The world of the shipped checkpoint: scenes as pure data, drawn from a random generator, and a fast renderer.

A scene says what is where; nothing here knows of questions, tokens or models. The same generator state gives the same
scene on every machine: sampling never asks a font or a file. Only the pixels of printed text depend on the fonts found.

Held-out compositions (`HELD_OUT_PAIRS`, `is_held_out_text`) never occur under the split "train".
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

TILE = 448
COLORS = {
    "red": (222, 36, 36),
    "green": (34, 150, 60),
    "blue": (36, 80, 220),
    "yellow": (248, 218, 30),
    "orange": (245, 135, 20),
    "purple": (135, 50, 185),
    "pink": (250, 130, 195),
    "black": (22, 22, 22),
}
BACKGROUNDS = {
    "white": (255, 255, 255),
    "gray": (175, 175, 175),
    "black": (10, 10, 10),
    "light blue": (185, 220, 250),
    "light green": (200, 242, 200),
    "beige": (245, 230, 200),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart", "ring", "diamond")
CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
LONGEST, LINES = 6, 4  # characters of a line, lines of a page
WORDS = tuple(
    """APPLE BALL BANK BEAR BIRD BLUE BOAT BOOK BREAD BUS CAFE CAKE CAR CAT CITY CLOUD COAT COLD COW CUP DAY DOG DOOR
    DUCK EAST EGG EXIT FARM FISH FIVE FLAG FOOD FOX FREE FROG GAME GATE GIFT GLASS GO GOLD GOOD GREEN HAND HAT HELLO
    HELP HILL HOME HORSE HOT HOTEL HOUSE ICE IRON JAM JUMP KEY KING KITE LAKE LAMP LEAF LEFT LION LOVE MAP MENU MILK
    MOON MOUSE MUSIC NEST NEW NIGHT NO NORTH NOTE OPEN OWL PARK PEN PIANO PLAY POST QUEEN QUIET RAIN RED RICE RING
    RIVER ROAD ROSE SALE SALT SEA SHIP SHOP SHOW SNOW SOUP SOUTH STAR STOP SUGAR SUN TAXI TEA TIGER TIME TOWN TRAIN TREE
    UP VASE VIDEO VOTE WATER WEST WIND WOLF WOOD WORLD YARD YES YOU ZEBRA ZERO ZOO""".split()
)

# One pair of each color and each shape, every sixth word, every ninth number: what training never shows or mentions.
HELD_OUT_PAIRS = frozenset((color, SHAPES[(3 * index + 1) % 8]) for index, color in enumerate(COLORS))
HELD_OUT_WORDS = frozenset(WORDS[3::6])
SPLITS = ("train", "new", "held_out")  # "new": what training could show, other random draws; see `data.generator`


def is_held_out_text(text: str) -> bool:
    return int(text) % 9 == 4 if text.isdigit() else text in HELD_OUT_WORDS


# ---------------------------------------------------------------------------------------------------- descriptions


@dataclass(frozen=True)
class Shape:
    """A shape of `kind` with its centre at (x, y) and a `radius`, in pixels; `rgb` is the shade of `color` drawn."""

    kind: str
    color: str
    x: int
    y: int
    radius: int
    rgb: tuple

    @property
    def pair(self):
        return self.color, self.kind

    @property
    def name(self):
        return f"{self.color} {self.kind}"


@dataclass(frozen=True)
class Text:
    """A line of print centred at (x, y), `size` pixels high; `pitch` > 0 sets its characters at that distance."""

    text: str
    x: int
    y: int
    size: int
    font: int
    rgb: tuple
    pitch: int = 0


@dataclass(frozen=True)
class Scene:
    """A picture of `width` x `height` pixels: shapes and lines of text on a plain background."""

    background: str
    rgb: tuple
    width: int = TILE
    height: int = TILE
    shapes: tuple = ()
    texts: tuple = ()

    def box(self, shape):
        """(x1, y1, x2, y2) of a shape in thousandths of the picture, the unit of InternVL's grounding answers."""
        corners = (shape.x - shape.radius, shape.y - shape.radius, shape.x + shape.radius, shape.y + shape.radius)
        sides = (self.width, self.height) * 2
        return tuple(min(1000, max(0, round(1000 * value / side))) for value, side in zip(corners, sides))


# -------------------------------------------------------------------------------------------------------- sampling


def _shade(rng, rgb, amount):
    return tuple(min(255, max(0, value + rng.randint(-amount, amount))) for value in rgb)


def draw_pair(rng, background, held_out=False):
    """A (color, shape) that shows on `background`; one of the held-out ones, or none of them."""
    while True:
        pair = rng.choice(tuple(COLORS)), rng.choice(SHAPES)
        if (pair in HELD_OUT_PAIRS) == held_out and pair[0] != background:
            return pair


def draw_text(rng, held_out=False, longest=LONGEST):
    """A word, a string of random letters or a number of at most `longest` characters."""
    while True:
        form = rng.random()
        if form < 0.4:
            text = rng.choice(WORDS)
        elif form < 0.6 and not held_out:
            text = "".join(rng.choice(CHARACTERS[:26]) for _ in range(rng.randint(2, 6)))
        else:
            text = str(rng.randint(0, 10 ** rng.randint(1, 4) - 1))
        if is_held_out_text(text) == held_out and len(text) <= longest:
            return text


# Radii by number of shapes, as shares of the shorter side.
_RADII = {0: (0.1, 0.2), 1: (0.1, 0.34), 2: (0.09, 0.23), 3: (0.085, 0.18), 4: (0.08, 0.16)}


def draw_scene(rng, split="train", count=None, size=(TILE, TILE), lines=0, radii=None, letters=None, grid=(1, 1)):
    """A scene with `count` shapes (default 1 to 4) and `lines` lines of text that do not overlap.

    `radii` and `letters` bound the shapes' radius and the height of the print in pixels; the defaults suit one tile.
    All print stands in one part of the `grid` of (columns, rows): no edge of a tile cuts it.
    Under the split "held_out" one shape, and every text, is a held-out composition.
    """
    width, height = size
    side = min(size)
    held_out = split == "held_out"
    background = rng.choice(tuple(BACKGROUNDS))
    count = rng.randint(1, 4) if count is None else count
    texts = _draw_texts(rng, size, background, lines, letters or (0.14 * side, 0.25 * side), grid, held_out)
    low, high = radii or tuple(share * side for share in _RADII[count])
    if texts:
        high = max(low, 0.7 * high)
    shapes = []
    for index in range(count):
        pair = draw_pair(rng, background, held_out and index == 0)
        for attempt in range(60):
            radius = round(rng.uniform(low, low + (high - low) * (1 - attempt / 60)))
            radius -= radius % (1 if radius < 40 else 2 if radius < 160 else 8)  # few sizes: the renderer keeps stamps
            x, y = rng.randint(radius + 2, width - radius - 2), rng.randint(radius + 2, height - radius - 2)
            apart = all(math.hypot(x - o.x, y - o.y) > 1.1 * (radius + o.radius) + 4 for o in shapes)
            if apart and not any(_covers(text, x, y, radius) for text in texts):
                shapes.append(Shape(pair[1], pair[0], x, y, radius, _shade(rng, COLORS[pair[0]], 12)))
                break
    if not shapes and not texts:  # no room: cannot happen with the defaults, but a scene is never empty
        return draw_scene(rng, split, max(1, count - 1), size, lines, radii, letters, grid)
    rng.shuffle(shapes)
    rgb = _shade(rng, BACKGROUNDS[background], 5)
    return Scene(background, rgb, width, height, tuple(shapes), texts)


def _half_width(text):
    return (text.pitch or 0.74 * text.size) * len(text.text) / 2


def _covers(text, x, y, radius):
    return abs(text.y - y) < radius + 0.62 * text.size and abs(text.x - x) < radius + _half_width(text) + 4


_INKS = ((20, 20, 20), (20, 20, 20), (150, 20, 20), (20, 40, 140))


def _draw_texts(rng, size, background, lines, letters, grid, held_out):
    """Lines of print from top to bottom, in one font and size, in one part of the picture."""
    if not lines:
        return ()
    width, height = size[0] / grid[0], size[1] / grid[1]
    left, above = (rng.randrange(parts) * side for parts, side in zip(grid, (width, height)))
    words = [draw_text(rng, held_out) for _ in range(lines)]
    longest = max(map(len, words))
    largest = min(letters[1], 0.9 * width / (0.74 * longest), 0.8 * height / (1.25 * lines))
    points = max(8, round(rng.uniform(min(letters[0], largest), largest)) // 2 * 2)
    font, spaced = rng.randrange(len(_FONT_FILES)), rng.random() < 0.3
    ink = (245, 245, 245) if background == "black" else rng.choice(_INKS)
    step = 1.25 * points
    top = above + rng.uniform(0.62 * points, height - 0.62 * points - step * (lines - 1))
    texts = []
    for index, word in enumerate(words):
        line = Text(word, 0, round(top + step * index), points, font, ink, round(0.74 * points) if spaced else 0)
        half = _half_width(line) + 2
        x = rng.uniform(half, width - half) if half < width / 2 else width / 2
        texts.append(replace(line, x=round(left + x)))
    return tuple(texts)


MOTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


def draw_video(rng, split="train", frames=8):
    """`(motion, scenes)`: the first shape of each frame moves at an even pace, another one may stand still."""
    first = draw_scene(rng, split, count=1, radii=(44, 76))
    motion = rng.choice(tuple(MOTIONS))
    mover = first.shapes[0]
    low, high = mover.radius + 2, TILE - mover.radius - 2
    span = rng.randint(150, high - low)
    start = rng.randint(low, high - span)
    path = [round(start + span * index / (frames - 1)) for index in range(frames)]
    dx, dy = MOTIONS[motion]
    if dx + dy < 0:
        path.reverse()
    across = rng.randint(low, high)
    steps = [(value, across) if dx else (across, value) for value in path]
    others = ()
    if rng.random() < 0.3:
        pair = draw_pair(rng, first.background)
        radius = rng.randint(40, 56)
        x, y = (rng.choice((radius + 4, TILE - radius - 4)) for _ in range(2))
        clear = all(math.hypot(x - mx, y - my) > 1.1 * (radius + mover.radius) for mx, my in steps)
        if clear and pair[0] != mover.color and pair[1] != mover.kind:
            others = (Shape(pair[1], pair[0], x, y, radius, _shade(rng, COLORS[pair[0]], 12)),)
    return motion, [replace(first, shapes=(replace(mover, x=x, y=y), *others)) for x, y in steps]


# ------------------------------------------------------------------------------------------------------- rendering

# Corners of the shapes of radius 1 around (0, 0), y pointing down. Circle and ring are drawn as ellipses.
_ARM = 0.33
_STAR = [(math.pi * k / 5, 1 if k % 2 == 0 else 0.42) for k in range(10)]
_TURNS = [2 * math.pi * k / 48 for k in range(48)]
_CORNERS = {
    "square": [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)],
    "triangle": [(0, -1), (0.95, 0.8), (-0.95, 0.8)],
    "diamond": [(0, -1), (0.8, 0), (0, 1), (-0.8, 0)],
    "star": [(reach * math.sin(turn), -reach * math.cos(turn)) for turn, reach in _STAR],
    "cross": [
        *((-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM)),
        *((_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM)),
    ],
    "heart": [
        (
            math.sin(t) ** 3,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16,
        )
        for t in _TURNS
    ],
}
_OVERSAMPLING = 3
_FONT_FILES = (None, "DejaVuSans-Bold.ttf", "DejaVuSans.ttf")


@lru_cache(maxsize=2048)
def _stamp(kind, radius):
    """The shape as an "L" mask of side 2 * radius, with smooth edges."""
    side = 2 * radius * _OVERSAMPLING
    mask = Image.new("L", (side, side))
    pen = ImageDraw.Draw(mask)
    if kind == "circle":
        pen.ellipse((0, 0, side - 1, side - 1), fill=255)
    elif kind == "ring":
        pen.ellipse((0, 0, side - 1, side - 1), outline=255, width=max(1, round(0.32 * side / 2)))
    else:
        pen.polygon([((x + 1) * side / 2, (y + 1) * side / 2) for x, y in _CORNERS[kind]], fill=255)
    return mask.reduce(_OVERSAMPLING)


@lru_cache(maxsize=256)
def _font(index, size):
    """A font of the machine; Pillow's own where DejaVu is missing."""
    name = _FONT_FILES[index]
    try:
        return ImageFont.truetype(name, size) if name else ImageFont.load_default(size)
    except OSError:
        return ImageFont.load_default(size)


@lru_cache(maxsize=8192)
def _glyph(font, size, character):
    """`(mask, left, top, advance)`: the glyph cut to its ink, its offset from the pen at the line's middle."""
    face = _font(font, size)
    left, top, right, bottom = face.getbbox(character, anchor="lm")
    mask = Image.new("L", (max(1, right - left), max(1, bottom - top)))
    ImageDraw.Draw(mask).text((-left, -top), character, fill=255, font=face, anchor="lm")
    return mask, left, top, face.getlength(character)


def glyph_pens(text):
    """For each character of a line: the x at which its pen starts, and the x of its centre, in pixels."""
    advances = [_glyph(text.font, text.size, character)[3] for character in text.text]
    if text.pitch:
        start = text.x - text.pitch * len(advances) / 2
        centres = [start + text.pitch * (index + 0.5) for index in range(len(advances))]
        return [(centre - advance / 2, centre) for centre, advance in zip(centres, advances)]
    pen, pens = text.x - sum(advances) / 2, []
    for advance in advances:
        pens.append((pen, pen + advance / 2))
        pen += advance
    return pens


def render(scene):
    """The scene as an RGB Pillow image."""
    image = Image.new("RGB", (scene.width, scene.height), scene.rgb)
    for shape in scene.shapes:
        radius = shape.radius
        image.paste(shape.rgb, (shape.x - radius, shape.y - radius), _stamp(shape.kind, radius))
    for text in scene.texts:
        for character, (pen, _) in zip(text.text, glyph_pens(text)):
            mask, left, top, _ = _glyph(text.font, text.size, character)
            image.paste(text.rgb, (round(pen) + left, text.y + top), mask)
    return image


# ---------------------------------------------------------------------------------------------------- dense labels

CELLS = 7  # visual tokens a side of a tile; each merges 2 x 2 patches of 32 pixels
BINS = 32
# What one visual token shows, 0 = nothing. Name -> (classes, fields of that name).
_FIELDS = {
    "shape": (len(SHAPES) + 1, 1),  # of the one whose centre lies in the cell, as its color
    "color": (len(COLORS) + 1, 1),
    "row": (4, 1),  # the third of the tile that it lies in, from top to bottom
    "column": (4, 1),  # and from left to right
    "box": (BINS + 1, 4),  # its box within the tile
    "part": (len(SHAPES) + 1, 4),  # shape of each of the four patches
    "tint": (len(COLORS) + 1, 4),  # and their color
    "character": (len(CHARACTERS) + 1, 2),  # in the left and the right half of the cell
    "order": (LONGEST + 1, 2),  # the places of these in their line
    "line": (LINES + 1, 1),  # the line's place among those of the tile
    "background": (len(BACKGROUNDS), 1),  # always there
}
FIELD_NAMES = tuple(name for name, (_, number) in _FIELDS.items() for _ in range(number))
FIELD_SIZES = tuple(_FIELDS[name][0] for name in FIELD_NAMES)
_PRINT, _LINE = FIELD_NAMES.index("character"), FIELD_NAMES.index("line")
_COLOR_INDEX = {name: index + 1 for index, name in enumerate(COLORS)}
_SHAPE_INDEX = {name: index + 1 for index, name in enumerate(SHAPES)}
_BACKGROUND_INDEX = {name: index for index, name in enumerate(BACKGROUNDS)}
_SMALLEST_RADIUS = 7  # in pixels of the tile; below, a tile of 32-pixel patches does not show it
_LETTERS = 42, 150  # of which sizes a tile shows print; larger is in pieces, and the thumbnail shows it whole


def dense_labels(scene, view):
    """What each of the 49 visual tokens of a tile shows: (49, len(FIELD_SIZES)) uint8.

    `view` is the (x1, y1, x2, y2) of the picture that the tile shows, in pixels. Things too small to be seen in the
    tile are left out, and print too large for it.
    """
    labels = np.zeros((CELLS, CELLS, len(FIELD_SIZES)), np.uint8)
    labels[:, :, -1] = _BACKGROUND_INDEX[scene.background]
    patches = np.zeros((2, 2 * CELLS, 2 * CELLS), np.uint8)  # part, tint
    grid = (np.arange(2 * CELLS) + 0.5) / (2 * CELLS)
    left, top, right, bottom = view
    wide, high = right - left, bottom - top
    for shape in scene.shapes:
        x, y, rx, ry = (shape.x - left) / wide, (shape.y - top) / high, shape.radius / wide, shape.radius / high
        if min(rx, ry) * TILE < _SMALLEST_RADIUS or not (-rx < x < 1 + rx and -ry < y < 1 + ry):
            continue
        names = _SHAPE_INDEX[shape.kind], _COLOR_INDEX[shape.color]
        inside = ((grid[None, :] - x) / rx) ** 2 + ((grid[:, None] - y) / ry) ** 2 < 0.75
        patches[0][inside], patches[1][inside] = names
        if 0 <= x < 1 and 0 <= y < 1:
            box = [1 + min(BINS - 1, max(0, int(BINS * v))) for v in (x - rx, y - ry, x + rx, y + ry)]
            thirds = [1 if share < 0.38 else 3 if share > 0.62 else 2 for share in (y, x)]
            labels[int(y * CELLS), int(x * CELLS), :8] = (*names, *thirds, *box)
    # (field, row, y, column, x) -> (row, column, field, y, x): the four patches of a cell in reading order
    merged = patches.reshape(2, CELLS, 2, CELLS, 2).transpose(1, 3, 0, 2, 4)
    labels[:, :, 8:_PRINT] = merged.reshape(CELLS, CELLS, 8)
    _label_print(scene, view, labels)
    return labels.reshape(CELLS * CELLS, -1)


def _label_print(scene, view, labels):
    """Writes what the tile shows of the scene's lines into its (7, 7, fields) labels.

    A character is said by every half of a cell whose middle it covers, at least by the one that its own middle lies
    in, in the rows of cells that are not far from its line. It is counted among those of its line, and the line among
    those of the picture, that the tile shows: what the tower cannot see cannot be asked of it.
    """
    left, top, right, bottom = view
    wide, high = right - left, bottom - top
    scale = TILE / max(wide, high)
    smallest, largest = (size / scale for size in _LETTERS)
    seen = [text for text in scene.texts if smallest <= text.size <= largest and top <= text.y < bottom][:LINES]
    if not seen:
        return
    middles = left + (np.arange(2 * CELLS) + 0.5) / (2 * CELLS) * wide  # of halves
    rows = (np.arange(CELLS) + 0.5) * high / CELLS + top
    distances = np.abs(rows[:, None] - [text.y for text in seen]) / high * CELLS  # (rows of cells, lines)
    owners = np.where(distances.min(1) < 0.75, distances.argmin(1) + 1, 0)
    for line, text in enumerate(seen, 1):
        said, own = np.zeros((2 * CELLS, 2), np.uint8), []  # character and its place
        for character, (pen, centre) in zip(text.text, glyph_pens(text)):
            half = int((centre - left) / wide * 2 * CELLS // 1)
            if 0 <= half < 2 * CELLS and len(own) < LONGEST:
                own.append((half, (CHARACTERS.index(character) + 1, len(own) + 1)))
                said[(pen <= middles) & (middles < 2 * centre - pen)] = own[-1][1]
        for half, names in own:
            said[half] = names
        cells = said.reshape(CELLS, 2, 2).transpose(0, 2, 1).reshape(CELLS, 4)  # characters left, right; their places
        labels[owners == line, :, _PRINT:_LINE] = cells
        labels[owners == line, :, _LINE] = line * cells[:, :2].any(1)
