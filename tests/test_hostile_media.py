"""Broken and hostile pictures and videos, beyond those of test_preprocessing.py and test_video.py: the right pixels or
one error of ours that names the file; nothing else is read, nothing is run, and every cap has a name."""

import io
import os
import random
import socket
import struct
import threading
import zlib

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, PngImagePlugin
from video_clips import clip, in_memory, number_of, picture, x264

import internvl_chat
from internvl_chat import (
    ImageLoadError,
    MediaLoadError,
    VideoLoadError,
    load_image,
    load_video,
    open_image,
    read_frames,
)
from internvl_chat.messages_internvl import fetch
from internvl_chat.preprocessing_internvl import MAX_TILES, candidate_grids

RAMP = np.arange(48 * 64 * 3, dtype=np.uint8).reshape(48, 64, 3)
PICTURE = Image.fromarray(RAMP)


def saved(image, kind, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, name", [("PNG", "a.jpg"), ("JPEG", "a.png"), ("GIF", "a.bmp"), ("WEBP", "a"), ("BMP", "a.mp4")]
)
def test_a_picture_is_what_its_content_says(tmp_path, kind, name):
    """Whatever its name ends in."""
    data = saved(PICTURE, kind)
    (tmp_path / name).write_bytes(data)
    assert np.array_equal(np.asarray(open_image(tmp_path / name)), pixels(Image.open(io.BytesIO(data))))


def profile():
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("make", [profile, lambda: b"no profile at all"], ids=["profile", "garbage"])
def test_colour_profiles_change_nothing(kind, make):
    """As in the published code, on which the checkpoints were trained; a broken one is no reason for an error."""
    data = saved(PICTURE, kind, icc_profile=make())
    opened = Image.open(io.BytesIO(data))
    assert opened.info.get("icc_profile")
    assert np.array_equal(np.asarray(open_image(data)), pixels(opened))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "TIFF"])
def test_the_first_picture_of_several(kind):
    frames = [Image.new("RGB", (60, 40), colour) for colour in ("red", "green", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert np.array_equal(np.asarray(open_image(data)), pixels(frames[0]))


def chunk(name, content) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_with(*chunks) -> bytes:
    """A small PNG with further chunks behind its header."""
    data = saved(PICTURE, "PNG")
    return data[:33] + b"".join(chunks) + data[33:]


def text_bomb():
    """100 MB of text in 100 kB."""
    return png_with(chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(100_000_000), 9)))


def declared(kind, width=60000, height=60000) -> bytes:
    """A file whose header promises 3.6 gigapixels."""
    data = bytearray(saved(PICTURE.convert("P") if kind == "GIF" else PICTURE, kind))
    if kind == "GIF":
        data[6:10] = struct.pack("<HH", width, height)
    elif kind == "BMP":
        data[18:26] = struct.pack("<ii", width, height)
    else:  # JPEG: the frame header
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


HOSTILE = {
    "PostScript": (lambda: saved(PICTURE, "EPS"), "EPS files are programs"),
    "text bomb": (text_bomb, "cannot read an image"),
    "GIF bomb": (lambda: declared("GIF"), "60000x60000 pixels are more than max_pixels"),
    "BMP bomb": (lambda: declared("BMP"), "60000x60000 pixels are more than max_pixels"),
    "JPEG bomb": (lambda: declared("JPEG"), "60000x60000 pixels are more than max_pixels"),
    "SVG": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><image href="/etc/passwd"/></svg>', "no image format"),
    "video": (lambda: clip("h264.mp4").read_bytes(), "no image format"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pictures_are_refused(name, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # ours must hold without Pillow's own limit
    make, words = HOSTILE[name]
    (tmp_path / "hostile.png").write_bytes(make())
    with pytest.raises(ImageLoadError, match=words) as caught:
        load_image(tmp_path / "hostile.png")
    assert "hostile.png" in str(caught.value)


def test_much_text_in_a_picture_is_fine_while_it_is_small():
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "word " * 1000, zip=True)
    assert np.array_equal(np.asarray(open_image(saved(PICTURE, "PNG", pnginfo=info))), RAMP)


def test_tiles_have_a_cap():
    """The grids to choose from are listed before the choice: a number from a request must not make them millions."""
    assert candidate_grids(1, MAX_TILES)[-1] == (MAX_TILES, 1)
    for call in (lambda: candidate_grids(1, MAX_TILES + 1), lambda: load_image(PICTURE, max_num=10**9)):
        with pytest.raises(ValueError, match=f"MAX_TILES={MAX_TILES}, got"):
            call()


# --- videos -----------------------------------------------------------------------------------------------------------

TEN_BITS = {
    "h264": x264(0),
    "hevc": {"codec": "libx265", "options": {"x265-params": "keyint=12:log-level=none"}},
}


@pytest.mark.parametrize("name", TEN_BITS)
def test_ten_bits_a_channel(name):
    found = read_frames(in_memory(kind="mp4", count=12, pixels="yuv420p10le", **TEN_BITS[name]), num_segments=5)
    assert [number_of(frame) for frame in found.frames] == list(found.indices)
    for index, frame in zip(found.indices, found.frames):
        assert np.abs(np.asarray(frame).astype(int) - picture(index)).mean() < 3


def without_frames(kind) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind) as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["mp4", "matroska", "avi"])
def test_a_video_without_frames(kind, tmp_path):
    (tmp_path / "none.mp4").write_bytes(without_frames(kind))
    assert os.path.getsize(tmp_path / "none.mp4") > 100
    with pytest.raises(VideoLoadError, match="none.mp4"):
        read_frames(tmp_path / "none.mp4")


