"""Draws every picture and video that the examples use, and writes them beside this file or into another folder.

Run: python examples/render_media.py [FOLDER]

The scenes are data (`PICTURES`, `VIDEOS`), so that the quick start and the tests know what a right answer says. They
belong to the world of the checkpoint in this repository, and its renderer (`training/world.py`) draws them.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import av

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))  # for `training`, which is not part of the installed package

from training.world import BACKGROUNDS, COLORS, Scene, Shape, render  # noqa: E402


def scene(background, color, kind, x, y, radius, width=448):
    """One shape on a plain background, `width` x 448 pixels, in the plain tone of each colour."""
    shape = Shape(kind, color, x, y, radius, COLORS[color])
    return Scene(background, BACKGROUNDS[background], width, shapes=(shape,))


@dataclass(frozen=True)
class Video:
    """The only shape of `first` on its way to its place in `last` at an even pace, `fps` frames a second."""

    first: Scene
    last: Scene
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
        }
        return max(changes, key=changes.get)


PICTURES = {
    "image1.jpg": scene("white", "red", "circle", 224, 220, 130),
    "image2.jpg": scene("light blue", "yellow", "star", 224, 228, 130),
    # Two tiles and a thumbnail under the models' tiling rule.
    "wide.png": scene("light green", "purple", "square", 448, 220, 130, width=896),
}
VIDEOS = {
    "moving_circle.mp4": Video(
        scene("white", "blue", "circle", 90, 224, 70),
        scene("white", "blue", "circle", 358, 224, 70),
    ),
}


def caption(shown):
    """What a picture or a video shows, in words."""
    first = shown.first if isinstance(shown, Video) else shown
    does = f" that {shown.motion}" if isinstance(shown, Video) else ""
    return f"{_with_article(first.shapes[0].name)}{does} on {_with_article(first.background)} background"


def _with_article(words):
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def frame(video, index):
    """Frame `index` of a video as an RGB image."""
    share = index / (video.frames - 1)
    (begin,), (end,) = video.first.shapes, video.last.shapes
    place = {name: round((1 - share) * getattr(begin, name) + share * getattr(end, name)) for name in ("x", "y")}
    return render(replace(video.first, shapes=(replace(begin, **place),)))


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
        render(picture).save(folder / name, **({"quality": 92} if name.endswith(".jpg") else {"optimize": True}))
    for name, video in VIDEOS.items():
        write_video(video, folder / name)
    return [folder / name for name in (*PICTURES, *VIDEOS)]


if __name__ == "__main__":
    for path in main(*sys.argv[1:2]):
        print(f"{path} ({path.stat().st_size} bytes)")
