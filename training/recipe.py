"""The recipe as data: dimensions, stages and mixtures of the presets `gpu` and `cpu`. What to change is here.

The stages, each resumable:

1. `symbols`: the language model alone. Each visual token is replaced by a vector that says what its cell shows
   (`world.dense_labels`), so that questions are learnt without pixels, from many more scenes. Gate: "where" above 0.8
   on new scenes; below, this stage needs more steps, later stages do not repair it.
2. `vision`: the vision tower and projector alone. They learn to say what each cell shows, and to give the vectors that
   the language model has learnt to read.
3. `joint`: everything together on pixels and text, with a little of the second stage's loss.
"""

from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUNS = Path(__file__).resolve().parent / "runs"
SYSTEM_MESSAGE = "You are a tiny vision-language model."
GATE = ("where", 0.8)
STAGES = ("symbols", "vision", "joint")


@dataclass(frozen=True)
class Size:
    """Dimensions of the model. Fewer and wider heads of the vision tower are faster on a CPU."""

    vision_width: int
    vision_layers: int
    vision_heads: int
    width: int
    layers: int
    heads: int
    key_value_heads: int
    mlp: int
    vision_mlp_ratio: int = 4


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Attributes:
        name: "symbols", "vision" or "joint"; what is trained follows from it.
        steps: optimiser steps at scale 1.
        learning_rate: of the stable phase, after `warmup` steps and before the last `decay` share of the steps.
        rows, length: tokens of a batch, examples packed into rows; 0 rows where no text is read.
        tiles: most tiles in a batch.
        mixture: kind of example -> how many of a batch's examples are of it.
        simple_steps: the first batches only look shapes up (`examples.draw_example`, `simple`).
        questions: conversations asked about a picture.
        vision_loss: weight of the dense labels' loss in stage "joint".
    """

    name: str
    steps: int
    learning_rate: float
    rows: int
    length: int
    tiles: int
    mixture: dict
    warmup: int = 200
    decay: float = 0.25
    simple_steps: int = 0
    questions: int = 8
    vision_loss: float = 0.1
    weight_decay: float = 0.01


@dataclass(frozen=True)
class Preset:
    size: Size
    stages: tuple
    check_every: int  # steps between measurements on new scenes
    save_every: int  # steps between checkpoints
    workers: int
    seed: int = 1


_EVERYTHING = dict(single=10, tiles=0.7, small=0.7, document=2, pair=2, later=1, video=1, text=0.6)
_PICTURES = dict(single=8, tiles=0.5, small=0.5, document=4)
_FEW_PICTURES = dict(single=10, pair=2.5, later=0.5, document=3, text=0.3)
_ALL_KINDS = dict(single=10, pair=2.2, later=0.4, video=0.8, tiles=0.9, small=0.6, document=2, text=0.3)

PRESETS = {
    # For 25 minutes of one H100 or H200 with 16 cores (estimated, not yet run there).
    "gpu": Preset(
        size=Size(256, 6, 4, 256, 8, 8, 4, 768),
        stages=(
            Stage("symbols", 5000, 2e-3, rows=64, length=1024, tiles=1024, mixture=_EVERYTHING, simple_steps=500),
            Stage("vision", 5000, 2e-3, rows=0, length=0, tiles=256, mixture=_PICTURES),
            Stage("joint", 14000, 1e-3, rows=64, length=1024, tiles=384, mixture=_EVERYTHING),
        ),
        check_every=250,
        save_every=1000,
        workers=14,
    ),
    # For two cores and less than two hours, the first two stages side by side (README.md).
    "cpu": Preset(
        size=Size(192, 4, 3, 192, 4, 6, 2, 512),
        stages=(
            Stage("symbols", 2600, 3e-3, 26, 288, 96, _FEW_PICTURES, warmup=50, simple_steps=500, questions=5),
            Stage("vision", 4200, 3e-3, 0, 0, 24, dict(single=1, document=1), warmup=50),
            Stage("joint", 6000, 1.5e-3, 9, 832, 52, _ALL_KINDS, warmup=50, questions=5, vision_loss=0.4),
        ),
        check_every=200,
        save_every=100,
        workers=0,
    ),
}
# For tests: seconds.
PRESETS["toy"] = Preset(
    size=Size(64, 4, 2, 64, 2, 2, 2, 128),
    stages=(
        Stage("symbols", 20, 3e-3, 4, 384, 64, dict(single=4, text=1), warmup=3, questions=3),
        Stage("vision", 20, 3e-3, 0, 0, 4, dict(single=1), warmup=3),
        Stage("joint", 20, 3e-3, 3, 640, 16, dict(single=4, later=1, pair=1), warmup=3, questions=3),
    ),
    check_every=0,
    save_every=10,
    workers=0,
)


def scaled(preset: Preset, factor: float) -> Preset:
    """The preset with `factor` times as many steps in every stage."""
    stages = [
        replace(stage, steps=max(1, round(stage.steps * factor)), simple_steps=round(stage.simple_steps * factor))
        for stage in preset.stages
    ]
    return replace(preset, stages=tuple(stages))


def config_values(size: Size, tokenizer) -> dict:
    """The content of `config.json` for a model of that size and its tokenizer, in the published schema."""
    return {
        "template": "internvl2_5",
        "system_message": SYSTEM_MESSAGE,
        "select_layer": -1,
        "downsample_ratio": 0.5,
        "ps_version": "v2",
        "force_image_size": 448,
        "dynamic_image_size": True,
        "use_thumbnail": True,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": 12,
        "pad2square": False,
        "img_context_token_id": tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        "vision_config": {
            "architectures": ["InternVisionModel"],
            "hidden_size": size.vision_width,
            "num_hidden_layers": size.vision_layers,
            "num_attention_heads": size.vision_heads,
            "intermediate_size": size.vision_mlp_ratio * size.vision_width,
            "image_size": 448,
            "patch_size": 32,
            "num_channels": 3,
            "qkv_bias": True,
            "qk_normalization": False,
            "norm_type": "layer_norm",
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-6,
            "initializer_factor": 1.0,
            "initializer_range": 0.02,
            "drop_path_rate": 0.0,
        },
        "llm_config": {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "vocab_size": (len(tokenizer) + 63) // 64 * 64,
            "hidden_size": size.width,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.key_value_heads,
            "intermediate_size": size.mlp,
            "hidden_act": "silu",
            "initializer_range": 0.04,
            "max_position_embeddings": 8192,
            "max_window_layers": size.layers,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,  # conversations are a few hundred tokens long
            "tie_word_embeddings": True,
            "use_sliding_window": False,
            "sliding_window": None,
            "attention_dropout": 0.0,
            "use_cache": True,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
    }
