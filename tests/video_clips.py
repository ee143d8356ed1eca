"""Small videos that the tests render themselves; every picture shows the number of its frame, so it can be read."""

import functools
import io
import os
import pathlib
import tempfile
from fractions import Fraction

import av
import numpy as np
import pytest

FPS, COUNT, WIDTH, HEIGHT = 25, 60, 160, 96
_FOLDER = tempfile.TemporaryDirectory(prefix="internvl_clips_")
os.environ.setdefault("SVT_LOG", "0")


def picture(number, width=WIDTH, height=HEIGHT):
    """A red band on top, and below it the number as eight black or white blocks, lowest bit left."""
    pixels = np.full((height, width, 3), 96, np.uint8)
    pixels[: height // 4] = 200, 40, 40
    for bit in range(8):
        pixels[height // 4 : 3 * height // 4, bit * width // 8 : (bit + 1) * width // 8] = 255 * (number >> bit & 1)
    return pixels


def number_of(image):
    grey = np.asarray(image.convert("L"))
    height, width = grey.shape
    return sum(1 << bit for bit in range(8) if grey[height // 2, (2 * bit + 1) * width // 16] > 128)


def encode(target, codec="libx264", kind=None, count=COUNT, size=(WIDTH, HEIGHT), pixels="yuv420p", options=None,
           times=None, b_frames=None, rate=FPS, matrix=None, container_options=None, draw=picture):  # fmt: skip
    """Render a video of ``count`` numbered frames into a path or a file object, a keyframe every 12 frames."""
    try:
        av.codec.Codec(codec, "w")
    except Exception:
        pytest.skip(f"the installed PyAV has no encoder {codec}")
    with av.open(target, "w", format=kind, options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        stream.codec_context.gop_size = 12
        if b_frames is not None:
            stream.codec_context.max_b_frames = b_frames
        if matrix is not None:
            stream.set_display_rotation(*matrix)
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(draw(number, *size), format="rgb24")
            frame.pts, frame.time_base = times[number] if times else number, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def x264(open_gop):
    tune = f"keyint=12:min-keyint=12:scenecut=0:b-adapt=0:bframes=3:open-gop={open_gop}:log=-1"
    return {"codec": "libx264", "options": {"x264-params": tune}}


UNEVEN = [3 * number + number % 3 for number in range(COUNT)]  # ticks of 1/50 s
CLIPS = {
    "h264.mp4": x264(0),
    "h264-open-gop.mp4": x264(1),
    "h264-open-gop.mkv": x264(1),
    "h264-open-gop.ts": x264(1),
    "h264.avi": x264(0),
    "h264-open-gop.avi": x264(1),
    "h264.flv": x264(0),
    "h264-fragmented.mp4": {**x264(1), "container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "keyint=12:bframes=3:log-level=none"}},
    "mpeg4.avi": {"codec": "mpeg4", "b_frames": 2},
    "mpeg4.mkv": {"codec": "mpeg4", "b_frames": 2},
    "mpeg2.mpg": {"codec": "mpeg2video", "b_frames": 2},
    "mpeg2-30.mpg": {"codec": "mpeg2video", "b_frames": 2, "rate": 30},  # its clock differs by a frame after a seek
    "mpeg2.ts": {"codec": "mpeg2video", "b_frames": 2},
    "vp8.webm": {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "8"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"lag-in-frames": "16"}},
    "av1.mp4": {"codec": "libsvtav1", "options": {"preset": "12"}},
    "wmv2.asf": {"codec": "wmv2"},
    "mjpeg.avi": {"codec": "mjpeg", "pixels": "yuvj420p"},
    "animation.gif": {"codec": "gif", "pixels": "rgb8"},
    "odd-vp9.webm": {"codec": "libvpx-vp9", "size": (161, 97)},
    "odd-h264.mp4": {**x264(0), "size": (161, 97), "pixels": "yuv444p"},
    "uneven.mp4": {**x264(0), "times": UNEVEN, "rate": 50},
    "uneven.mkv": {**x264(0), "times": UNEVEN, "rate": 50},
}


@functools.cache
def clip(name):
    """The path of the video of that name in CLIPS, rendered once."""
    path = pathlib.Path(_FOLDER.name, name)
    encode(str(path), **CLIPS[name])
    return path


def in_memory(**arguments):
    buffer = io.BytesIO()
    encode(buffer, **arguments)
    return buffer.getvalue()
