"""Pictures in, tiles out: the tiling geometry, the loading of images and the normalised tensors of the vision tower.

Knows nothing of models, prompts, tokens or video. The results equal those of the code printed in the InternVL model
cards bit for bit; what differs on purpose (EXIF orientation, images deeper than 8 bits) is said at ``open_image``.
"""

from __future__ import annotations

import importlib
import io
import math
import os
import re
import stat
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch
import torch.nn.functional as F

# Model files import on a machine without Pillow or numpy; only a call that needs them fails, in `_require_pillow`.
try:
    import numpy as np
    from PIL import Image, UnidentifiedImageError
except ImportError:
    np = Image = None

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Where Pillow itself gives up on an image (twice its MAX_IMAGE_PIXELS).
MAX_PIXELS = 178_956_970
# Most tiles that an image may be cut into: `max_num` comes from callers and from configurations, and the grids to
# choose from grow with it. 1024 tiles are 262,144 tokens in most checkpoints, beyond the context of any.
MAX_TILES = 1024

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|data:")
# EXIF orientation -> the Pillow transposition that shows the picture upright (EXIF 2.32, tag 0x0112).
_EXIF_TAG = 0x0112
_UPRIGHT = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
# PostScript is a program, which Pillow hands to another one (Ghostscript) to run: no picture for our purposes.
_PROGRAMS = frozenset({"EPS"})
# Modes that `convert("RGB")` clips at 255 instead of scaling.
_DEEP_MODES = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I", "F"})
_FILE_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class MediaLoadError(ValueError):
    """An image or a video cannot be read; the message names the file (or describes the object) and the reason."""


class ImageLoadError(MediaLoadError):
    """An image cannot be read."""


class VideoLoadError(MediaLoadError):
    """A video cannot be read."""


# ------------------------------------------------------------------------------------------------- tile geometry