def test_a_video_is_what_its_content_says(tmp_path):
    """A video under another name is read, a picture is a video of one frame."""
    (tmp_path / "clip.avi").write_bytes(clip("h264.mp4").read_bytes())
    assert (
        read_frames(tmp_path / "clip.avi", num_segments=4).indices
        == read_frames(clip("h264.mp4"), num_segments=4).indices
    )
    (tmp_path / "still.mp4").write_bytes(saved(PICTURE, "PNG"))
    found = read_frames(tmp_path / "still.mp4", num_segments=2)
    assert found.indices == (0, 0) and np.array_equal(np.asarray(found.frames[0]), RAMP)


def test_frames_of_a_video_have_caps():
    small = in_memory(kind="mpegts", count=8, **x264(0))
    larger = in_memory(kind="mpegts", count=8, size=(640, 384), **x264(0))
    one = 160 * 96
    with pytest.raises(VideoLoadError, match=f"160x96 pixels are more than max_pixels={one - 1}"):
        read_frames(small, max_pixels=one - 1)
    # what only the later frames are: they are dropped as damage, and that is logged
    assert {frame.size for frame in read_frames(small + larger).frames} == {(160, 96), (640, 384)}
    assert {frame.size for frame in read_frames(small + larger, max_pixels=one).frames} == {(160, 96)}
    with pytest.raises(ImageLoadError, match="max_pixels=11"):
        load_video([np.zeros((3, 4, 3), np.uint8)], max_pixels=11)
    for call in (read_frames, load_video):
        with pytest.raises(ValueError, match="num_segments=513 is more than max_frames=512"):
            call(small, num_segments=513)
        with pytest.raises(ValueError, match="3 frames are more than max_frames=2"):
            call([PICTURE] * 3, max_frames=2)
    assert len(read_frames(small, num_segments=600, max_frames=600)) == 600


@pytest.fixture
def listener():
    """A server on this machine that counts who connects."""
    callers = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            while True:
                try:
                    connection, address = server.accept()
                except OSError:
                    return
                callers.append(address)
                connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1], callers
        server.shutdown(socket.SHUT_RDWR)
    thread.join(timeout=30)


HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:3\n{key}#EXTINF:2.4,\n{{url}}\n#EXT-X-ENDLIST\n"
PLAYLISTS = {
    "list.m3u8": HLS.format(key=""),
    "key.m3u8": HLS.format(key='#EXT-X-KEY:METHOD=AES-128,URI="{url}"\n'),
    "concat.txt": "ffconcat version 1.0\nfile '{url}'\n",
    "dash.mpd": '<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period><AdaptationSet><Representation id="1">'
    "<BaseURL>{url}</BaseURL></Representation></AdaptationSet></Period></MPD>",
    "session.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
    "m=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\n",
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_no_file_can_send_the_decoder_elsewhere(name, listener, tmp_path):
    """Formats that name other files or addresses: neither is opened, though both are there."""
    port, callers = listener
    for url in (f"http://127.0.0.1:{port}/a.ts", f"tcp://127.0.0.1:{port}", f"file:{clip('h264-open-gop.ts')}"):
        (tmp_path / name).write_text(PLAYLISTS[name].format(url=url, port=port))
        with pytest.raises(VideoLoadError, match=name):
            read_frames(tmp_path / name)
        with pytest.raises(ImageLoadError, match=name):
            open_image(tmp_path / name)
    assert callers == []


ANSWERS = {
    "one byte now and then": b"HTTP/1.1 200 OK\r\n\r\n",
    "not HTTP": b"SSH-2.0-OpenSSH\r\n",
    "cut short": b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nabc",
    "to a local file": b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n",
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_server_cannot_hold_us_or_send_us_to_a_file(name, monkeypatch):
    """Where a caller has allowed URLs."""
    monkeypatch.setattr("internvl_chat.messages_internvl.DOWNLOAD_SECONDS_IN_ALL", 0.5)
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(ANSWERS[name])
                while name == "one byte now and then" and not ended.wait(0.05):
                    connection.sendall(b"x")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with pytest.raises(ImageLoadError, match=f"127.0.0.1:{server.getsockname()[1]}"):
            open_image(fetch(f"http://127.0.0.1:{server.getsockname()[1]}/a.png", allow_urls=True), max_pixels=10)
        ended.set()
        thread.join(timeout=30)


# --- through the doors ------------------------------------------------------------------------------------------------


def fifo(folder):
    os.mkfifo(folder / "medium")


UNREADABLE = {
    "directory": lambda folder: (folder / "medium").mkdir(),
    "named pipe": fifo,
    "zero bytes": lambda folder: (folder / "medium").write_bytes(b""),
    "text": lambda folder: (folder / "medium").write_text("neither a picture nor a video\n" * 50),
    "truncated": lambda folder: (folder / "medium").write_bytes(saved(PICTURE, "PNG")[:60]),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_every_door_tells_the_path(name, shipped_model, checkpoint, tmp_path):
    UNREADABLE[name](tmp_path)
    path = str(tmp_path / "medium")
    processor = internvl_chat.InternVLChatProcessor.from_pretrained(checkpoint)
    calls = [
        lambda: shipped_model.load_image(path),
        lambda: processor(images=path),
        lambda: processor(text="<image>", images=path),
        lambda: shipped_model.load_video(path),
        lambda: processor(text="<video>", videos=path),
        lambda: shipped_model.load_video([path]),
    ]
    for call in calls:
        with pytest.raises(MediaLoadError) as caught:
            call()
        assert path in str(caught.value)


# --- chance -----------------------------------------------------------------------------------------------------------


def mutated(data, draw) -> bytes:
    data = bytearray(data)
    for _ in range(draw.randint(1, 12)):
        action, at = draw.random(), draw.randrange(len(data))
        if action < 0.6:
            data[at] = draw.randrange(256)
        elif action < 0.75:
            data[at : at + 4] = draw.choice([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0"])
        elif action < 0.9:
            del data[at : at + draw.randint(1, 64)]
        else:
            data[at:at] = draw.randbytes(draw.randint(1, 64))
        if not data:
            return b"\0"
    return bytes(data[: draw.randint(1, len(data))] if draw.random() < 0.2 else data)


def image_files():
    small = PICTURE.resize((40, 30))
    kinds = {"PNG": {}, "JPEG": {}, "GIF": {}, "WEBP": {}, "BMP": {}, "TIFF": {"compression": "tiff_lzw"}, "PPM": {}}
    kinds.update({"ICO": {}, "TGA": {}, "PCX": {}, "JPEG2000": {}, "QOI": {}, "DDS": {}, "SGI": {}, "ICNS": {}})
    for kind, options in kinds.items():
        try:
            yield saved(small, kind, **options)
        except (KeyError, OSError, ValueError):  # a release of Pillow that cannot write it
            continue


def video_files():
    small = {"count": 8, "size": (32, 32)}
    for kind in ("mp4", "mpegts", "matroska", "flv"):
        yield in_memory(kind=kind, **small, **x264(0))
    yield in_memory(kind="avi", codec="mpeg4", **small)
    yield in_memory(kind="gif", codec="gif", pixels="rgb8", **small)
    yield in_memory(kind="mpeg", codec="mpeg2video", **small)


@pytest.mark.slow
@pytest.mark.parametrize(
    "files, read, count",
    [
        (image_files, lambda data: load_image(data, 8, max_pixels=10**6), 30_000),
        (video_files, lambda data: load_video(data, input_size=8, num_segments=4, max_pixels=10**6)[0], 6_000),
    ],
    ids=["pictures", "videos"],
)
def test_damaged_files_by_the_thousand(files, read, count, caplog):
    draw, refused = random.Random(6), 0
    files = list(files())
    for number in range(count):
        try:
            values = read(mutated(files[number % len(files)], draw))
        except MediaLoadError:
            refused += 1
        else:
            assert values.shape[1:] == (3, 8, 8) and torch.isfinite(values).all()
        caplog.clear()
    print(f"{count} damaged files of {len(files)} kinds: {count - refused} read, {refused} refused")
    assert 0 < refused < count
