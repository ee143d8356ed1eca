"""Pictures to features: tiles through the vision tower in bounded memory, pixel shuffle, projector; equal tiles once.

Knows tiles and the two parts of the model that see them; nothing of text.
"""

import os
from typing import Optional

import torch

from .attention_internvl import is_compiling

# Tiles that go through the vision tower at a time: as many as keep a device busy, since beyond that only the memory for
# activations grows. At 448 pixels 8 tiles are rows of 8200 tokens. A CPU is busy with fewer, and slower with
# activations above 32 MiB, the size from which glibc asks the system for each of them anew.
VISION_BATCH_SIZE = 8
_CPU_ACTIVATION_BYTES = 24 << 20


class FeatureMixin:
    """The way from tiles to language model tokens, for `InternVLChatModel`."""

    def pixel_shuffle(self, x: torch.Tensor, scale_factor: float = 0.5) -> torch.Tensor:
        """Merges each square of neighbouring patches into one vector.

        Args:
            x: (tiles, width, height, channels).
            scale_factor: 1 / r for squares of r × r patches.

        Returns:
            (tiles, width / r, height / r, channels * r²); the published `v1` swaps width and height, `v2` does not.
        """
        tiles, width, height, channels = x.shape
        r = round(1 / scale_factor)
        x = x.reshape(tiles, width // r, r, height // r, r, channels)  # (tiles, W, r, H, r, channels)
        order = (0, 3, 1, 2, 4, 5) if self.ps_version == "v1" else (0, 1, 3, 2, 4, 5)
        return x.permute(order).flatten(3)  # (tiles, W, H, r * r * channels)

    def extract_feature(self, pixel_values: torch.Tensor, vision_batch_size: Optional[int] = None) -> torch.Tensor:
        """Tiles to language model tokens. Without gradients, tiles that are there more than once are encoded once.

        Args:
            pixel_values: (tiles, 3, height, width), normalised; moved to the tower's device and dtype.
            vision_batch_size: tiles encoded at a time, default `VISION_BATCH_SIZE`, on a CPU as many of them as keep
                activations small; the result does not depend on it.

        Returns:
            (tiles, tokens a tile, LLM hidden size).

        Raises:
            ValueError: a batch size below 1, or pixels of a shape that the tower cannot take.
        """
        size = self.tiles_at_once(pixel_values) if vision_batch_size is None else vision_batch_size
        if size < 1:
            raise ValueError(f"vision_batch_size must be at least 1, got {size}")
        if len(pixel_values) > 1 and not torch.is_grad_enabled() and not is_compiling():
            first, places = distinct(tile_keys(pixel_values, lasting=False))
            if len(first) < len(places):
                return self.extract_feature(pixel_values[list(first.values())], size)[places]
        if len(pixel_values) <= size:
            return self._project(self._for_vision(pixel_values))
        chunks = (self._project(self._for_vision(chunk)) for chunk in pixel_values.split(size))
        if torch.is_grad_enabled():
            return torch.cat(list(chunks))
        features = None  # filled chunk by chunk: joining them at the end would hold all of them twice
        for start, chunk in zip(range(0, len(pixel_values), size), chunks):
            if features is None:
                features = chunk.new_empty(len(pixel_values), *chunk.shape[1:])
            features[start : start + size] = chunk
        return features

    def tiles_at_once(self, pixel_values: torch.Tensor) -> int:
        """How many of `pixel_values` (tiles, 3, height, width) go through the vision tower at a time by default."""
        weight, vision = self.vision_model.embeddings.patch_embedding.weight, self.config.vision_config
        if weight.device.type != "cpu" or pixel_values.dim() != 4:
            return VISION_BATCH_SIZE
        tokens = pixel_values.shape[2] * pixel_values.shape[3] // vision.patch_size**2
        widest = tokens * max(vision.intermediate_size, 3 * vision.hidden_size) * weight.element_size()  # of a tile
        return min(max(_CPU_ACTIVATION_BYTES // max(widest, 1), 1), VISION_BATCH_SIZE)

    def _for_vision(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pixels on the vision tower's device and in its dtype."""
        weight = self.vision_model.embeddings.patch_embedding.weight
        # An offloaded tower has its weights on the meta device; accelerate's hooks then move the input.
        device = pixel_values.device if weight.device.type == "meta" else weight.device
        return pixel_values.to(device=device, dtype=weight.dtype)

    def _project(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if self.select_layer == -1:
            patches = self.vision_model(pixel_values=pixel_values).last_hidden_state
        else:
            encoded = self.vision_model(pixel_values=pixel_values, output_hidden_states=True)
            patches = encoded.hidden_states[self.select_layer]
        patches = patches[:, 1:]  # without the class token
        patch = self.config.vision_config.patch_size
        grid = (pixel_values.shape[-2] // patch, pixel_values.shape[-1] // patch)
        merged = self.pixel_shuffle(patches.unflatten(1, grid), scale_factor=self.downsample_ratio)
        return self.mlp1(merged.flatten(1, 2))


# --- equal tiles ------------------------------------------------------------------------------------------------------

_SAMPLED = 37  # every so many rows and columns of a tile are looked at first
_SEED = int.from_bytes(os.urandom(8), "little") >> 1  # keys are compared within one process only


def tile_keys(pixel_values: torch.Tensor, lasting: bool = True) -> list:
    """One hashable key for each of `pixel_values` (tiles, channels, height, width): equal for tiles with equal bytes.

    A universal hash (multilinear, modulo 2^64, twice; Carter and Wegman 1979) with coefficients drawn at the start of
    the process: two given tiles that differ have the same key with a probability below 2^-64, whoever made them. It
    is computed where the pixels are, so that those on a GPU are not copied from it.

    Keys that need not be `lasting` are compared among themselves only: a few pixels do where they differ in all tiles.
    """
    if pixel_values.dim() != 4 or pixel_values.numel() == 0:
        return [object() for _ in range(len(pixel_values))]  # the vision tower will say what is wrong with them
    if not lasting:
        few = pixel_values.detach()[:, :, ::_SAMPLED, ::_SAMPLED].contiguous()
        samples = [bytes(tile) for tile in few.view(torch.uint8).flatten(1).tolist()]
        if len(set(samples)) == len(samples):
            return samples
    word = {1: torch.uint8, 2: torch.int16}.get(pixel_values.element_size(), torch.int32)
    lines = pixel_values.detach().flatten(1, 2).contiguous().view(word)  # (tiles, channels * height, words)
    draw = torch.Generator().manual_seed(_SEED)

    def coefficients(count):
        drawn = torch.randint(-(2**63), 2**63 - 1, (2, count), generator=draw)
        return drawn.to(pixel_values.device)

    inner, outer = coefficients(lines.shape[2]), coefficients(4 * lines.shape[1])
    sums = []
    # A tile of 448 pixels in float32 takes 10 MB here: what fits a CPU's cache, or keeps the launches on a GPU few.
    for chunk in lines.split(1 if pixel_values.device.type == "cpu" else 8):
        chunk = chunk.long()
        of_lines = torch.stack([(chunk * row).sum(-1) for row in inner], dim=-1)  # (tiles, lines, 2)
        halves = of_lines.view(torch.int32).flatten(1).long()  # (tiles, 4 * lines)
        sums.append(torch.stack([(halves * row).sum(-1) for row in outer], dim=-1))
    kind = (tuple(pixel_values.shape[1:]), pixel_values.dtype)
    return [(*kind, *pair) for pair in torch.cat(sums).tolist()]


def distinct(keys) -> tuple:
    """`(first, places)`: for each key the index of the first tile with it, and for each tile its key's place there."""
    first = {}
    for index, key in enumerate(keys):
        first.setdefault(key, index)
    place = {key: index for index, key in enumerate(first)}
    return first, [place[key] for key in keys]
