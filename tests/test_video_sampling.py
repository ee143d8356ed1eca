"""Which frames are taken of a video: `get_index`, `bound`, `fps`."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from video_clips import UNEVEN, clip, number_of

import internvl_chat.video_internvl as video
from internvl_chat.video_internvl import get_index, read_frames


@pytest.mark.parametrize("bound", [None, (0, 1), (0.5, 2.0), (0.1, 0.1), (-3, 1), (1, 99)])
@pytest.mark.parametrize("num_segments", [1, 2, 7, 32, 300])
def test_get_index_is_the_published_rule(bound, num_segments):
    fps, last = 23.976, 59
    start, end = bound or (-100000, 100000)
    low, high = max(0, round(start * fps)), min(round(end * fps), last)
    step = (high - low) / num_segments
    expected = [int(low + step / 2 + np.round(step * place)) for place in range(num_segments)]
    found = get_index(bound, fps, last, num_segments=num_segments)
    assert isinstance(found, np.ndarray) and found.dtype.kind == "i" and found.tolist() == expected
    shifted = get_index(None, fps, 20, 10, 2)
    assert shifted.tolist() == [12, 17]


def test_bound():
    found = read_frames(clip("h264.mp4"), (0.4, 1.2), 5)
    assert list(found.indices) == get_index((0.4, 1.2), 25.0, 59, num_segments=5).tolist() == [12, 16, 20, 24, 28]
    assert [number_of(frame) for frame in found.frames] == list(found.indices)
    assert read_frames(clip("h264.mp4"), bound=[1, 1000], num_segments=2).indices == (33, 50)


@pytest.mark.parametrize("num_segments", [1, 4, 32])
def test_a_bound_that_begins_within_the_last_frame(num_segments):
    found = read_frames(clip("h264.mp4"), (2.39, 3), num_segments)
    assert list(found.indices) == get_index((2.39, 3), 25.0, 59, num_segments=num_segments).tolist()
    assert set(found.indices) <= {58, 59}


def test_a_bound_where_the_stated_average_rate_is_far_off():
    """Matroska gives 50 frames a second for this clip, which has 17; by that rate the bound begins behind its end."""
    found = read_frames(clip("uneven.mkv"), (2.0, 3.0), 4)
    assert found.fps == 50 and all(2 <= time <= 3 for time in found.timestamps)
    assert [number_of(frame) for frame in found.frames] == list(found.indices) and len(set(found.indices)) == 4


class Scripted:
    """A stand-in for a decoder: frames at the given times."""

    def __init__(self, times, fps):
        self.times, self.fps, self.asked = list(times), fps, None

    def __call__(self, source, exact):
        return self

    def pick(self, indices, keep):
        self.asked = list(indices)
        return {index: keep(Image.new("RGB", (8, 8))) for index in indices}

    def close(self):
        pass


@pytest.fixture
def scripted(monkeypatch):
    def sample(times, average=25.0, **arguments):
        reader = Scripted(times, average)
        monkeypatch.setitem(video.BACKENDS, "scripted", reader)
        return read_frames(b"any", backend="scripted", **arguments), reader

    return sample


REGULAR = [number / 25 for number in range(60)]


@pytest.mark.parametrize(
    "times, arguments, indices",
    [
        (REGULAR, {"fps": 1}, (0, 25, 50)),
        (REGULAR, {"fps": 2, "bound": (0.5, 1.5)}, (13, 25, 37)),
        (REGULAR, {"fps": 25}, tuple(range(60))),
        (REGULAR, {"fps": 1e9}, tuple(range(60))),
        (REGULAR, {"fps": 0.001}, (0,)),
        (REGULAR, {"fps": 1, "bound": (1.01, 1.02)}, (25,)),  # no frame begins there: the one on display
        (REGULAR, {"fps": 1, "bound": (-5, 99)}, (0, 25, 50)),
        (REGULAR, {"fps": 25, "max_frames": 3}, (0, 30, 59)),
        (REGULAR, {"fps": 25, "max_frames": 1}, (0,)),
        ([0.0, 0.1, 5.0, 5.2, 9.0], {"fps": 1}, (0, 1, 2, 3, 4)),
        ([0.0, 0.1, 5.0, 5.2, 9.0], {"fps": 0.25}, (0, 2, 4)),
        ([0.0], {"fps": 7}, (0,)),
    ],
)
def test_fps_takes_the_frames_nearest_to_regular_times(scripted, times, arguments, indices):
    found, _ = scripted(times, **arguments)
    assert found.indices == indices
    assert found.timestamps == tuple(times[index] for index in indices)


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=40),
    st.floats(0.2, 60),
    st.none() | st.tuples(st.floats(-1, 4), st.floats(0, 5)).filter(lambda bound: bound[0] <= bound[1]),
)
@settings(max_examples=200, deadline=None)
def test_fps_against_a_plain_search(gaps, fps, bound):
    times = [0.0]
    for gap in gaps:
        times.append(times[-1] + gap / 50)
    if bound and bound[0] > times[-1]:
        return
    reader = Scripted(times, 25.0)
    video.BACKENDS["scripted"] = reader
    try:
        found = read_frames(b"any", backend="scripted", fps=fps, bound=bound)
    finally:
        del video.BACKENDS["scripted"]
    start, end = max(0.0, bound[0]) if bound else 0.0, bound[1] if bound else times[-1]
    inside = [index for index, time in enumerate(times) if start <= time <= end]
    if not inside:
        assert len(found.indices) == 1 and times[found.indices[0]] <= start
        return
    smallest = min((b - a for a, b in zip([times[i] for i in inside], [times[i] for i in inside[1:]])), default=1e9)
    if 1 / fps <= smallest:
        assert list(found.indices) == inside
        return
    points = [start + step / fps for step in range(int((min(end, times[-1]) - start) * fps + 1e-6) + 1)]
    distances = {point: min(abs(times[index] - point) for index in inside) for point in points}
    for index in found.indices:
        assert any(abs(abs(times[index] - point) - distances[point]) < 1e-9 for point in points)
    for point in points:
        assert any(abs(abs(times[index] - point) - distances[point]) < 1e-9 for index in found.indices)
    assert list(found.indices) == sorted(set(found.indices)) and set(found.indices) <= set(inside)


def test_too_many_frames_are_thinned_with_a_warning(scripted, caplog):
    found, _ = scripted(REGULAR, fps=25, max_frames=10)
    assert len(found) == 10 and found.indices[0] == 0 and found.indices[-1] == 59
    assert "fps=25 asks for 60 frames; 10 are taken" in caplog.text


def test_a_frame_asked_for_twice_is_decoded_once(scripted):
    found, reader = scripted(REGULAR[:3], num_segments=9)
    assert reader.asked == [0, 1, 2] or reader.asked == sorted(set(found.indices))
    assert len(found.frames) == 9 and len({id(frame) for frame in found.frames}) == len(reader.asked)


def test_fps_on_uneven_times():
    found = read_frames(clip("uneven.mkv"), fps=5)
    times = np.array(UNEVEN) / 50
    wanted = np.arange(int(times[-1] * 5) + 1) / 5
    expected = sorted({int(np.abs(times - point).argmin()) for point in wanted})
    assert list(found.indices) == expected == [number_of(frame) for frame in found.frames]
