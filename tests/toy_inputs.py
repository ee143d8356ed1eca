"""Inputs of the toy models that `conftest.py` makes: random tiles, and rows of ids with image tokens in them."""

import torch
import torch.nn.functional as F

IMAGE_ID = 7
TOKENS = 4  # a tile of the toy model as it is without options
SEED = 4  # of weights with which greedy answers are not one token over and over


def pixels(count=2, side=32, seed=1):
    """(count, 3, side, side) float32."""
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def text_ids(count=6, rows=1, seed=2):
    """(rows, count) ids without image tokens."""
    return torch.randint(8, 96, (rows, count), generator=torch.Generator().manual_seed(seed))


def image_ids(*tiles, tokens=TOKENS, seed=2):
    """(1, length): text, then the image tokens of each image with text after it. `tiles` are those of each image."""
    row = [text_ids(3, seed=seed)]
    for index, count in enumerate(tiles):
        row += [torch.full((1, count * tokens), IMAGE_ID), text_ids(3, seed=seed + index + 1)]
    return torch.cat(row, dim=1)


def left_padded(*rows):
    """Rows of (1, length) as one batch: ids and attention mask, both (rows, longest length)."""
    width = max(row.shape[1] for row in rows)
    ids = torch.cat([F.pad(row, (width - row.shape[1], 0)) for row in rows])
    mask = torch.cat([F.pad(torch.ones_like(row), (width - row.shape[1], 0)) for row in rows])
    return ids, mask
