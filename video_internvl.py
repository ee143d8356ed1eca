"""Videos in, tiles out: which frames to take, how to get exactly those from a file, and their tiles.

Knows nothing of models or prompts; pictures are cut and normalised by ``preprocessing_internvl``. A frame is known by
its place in display order and by its time stamp, and is checked against both before it is handed on.
"""

from __future__ import annotations

import importlib
import io
import logging
import math
import os
from bisect import bisect_left, bisect_right
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass

from .preprocessing_internvl import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    MAX_PIXELS,
    MediaLoadError,
    VideoLoadError,
    candidate_grids,
    check_count,
    describe,
    dynamic_preprocess,
    images_to_pixel_values,
    open_image,
    open_regular_file,
)

try:
    import numpy as np
    from PIL import Image
except ImportError:
    np = Image = None

logger = logging.getLogger(__name__)

# Most frames that are taken from one video, unless the caller says otherwise.
MAX_FRAMES = 512
# More would cost memory, and frames decoded in vain after each seek.
_DECODER_THREADS = 4
# FFmpeg's AV_DISPOSITION_ATTACHED_PIC: the stream is a cover picture, not a video.
_ATTACHED_PICTURE = 0x400
# FFmpeg seeks by presentation time, but in these formats by decoding time. With the wrong one it lands a group of
# frames too early, which costs time, or too late, so that the file has to be decoded from its start.
_SEEKS_BY_DECODING_TIME = frozenset({"mpegts", "mpeg"})
# FFmpeg draws text files as pictures of a terminal; nobody who passes one as a video means that.
_TEXT_FORMATS = frozenset({"tty", "bin", "xbin", "adf", "idf"})
# The signs (a, b, c, d) of FFmpeg's display matrix, x' = a x + c y, y' = b x + d y -> Pillow transposition.
_DISPLAYED = {
    (1, 0, 0, 1): None,
    (-1, 0, 0, 1): "FLIP_LEFT_RIGHT",
    (1, 0, 0, -1): "FLIP_TOP_BOTTOM",
    (-1, 0, 0, -1): "ROTATE_180",
    (0, -1, 1, 0): "ROTATE_90",
    (0, 1, -1, 0): "ROTATE_270",
    (0, 1, 1, 0): "TRANSPOSE",
    (0, -1, -1, 0): "TRANSVERSE",
}


@dataclass(frozen=True)
class VideoFrames:
    """Frames taken from a video.

    ``frames``: RGB PIL images, upright. ``indices``: their places among the ``total_frames`` of the video, from 0.
    ``timestamps``: their times in seconds after the first frame. ``fps``: the average frame rate of the video.
    ``duration``: seconds, up to the end of the last frame. For frames that came as a list the last four are None.
    """

    frames: list
    indices: tuple
    timestamps: tuple | None = None
    fps: float | None = None
    total_frames: int | None = None
    duration: float | None = None

    def __len__(self):
        return len(self.frames)


# ----------------------------------------------------------------------------------------------- which frames


def get_index(bound, fps, max_frame, first_idx=0, num_segments=32):
    """Return the indices of ``num_segments`` frames spread over a video: an int array (rule of the model cards).

    ``bound``: None or (start, end) in seconds; ``fps``: average frames per second; ``max_frame``: index of the last
    frame. The span is cut into equal segments, of which about the middle is taken; indices repeat if there are more
    segments than frames.
    """
    start, end = (bound[0], bound[1]) if bound else (-100000, 100000)
    first = max(first_idx, round(start * fps))
    last = min(round(end * fps), max_frame)
    segment = float(last - first) / num_segments
    return np.array([int(first + segment / 2 + np.round(segment * index)) for index in range(num_segments)])


def _checked_bound(bound, duration):
    try:
        start, end = (float(seconds) for seconds in bound)
    except (TypeError, ValueError):
        raise ValueError(f"bound must be (start, end) in seconds, got {bound!r}") from None
    if not (math.isfinite(start) and math.isfinite(end) and start <= end):
        raise ValueError(f"bound must be (start, end) in seconds with start <= end, got {bound!r}")
    if end < 0 or start >= duration:
        raise ValueError(f"bound={bound!r} lies outside the video, which lasts from 0 to {duration:.3f} seconds")
    return start, end


