"""The video path: each frame is the one asked for (its number is drawn into the picture), sources, damage, errors."""

import contextlib
import io
import logging
import math
import os
import sys
import types

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from video_clips import CLIPS, COUNT, FPS, HEIGHT, UNEVEN, WIDTH, clip, encode, in_memory, number_of, picture, x264

import internvl_chat.video_internvl as video
from internvl_chat.preprocessing_internvl import load_image
from internvl_chat.video_internvl import VideoFrames, VideoLoadError, get_index, load_video, read_frames

# ------------------------------------------------------------------------------------------------ the right frame


@pytest.mark.parametrize("name", CLIPS)
def test_each_frame_is_the_one_asked_for(name):
    path, rate = clip(name), CLIPS[name].get("rate", FPS)
    for num_segments in (1, 3, 8, COUNT, 100):
        found = read_frames(path, num_segments=num_segments)
        assert found.total_frames == COUNT
        assert list(found.indices) == get_index(None, found.fps, COUNT - 1, num_segments=num_segments).tolist()
        assert [number_of(frame) for frame in found.frames] == list(found.indices)
        assert {frame.mode for frame in found.frames} == {"RGB"}
        assert {frame.size for frame in found.frames} == {CLIPS[name].get("size", (WIDTH, HEIGHT))}
        ticks = [UNEVEN[index] / 50 if "uneven" in name else index / rate for index in found.indices]
        assert found.timestamps == pytest.approx(ticks, abs=0.002)
    for index in range(COUNT):  # alone, so that no neighbour gives a wrong one away
        time = index / found.fps
        alone = read_frames(path, (time, time), 1)
        assert alone.indices == (index,) and number_of(alone.frames[0]) == index
    assert "uneven" in name or (found.fps == rate and found.duration == pytest.approx(COUNT / rate, abs=0.002))


def test_the_open_gop_clip_has_frames_that_need_the_group_before():
    """Else the test above proves nothing: some frame is shown before a keyframe, but decoded after it."""
    with av.open(str(clip("h264-open-gop.mp4"))) as container:
        packets = [(packet.pts, packet.is_keyframe) for packet in container.demux(video=0) if packet.size]
    keyframes = [place for place, (_, key) in enumerate(packets) if key]
    assert len(keyframes) > 2 and any(packets[place + 1][0] < packets[place][0] for place in keyframes[1:])


def test_a_file_with_false_times_is_decoded_from_its_start(caplog):
    """AVI keeps no presentation times for H.264: what FFmpeg guesses is out of order."""
    with caplog.at_level(logging.INFO, logger=video.__name__):
        found = read_frames(clip("h264.avi"), num_segments=8)
        assert "decoding it from the start" in caplog.text
        caplog.clear()
        read_frames(clip("h264.mp4"), num_segments=8)
        assert not caplog.text
    assert [number_of(frame) for frame in found.frames] == list(found.indices)


