"""Questions about many images, answered by several processes or machines with Ray Data, and taken up where they ended.

Run: python examples/batch_inference_ray.py IMAGES_OR_QUESTIONS ANSWERS.jsonl [--actors 2] [--batch-size 8] [...]
(needs: pip install "ray[data]")

IMAGES_OR_QUESTIONS is a folder of images, each of which is asked `--question`, or a table (`.jsonl` or `.parquet`) with
the columns `question`, `image` (a path, from the table's folder; a list of them; or nothing) and, if it likes, `id`.

ANSWERS.jsonl gets a line a row: id, question, image, answer, error. Only this program writes there, a row once it is
answered, so that a row that an actor took to its grave is asked again and none is there twice. What is in the file
already is not asked again: after Ctrl-C or a crash, run the same command.
"""

import argparse
import json
import math
import os
from pathlib import Path

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
# A machine without GPU: Ray is not to hide what there is none of.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import torch
from tqdm import tqdm
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

CHECKPOINT = Path(__file__).resolve().parent.parent
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
MOST_BLOCKS = 2000  # what a killed actor loses is at most one of them


def read_rows(source: Path, question: str) -> list:
    """The rows to ask: `id`, `question` and `images`, a list of absolute paths."""
    if source.is_dir():
        paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        return [
            {"id": str(path.relative_to(source)), "question": question, "images": [str(path.resolve())]}
            for path in paths
        ]
    if source.suffix == ".jsonl":
        table = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines() if line.strip()]
    elif source.suffix == ".parquet":
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(source).to_pylist()
    else:
        raise SystemExit(f"{source}: expected a folder of images, a .jsonl or a .parquet file")
    rows = []
    for number, row in enumerate(table):
        images = row.get("image") or []
        images = [images] if isinstance(images, str) else list(images)
        paths = [str((source.parent / image).resolve()) for image in images]
        rows.append({"id": str(row.get("id", number)), "question": row.get("question") or question, "images": paths})
    if len({row["id"] for row in rows}) < len(rows):
        raise SystemExit(f"{source}: the ids are not all different")
    return rows


def finished_ids(target: Path) -> set:
    """The rows that the file has; half a line at its end, from a crash, is cut off."""
    if not target.exists():
        return set()
    data = target.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with open(target, "r+b") as file:
            file.truncate(len(whole))
    return {json.loads(line)["id"] for line in whole.splitlines()}


class Answerer:
    """An actor: a model, and batches of rows through it."""

    def __init__(self, checkpoint: str, max_new_tokens: int, threads: int):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        cuda = torch.cuda.is_available()
        if not cuda:
            torch.set_num_threads(threads)
        self.model = AutoModel.from_pretrained(
            checkpoint,
            torch_dtype=torch.bfloat16 if cuda else torch.float32,
            low_cpu_mem_usage=True,
            trust_remote_code=True,
        ).eval()
        self.model = self.model.cuda() if cuda else self.model
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=True, use_fast=False)
        self.generation_config = dict(max_new_tokens=max_new_tokens, do_sample=False)

    def __call__(self, batch: dict) -> dict:
        """Columns `id`, `question`, `images`; adds `answer` and `error`, of which one is empty."""
        count = len(batch["id"])
        answers, errors = [""] * count, [""] * count
        ready = []  # (row, question with placeholders, tiles of all its images, tiles of each)
        for row in range(count):
            try:
                tiles = [self.model.load_image(path) for path in batch["images"][row]]
                question = str(batch["question"][row])
                if "<image>" not in question:
                    question = "<image>\n" * len(tiles) + question
                counts = [len(image) for image in tiles]
                # Counts what `batch_chat` would be asked; a question that does not fit its images fails here, alone.
                pixels = torch.cat(tiles) if tiles else None
                self.model.count_tokens(self.tokenizer, pixels, question, num_patches_list=counts)
                ready.append((row, question, pixels, counts))
            except (OSError, ValueError) as error:
                errors[row] = f"{type(error).__name__}: {error}"
        try:
            for (row, *_), answer in zip(ready, self.ask(ready)):
                answers[row] = answer
        except RuntimeError:  # such as too little memory for the batch: one by one
            for entry in ready:
                try:
                    (answers[entry[0]],) = self.ask([entry])
                except RuntimeError as error:
                    errors[entry[0]] = f"{type(error).__name__}: {error}"
        return {**batch, "answer": answers, "error": errors}

    def ask(self, ready: list) -> list:
        pixels = [pixels for _, _, pixels, _ in ready if pixels is not None]
        return self.model.batch_chat(
            self.tokenizer,
            torch.cat(pixels) if pixels else None,
            [question for _, question, _, _ in ready],
            self.generation_config,
            num_patches_list=[counts for *_, counts in ready],
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--question", default="Please describe the image.")
    parser.add_argument("--model", default=str(CHECKPOINT), help="folder, the same on every machine, or Hub id")
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--cpus", type=int, default=1, help="of an actor")
    parser.add_argument("--gpus", type=float, default=1 if torch.cuda.is_available() else 0, help="of an actor")
    parser.add_argument("--address", help="of a Ray cluster, such as auto; without it Ray is started here")
    options = parser.parse_args()
    import ray  # once the arguments are right: it takes a second
    import ray.data

    rows = read_rows(options.source, options.question)
    done = finished_ids(options.target)
    rows = [row for row in rows if row["id"] not in done]
    print(f"{len(rows)} rows to ask, {len(done)} answered before")
    if not rows:
        return
    if options.address:
        ray.init(address=options.address, log_to_driver=False)
    else:  # one CPU more than the actors take: Ray reads and cuts blocks, too
        cpus = options.actors * options.cpus + 1
        ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # the bar below counts rows

    blocks = min(math.ceil(len(rows) / options.batch_size), MOST_BLOCKS)
    answered = ray.data.from_items(rows, override_num_blocks=blocks).map_batches(
        Answerer,
        fn_constructor_args=(options.model, options.max_new_tokens, options.cpus),
        batch_size=options.batch_size,
        compute=ray.data.ActorPoolStrategy(size=options.actors),
        num_cpus=options.cpus,
        num_gpus=options.gpus,
    )
    failed = 0
    with open(options.target, "a", encoding="utf-8") as file, tqdm(total=len(rows), unit="row") as bar:
        for row in answered.iter_rows():
            failed += bool(row["error"])
            file.write(json.dumps({name: _plain(value) for name, value in row.items()}, ensure_ascii=False) + "\n")
            file.flush()
            bar.update()
    print(f"{len(rows)} rows, {failed} of them with an error")


def _plain(value):
    return value.tolist() if hasattr(value, "tolist") else value


if __name__ == "__main__":
    main()
