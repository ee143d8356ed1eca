"""The table of docs/scaling.md: what each published checkpoint needs, as `internvl-chat info` computes it.

Run: python -m benchmarks.scaling

No weights are made or read: the models are built on torch's device "meta" from the published configurations.
"""

import torch

import internvl_chat
from internvl_chat import cli
from tests.published_configs import FAMILY

MIB = 1024**2
HEADER = "| checkpoint | parameters | weights | cache of 1,000 tokens | a tile, encoded | GPUs of 80 GB |"
# Weights may take so much of the GPUs, the rest is for the cache, activations and the runtime.
_SHARE, _GPU = 0.72, 80e9


def row(name, values) -> str:
    """The line of a checkpoint, in 16-bit weights and cache."""
    config = internvl_chat.InternVLChatConfig(**values)
    with torch.device("meta"):
        model = internvl_chat.InternVLChatModel(config)
    model.tie_weights()
    parameters = cli._parameters(model)
    weights, token, tile = 2 * parameters, 2 * cli._token_values(config), 2 * cli._tile_values(config)
    gpus = next(count for count in (1, 2, 4, 8, 16) if weights < _SHARE * count * _GPU)
    cells = [name, cli._short(parameters), f"{weights / MIB / 1024:.1f} GiB", f"{1000 * token / MIB:.0f} MiB"]
    return "| " + " | ".join([*cells, f"{tile / MIB:.0f} MiB", str(gpus)]) + " |"


def rows() -> list:
    return [row(name, checkpoint.config) for name, checkpoint in FAMILY.items()]


if __name__ == "__main__":
    print(HEADER)
    print("|---|---|---|---|---|---|")
    print("\n".join(rows()))