def check_count(name, value, least=1):
    """Return ``value`` as an int; TypeError if it is no integer, ValueError if it is below ``least``."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    value = value.__index__()
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return value


@lru_cache(maxsize=256)
def candidate_grids(min_num, max_num):
    """All grids ``(columns, rows)`` of ``min_num`` to ``max_num`` tiles, by area, then by columns.

    The model cards sort a Python set by area alone, so there the set decides among equal areas. That order matters only
    if ``min_num > 1`` and the image's aspect ratio lies exactly midway between two grids of equal area; fixed here, it
    is the order of the native transformers image processor.

    Raises ValueError unless ``1 <= min_num <= max_num <= MAX_TILES``, TypeError if either is no integer.
    """
    min_num, max_num = check_count("min_num", min_num), check_count("max_num", max_num)
    if min_num > max_num:
        raise ValueError(f"min_num must not exceed max_num, got min_num={min_num} and max_num={max_num}")
    if max_num > MAX_TILES:
        raise ValueError(f"max_num must be at most MAX_TILES={MAX_TILES}, got {max_num}")
    grids = [(i, j) for i in range(1, max_num + 1) for j in range(1, max_num // i + 1) if i * j >= min_num]
    return tuple(sorted(grids, key=lambda grid: (grid[0] * grid[1], grid[0])))


def find_closest_aspect_ratio(aspect_ratio, target_ratios, width, height, image_size):
    """Return the ``(columns, rows)`` of ``target_ratios`` whose quotient is closest to ``aspect_ratio``.

    Of equally close ones a later one wins if the image of ``width`` x ``height`` pixels covers more than half of its
    tiles' pixels, else the earlier one stays (rule of the InternVL model cards). ``(1, 1)`` if there is none.
    """
    area = width * height
    best, best_difference = (1, 1), float("inf")
    for columns, rows in target_ratios:
        difference = abs(aspect_ratio - columns / rows)
        later_wins = difference == best_difference and area > 0.5 * image_size * image_size * columns * rows
        if difference < best_difference or later_wins:
            best, best_difference = (columns, rows), difference
    return best


def tile_grid(width, height, min_num=1, max_num=12, image_size=448):
    """Return ``(columns, rows)``: the grid of ``image_size`` px tiles for an image of ``width`` x ``height`` pixels.

    Raises ValueError or TypeError unless all are positive integers and ``min_num <= max_num``.
    """
    width, height = check_count("width", width), check_count("height", height)
    image_size = check_count("image_size", image_size)
    return find_closest_aspect_ratio(width / height, candidate_grids(min_num, max_num), width, height, image_size)


def count_tiles(width, height, min_num=1, max_num=12, image_size=448, use_thumbnail=True):
    """Return how many tiles ``load_image`` makes of an image of ``width`` x ``height`` pixels, without pixels.

    The thumbnail counts as one; as in the model cards there is none beside a single tile. Errors as in ``tile_grid``.
    """
    columns, rows = tile_grid(width, height, min_num, max_num, image_size)
    return columns * rows + (1 if use_thumbnail and columns * rows > 1 else 0)


def dynamic_preprocess(image, min_num=1, max_num=12, image_size=448, use_thumbnail=False, *, fast=False):
    """Cut a PIL image into tiles: a list of PIL images of ``image_size`` x ``image_size`` pixels, row by row.

    The image is resized to the grid that ``tile_grid`` names (Pillow's default filter for its mode), keeping its mode.
    ``use_thumbnail`` adds the whole image as one more tile unless there is only one. ``fast`` resizes RGB images by
    torch, at about three times the speed and with other rounding (see ``load_image``). Errors as in ``tile_grid``.
    """
    _require_pillow()
    columns, rows = tile_grid(*image.size, min_num, max_num, image_size)
    resize = _torch_resize(image) if fast and image.mode == "RGB" else image.resize
    thumbnail = None
    if use_thumbnail and columns * rows > 1:
        # Pillow resizes without the GIL: the thumbnail costs no time beside the larger resize. Loading comes first
        # because it is not thread-safe; the pool lives for this call only, so that forked workers stay safe.
        image.load()
        with ThreadPoolExecutor(max_workers=1) as pool:
            thumbnail = pool.submit(resize, (image_size, image_size))
            resized = resize((columns * image_size, rows * image_size))
        thumbnail = thumbnail.result()
    else:
        resized = resize((columns * image_size, rows * image_size))
    corners = [(column * image_size, row * image_size) for row in range(rows) for column in range(columns)]
    tiles = [resized.crop((x, y, x + image_size, y + image_size)) for x, y in corners]
    return tiles if thumbnail is None else [*tiles, thumbnail]


def _torch_resize(image):
    """Pillow's ``image.resize`` for an RGB image, done by torch's kernel for bytes."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]  # (1, 3, height, width), channels last

    def resize(size):
        # Where mainly the height shrinks, Pillow 13 begins with it. The order shows in high contrasts, and torch's is
        # fixed: such a picture is left to Pillow.
        if image.height - size[1] > max(0, 2 * (image.width - size[0])):
            return image.resize(size)
        resized = F.interpolate(pixels, size=size[::-1], mode="bicubic", antialias=True)
        return Image.fromarray(resized[0].permute(1, 2, 0).contiguous().numpy())

    return resize


# ---------------------------------------------------------------------------------------------- tiles to tensors


def _to_rgb(image):
    return image if image.mode == "RGB" else image.convert("RGB")


def build_transform(input_size):
    """Return the model cards' torchvision transform: RGB, bicubic resize to ``input_size``, ToTensor, Normalize.

    The one function here that needs torchvision; ``images_to_pixel_values`` gives the same values without it.
    Raises ImportError if torchvision is absent or does not match the installed torch.
    """
    try:
        transforms = importlib.import_module("torchvision.transforms")
    # A torchvision built for another torch fails with RuntimeError (unknown operator) rather than ImportError.
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        raise ImportError(
            "build_transform needs a torchvision that matches the installed torch "
            f'({torch.__version__}): pip install "internvl_chat[transform]". load_image does not need it. '
            f"The import failed with: {error}"
        ) from error
    return transforms.Compose(
        [
            transforms.Lambda(_to_rgb),
            transforms.Resize((input_size, input_size), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize(mean=IMAGENET_MEAN, std=IMAGENET_STD),
        ]
    )


def _channel_values(name, values):
    numbers = tuple(float(value) for value in values)
    if len(numbers) != 3 or not all(map(math.isfinite, numbers)) or (name == "std" and 0.0 in numbers):
        raise ValueError(f"{name} must be three finite numbers{' other than 0' * (name == 'std')}, got {values!r}")
    return tuple(np.float32(number) for number in numbers)


def images_to_pixel_values(images, *, mean=IMAGENET_MEAN, std=IMAGENET_STD, dtype=None):
    """Turn same-sized PIL images into one normalised tensor of shape (images, 3, height, width).

    Values are ``(pixel / 255 - mean) / std`` in float32, rounded as torchvision's ToTensor and Normalize round; another
    ``dtype`` is that result converted. Modes other than RGB are converted first. Raises ValueError for no images,
    different sizes, bad ``mean``/``std`` or a dtype that is not floating.
    """
    _require_pillow()
    images = list(images)
    mean, std = _channel_values("mean", mean), _channel_values("std", std)
    dtype = torch.float32 if dtype is None else dtype
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating torch dtype such as torch.bfloat16, got {dtype!r}")
    sizes = {image.size for image in images}
    if len(sizes) != 1:
        raise ValueError(f"expected at least one image, all of one size, got {len(images)} of sizes {sorted(sizes)}")
    width, height = sizes.pop()
    pixel_values = torch.empty((len(images), 3, height, width), dtype=dtype)
    # In float32 the arithmetic happens inside the result; else in one tile that is converted into its place.
    in_place = pixel_values.numpy() if dtype == torch.float32 else None
    scratch = np.empty((3, height, width), np.float32) if in_place is None else None
    for index, image in enumerate(images):
        tile = scratch if in_place is None else in_place[index]
        # numpy, not torch: the same rounding, without the thread pool that stalls on a busy host.
        for channel, band in enumerate(_to_rgb(image).split()):
            values = tile[channel]
            values[...] = np.asarray(band)
            values /= np.float32(255)
            values -= mean[channel]
            values /= std[channel]
        if in_place is None:
            pixel_values[index] = torch.from_numpy(tile)
    return pixel_values


# ------------------------------------------------------------------------------------------------- image loading


def _require_pillow():
    if Image is None:
        raise ImportError("images need Pillow and numpy: pip install pillow numpy")


def open_regular_file(path, error_type=ImageLoadError):
    """Open the local file ``path`` for reading bytes.

    Raises FileNotFoundError if it is missing, ``error_type`` if it is a URL (nothing here uses the network), not a
    regular file (found out before opening, so that a named pipe cannot block) or not readable.
    """
    path = os.fsdecode(path)
    if _URL.match(path):
        raise error_type(f"{path[:200]!r} is a URL: only local files are read; download it first and pass its bytes")
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            kind = next((name for test, name in _FILE_KINDS if test(mode)), "not a file")
            raise error_type(f"cannot read {path!r}: it is {kind}, expected a regular file")
        return open(path, "rb")
    except (FileNotFoundError, error_type):
        raise
    except (OSError, ValueError) as error:
        raise error_type(f"cannot read {path[:200]!r}: {error}") from error


def _scaled_to_bytes(values):
    """Scale numbers of any depth to uint8 by the rule given at ``open_image``."""
    if values.dtype == np.uint8:
        return values
    if values.dtype == bool:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    floating = values.dtype.kind == "f"
    values = values.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("the pixels hold NaN or infinity")
    if floating and low >= 0 and high <= 1:
        values = np.rint(values * 255)
    elif low >= 0 and high <= 255:
        pass  # already 8-bit levels: cut to integers below, as Pillow's own conversion does
    elif low >= 0 and high <= 65535:
        values = np.rint(values / 257)
    else:
        values = np.rint((values - low) * (255 / (high - low) if high > low else 0.0))
    return values.astype(np.uint8)


def _check_pixels(width, height, max_pixels):
    if width < 1 or height < 1:
        raise ValueError(f"it has no pixels ({width}x{height})")
    if width * height > max_pixels:
        raise ValueError(f"{width}x{height} pixels are more than max_pixels={max_pixels}")


def _image_from_array(array, max_pixels):
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4):
        raise ValueError(
            f"expected the shape (height, width), (height, width, 1), (height, width, 3) or (height, width, 4), "
            f"got {array.shape}"
        )
    if array.dtype.kind not in "buif":
        raise ValueError(f"expected boolean, integer or floating pixels, got dtype {array.dtype}")
    _check_pixels(array.shape[1], array.shape[0], max_pixels)
    pixels = _scaled_to_bytes(array)
    return Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if array.ndim == 3 and channels == 1 else pixels))


