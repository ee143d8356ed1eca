"""(a) `load_image` and (b) `load_video` against the model cards' own steps restated plainly, and against the floor:
decoding and resizing alone. Results must be equal bit for bit before anything is timed."""

import importlib.util
import io
import statistics
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image

import internvl_chat

from .measuring import interleaved, median_ratio

SIZES = ((640, 480), (1920, 1080), (4000, 3000))
FRAMES = (8, 32, 64)


def images(machine, rounds, size, model):
    """Milliseconds of ours, and how many times as fast as the published steps; `fast` trades exactness for speed."""
    return [_image_row(*pixels, rounds) for pixels in (SIZES[:1] if size == "tiny" else SIZES)]


def _image_row(width, height, rounds) -> dict:
    data = _jpeg(width, height)
    if not torch.equal(_published_image(data), internvl_chat.load_image(data, max_num=12)):
        raise RuntimeError(f"{width}x{height}: load_image differs from the published steps")
    times = interleaved(
        {
            "published": lambda: _published_image(data),
            "ours": lambda: internvl_chat.load_image(data, max_num=12),
            "fast": lambda: internvl_chat.load_image(data, max_num=12, fast=True),
            "floor": lambda: _resized_only(data),
        },
        rounds,
    )
    return {
        "picture": f"{width}x{height}",
        "ours, ms": 1000 * statistics.median(times["ours"]),
        "published / ours": median_ratio(times["published"], times["ours"]),
        "published / floor": median_ratio(times["published"], times["floor"]),
        "published / ours, fast=True": median_ratio(times["published"], times["fast"]),
    }


def videos(machine, rounds, size, model):
    """The same for a 1080p H.264 video, and for the processor time of all threads; the published steps need decord."""
    if importlib.util.find_spec("decord") is None:
        raise RuntimeError("the published load_video needs decord, which is not installed")
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "video.mp4")
        _write_video(path, *((320, 240) if size == "tiny" else (1920, 1080)))
        return [_video_row(path, frames, rounds) for frames in (FRAMES[:1] if size == "tiny" else FRAMES)]


def _video_row(path, frames, rounds) -> dict:
    if not torch.equal(_published_video(path, frames), _our_video(path, frames)):
        raise RuntimeError(f"{frames} frames: load_video differs from the published steps")
    calls = {
        "published": lambda: _published_video(path, frames),
        "ours": lambda: _our_video(path, frames),
    }
    spent = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.process_time()
            call()
            spent[name].append(time.process_time() - start)
    wall = interleaved(calls, rounds)
    return {
        "frames": frames,
        "ours, ms": 1000 * statistics.median(wall["ours"]),
        "published / ours, time": median_ratio(wall["published"], wall["ours"]),
        "published / ours, processor": median_ratio(spent["published"], spent["ours"]),
    }


# --- the published steps, written out ---------------------------------------------------------------------------------


def _published_tiles(image, max_num, transform):
    image = image.convert("RGB")
    columns, rows = internvl_chat.tile_grid(*image.size, max_num=max_num)
    resized = image.resize((448 * columns, 448 * rows))
    corners = [(448 * column, 448 * row) for row in range(rows) for column in range(columns)]
    tiles = [resized.crop((x, y, x + 448, y + 448)) for x, y in corners]
    if len(tiles) > 1:
        tiles.append(image.resize((448, 448)))
    return torch.stack([transform(tile) for tile in tiles])


def _published_image(data):
    return _published_tiles(Image.open(io.BytesIO(data)), 12, internvl_chat.build_transform(448))


def _published_video(path, frames):
    decord = importlib.import_module("decord")
    video = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
    transform = internvl_chat.build_transform(448)
    indices = internvl_chat.get_index(None, float(video.get_avg_fps()), len(video) - 1, num_segments=frames)
    return torch.cat([_published_tiles(Image.fromarray(video[i].asnumpy()), 1, transform) for i in indices])


def _our_video(path, frames):
    return internvl_chat.load_video(path, num_segments=frames)[0]


def _resized_only(data):
    image = Image.open(io.BytesIO(data)).convert("RGB")
    columns, rows = internvl_chat.tile_grid(*image.size, max_num=12)
    image.resize((448 * columns, 448 * rows))
    if columns * rows > 1:
        image.resize((448, 448))


# --- inputs -----------------------------------------------------------------------------------------------------------


def _picture(width, height, seed=0):
    """A picture with detail at all scales."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def _jpeg(width, height):
    buffer = io.BytesIO()
    _picture(width, height).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _write_video(path, width, height, seconds=10, rate=30):
    """A picture that moves, H.264 with a keyframe every two seconds."""
    picture = np.asarray(_picture(width, height))
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"preset": "veryfast", "g": str(2 * rate)}
        for index in range(seconds * rate):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(np.roll(picture, 4 * index, axis=1)), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
