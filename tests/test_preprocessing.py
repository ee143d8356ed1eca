"""The image path: bit equality with the rule of the model cards, awkward images, sources of every kind, errors."""

import importlib
import io
import os
import pathlib
import random
import subprocess
import sys
import zlib
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

import internvl_chat.preprocessing_internvl as preprocessing
from internvl_chat.preprocessing_internvl import (
    ImageLoadError,
    MediaLoadError,
    VideoLoadError,
    build_transform,
    candidate_grids,
    count_tiles,
    dynamic_preprocess,
    find_closest_aspect_ratio,
    images_to_pixel_values,
    load_image,
    open_image,
    tile_grid,
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# ------------------------------------------------------------- the published rule, restated plainly and slowly


def slow_grid(width, height, min_num, max_num, size):
    """Every grid by ascending area (a set's order among equals); the closest quotient; the later of equals if large."""
    grids = {(i, j) for i in range(1, max_num + 1) for j in range(1, max_num + 1) if min_num <= i * j <= max_num}
    chosen, smallest = None, None
    for grid in sorted(grids, key=lambda pair: pair[0] * pair[1]):
        difference = abs(width / height - grid[0] / grid[1])
        if chosen is None or difference < smallest:
            chosen, smallest = grid, difference
        elif difference == smallest and 2 * width * height > size * size * grid[0] * grid[1]:
            chosen = grid
    return chosen


def slow_tiles(image, min_num, max_num, size, thumbnail):
    columns, rows = slow_grid(*image.size, min_num, max_num, size)
    large = image.resize((columns * size, rows * size))
    tiles = []
    for row in range(rows):
        for column in range(columns):
            tiles.append(large.crop((column * size, row * size, column * size + size, row * size + size)))
    if thumbnail and len(tiles) > 1:
        tiles.append(image.resize((size, size)))
    return tiles


def slow_values(tiles, size):
    transforms = pytest.importorskip("torchvision.transforms")
    steps = transforms.Compose(
        [
            transforms.Resize((size, size), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize(mean=MEAN, std=STD),
        ]
    )
    return torch.stack([steps(tile.convert("RGB")) for tile in tiles])


def slow_load(image, min_num=1, max_num=12, size=448, thumbnail=True):
    return slow_values(slow_tiles(image.convert("RGB"), min_num, max_num, size, thumbnail), size)


@pytest.fixture(autouse=True)
def one_thread():
    """The slow restatement stalls in torch's thread pool on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ------------------------------------------------------------------------------------------------------ pictures


def noise(width, height, channels=3, seed=0):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def transparent_palette(width, height):
    image = Image.fromarray(noise(width, height)).quantize(64)
    image.info["transparency"] = 3
    return image


MODES = {
    "RGB": lambda w, h: Image.fromarray(noise(w, h)),
    "L": lambda w, h: Image.fromarray(noise(w, h, 1)),
    "1": lambda w, h: Image.fromarray(noise(w, h, 1)).convert("1"),
    "P": lambda w, h: Image.fromarray(noise(w, h)).quantize(64),
    "P-transparent": transparent_palette,
    "RGBA": lambda w, h: Image.fromarray(noise(w, h, 4)),
    "LA": lambda w, h: Image.fromarray(noise(w, h, 4)).convert("LA"),
    "CMYK": lambda w, h: Image.fromarray(noise(w, h, 4).reshape(h, w, 4)).convert("RGB").convert("CMYK"),
    "YCbCr": lambda w, h: Image.fromarray(noise(w, h)).convert("YCbCr"),
    "HSV": lambda w, h: Image.fromarray(noise(w, h)).convert("HSV"),
}
SIZES = [
    (1, 1), (32, 32), (33, 31), (64, 32), (96, 64), (50, 50), (100, 75), (75, 100), (160, 90), (91, 161),
    (320, 240), (240, 320), (7, 300), (300, 7), (1, 900), (900, 1), (448, 448), (130, 127), (211, 53), (640, 360),
]  # fmt: skip
# (min_num, max_num, input size, thumbnail); no size above lies exactly midway between two grids of equal area.
OPTIONS = [
    (1, 1, 32, True), (1, 6, 32, True), (1, 12, 56, True), (1, 24, 32, False), (6, 6, 32, True), (4, 9, 40, False),
]  # fmt: skip


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


# ------------------------------------------------------------------------------------------------- bit equality


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("mode", MODES)
def test_load_image_equals_the_published_rule(mode, size):
    image = MODES[mode](*size)
    half = (SIZES.index(size) + list(MODES).index(mode)) % 2  # every mode and every size meets all options
    for min_num, max_num, side, thumbnail in OPTIONS[half::2]:
        expected = slow_load(image, min_num, max_num, side, thumbnail)
        found = load_image(image, side, max_num, min_num=min_num, use_thumbnail=thumbnail)
        assert found.dtype == torch.float32 and torch.equal(found, expected), (min_num, max_num, side, thumbnail)
        assert len(found) == count_tiles(*size, min_num, max_num, side, thumbnail)


@pytest.mark.parametrize("mode", MODES)
def test_dynamic_preprocess_equals_the_published_rule_in_the_image_s_own_mode(mode):
    for (width, height), (min_num, max_num, side, thumbnail) in zip(SIZES, OPTIONS * 4):
        image = MODES[mode](width, height)
        expected = slow_tiles(image, min_num, max_num, side, thumbnail)
        found = dynamic_preprocess(image, min_num, max_num, side, thumbnail)
        assert [tile.mode for tile in found] == [tile.mode for tile in expected]
        assert [tile.tobytes() for tile in found] == [tile.tobytes() for tile in expected]


@pytest.mark.parametrize(
    "file",
    ["PNG RGB", "PNG P", "PNG LA", "PNG 1", "JPEG RGB", "JPEG L", "JPEG CMYK", "WEBP RGBA", "GIF P", "TIFF CMYK"],
)
def test_files_at_the_published_defaults(tmp_path, file):
    kind, mode = file.split()
    path = tmp_path / f"picture.{kind.lower()}"
    MODES[mode](400, 300).save(path, kind)
    expected = slow_load(Image.open(path))
    assert expected.shape == (13, 3, 448, 448)
    assert torch.equal(load_image(path), expected)


def test_png_with_a_transparent_colour_shows_what_pillow_shows(tmp_path):
    path = tmp_path / "transparent.png"
    MODES["P-transparent"](90, 60).save(path, transparency=3)
    assert torch.equal(load_image(path, 32), slow_load(Image.open(path), size=32))


def test_the_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (60, 40), colour) for colour in ("red", "green", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    expected = slow_load(Image.new("RGB", (60, 40), "red"), size=32)
    assert torch.equal(load_image(tmp_path / "a.gif", 32), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_the_float32_result_converted(dtype):
    image = MODES["RGB"](300, 200)
    found = load_image(image, 56, dtype=dtype)
    assert found.dtype == dtype and torch.equal(found, load_image(image, 56).to(dtype))


def test_other_mean_and_std():
    transforms = pytest.importorskip("torchvision.transforms")
    mean, std = [0.5, 0.25, 0.1], [0.3, 0.5, 0.7]
    image = MODES["RGB"](56, 56)
    expected = transforms.Normalize(mean, std)(transforms.ToTensor()(image))[None]
    assert torch.equal(images_to_pixel_values([image], mean=mean, std=std), expected)
    assert torch.equal(load_image(image, 56, 1, mean=mean, std=std), expected)


def test_every_pixel_value_in_every_channel():
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(np.stack([ramp, ramp.T, ramp[::-1]], -1))
    assert torch.equal(images_to_pixel_values([image]), slow_values([image], 16))


def test_build_transform_is_the_published_one():
    pytest.importorskip("torchvision")
    image = MODES["P"](70, 50)
    transform = build_transform(32)
    assert type(transform).__module__.startswith("torchvision")
    assert torch.equal(transform(image), slow_values([image.convert("RGB")], 32)[0])


# ------------------------------------------------------------------------------------------------- tile geometry


def test_tile_grid_equals_the_published_rule_on_many_sizes():
    draw = random.Random(0)
    for _ in range(1500):
        width, height = (int(2 ** draw.uniform(0, 12)) for _ in range(2))
        max_num = draw.choice([1, 2, 6, 12, 24, 40])
        assert tile_grid(width, height, 1, max_num) == slow_grid(width, height, 1, max_num, 448), (width, height)


@pytest.mark.parametrize(
    "width, height, options, grid",
    [
        (448, 448, {}, (1, 1)),  # all squares are equally close: a later one wins only if the image fills half of it
        (634, 634, {}, (2, 2)),
        (633, 633, {}, (1, 1)),
        (951, 951, {}, (3, 3)),
        (1, 10000, {}, (1, 12)),
        (10000, 1, {}, (12, 1)),
        (800, 600, {}, (4, 3)),
        (800, 600, {"max_num": 6}, (3, 2)),
        (800, 600, {"max_num": 1}, (1, 1)),
        # Midway between grids of equal area: fewer columns first, later ones win for large images.
        (5, 4, {"min_num": 2, "max_num": 2}, (1, 2)),
        (1280, 1024, {"min_num": 2, "max_num": 2}, (2, 1)),
    ],
)
def test_tile_grid_by_hand(width, height, options, grid):
    assert tile_grid(width, height, **options) == grid


@pytest.mark.parametrize("max_num", range(1, 25))
def test_the_order_among_equal_areas_never_decides_when_min_num_is_1(max_num):
    """The model cards sort a set by area alone: which grid won could have hung on how Python orders sets."""
    grids = candidate_grids(1, max_num)
    other = sorted(grids, key=lambda grid: (grid[0] * grid[1], -grid[0]))
    quotients = sorted({Fraction(*grid) for grid in grids})
    for low, high in zip(quotients, quotients[1:]):
        middle = (low + high) / 2
        for factor in (1, 7, 40):
            size = middle.numerator * factor, middle.denominator * factor
            for side in (8, 32, 448):
                arguments = (*size, side)
                first = find_closest_aspect_ratio(size[0] / size[1], grids, *arguments)
                assert first == find_closest_aspect_ratio(size[0] / size[1], other, *arguments)
                assert first == tile_grid(*size, 1, max_num, side)


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 14), st.integers(0, 12), st.booleans())
@settings(max_examples=150, deadline=None)
def test_tiles_counted_are_tiles_cut(width, height, min_num, more, thumbnail):
    arguments = (min_num, min_num + more, 4, thumbnail)
    tiles = dynamic_preprocess(Image.new("L", (width, height)), *arguments)
    assert len(tiles) == count_tiles(width, height, *arguments)
    assert {tile.size for tile in tiles} == {(4, 4)}
    columns, rows = tile_grid(width, height, *arguments[:3])
    assert min_num <= columns * rows <= min_num + more


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: tile_grid(10, 10, 0, 5), ValueError, "min_num must be at least 1, got 0"),
        (lambda: tile_grid(10, 10, 5, 4), ValueError, "min_num=5 and max_num=4"),
        (lambda: tile_grid(0, 10), ValueError, "width must be at least 1, got 0"),
        (lambda: tile_grid(10, -1), ValueError, "height must be at least 1, got -1"),
        (lambda: count_tiles(10, 10, image_size=0), ValueError, "image_size must be at least 1, got 0"),
        (lambda: count_tiles(10, 10, max_num=2.5), TypeError, "max_num must be an integer, got 2.5"),
        (lambda: dynamic_preprocess(Image.new("RGB", (9, 9)), max_num=0), ValueError, "max_num must be at least 1"),
        (lambda: load_image("missing.png", max_num=0), ValueError, "max_num must be at least 1, got 0"),
        (lambda: images_to_pixel_values([]), ValueError, "at least one image"),
        (lambda: images_to_pixel_values([Image.new("L", (2, 2)), Image.new("L", (3, 2))]), ValueError, "(3, 2)"),
        (lambda: images_to_pixel_values([Image.new("L", (2, 2))], dtype=torch.int8), ValueError, "torch.int8"),
        (lambda: images_to_pixel_values([Image.new("L", (2, 2))], std=(1, 0, 1)), ValueError, "std must be three"),
        (lambda: images_to_pixel_values([Image.new("L", (2, 2))], mean=(1, 0)), ValueError, "mean must be three"),
    ],
)
def test_wrong_numbers_are_named(call, error, words):
    with pytest.raises(error) as caught:
        call()
    assert words in str(caught.value)


# -------------------------------------------------------------------------------------------- awkward pictures


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(MODES["RGB"](90, 40), kind, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert upright.size == ((40, 90) if orientation > 4 else (90, 40))
    assert torch.equal(load_image(data, 32), slow_load(upright, size=32))
    assert torch.equal(load_image(data, 32, exif_orientation=False), slow_load(Image.open(io.BytesIO(data)), size=32))


def test_tiff_is_not_turned_twice():
    """Pillow 10 and later turn a TIFF upright while loading; reading the tag before that would turn it again."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(MODES["RGB"](90, 40), "TIFF", exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        expected = ImageOps.exif_transpose(image)  # turns it only where Pillow has not done so
    assert open_image(data).tobytes() == expected.tobytes()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("exif", [b"garbage", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\0\x01"])
def test_a_broken_exif_block_is_no_reason_to_refuse_a_picture(exif):
    data = saved(MODES["RGB"](50, 40), "JPEG", exif=b"Exif\0\0" + exif)
    assert torch.equal(load_image(data, 32), slow_load(Image.open(io.BytesIO(data)), size=32))


RAMP = np.arange(256).reshape(16, 16)
DEEP = [
    # name, pixels, the 8-bit levels that the documented rule makes of them
    ("uint16", (RAMP * 257).astype(np.uint16), RAMP),
    ("uint16 rounds", np.array([[128, 129, 65535, 257 * 3 + 128]], np.uint16), [[0, 1, 255, 3]]),
    ("uint16 big endian", (RAMP * 257).astype(">u2"), RAMP),
    ("float 0..1", (RAMP / 255).astype(np.float32), RAMP),
    ("float16 0..1", np.array([[0, 0.5, 1]], np.float16), [[0, 128, 255]]),
    ("float64 0..1", RAMP / 255, RAMP),
    ("float 0..255", np.array([[0, 1.5, 254.9, 255]], np.float32), [[0, 1, 254, 255]]),
    ("float 0..65535", np.array([[0, 257.0, 65535]], np.float32), [[0, 1, 255]]),
    ("float negative", np.array([[-1.0, 0, 1]], np.float32), [[0, 128, 255]]),
    ("int32 0..255", RAMP.astype(np.int32), RAMP),
    ("int32 0..65535", (RAMP * 257).astype(np.int32), RAMP),
    ("int32 wide", np.array([[-(10**6), 0, 10**6]], np.int32), [[0, 128, 255]]),
    ("int64", (RAMP * 257).astype(np.int64), RAMP),
    ("constant", np.full((2, 2), -7, np.int32), [[0, 0], [0, 0]]),
    ("bool", np.array([[True, False]]), [[255, 0]]),
]


@pytest.mark.parametrize("pixels, levels", [case[1:] for case in DEEP], ids=[case[0] for case in DEEP])
def test_deep_pixels_are_scaled(pixels, levels):
    levels = np.asarray(levels, np.uint8)
    before = pixels.copy()
    expected = np.repeat(levels[..., None], 3, -1)
    assert np.array_equal(np.asarray(open_image(pixels)), expected)
    assert np.array_equal(np.asarray(open_image(np.repeat(pixels[..., None], 3, -1))), expected)
    assert np.array_equal(pixels, before)


@pytest.mark.parametrize(
    "mode, pixels, kind",
    [
        ("I;16", (RAMP * 257).astype(np.uint16), "PNG"),
        ("I;16", (RAMP * 257).astype(np.uint16), "TIFF"),
        ("I", (RAMP * 257).astype(np.int32), "TIFF"),
        ("F", (RAMP / 255).astype(np.float32), "TIFF"),
        ("F", RAMP.astype(np.float32), "TIFF"),
    ],
)
def test_deep_files_are_scaled_and_so_are_pil_images(mode, pixels, kind):
    """The published code shows 16-bit pictures as white and float ones as black."""
    data = saved(Image.fromarray(pixels), kind)
    assert Image.open(io.BytesIO(data)).mode in (mode, "I")  # older releases of Pillow open 16 bits as 32
    expected = slow_load(Image.fromarray(RAMP.astype(np.uint8)), size=32)
    assert torch.equal(load_image(data, 32), expected)
    assert torch.equal(load_image(Image.fromarray(pixels), 32), expected)


@pytest.mark.parametrize("size", [(1, 10000), (10000, 1)])
def test_extreme_aspect_ratios(size):
    image = MODES["RGB"](*size)
    assert torch.equal(load_image(image, 56), slow_load(image, size=56))


# ------------------------------------------------------------------------------------------------------- sources


def test_all_sources_give_the_same_tiles(tmp_path):
    image = MODES["RGB"](120, 80)
    path = tmp_path / "picture.png"
    image.save(path)
    data = path.read_bytes()
    expected = slow_load(image, size=32)
    buffer = io.BytesIO(data)
    buffer.seek(17)  # read from its start all the same, as Image.open does
    lazy = Image.open(path)
    with open(path, "rb") as file:
        sources = [str(path), path, os.fsencode(path).decode(), data, bytearray(data), memoryview(data), buffer, file]
        sources += [image, lazy, np.asarray(image), np.asarray(image)[::-1][::-1], np.asarray(image.convert("RGBA"))]
        for source in sources:
            assert torch.equal(load_image(source, 32), expected), type(source)
        assert not file.closed and not buffer.closed
    assert image.tobytes() == MODES["RGB"](120, 80).tobytes()


def test_grey_arrays():
    grey = noise(40, 30, 1)
    expected = slow_load(Image.fromarray(grey), size=32)
    assert torch.equal(load_image(grey, 32), expected)
    assert torch.equal(load_image(grey[..., None], 32), expected)


def test_a_pil_image_passed_is_not_changed():
    image = MODES["P"](50, 40)
    before = image.mode, image.size, image.tobytes(), dict(image.info)
    load_image(image, 32)
    assert before == (image.mode, image.size, image.tobytes(), dict(image.info))


def make_fifo(folder):
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no named pipes")
    os.mkfifo(folder / "pipe.png")
    return folder / "pipe.png"


def written(folder, data, name="broken.png"):
    (folder / name).write_bytes(data)
    return folder / name


PNG = saved(Image.fromarray(noise(64, 48)), "PNG")
JPEG = saved(Image.fromarray(noise(64, 48)), "JPEG")
HUGE_HEADER = b"IHDR" + (30000).to_bytes(4, "big") * 2 + PNG[24:29]
HUGE = PNG[:12] + HUGE_HEADER + zlib.crc32(HUGE_HEADER).to_bytes(4, "big") + PNG[33:]


@pytest.mark.parametrize(
    "make, error, words",
    [
        (lambda folder: folder / "missing.png", FileNotFoundError, "missing.png"),
        (lambda folder: folder, ImageLoadError, "a directory"),
        (make_fifo, ImageLoadError, "a named pipe"),
        (lambda folder: os.devnull, ImageLoadError, "a device"),
        (lambda folder: written(folder, b""), ImageLoadError, "broken.png"),
        (lambda folder: written(folder, b"not a picture"), ImageLoadError, "broken.png"),
        (lambda folder: written(folder, PNG[: len(PNG) // 2]), ImageLoadError, "broken.png"),
        (lambda folder: written(folder, JPEG[: len(JPEG) // 2]), ImageLoadError, "truncated"),
        (lambda folder: written(folder, JPEG[:-2]), ImageLoadError, "truncated"),
        (lambda folder: PNG[:40], ImageLoadError, "40 bytes of data"),
        (lambda folder: b"", ImageLoadError, "0 bytes of data"),
        (lambda folder: io.BytesIO(b"nothing"), ImageLoadError, "a BytesIO"),
        (lambda folder: HUGE, ImageLoadError, "900000000 pixels"),
        (lambda folder: b"not a picture", ImageLoadError, "no image format"),
        (lambda folder: "https://example.org/cat.png", ImageLoadError, "URL"),
        (lambda folder: "file:///tmp/cat.png", ImageLoadError, "URL"),
        (lambda folder: "data:image/png;base64,AAAA", ImageLoadError, "URL"),
        (lambda folder: "nul\0byte.png", ImageLoadError, "null"),
        (lambda folder: "x" * 5000, ImageLoadError, "too long"),
        (lambda folder: np.zeros((4, 4, 2), np.uint8), ImageLoadError, "(4, 4, 2)"),
        (lambda folder: np.zeros((3, 40, 50), np.uint8), ImageLoadError, "(3, 40, 50)"),
        (lambda folder: np.zeros((2, 2, 3, 3), np.uint8), ImageLoadError, "(2, 2, 3, 3)"),
        (lambda folder: np.zeros(5, np.uint8), ImageLoadError, "(5,)"),
        (lambda folder: np.zeros((0, 5, 3), np.uint8), ImageLoadError, "no pixels"),
        (lambda folder: np.full((2, 2), np.nan), ImageLoadError, "NaN"),
        (lambda folder: np.array([[1j]]), ImageLoadError, "complex"),
        (lambda folder: np.array([["a"]]), ImageLoadError, "dtype"),
        (lambda folder: Image.new("RGB", (0, 7)), ImageLoadError, "no pixels"),
        (lambda folder: None, TypeError, "NoneType"),
        (lambda folder: 7, TypeError, "int"),
        (lambda folder: ["a.png"], TypeError, "list"),
    ],
)
def test_errors_name_the_source_and_the_reason(tmp_path, make, error, words):
    with pytest.raises(error) as caught:
        load_image(make(tmp_path))
    assert words in str(caught.value)
    if isinstance(caught.value, ImageLoadError):
        assert isinstance(caught.value, ValueError) and isinstance(caught.value, MediaLoadError)


def test_the_error_classes_can_be_told_apart():
    assert not issubclass(ImageLoadError, VideoLoadError) and issubclass(VideoLoadError, MediaLoadError)


def test_max_pixels_is_checked_before_decoding(tmp_path):
    truncated = written(tmp_path, JPEG[: len(JPEG) // 2], "cut.jpg")
    with pytest.raises(ImageLoadError, match="64x48 pixels are more than max_pixels=3000") as caught:
        load_image(truncated, max_pixels=3000)
    assert "cut.jpg" in str(caught.value)
    assert load_image(JPEG, 32, max_pixels=64 * 48).shape[1:] == (3, 32, 32)
    with pytest.raises(ImageLoadError, match="max_pixels=11"):
        load_image(np.zeros((3, 4, 3), np.uint8), max_pixels=11)


VALID = [
    PNG,
    JPEG,
    saved(MODES["P"](40, 30), "GIF"),
    saved(MODES["RGB"](40, 30), "WEBP"),
    saved(MODES["RGB"](40, 30), "TIFF"),
    saved(MODES["RGB"](40, 30), "BMP"),
    saved(MODES["RGB"](40, 30), "TIFF", compression="tiff_lzw"),
]


@given(st.one_of(st.binary(max_size=400), st.tuples(st.sampled_from(VALID), st.data())))
@settings(max_examples=200, deadline=None)
def test_any_bytes_give_tiles_or_our_error(case):
    data = case
    if isinstance(case, tuple):
        data, more = bytearray(case[0]), case[1]
        for _ in range(more.draw(st.integers(1, 6))):
            data[more.draw(st.integers(0, len(data) - 1))] = more.draw(st.integers(0, 255))
        data = bytes(data[: more.draw(st.integers(0, len(data)))])
    try:
        tiles = load_image(data, 8, max_pixels=10**6)
    except ImageLoadError:
        return
    assert tiles.shape[1:] == (3, 8, 8) and torch.isfinite(tiles).all()


# --------------------------------------------------------------------------------------------- missing libraries


@pytest.mark.parametrize("reason", [ImportError("no such module"), RuntimeError("operator torchvision::nms")])
def test_build_transform_without_a_usable_torchvision(monkeypatch, reason):
    def fail(name):
        raise reason

    monkeypatch.setattr(preprocessing, "importlib", type("", (), {"import_module": staticmethod(fail)}))
    with pytest.raises(ImportError, match=r"internvl_chat\[transform\]"):
        build_transform(448)
    assert load_image(MODES["RGB"](50, 40), 32).shape == (13, 3, 32, 32)


def test_the_modules_import_without_pillow_torchvision_and_decoders():
    root = pathlib.Path(importlib.import_module("internvl_chat").__path__[0])
    program = f"""
import sys, types
for name in ("PIL", "numpy", "torchvision", "av", "decord", "torchcodec"):
    sys.modules[name] = None
package = types.ModuleType("bundle")
package.__path__ = [{str(root)!r}]
sys.modules["bundle"] = package
import bundle.preprocessing_internvl as images
import bundle.video_internvl
assert images.count_tiles(800, 600) == 13
try:
    images.load_image("picture.png")
except ImportError as error:
    assert "pillow" in str(error).lower()
else:
    raise SystemExit("no error")
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, timeout=120)