def _orientation(image):
    # The published code shows a picture whose EXIF block is broken; so a block that cannot be read means upright.
    try:
        return image.getexif().get(_EXIF_TAG, 1)
    except Exception:
        return 1


def _decode(source, exif_orientation, max_pixels):
    """Any ``source`` but a path, as an RGB image; raises whatever the decoder raises."""
    if isinstance(source, Image.Image):
        image = source
    elif isinstance(source, np.ndarray):
        return _to_rgb(_image_from_array(source, max_pixels))
    else:
        image = Image.open(io.BytesIO(source) if isinstance(source, (bytes, bytearray, memoryview)) else source)
        if image.format in _PROGRAMS:
            raise ValueError(f"{image.format} files are programs, which are not run here")
    _check_pixels(*image.size, max_pixels)
    # Pillow 10 and later turn a TIFF upright while loading: what is left to apply is known only afterwards.
    image.load()
    orientation = _orientation(image) if exif_orientation else 1
    if image.mode in _DEEP_MODES:
        image = _image_from_array(np.asarray(image), max_pixels)
    image = _to_rgb(image)
    if orientation in _UPRIGHT:
        image = image.transpose(getattr(Image.Transpose, _UPRIGHT[orientation]))
        for name in ("exif", "xmp", "XML:com.adobe.xmp"):  # or it would be turned again where it is opened again
            image.info.pop(name, None)
    return image


