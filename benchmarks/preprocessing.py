"""`load_image` against the published pipeline, in one process, interleaved: medians of the ratios of their times.

Run: python benchmarks/preprocessing.py [rounds]

The reference restates the model cards' steps plainly with torchvision. Before anything is timed, both results must be
equal bit for bit.
"""

import io
import os
import statistics
import sys
import time

import numpy as np
import torch
from PIL import Image

import internvl_chat

SIZES = ((640, 480), (1920, 1080), (4000, 3000))


def jpeg(width, height):
    """A picture with detail at all scales, as JPEG bytes."""
    noise = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def published(data):
    """The model cards' load_image(max_num=12), written out."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    transform = internvl_chat.build_transform(448)
    columns, rows = internvl_chat.tile_grid(*image.size, max_num=12)
    resized = image.resize((448 * columns, 448 * rows))
    corners = [(448 * column, 448 * row) for row in range(rows) for column in range(columns)]
    tiles = [resized.crop((x, y, x + 448, y + 448)) for x, y in corners]
    if len(tiles) > 1:
        tiles.append(image.resize((448, 448)))
    return torch.stack([transform(tile) for tile in tiles])


def ours(data):
    return internvl_chat.load_image(data, max_num=12)


def seconds(function, data):
    start = time.perf_counter()
    function(data)
    return time.perf_counter() - start


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    print(
        f"{os.cpu_count()} cores, torch {torch.__version__} ({torch.get_num_threads()} threads), Pillow",
        Image.__version__,
    )
    for width, height in SIZES:
        data = jpeg(width, height)
        if not torch.equal(published(data), ours(data)):
            raise SystemExit(f"{width}x{height}: the results differ")
        pairs = [(seconds(published, data), seconds(ours, data)) for _ in range(rounds)]
        ratio = statistics.median(reference / own for reference, own in pairs)
        own = statistics.median(own for _, own in pairs)
        print(f"{width}x{height}: {ratio:.2f} times the published speed, {own * 1000:.0f} ms")


if __name__ == "__main__":
    main()
