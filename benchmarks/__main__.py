"""Ours against the reference, interleaved in one process: `python -m benchmarks [part ...]`.

Prints a Markdown table for each part: ratios, which hold on a busy machine, absolute figures, and the share of the
machine's own limits, measured in the same run. `--plot` draws how cost grows with tiles, frames, rounds and batch.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from .conversations import answers, batches, rounds_of_one
from .measuring import Machine, table
from .media import images, videos
from .models import SIZES, our_model, shipped_tokenizer
from .plots import draw
from .processes import loading, starting, video_memory
from .tower import tower

PARTS = {
    "images": images,
    "videos": videos,
    "tower": tower,
    "answers": answers,
    "rounds": rounds_of_one,
    "batches": batches,
    "memory": video_memory,
    "loading": loading,
    "start": starting,
}
_WITHOUT_MODEL = ("images", "videos", "memory", "start")


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; default all")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each thing (default 5)")
    parser.add_argument("--size", choices=list(SIZES), default="1B", help="of the model; tiny is a trial run")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--threads", type=int, help="of torch on the CPU")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--plot", type=Path, help="also draw the growth curves into this file (needs matplotlib)")
    options = parser.parse_args(arguments)
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        parser.error(f"unknown part {unknown[0]!r}; parts: {', '.join(PARTS)}")
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: at least 1")
    if options.threads:
        torch.set_num_threads(options.threads)

    names = options.parts or list(PARTS)
    machine = Machine(torch.device(options.device), getattr(torch, options.dtype)).measure()
    print(machine, flush=True)
    model, results = None, {}
    if any(name not in _WITHOUT_MODEL for name in names):
        model = our_model(options.size, machine, shipped_tokenizer())
    for name in names:
        try:
            results[name] = PARTS[name](machine, options.rounds, options.size, model)
        except RuntimeError as error:  # what is missing here, or a result that is wrong: the other parts still count
            print(f"\n## {name}\n\nnot measured: {error}", file=sys.stderr, flush=True)
            continue
        print(f"\n## {name}\n\n{' '.join(PARTS[name].__doc__.split())}\n\n{table(results[name])}", flush=True)
        if options.json:
            options.json.write_text(json.dumps({"machine": str(machine), **results}, indent=1) + "\n")
    if options.plot:
        draw(results, options.plot)
    return 0 if len(results) == len(names) else 1


if __name__ == "__main__":
    sys.exit(main())