def describe(source):
    """Name a source in an error message: the path, or what kind of object it is."""
    if isinstance(source, (str, os.PathLike)):
        return repr(os.fsdecode(source)[:200])
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"{len(source)} bytes of data"
    if hasattr(source, "shape"):
        return f"an array of shape {tuple(source.shape)}"
    name = getattr(source, "filename", None) or getattr(source, "name", None)
    return f"a {type(source).__name__}" + (f" ({name!r})" if isinstance(name, str) and name else "")


def open_image(image_file, *, exif_orientation=True, max_pixels=MAX_PIXELS):
    """Read one image as an RGB PIL image; what was passed is not changed (a file object is read and left open).

    ``image_file``: a path, a PIL image, the bytes of an encoded image, a binary file object (read from its start), or a
    numpy array of shape (height, width), (height, width, 1), (height, width, 3) or (height, width, 4). The first frame
    of an animation. URLs are refused.

    The pixels are those of ``Image.open(image_file).convert("RGB")``, as in the model cards, with two exceptions:

    - the EXIF orientation is applied, unless ``exif_orientation=False``;
    - pixels deeper than 8 bits (modes I;16, I and F; arrays other than uint8) are scaled to 0..255, not clipped:
      booleans times 255; 16-bit unsigned divided by 257, rounded; other numbers by the range of the whole image:
      floats within 0..1 times 255, rounded; within 0..255 taken as they are, fractions cut; within 0..65535 divided by
      257, rounded; anything else stretched linearly, the lowest value to 0 and the highest to 255.

    ``max_pixels`` caps width x height, checked before decoding. Beyond the default also Pillow's own limit
    (``PIL.Image.MAX_IMAGE_PIXELS``) has to be raised.

    Raises FileNotFoundError for a missing file, ImageLoadError for one that cannot be read, is corrupt, truncated, not
    a regular file, too large or of an unknown kind, TypeError for an object of another type.
    """
    _require_pillow()
    if isinstance(image_file, (str, os.PathLike)):
        with open_regular_file(image_file) as file:
            return _open(file, describe(image_file), exif_orientation, max_pixels)
    known = isinstance(image_file, (Image.Image, np.ndarray, bytes, bytearray, memoryview))
    if not known and not callable(getattr(image_file, "read", None)):
        raise TypeError(
            "an image must be a path, a PIL image, bytes, a binary file object or a numpy array, "
            f"got {type(image_file).__name__}"
        )
    return _open(image_file, describe(image_file), exif_orientation, max_pixels)


