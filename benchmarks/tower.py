"""(c) The vision tower at its real size: ours with each attention backend against the published eager form and against
transformers' own tower, in TFLOP/s and as a share of the machine's matrix rate."""

import copy
import statistics
from functools import partial

import torch
from torch import nn

from internvl_chat import InternVisionModel
from internvl_chat.compat_internvl import flash_attention_available, set_attention

from .measuring import interleaved, median_ratio
from .models import SIZES, native_vision


class PublishedAttention(nn.Module):
    """The eager attention of the published tower: scores of all heads at once, softmax in the weights' dtype."""

    def __init__(self, ours):
        super().__init__()
        self.qkv, self.proj, self.heads = ours.qkv, ours.proj, ours.num_heads

    def forward(self, x):
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        weights = ((q * (width // self.heads) ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, width))


@torch.no_grad()
def tower(machine, rounds, size, model):
    """Per number of tiles and backend: milliseconds a tile, TFLOP/s, share of the matrix rate, times native sdpa."""
    vision = SIZES[size][0]
    towers = _towers(model, vision)
    counts = (1, 13, 64) if machine.device.type == "cuda" else (1, 4) if size == "tiny" else (1, 13)
    return [row for tiles in counts for row in _rows(towers, tiles, vision, machine, rounds)]


def _rows(towers, tiles, vision, machine, rounds) -> list:
    pixels = torch.randn(tiles, 3, 448, 448, device=machine.device, dtype=machine.dtype)
    calls = {name: partial(run, pixels) for name, run in towers.items()}
    times = interleaved(calls, rounds, machine.device)
    work, rows = tiles * _operations(vision), []
    for name in towers:
        spent = statistics.median(times[name])
        rows.append(
            {
                "tiles": tiles,
                "tower": name,
                "ms a tile": 1000 * spent / tiles,
                "TFLOP/s": work / spent / 1e12,
                "of the matrix rate": work / spent / machine.matrix_rate,
                "native sdpa / this": median_ratio(times["native, sdpa"], times[name]),
            }
        )
    return rows


def _towers(model, vision) -> dict:
    """{name: function of pixels}, all but the native ones over the same tensors; time does not depend on values. Ours
    take as many tiles at a time as `extract_feature` gives them, the others all at once."""
    towers, ours = {}, model.vision_model
    backends = ["eager", "sdpa"] + ["flash_attention_2"] * flash_attention_available()
    for backend in backends:
        towers[f"ours, {backend}"] = _sharing(ours, backend)
    published = _sharing(ours, "eager")
    for layer in published.encoder.layers:
        layer.attn = PublishedAttention(layer.attn)
    towers["published, eager"] = published
    for backend in ("eager", "sdpa"):
        native = native_vision(vision, backend).to(next(ours.parameters()))
        towers[f"native, {backend}"] = native.eval()
    compiled = _sharing(ours, "sdpa")
    for layer in compiled.encoder.layers:
        layer.compile()
    towers["ours, sdpa, compiled"] = compiled

    def run(name, pixels):
        at_once = model.tiles_at_once(pixels) if name.startswith("ours") else len(pixels)
        for chunk in pixels.split(at_once):
            towers[name](pixel_values=chunk)

    return {name: partial(run, name) for name in towers}


def _sharing(ours: InternVisionModel, backend):
    """A tower of its own settings over the same tensors."""
    config = copy.deepcopy(ours.config)
    set_attention(config, backend)
    with torch.device("meta"):
        other = InternVisionModel(config)
    other.load_state_dict(ours.state_dict(), assign=True)
    return other.eval()


def _operations(vision) -> float:
    """Floating point operations of a tile: matrix products only."""
    width, inner = vision["hidden_size"], vision["intermediate_size"]
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    tokens = patches + 1
    layer = 2 * tokens * (4 * width * width + 2 * width * inner) + 4 * tokens * tokens * width
    return vision["num_hidden_layers"] * layer + 2 * patches * 3 * vision["patch_size"] ** 2 * width
