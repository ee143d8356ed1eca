"""Draws every picture and video that the examples use, and writes them beside this file or into another folder.

Run: python examples/render_media.py [FOLDER]

The scenes are data (`PICTURES`, `VIDEOS`), so that the quick start and the tests know what a right answer says. They
belong to the world of the checkpoint in this repository: plain shapes in plain colours on a plain background.
"""

import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import av
from PIL import Image, ImageDraw

HERE = Path(__file__).resolve().parent
# What the checkpoint calls by these names.
COLORS = {
    "red": (222, 36, 36),
    "green": (34, 150, 60),
    "blue": (36, 80, 220),
    "yellow": (248, 218, 30),
    "orange": (245, 135, 20),
    "purple": (135, 50, 185),
    "black": (22, 22, 22),
    "white": (255, 255, 255),
    "light blue": (185, 220, 250),
    "light green": (200, 242, 200),
    "beige": (245, 230, 200),
}
# Shapes are drawn this many times larger and then reduced, for smooth edges.
OVERSAMPLING = 4


def with_article(words):
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


@dataclass(frozen=True)
class Shape:
    """A shape of `kind` with its centre at (x, y) and a `radius`, all in pixels."""

    kind: str
    color: str
    x: float
    y: float
    radius: float

    @property
    def name(self):
        return f"{self.color} {self.kind}"


@dataclass(frozen=True)
class Picture:
    """Shapes on a background, `width` x `height` pixels."""

    background: str
    shapes: tuple
    width: int = 448
    height: int = 448

    @property
    def caption(self):
        names = [with_article(shape.name) for shape in self.shapes]
        return f"{' and '.join(names)} on {with_article(self.background)} background"


@dataclass(frozen=True)
class Video:
    """The only shape of `first` turning into that of `last` at an even pace, in `frames` frames, `fps` a second."""

    first: Picture
    last: Picture
    frames: int = 24
    fps: int = 12

    @property
    def motion(self):
        """What the shape does, in the words of the checkpoint's world."""
        (begin,), (end,) = self.first.shapes, self.last.shapes
        changes = {
            "moves to the right": end.x - begin.x,
            "moves to the left": begin.x - end.x,
            "moves down": end.y - begin.y,
            "moves up": begin.y - end.y,
            "grows": end.radius - begin.radius,
            "shrinks": begin.radius - end.radius,
        }
        return max(changes, key=changes.get)

    @property
    def caption(self):
        (shape,) = self.first.shapes
        return f"{with_article(shape.name)} that {self.motion} on {with_article(self.first.background)} background"


PICTURES = {
    "image1.jpg": Picture("white", (Shape("circle", "red", 224, 220, 130),)),
    "image2.jpg": Picture("light blue", (Shape("star", "yellow", 224, 228, 130),)),
    # Two tiles and a thumbnail under the models' tiling rule.
    "wide.png": Picture("light green", (Shape("square", "purple", 448, 220, 130),), width=896),
}
VIDEOS = {
    "moving_circle.mp4": Video(
        Picture("white", (Shape("circle", "blue", 90, 224, 70),)),
        Picture("white", (Shape("circle", "blue", 358, 224, 70),)),
    ),
}


def corners(kind):
    """The corners of a shape of radius 1 around (0, 0), y pointing down."""
    if kind == "square":
        return [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)]
    if kind == "triangle":
        return [(0, -1), (0.95, 0.8), (-0.95, 0.8)]
    if kind == "star":
        turns = [(math.pi * k / 5, 1 if k % 2 == 0 else 0.42) for k in range(10)]
        return [(reach * math.sin(turn), -reach * math.cos(turn)) for turn, reach in turns]
    raise ValueError(f"no drawing for a {kind!r}: expected circle, square, triangle or star")


def draw(picture):
    """The picture as an RGB image."""
    scale = OVERSAMPLING
    image = Image.new("RGB", (picture.width * scale, picture.height * scale), COLORS[picture.background])
    pen = ImageDraw.Draw(image)
    for shape in picture.shapes:
        x, y, radius, color = shape.x * scale, shape.y * scale, shape.radius * scale, COLORS[shape.color]
        if shape.kind == "circle":
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
        else:
            pen.polygon([(x + radius * dx, y + radius * dy) for dx, dy in corners(shape.kind)], fill=color)
    return image.reduce(scale)


def frame(video, index):
    """Frame `index` of a video as an RGB image."""
    share = index / (video.frames - 1)
    (begin,), (end,) = video.first.shapes, video.last.shapes
    between = {name: (1 - share) * getattr(begin, name) + share * getattr(end, name) for name in ("x", "y", "radius")}
    return draw(replace(video.first, shapes=(replace(begin, **between),)))


def write_video(video, path):
    """Encodes with H.264 where the installed PyAV can, else with MPEG-4 part 2. One thread: the same file each time."""
    codec = next(name for name in ("libx264", "mpeg4") if name in av.codecs_available)
    quality = {"crf": "20"} if codec == "libx264" else {"qscale": "4"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=video.fps, options={**quality, "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = video.first.width, video.first.height, "yuv420p"
        for index in range(video.frames):
            container.mux(stream.encode(av.VideoFrame.from_image(frame(video, index))))
        container.mux(stream.encode())


def main(folder=HERE):
    """Writes all files into `folder` and returns their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in PICTURES.items():
        draw(picture).save(folder / name, **({"quality": 92} if name.endswith(".jpg") else {"optimize": True}))
    for name, video in VIDEOS.items():
        write_video(video, folder / name)
    return [folder / name for name in (*PICTURES, *VIDEOS)]


if __name__ == "__main__":
    for path in main(*sys.argv[1:2]):
        print(f"{path} ({path.stat().st_size} bytes)")