def _open(source, name, exif_orientation, max_pixels):
    try:
        return _decode(source, exif_orientation, max_pixels)
    # Pillow's readers meet corrupt data with any exception there is (SyntaxError, struct.error, IndexError, ...).
    except Exception as error:
        known = not isinstance(error, UnidentifiedImageError)
        reason = (str(error) or type(error).__name__) if known else "it is of no image format that Pillow knows"
        raise ImageLoadError(f"cannot read an image from {name}: {reason}") from error


def load_image(
    image_file,
    input_size=448,
    max_num=12,
    *,
    min_num=1,
    use_thumbnail=True,
    exif_orientation=True,
    max_pixels=MAX_PIXELS,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    dtype=None,
    fast=False,
):
    """Read an image and cut it into normalised tiles: a tensor of shape (tiles, 3, input_size, input_size).

    ``image_file``, ``exif_orientation`` and ``max_pixels`` are those of ``open_image``; ``input_size``, ``min_num``,
    ``max_num`` and ``use_thumbnail`` those of ``count_tiles``, which tells the number of tiles beforehand; ``mean``,
    ``std`` and ``dtype`` (default float32) those of ``images_to_pixel_values``. With the defaults and an upright 8-bit
    image the result equals the model cards' ``load_image`` bit for bit. Raises what these three raise.

    ``fast`` gives up on that: the resize is torch's, whose pixels are within 2 of 255 levels of Pillow's, nearly all of
    them equal.
    """
    candidate_grids(min_num, max_num)  # wrong numbers are told before a large file is read
    image = open_image(image_file, exif_orientation=exif_orientation, max_pixels=max_pixels)
    tiles = dynamic_preprocess(image, min_num, max_num, input_size, use_thumbnail, fast=fast)
    return images_to_pixel_values(tiles, mean=mean, std=std, dtype=dtype)


def load_images(image_files, input_size=448, max_num=12, *, threads=None, **options):
    """Read several images at once: ``(pixel_values, num_patches_list)``, as ``chat`` and ``batch_chat`` take them.

    ``pixel_values`` has the shape (all tiles, 3, input_size, input_size), ``num_patches_list`` the number of tiles of
    each image. ``options`` are those of ``load_image``, which reads each. Pillow decodes and resizes without Python's
    lock, so that ``threads`` (default: one for each processor, at most 8) share the work; the result does not depend on
    them. Raises ValueError for no images, else what ``load_image`` raises for the first image that it cannot read.
    """
    image_files = list(image_files)
    if not image_files:
        raise ValueError("load_images expects at least one image, got none")
    threads = min(8, os.cpu_count() or 1) if threads is None else check_count("threads", threads)
    once = list({id(image): image for image in image_files}.values())  # one object is not read by two threads at a time
    with ThreadPoolExecutor(max_workers=min(threads, len(once))) as pool:
        loaded = pool.map(lambda image: load_image(image, input_size, max_num, **options), once)
        tiles = dict(zip(map(id, once), loaded))
    per_image = [tiles[id(image)] for image in image_files]
    return torch.cat(per_image), [len(each) for each in per_image]
