"""Writes a trained model as a checkpoint folder: `python -m training.export --preset gpu [--output FOLDER]`.

bfloat16 safetensors, configuration, tokenizer; the parts that only training needs are left out. Without `--output` the
files go into the repository's root and replace the shipped checkpoint.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import torch

from internvl_chat import InternVLChatModel

from .model import EXTRA_PARTS
from .recipe import PRESETS, ROOT, RUNS
from .train import last_checkpoint

LARGEST = 30e6  # bytes of weights that the repository has room for
TOKENIZER_FILES = (
    *("tokenizer.json", "vocab.json", "merges.txt"),
    *("added_tokens.json", "special_tokens_map.json", "tokenizer_config.json"),
)
# Files of the repository's root that do not depend on the weights.
COMPANIONS = (
    *("generation_config.json", "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"),
    "chat_template.jinja",
)


def newest(run) -> Path:
    """The folder with the newest weights of a run: the last stage's final ones, or its last checkpoint.

    A folder that holds weights itself, such as an earlier export, is its own newest.

    Raises:
        FileNotFoundError: there are none.
    """
    if (Path(run) / "config.json").is_file():
        return Path(run)
    for stage in sorted(Path(run).glob("[0-9]-*"), reverse=True):
        found = stage / "final" if (stage / "final").is_dir() else last_checkpoint(stage)
        if found:
            return found
    raise FileNotFoundError(f"{run} has no weights: run python -m training.train first")


def load(folder) -> InternVLChatModel:
    """The model in `folder` without the parts that only training needs.

    Raises:
        ValueError: weights are missing, or there are others than those.
    """
    model, report = InternVLChatModel.from_pretrained(folder, torch_dtype=torch.bfloat16, output_loading_info=True)
    missing = sorted(report["missing_keys"])
    unexpected = sorted(name for name in report["unexpected_keys"] if not name.startswith(EXTRA_PARTS))
    if missing or unexpected:
        raise ValueError(f"{folder} is no checkpoint of this project: missing {missing}, unexpected {unexpected}")
    return model


def export(source, tokenizer_folder, output, max_shard_size="1GB") -> list:
    """Writes the checkpoint in `source` to `output`; returns the paths written.

    Into the repository's root go weights, configuration and tokenizer; any other folder gets the code files too, so
    that it loads with `trust_remote_code=True`.

    Raises:
        ValueError: the weights take more than `LARGEST` bytes.
    """
    model, output = load(source), Path(output)
    size = sum(value.numel() * value.element_size() for value in model.parameters())
    if size > LARGEST:
        raise ValueError(f"the weights take {size / 1e6:.1f} MB, at most {LARGEST / 1e6:.0f} MB are wanted")
    with tempfile.TemporaryDirectory() as folder:
        staging = Path(folder)
        model.save_pretrained(staging, max_shard_size=max_shard_size)
        for name in TOKENIZER_FILES:
            shutil.copyfile(Path(tokenizer_folder) / name, staging / name)
        for name in COMPANIONS:
            if (ROOT / name).is_file():
                shutil.copyfile(ROOT / name, staging / name)
        for name in ("config.json", "tokenizer_config.json"):
            _keep_other_entries(staging / name, ROOT / name)
        output.mkdir(parents=True, exist_ok=True)
        written = []
        for path in sorted(staging.iterdir()):
            if output.resolve() != ROOT or path.suffix != ".py" and path.name not in COMPANIONS:
                shutil.copyfile(path, output / path.name)
                written.append(output / path.name)
    return written


def _keep_other_entries(path, shipped):
    """Adds to a JSON file the entries that only the shipped one has, such as the chat template and further classes."""
    if shipped.is_file():
        ours, theirs = (json.loads(file.read_text(encoding="utf-8")) for file in (path, shipped))
        merged = {**theirs, **ours}
        if "auto_map" in merged:
            merged["auto_map"] = {**theirs.get("auto_map", {}), **ours.get("auto_map", {})}
        path.write_text(json.dumps(merged, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m training.export", description=__doc__.split("\n")[0])
    parser.add_argument("--preset", choices=list(PRESETS), help="the run training/runs/PRESET")
    parser.add_argument("--run", type=Path, help="folder of the run, or of an earlier export")
    parser.add_argument("--output", type=Path, default=ROOT)
    parser.add_argument("--max-shard-size", default="1GB", help="cut the weights into files of at most this size")
    options = parser.parse_args(arguments)
    if (options.preset is None) == (options.run is None):
        parser.error("give one of --preset and --run")
    run = options.run or RUNS / options.preset
    source = newest(run)
    tokenizer_folder = run / "tokenizer" if (run / "tokenizer").is_dir() else run
    written = export(source, tokenizer_folder, options.output, options.max_shard_size)
    print(f"from {source}: " + ", ".join(path.name for path in written) + f" in {options.output}")


if __name__ == "__main__":
    main()