def _indices_of_segments(reader, bound, num_segments):
    times, last = reader.times, len(reader.times) - 1
    if bound and round(bound[0] * reader.fps) > last + 1:
        # A file of uneven frames may state an average rate that is far off, by which the published rule would point
        # behind the last frame; the times are right.
        first, last = bisect_left(times, bound[0]), bisect_right(times, bound[1]) - 1
        return get_index(None, reader.fps, last, min(first, last), num_segments).tolist()
    return get_index(bound, reader.fps, last, num_segments=num_segments).tolist()


def _indices_at_rate(times, bound, fps, max_frames):
    """Indices of the frames nearest to ``start, start + 1/fps, ...``, each once; ``times`` ascend from 0."""
    start, end = (max(bound[0], 0.0), bound[1]) if bound else (0.0, times[-1])
    first, last = bisect_left(times, start), bisect_right(times, end) - 1
    if first > last:  # no frame begins inside the bound: the one that is on display then
        return [max(first - 1, 0)]
    inside = np.asarray(times[first : last + 1])
    if len(inside) == 1 or fps >= 1 / np.diff(inside).min():
        chosen = np.arange(first, last + 1)
    else:
        wanted = start + np.arange(int((min(end, times[-1]) - start) * fps + 1e-6) + 1) / fps
        after = np.clip(np.searchsorted(inside, wanted), 1, len(inside) - 1)
        nearest = after - (wanted - inside[after - 1] <= inside[after] - wanted)
        chosen = np.unique(nearest) + first
    if len(chosen) > max_frames:
        logger.warning("fps=%g asks for %d frames; %d are taken, evenly (max_frames)", fps, len(chosen), max_frames)
        chosen = chosen[np.round(np.linspace(0, len(chosen) - 1, max_frames)).astype(int)]
    return chosen.tolist()


# --------------------------------------------------------------------------------------------- reading a file


class _SeekMismatchError(Exception):
    """Seeking did not give the frames that the packets promised; the file has to be decoded from its start."""


@dataclass(frozen=True)
class _Source:
    """An open binary file, the name that messages use, the cap on its frames and, where there is one, the absolute
    path."""

    file: object
    name: str
    max_pixels: int
    path: str | None = None


def _optional_module(module, requirement):
    try:
        return importlib.import_module(module)
    # A library built for another FFmpeg or torch fails with RuntimeError or OSError rather than ImportError.
    except (ImportError, RuntimeError, OSError) as error:
        root = module.partition(".")[0]
        raise ImportError(f"reading this video needs {root}: pip install {requirement} ({error})") from error


def _upright(image, frame):
    """Apply the display matrix that phones store instead of turning the picture."""
    try:
        matrix = np.frombuffer(bytes(frame.side_data["DISPLAYMATRIX"]), np.int32)[[0, 1, 3, 4]]
    except (KeyError, IndexError):
        return image
    signs = tuple(int(sign) for sign in np.round(matrix / max(1, np.abs(matrix.astype(np.int64)).max())))
    method = _DISPLAYED.get(signs)
    return image if method is None else image.transpose(getattr(Image.Transpose, method))