def test_a_recording_that_begins_between_keyframes(caplog):
    caplog.set_level(logging.INFO, logger=video.__name__)
    data = clip("h264-open-gop.ts").read_bytes()
    found = read_frames(data[len(data) // 3 // 188 * 188 :], num_segments=200)
    numbers = [number_of(frame) for frame in found.frames]
    first = numbers[0]
    assert first % 12 == 0 and 0 < first < COUNT - 12
    assert numbers == [first + index for index in found.indices]
    assert numbers[-1] == COUNT - 1 and found.timestamps[0] == 0
    assert not caplog.text  # it could be sought in


def test_joined_recordings_whose_clock_jumps_back():
    """Sorted by time, the frames of the second would come first."""
    data = clip("mpeg2.mpg").read_bytes()
    data = data[len(data) // 2 :] + data[: len(data) // 2]
    found = read_frames(data, num_segments=COUNT)
    assert number_of(read_frames(data, (0, 0), 1).frames[0]) == number_of(found.frames[0])
    numbers = list(dict.fromkeys(number_of(frame) for frame in found.frames))
    second = numbers.index(0)
    assert second > 10 and numbers[: second - 3] == list(range(numbers[0], numbers[0] + second - 3))
    assert numbers[second:] == list(range(len(numbers) - second)) and len(numbers) - second > 20
    assert all(a < b for a, b in zip(found.timestamps, found.timestamps[1:]) if a != b)


def test_frames_that_an_edit_list_cuts_away_are_not_counted(caplog):
    caplog.set_level(logging.INFO, logger=video.__name__)
    buffer = io.BytesIO()
    with (
        av.open(str(clip("h264.mp4"))) as source,
        av.open(buffer, "w", format="mp4", options={"avoid_negative_ts": "disabled", "use_editlist": "1"}) as target,
    ):
        stream = source.streams.video[0]
        if not hasattr(target, "add_stream_from_template"):
            pytest.skip("the installed PyAV cannot copy a stream")
        copy = target.add_stream_from_template(stream)
        shift = int(20 / FPS / stream.time_base)
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copy
                target.mux(packet)
    with av.open(io.BytesIO(buffer.getvalue())) as container:
        assert any(packet.is_discard for packet in container.demux(video=0))
    found = read_frames(buffer.getvalue(), num_segments=COUNT)
    assert found.total_frames == COUNT - 20 and not caplog.text  # it could be sought in
    assert [number_of(frame) for frame in found.frames] == [20 + index for index in found.indices]


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrored", [False, True])
def test_the_display_matrix_is_applied(degrees, mirrored):
    if not hasattr(av.video.stream.VideoStream, "set_display_rotation"):
        pytest.skip("the installed PyAV cannot write a display matrix")
    data = in_memory(kind="mp4", count=3, matrix=(degrees, mirrored), **x264(0))
    expected = np.rot90(picture(1), degrees // 90)
    expected = expected[:, ::-1] if mirrored else expected
    shown = np.asarray(read_frames(data, num_segments=3).frames[1])
    assert shown.shape == expected.shape
    assert np.abs(shown.astype(int) - expected).mean() < 12


def test_one_frame():
    found = read_frames(in_memory(kind="mp4", count=1, **x264(0)), num_segments=4)
    assert found.indices == (0, 0, 0, 0) and found.timestamps == (0.0,) * 4 and found.total_frames == 1
    assert found.frames[0] is found.frames[3]
    found = read_frames(in_memory(kind="mp4", count=1, **x264(0)), fps=3)
    assert found.indices == (0,)


def test_the_cover_picture_of_a_sound_file_is_not_a_video():
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        sound = container.add_stream("aac", rate=8000)
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        try:
            cover.disposition = 0x400  # attached picture
        except AttributeError:
            pytest.skip("the installed PyAV cannot mark a cover picture")
        container.mux(cover.encode(av.VideoFrame.from_ndarray(picture(1, 64, 48), format="rgb24")))
        container.mux(cover.encode(None))
        container.mux(sound.encode(silence()))
        container.mux(sound.encode(None))
    with pytest.raises(VideoLoadError, match="only a cover picture"):
        read_frames(buffer.getvalue())


# ------------------------------------------------------------------------------------------------- load_video


def plain_tiles(frames, size, max_num):
    """The model cards' loop: each frame like an image (proved equal to the published rule in test_preprocessing)."""
    tiles = [load_image(frame, size, max_num) for frame in frames]
    return torch.cat(tiles), [len(tile) for tile in tiles]


@pytest.mark.parametrize("max_num", [1, 6])
def test_load_video_is_the_published_loop(max_num):
    path = clip("h264-open-gop.mp4")
    with av.open(str(path)) as container:  # all frames, in order, without seeking
        everything = [Image.fromarray(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    wanted = get_index(None, 25.0, COUNT - 1, num_segments=7)
    expected, counts = plain_tiles([everything[index] for index in wanted], 56, max_num)
    values, patches = load_video(path, None, 56, max_num, 7)
    assert patches == counts and torch.equal(values, expected) and values.dtype == torch.float32
    values, _ = load_video(str(path), input_size=56, max_num=max_num, num_segments=7, dtype=torch.bfloat16)
    assert torch.equal(values, expected.bfloat16())


def test_load_video_defaults():
    values, patches = load_video(clip("h264.mp4"))
    assert values.shape == (32, 3, 448, 448) and patches == [1] * 32


def test_all_sources_give_the_same_frames():
    path = clip("h264.mp4")
    expected, counts = load_video(path, input_size=32, num_segments=5)
    data = path.read_bytes()
    buffer = io.BytesIO(data)
    buffer.seek(99)

    class Stream(io.RawIOBase):
        """A file object that cannot be sought in."""

        def __init__(self):
            self.rest = data

        def readable(self):
            return True

        def read(self, size=-1):
            size = len(self.rest) if size is None or size < 0 else size
            head, self.rest = self.rest[:size], self.rest[size:]
            return head

    found = read_frames(path, num_segments=5)
    arrays = [np.asarray(frame) for frame in found.frames]
    with open(path, "rb") as file:
        for source in [str(path), data, bytearray(data), memoryview(data), buffer, file, Stream(), found, found.frames,
                       tuple(arrays), np.stack(arrays)]:  # fmt: skip
            values, patches = load_video(source, input_size=32, num_segments=5)
            assert patches == counts and torch.equal(values, expected), type(source)
        assert not file.closed and not buffer.closed


def test_frames_given_as_such_are_all_taken():
    frames = [Image.new("L", (40, 30), 7 * number) for number in range(50)]
    found = read_frames(frames, num_segments=3)
    assert len(found) == 50 and found.indices == tuple(range(50)) and found.timestamps is None and found.fps is None
    assert frames[0].mode == "L" and found.frames[0].mode == "RGB"
    two = [frames[0], Image.new("RGB", (90, 30))]
    values, patches = load_video(two, input_size=32, max_num=6)
    expected, counts = plain_tiles(two, 32, 6)
    assert patches == counts and counts[1] == 4 and torch.equal(values, expected)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_no_file_stays_open(tmp_path):
    def links():
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                yield os.readlink(f"/proc/self/fd/{name}")

    broken = tmp_path / "broken.mp4"
    broken.write_bytes(clip("h264.mp4").read_bytes()[:500])
    read_frames(clip("h264.avi"), num_segments=3)
    with pytest.raises(VideoLoadError):
        read_frames(broken)
    assert not {str(clip("h264.avi")), str(broken)} & set(links())


# ------------------------------------------------------------------------------------------------ damaged files


@pytest.mark.parametrize(
    "name", ["h264-open-gop.ts", "mpeg2.ts", "vp9.webm", "h264-open-gop.mkv", "h264.flv", "wmv2.asf"]
)
def test_a_truncated_stream_gives_what_is_left(name):
    data = clip(name).read_bytes()
    first, again = (read_frames(data[: len(data) * 3 // 4], num_segments=COUNT) for _ in range(2))
    assert 20 < first.total_frames < COUNT
    numbers = {index: number_of(frame) for index, frame in zip(first.indices, first.frames)}
    settled = [index for index in numbers if index < first.total_frames - 4]  # the last ones may lack their references
    assert [numbers[index] for index in settled] == settled
    assert first.indices == again.indices
    assert [frame.tobytes() for frame in first.frames] == [frame.tobytes() for frame in again.frames]


def test_a_truncated_mp4_with_its_index_in_front(tmp_path, caplog):
    encode(str(tmp_path / "index-first.mp4"), container_options={"movflags": "faststart"}, **x264(0))
    data = (tmp_path / "index-first.mp4").read_bytes()
    found = read_frames(data[: len(data) * 3 // 4], num_segments=COUNT)
    assert 10 < found.total_frames < COUNT and "is damaged" in caplog.text
    assert [number_of(frame) for frame in found.frames][:12] == list(found.indices)[:12]


def silence():
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.int16), format="s16", layout="mono")
    frame.sample_rate = 8000
    return frame


def sound_only():
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="wav") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        container.mux(stream.encode(silence()))
    return buffer.getvalue()


def written(folder, data, name="clip.mp4"):
    (folder / name).write_bytes(data)
    return folder / name


def fifo(folder):
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no named pipes")
    os.mkfifo(folder / "pipe.mp4")
    return folder / "pipe.mp4"


def playlist(folder):
    target = clip("h264-open-gop.ts")
    text = f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:2.4,\n{target}\n#EXT-X-ENDLIST\n"
    return written(folder, text.encode(), "list.m3u8")


@pytest.mark.parametrize(
    "make, error, words",
    [
        (lambda folder: folder / "missing.mp4", FileNotFoundError, "missing.mp4"),
        (lambda folder: folder, VideoLoadError, "a directory"),
        (lambda folder: fifo(folder), VideoLoadError, "a named pipe"),
        (lambda folder: os.devnull, VideoLoadError, "a device"),
        (lambda folder: written(folder, b""), VideoLoadError, "clip.mp4': it is empty"),
        (lambda folder: b"", VideoLoadError, "0 bytes of data: it is empty"),
        (lambda folder: written(folder, b"\0" * 5000), VideoLoadError, "clip.mp4"),
        (lambda folder: written(folder, b"some words\n" * 50, "notes.txt"), VideoLoadError, "text"),
        (lambda folder: written(folder, clip("h264.mp4").read_bytes()[:3000]), VideoLoadError, "clip.mp4"),
        (lambda folder: written(folder, sound_only(), "a.wav"), VideoLoadError, "a.wav': it has no video stream"),
        (playlist, VideoLoadError, "list.m3u8"),
        (lambda folder: "https://example.org/a.mp4", VideoLoadError, "URL"),
        (lambda folder: "rtsp://example.org/a", VideoLoadError, "URL"),
        (lambda folder: [], VideoLoadError, "empty list"),
        (lambda folder: np.zeros((4, 4, 3), np.uint8), ValueError, "(4, 4, 3)"),
        (lambda folder: None, TypeError, "NoneType"),
        (lambda folder: Image.new("RGB", (4, 4)), TypeError, "Image"),
    ],
)
def test_errors_name_the_file_and_the_reason(tmp_path, make, error, words):
    for call in (read_frames, load_video):
        if os.path.exists(tmp_path / "pipe.mp4"):
            os.unlink(tmp_path / "pipe.mp4")
        with pytest.raises(error) as caught:
            call(make(tmp_path))
        assert words in str(caught.value)


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ({"num_segments": 0}, ValueError, "num_segments must be at least 1, got 0"),
        ({"num_segments": 2.5}, TypeError, "num_segments"),
        ({"max_frames": 0}, ValueError, "max_frames"),
        ({"fps": 0}, ValueError, "fps must be a positive number, got 0"),
        ({"fps": math.nan}, ValueError, "fps"),
        ({"backend": "opencv"}, ValueError, "'pyav', 'decord', 'torchcodec', got 'opencv'"),
        ({"bound": (2, 1)}, ValueError, "(2, 1)"),
        ({"bound": (2.4, 5)}, ValueError, "bound=(2.4, 5) lies outside the video, which lasts from 0 to 2.400 seconds"),
        ({"bound": (-5, -1)}, ValueError, "(-5, -1)"),
        ({"bound": (0, math.inf)}, ValueError, "inf"),
        ({"bound": (1,)}, ValueError, "(1,)"),
        ({"bound": 3}, ValueError, "got 3"),
    ],
)
def test_wrong_numbers_are_named(arguments, error, words):
    for call in (read_frames, load_video):
        with pytest.raises(error) as caught:
            call(clip("h264.mp4"), **arguments)
        assert words in str(caught.value) and not isinstance(caught.value, VideoLoadError)


def test_wrong_tile_numbers_are_told_before_reading():
    with pytest.raises(ValueError, match="min_num=3 and max_num=1"):
        load_video("missing.mp4", min_num=3)
    with pytest.raises(ValueError, match="input_size must be at least 1, got 0"):
        load_video("missing.mp4", input_size=0)


@pytest.mark.parametrize("arguments", [{"bound": (0, 1)}, {"fps": 2}])
def test_frames_given_as_such_have_no_times(arguments):
    with pytest.raises(ValueError, match="no times"):
        read_frames([Image.new("RGB", (4, 4))], **arguments)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_bytes_give_frames_or_our_error(valid_videos, data):
    content = data.draw(st.one_of(st.binary(min_size=1, max_size=300), st.sampled_from(valid_videos).map(bytearray)))
    if isinstance(content, bytearray):
        for _ in range(data.draw(st.integers(1, 8))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        content = bytes(content[: data.draw(st.integers(1, len(content)))])
    try:
        found = read_frames(content, num_segments=4)
    except VideoLoadError:
        return
    assert len(found) == 4 and found.total_frames > max(found.indices)


@pytest.fixture(scope="session")
def valid_videos():
    small = {"count": 8, "size": (32, 32)}
    return [
        in_memory(kind="mp4", **small, **x264(0)),
        in_memory(kind="mpegts", **small, **x264(0)),
        in_memory(kind="avi", codec="mpeg4", **small),
        in_memory(kind="gif", codec="gif", pixels="rgb8", **small),
    ]


# ------------------------------------------------------------------------------------------------ other backends


@pytest.mark.parametrize(
    "backend, module, words",
    [
        ("pyav", "av", r"internvl_chat\[video\]"),
        ("decord", "decord", "pip install decord"),
        ("torchcodec", "torchcodec.decoders", "pip install torchcodec"),
    ],
)
def test_a_missing_decoder_is_named(monkeypatch, backend, module, words):
    path = clip("h264.mp4")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=words):
        read_frames(path, backend=backend)


def test_decord_on_request(monkeypatch, tmp_path):
    """The calls that the model cards make of decord, recorded by a stand-in of its interface."""
    asked = []

    class VideoReader:
        def __init__(self, uri, ctx, num_threads):
            asked.append((uri, ctx, num_threads))

        def __len__(self):
            return 40

        def get_avg_fps(self):
            return 20.0

        def get_frame_timestamp(self, indices):
            return np.array([[1 + index / 19, 1 + (index + 1) / 19] for index in indices], np.float32)

        def __getitem__(self, index):
            asked.append(index)
            return types.SimpleNamespace(asnumpy=lambda: picture(index))

    fake = types.ModuleType("decord")
    fake.VideoReader, fake.cpu = VideoReader, lambda number: f"cpu {number}"
    monkeypatch.setitem(sys.modules, "decord", fake)
    path = written(tmp_path, b"content")
    found = read_frames(path, num_segments=4, backend="decord")
    assert list(found.indices) == get_index(None, 20.0, 39, num_segments=4).tolist()
    assert asked == [(str(path), "cpu 0", 1), *found.indices]
    assert [number_of(frame) for frame in found.frames] == list(found.indices)
    assert found.timestamps == pytest.approx([index / 19 for index in found.indices], abs=1e-5)


def test_torchcodec_on_request(monkeypatch, tmp_path):
    class VideoDecoder:
        metadata = types.SimpleNamespace(average_fps=10.0, begin_stream_seconds=2.0)

        def __init__(self, source, dimension_order, seek_mode):
            assert (dimension_order, seek_mode) == ("NHWC", "exact")

        def __len__(self):
            return 30

        def get_frame_at(self, index):
            return types.SimpleNamespace(data=torch.from_numpy(picture(index)), pts_seconds=2 + index / 10 + 0.01)

    fake = types.ModuleType("torchcodec.decoders")
    fake.VideoDecoder = VideoDecoder
    monkeypatch.setitem(sys.modules, "torchcodec", types.ModuleType("torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", fake)
    found = read_frames(written(tmp_path, b"content"), num_segments=3, backend="torchcodec")
    assert [number_of(frame) for frame in found.frames] == list(found.indices)
    assert found.timestamps == pytest.approx([index / 10 + 0.01 for index in found.indices])

    def no_ffmpeg(*arguments, **options):
        raise RuntimeError("Could not load libtorchcodec")

    fake.VideoDecoder = no_ffmpeg
    with pytest.raises(ImportError, match="FFmpeg"):
        read_frames(tmp_path / "clip.mp4", backend="torchcodec")


@pytest.mark.parametrize("backend", ["decord", "torchcodec"])
def test_the_real_backends_where_installed(backend):
    pytest.importorskip(backend)
    try:
        found = read_frames(clip("h264.mp4"), num_segments=8, backend=backend)
    except ImportError as error:
        pytest.skip(str(error).splitlines()[0])
    expected = read_frames(clip("h264.mp4"), num_segments=8)
    assert found.indices == expected.indices and found.timestamps == pytest.approx(expected.timestamps, abs=1e-4)
    assert [frame.tobytes() for frame in found.frames] == [frame.tobytes() for frame in expected.frames]


def test_video_frames_cannot_be_changed():
    with pytest.raises(AttributeError):
        VideoFrames([], ()).fps = 3