class _PyAVReader:
    """The default: frames by PyAV, which brings its own FFmpeg.

    First all packets are listed without decoding: their sorted presentation times (``pts``) are the frames in display
    order, edit lists included. A wanted frame is then decoded from the keyframe before it, and every decoded frame on
    the way must have the listed time. Where one has not, and where packets have no times, ``_SeekMismatchError`` is
    raised; with ``exact=True`` the file is decoded from the start instead, once to count and once to pick.
    """

    def __init__(self, source, exact):
        self._av = _optional_module("av", '"internvl_chat[video]"')
        self._source = source
        self._exact = exact
        self._stack = ExitStack()
        try:
            self._open()
            rate = self._stream.average_rate or self._stream.guessed_rate
            if exact:
                self._list_frames()
            else:
                self._list_packets()
            self.times, self.fps = self._clock(rate)
        except BaseException:
            self.close()
            raise

    def close(self):
        self._stack.close()

    def _open(self):
        self._source.file.seek(0)
        # The data come through our file object, so no protocol of FFmpeg's is needed: a playlist that names other
        # files or URLs gets none.
        options = {"protocol_whitelist": "none"}
        container = self._av.open(self._source.file, mode="r", container_options=options, metadata_errors="replace")
        self._container = self._stack.enter_context(closing(container))
        streams = self._container.streams  # PyAV 12 and older do not choose the best one
        stream = streams.best("video") if hasattr(streams, "best") else next(iter(streams.video), None)
        disposition = getattr(stream, "disposition", 0)
        if getattr(disposition, "value", disposition) & _ATTACHED_PICTURE:
            raise ValueError("it has no video stream, only a cover picture")
        if self._container.format.name in _TEXT_FORMATS:
            raise ValueError("it is a text file")
        if stream is None:
            kinds = sorted({found.type for found in streams})
            raise ValueError(f"it has no video stream (streams: {', '.join(kinds) or 'none'})")
        context = stream.codec_context
        if context is None:
            raise ValueError("the installed FFmpeg has no decoder for its video stream")
        most = self._source.max_pixels
        if context.width * context.height > most:
            raise ValueError(f"its frames of {context.width}x{context.height} pixels are more than max_pixels={most}")
        # Frames that turn out larger than the header says; FFmpeg counts with sides that are rounded up.
        context.options = {**context.options, "max_pixels": str(most * 5 // 4 + 2**16)}
        # Decoding several frames at once is fast; one by one, a damaged file gives the same frames every time.
        stream.thread_type = "SLICE" if self._exact else "AUTO"
        context.thread_count = min(_DECODER_THREADS, os.cpu_count() or 1)
        # Pictures on the way that no other refers to need no decoding; H.264 marks them beyond doubt.
        self._skips = context.name == "h264" and not self._exact
        self._stream = stream

    def _list_frames(self):
        """List the times of the frames by decoding them all, and go back to the start."""
        self._pts = [frame.pts for frame in self._decoded(report=True)]
        if not self._pts:
            raise ValueError("not one frame can be decoded")
        self.close()
        self._open()

    def _list_packets(self):
        """List the times of the frames and the times of the keyframes, both ascending."""
        pts, keys, damaged, decoded_at = [], [], 0, -math.inf
        try:
            for packet in self._container.demux(self._stream):
                if packet.size == 0:  # the mark at the end
                    continue
                if packet.pts is None:
                    raise _SeekMismatchError
                if packet.dts is not None:
                    if packet.dts < decoded_at:  # the clock jumps back, as where two recordings were joined
                        raise _SeekMismatchError
                    decoded_at = packet.dts
                if packet.is_corrupt:
                    damaged += 1
                    continue
                if packet.is_keyframe:
                    keys.append((packet.pts, packet.pts if packet.dts is None else packet.dts))
                if keys and not packet.is_discard:  # what an edit list cuts away is decoded, but never shown
                    pts.append(packet.pts)
        except self._av.error.FFmpegError as error:
            raise _SeekMismatchError from error
        # AVI stores no presentation times: ascending ones, made up by FFmpeg for frames that change places, are false.
        if self._container.format.name == "avi" and self._stream.codec_context.has_b_frames and pts == sorted(pts):
            raise _SeekMismatchError
        keys.sort()
        # What comes before the first keyframe of a cut recording, in the file or on display, cannot be decoded.
        self._pts = sorted(value for value in pts if value >= keys[0][0])
        self._keys = keys
        if not self._pts or len(set(self._pts)) != len(self._pts):
            raise _SeekMismatchError
        self._report(damaged)

    def _report(self, damaged):
        if damaged:
            logger.warning("%s is damaged: %d packets are left out", self._source.name, damaged)

    def _clock(self, rate):
        """Times in seconds after the first frame, and the average frame rate."""
        pts, tick, count = self._pts, self._stream.time_base, len(self._pts)
        ascending = None not in pts and tick and all(a < b for a, b in zip(pts, pts[1:]))
        if not rate:
            span = float((pts[-1] - pts[0]) * tick) if ascending else 0.0
            rate = (count - 1) / span if span else 25.0
        rate = float(rate)
        if ascending:
            return [float((value - pts[0]) * tick) for value in pts], rate
        return [index / rate for index in range(count)], rate

    def pick(self, indices, keep):
        """Return ``{index: keep(RGB image)}`` for ascending ``indices``, holding one decoded frame at a time."""
        take = self._pick_in_sequence if self._exact else self._pick_by_seeking
        kept = {}
        for index, frame in take(indices):
            if frame.is_corrupt:
                logger.warning("%s is damaged: frame %d is what could be saved", self._source.name, index)
            kept[index] = keep(_upright(Image.fromarray(frame.to_ndarray(format="rgb24")), frame))
        return kept

    def _pick_in_sequence(self, indices):
        remaining = set(indices)
        for index, frame in enumerate(self._decoded()):
            if index in remaining:
                yield index, frame
                remaining.discard(index)
            if not remaining:
                return
        raise ValueError(f"it gave {len(self._pts)} frames once and fewer the second time")

    def _decoded(self, report=False):
        """Yield all frames from where the file stands, passing over packets that cannot be decoded."""
        damaged = 0
        try:
            for packet in self._container.demux(self._stream):
                frames = ()
                try:
                    if not packet.is_corrupt:
                        frames = packet.decode()
                except self._av.error.FFmpegError:
                    damaged += 1
                damaged += packet.is_corrupt
                yield from frames
        except self._av.error.FFmpegError:  # the file ends in the middle of a packet
            damaged += 1
        if report:
            self._report(damaged)

    def _pick_by_seeking(self, indices):
        wanted = {self._pts[index] for index in indices}
        frames, start, upcoming = None, 0, 0
        for index in indices:
            key = bisect_right(self._keys, (self._pts[index], math.inf)) - 1
            key_start = bisect_left(self._pts, self._keys[key][0])
            if frames is None or key_start > upcoming:
                start = upcoming = key_start
                frames = self._frames_from(*self._keys[key], wanted | {self._pts[start]})
            for frame in frames:
                place = bisect_left(self._pts, frame.pts)
                left_out = place > upcoming and not (self._skips and upcoming > start)
                if place < upcoming or place > index or left_out or self._pts[place] != frame.pts:
                    raise _SeekMismatchError
                upcoming = place + 1
                if place == index:
                    yield index, frame
                    break
            else:
                raise _SeekMismatchError

    def _frames_from(self, key_pts, key_dts, wanted):
        """Yield frames in display order from a keyframe on, at least those whose times are ``wanted``."""
        try:
            by_dts = self._container.format.name in _SEEKS_BY_DECODING_TIME
            self._container.seek(key_dts if by_dts else key_pts, stream=self._stream)
            for packet in self._container.demux(self._stream):
                if self._skips:
                    self._stream.codec_context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
                for frame in packet.decode():
                    # MPEG program streams may count times differently after a seek: a keyframe must still be one.
                    if frame.pts is None or (frame.pts == key_pts and not frame.key_frame):
                        raise _SeekMismatchError
                    if frame.pts >= key_pts:
                        yield frame
        except self._av.error.FFmpegError as error:
            raise _SeekMismatchError from error


class _DecordReader:
    """Frames by decord, as in the model cards; in AVI, MPEG-TS, open-group and cut files it returns wrong ones."""

    def __init__(self, source, exact):
        decord = _optional_module("decord", "decord")
        self._video = decord.VideoReader(source.path or source.file, ctx=decord.cpu(0), num_threads=1)
        self.fps = float(self._video.get_avg_fps())
        starts = np.asarray(self._video.get_frame_timestamp(range(len(self._video))), np.float64)[:, 0]
        # In files without presentation times decord's are arbitrary numbers.
        sound = np.all(np.diff(starts) > 0) and starts[-1] - starts[0] < 2 * len(starts) / self.fps
        self.times = (starts - starts[0] if sound else np.arange(len(starts)) / self.fps).tolist()

    def close(self):
        self._video = None  # decord has no other way to close a file

    def pick(self, indices, keep):
        return {index: keep(Image.fromarray(self._video[index].asnumpy())) for index in indices}


class _TorchCodecReader:
    """Frames by torchcodec in its exact mode; it needs FFmpeg's shared libraries.

    The times of frames that are not asked for are taken to be regular, which is what ``fps=`` goes by.
    """

    def __init__(self, source, exact):
        decoders = _optional_module("torchcodec.decoders", "torchcodec")
        try:
            self._video = decoders.VideoDecoder(source.path or source.file, dimension_order="NHWC", seek_mode="exact")
        except RuntimeError as error:
            if "libtorchcodec" in str(error):
                raise ImportError(f"torchcodec finds no FFmpeg libraries that it can use ({error})") from error
            raise
        self.fps = float(self._video.metadata.average_fps)
        self.times = [index / self.fps for index in range(len(self._video))]

    def close(self):
        self._video = None

    def pick(self, indices, keep):
        kept, origin = {}, self._video.metadata.begin_stream_seconds or 0.0
        for index in indices:
            frame = self._video.get_frame_at(index)
            self.times[index] = frame.pts_seconds - origin
            kept[index] = keep(Image.fromarray(frame.data.numpy()))
        return kept


# Each has `times`, `fps`, `pick(indices, keep)` and `close()`.
BACKENDS = {"pyav": _PyAVReader, "decord": _DecordReader, "torchcodec": _TorchCodecReader}


@contextmanager
def _opened(video, max_pixels):
    name = describe(video)
    if isinstance(video, (str, os.PathLike)):
        with open_regular_file(video, VideoLoadError) as file:
            yield _Source(file, name, max_pixels, os.path.abspath(os.fsdecode(video)))
    elif isinstance(video, (bytes, bytearray, memoryview)):
        yield _Source(io.BytesIO(video), name, max_pixels)
    elif callable(getattr(video, "read", None)):
        seekable = getattr(video, "seekable", lambda: callable(getattr(video, "seek", None)))
        yield _Source(video if seekable() else io.BytesIO(video.read()), name, max_pixels)
    else:
        raise TypeError(
            "a video must be a path, bytes, a binary file object, a list of frames or an array of shape "
            f"(frames, height, width, channels), got {type(video).__name__}"
        )


@contextmanager
def _explained(name):
    """Turn whatever a decoder raises into one VideoLoadError that names the file."""
    try:
        yield
    except (MediaLoadError, ImportError, _SeekMismatchError):
        raise
    # PyAV raises bare IndexError, UnicodeDecodeError and others beside its own errors; decord and torchcodec theirs.
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise VideoLoadError(f"cannot read a video from {name}: {reason}") from error


def _frames_of(video, max_frames, max_pixels):
    """The frames of a video that is not a file, as RGB images; None for a file."""
    if isinstance(video, VideoFrames):
        return list(video.frames)
    if np is not None and isinstance(video, np.ndarray):
        if video.ndim != 4:
            raise ValueError(f"a video array must have the shape (frames, height, width, channels), got {video.shape}")
        video = list(video)
    if not isinstance(video, (list, tuple)):
        return None
    if not video:
        raise VideoLoadError("cannot read a video from an empty list of frames")
    if len(video) > max_frames:
        raise ValueError(f"{len(video)} frames are more than max_frames={max_frames}")
    return [open_image(frame, max_pixels=max_pixels) for frame in video]


def _sample(video, bound, num_segments, fps, max_frames, max_pixels, backend, keep):
    """Choose frames and return them as a VideoFrames whose images went through ``keep``, each different one once."""
    num_segments, max_frames = check_count("num_segments", num_segments), check_count("max_frames", max_frames)
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")
    if fps is not None and not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"fps must be a positive number, got {fps!r}")
    frames = _frames_of(video, max_frames, max_pixels)
    if frames is not None:
        if bound or fps is not None:
            raise ValueError(f"frames given as such have no times: bound={bound!r}, fps={fps!r} cannot apply")
        return VideoFrames([keep(frame) for frame in frames], tuple(range(len(frames))))
    if fps is None and num_segments > max_frames:
        raise ValueError(f"num_segments={num_segments} is more than max_frames={max_frames}")
    with _opened(video, max_pixels) as source:
        if not source.file.seek(0, os.SEEK_END):
            raise VideoLoadError(f"cannot read a video from {source.name}: it is empty")
        for exact in (False, True):
            try:
                return _sample_file(BACKENDS[backend], source, exact, bound, num_segments, fps, max_frames, keep)
            except _SeekMismatchError:
                logger.info("%s cannot be sought in reliably: decoding it from the start", source.name)
    raise VideoLoadError(f"cannot read a video from {source.name}: its frames do not come in order")


def _sample_file(reader_type, source, exact, bound, num_segments, fps, max_frames, keep):
    source.file.seek(0)
    with _explained(source.name):
        reader = reader_type(source, exact)
    with closing(reader):
        total = len(reader.times)
        duration = reader.times[-1] + 1 / reader.fps
        seconds = _checked_bound(bound, duration) if bound else None
        if fps is None:
            indices = _indices_of_segments(reader, seconds, num_segments)
        else:
            indices = _indices_at_rate(reader.times, seconds, fps, max_frames)
        with _explained(source.name):
            kept = reader.pick(sorted(set(indices)), keep)
        return VideoFrames(
            frames=[kept[index] for index in indices],
            indices=tuple(indices),
            timestamps=tuple(reader.times[index] for index in indices),
            fps=reader.fps,
            total_frames=total,
            duration=duration,
        )


# ------------------------------------------------------------------------------------------------ public calls


def read_frames(
    video_path,
    bound=None,
    num_segments=32,
    *,
    fps=None,
    max_frames=MAX_FRAMES,
    max_pixels=MAX_PIXELS,
    backend="pyav",
):
    """Take frames from a video as upright RGB PIL images: a ``VideoFrames``.

    ``video_path``: a path, the bytes of a video file, a binary file object (left open), or the frames themselves as a
    list of whatever ``open_image`` reads, an array (frames, height, width, channels) or a ``VideoFrames``. Frames given
    as such are all taken, whatever ``num_segments`` says. URLs are refused.

    ``bound`` (start, end) in seconds limits the choice. By default ``num_segments`` frames are spread over it as
    ``get_index`` says, as in the model cards. With ``fps`` it is instead the frames nearest to ``fps`` points of time a
    second from the start of the bound, each frame once; if they are more than ``max_frames``, so many of them, evenly
    spaced, with a logged warning. More segments, or more frames given as such, than ``max_frames`` are an error.

    ``max_pixels`` caps width x height of a frame, checked before decoding (with PyAV).

    ``backend``: ``"pyav"``, ``"decord"`` or ``"torchcodec"``. With PyAV each frame is the one asked for, also in files
    that cannot be sought in, and turned as the file says; no more than one full-size frame beside the result is held.
    A damaged or truncated file gives the frames that can be decoded, with a logged warning.

    Raises FileNotFoundError for a missing file, VideoLoadError for one without readable frames (audio only, empty,
    broken, not a regular file), ValueError for wrong numbers and for a bound that is inverted or outside the video,
    TypeError for an object of another type, ImportError if the backend is not installed.
    """
    return _sample(video_path, bound, num_segments, fps, max_frames, max_pixels, backend, keep=lambda image: image)


def load_video(
    video_path,
    bound=None,
    input_size=448,
    max_num=1,
    num_segments=32,
    *,
    fps=None,
    max_frames=MAX_FRAMES,
    max_pixels=MAX_PIXELS,
    backend="pyav",
    min_num=1,
    use_thumbnail=True,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    dtype=None,
    fast=False,
):
    """Take frames from a video and cut each into tiles: ``(pixel_values, num_patches_list)``.

    ``pixel_values`` has the shape (all tiles, 3, input_size, input_size), ``num_patches_list`` the number of tiles of
    each frame. The frames are those of ``read_frames`` with the same arguments (pass its result as ``video_path`` to
    have both), the tiles those of ``load_image``, with ``fast`` as there. Raises what these two raise.
    """
    candidate_grids(min_num, max_num)  # wrong numbers are told before a long file is read
    check_count("input_size", input_size)

    def cut(image):
        return dynamic_preprocess(image, min_num, max_num, input_size, use_thumbnail, fast=fast)

    tiles = _sample(video_path, bound, num_segments, fps, max_frames, max_pixels, backend, keep=cut).frames
    pixel_values = images_to_pixel_values([tile for frame in tiles for tile in frame], mean=mean, std=std, dtype=dtype)
    return pixel_values, [len(frame) for frame in tiles]
