"""Trains the shipped checkpoint: `python -m training.train --preset cpu|gpu`.

Goes through the stages of the preset (`recipe.py`) with transformers' Trainer. A run that was interrupted, by Ctrl-C,
by SIGTERM, by `--max-minutes` or by a power cut, goes on from its last checkpoint when the same command is given again,
at the batch that would have come next.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.utils.data import SequentialSampler
from transformers import AutoTokenizer, Trainer, TrainerCallback, TrainingArguments

from . import make_tokenizer
from .data import TASKS, Batches
from .model import EXTRA_PARTS, TRAINED, LearningModel, dense_groups, fit_symbols, fresh_model
from .optimizer import make_optimizer
from .recipe import GATE, PRESETS, RUNS, STAGES, scaled

_FOR_MEASURING = ("questions", "tasks")
_SHARED_MEMORY = "/dev/shm"
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Clock:
    """When to stop: at a signal, or `seconds` from now."""

    def __init__(self, seconds=None):
        self.begin, self.seconds, self.signalled = time.monotonic(), seconds, False

    def share_left(self) -> float:
        """Share of the time that is left; 1 where there is no limit."""
        return 1.0 if self.seconds is None else max(0.0, 1 - (time.monotonic() - self.begin) / self.seconds)

    def is_over(self) -> bool:
        return self.signalled or self.share_left() == 0.0

    def on_signal(self, number, frame):
        self.signalled = True


class StageTrainer(Trainer):
    """transformers' Trainer for one stage: batches in their order, a warm-up / stable / decay schedule, losses by part.

    `landing` lets the clock end the stage too: the learning rate reaches 0 when the time is over.
    """

    def __init__(self, stage, clock, landing, **kwargs):
        self.stage, self.clock, self.landing, self._sums = stage, clock, landing, {}
        super().__init__(**kwargs)

    def _get_train_sampler(self, *arguments):
        return SequentialSampler(self.train_dataset)

    def get_train_dataloader(self):
        loader = super().get_train_dataloader()
        inner = getattr(loader, "base_dataloader", loader)  # accelerate wraps it
        inner.worker_init_fn = partial(_leave_signals_to_the_trainer, inner.worker_init_fn)
        return loader

    def create_optimizer(self, *arguments):
        if self.optimizer is None:
            self.optimizer = make_optimizer(self.model, self.args.learning_rate, self.args.weight_decay)
        return self.optimizer

    def create_scheduler(self, num_training_steps, optimizer=None):
        if self.lr_scheduler is None:
            optimizer = self.optimizer if optimizer is None else optimizer
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.rate(step))
        return self.lr_scheduler

    def rate(self, step) -> float:
        """Factor of the learning rate at a step."""
        stage = self.stage
        left = 1 - step / stage.steps
        if self.landing:
            left = min(left, self.clock.share_left())
        return min(1.0, (step + 1) / max(1, stage.warmup), max(0.0, left) / stage.decay)

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        outputs = model(**inputs)
        for name, loss in model.parts.items():
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = total + loss, count + 1
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def log(self, logs, *arguments, **kwargs):
        logs.update({name: round(float(total / count), 4) for name, (total, count) in self._sums.items()})
        self._sums.clear()
        super().log(logs, *arguments, **kwargs)


def _leave_signals_to_the_trainer(init, worker):
    """Runs in each worker: leaves the process group, so that a signal to all of it does not end the worker while the
    trainer still saves, and is ended by the trainer's own signal."""
    os.setpgrp()
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    if init is not None:
        init(worker)


class Watch(TrainerCallback):
    """Saves and stops when the clock says so; measures on new scenes; keeps the log."""

    def __init__(self, stage, clock, check_every, batches, log):
        self.stage, self.clock, self.check_every, self.batches, self.log = stage, clock, check_every, batches, log
        self.trainer, self.scores = None, {}

    def on_train_begin(self, args, state, control, **kwargs):
        self._begin, self._from = time.monotonic(), state.global_step

    def on_step_end(self, args, state, control, **kwargs):
        if self.clock.is_over() and state.global_step < self.stage.steps:
            control.should_save = control.should_training_stop = True
        if self.check_every and state.global_step % self.check_every == 0:
            self.check(state)
        return control

    def on_log(self, args, state, control, logs=None, **kwargs):
        seconds = time.monotonic() - self._begin
        speed = (state.global_step - self._from) / seconds if seconds else 0.0
        self.log.write(stage=self.stage.name, step=state.global_step, steps_per_second=round(speed, 3), **(logs or {}))

    def check(self, state):
        if not self.batches:
            return
        with self.trainer.compute_loss_context_manager():
            self.scores = measure(self.trainer.model, self.batches, self.trainer.args.device)
        self.log.write(stage=self.stage.name, step=state.global_step, scores=self.scores)


class Log:
    """Lines of JSON in a file, the scores on the screen too."""

    def __init__(self, path):
        self.path = path

    def write(self, **entry):
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        if "scores" in entry:
            listed = " ".join(f"{name} {score:.2f}" for name, score in entry["scores"].items())
            print(f"\n{entry['stage']} {entry['step']}: {listed}", flush=True)


@torch.no_grad()
def measure(model, batches, device) -> dict:
    """Share of right answers for each task on given batches: those whose every token is the likeliest one, which are
    the ones that greedy decoding gets exactly right. Without text, the share of things that `dense_head` names."""
    right, asked, was_training = {}, {}, model.training
    model.eval()
    for batch in batches:
        questions, tasks = (batch.get(name) for name in _FOR_MEASURING)
        inputs = {name: value.to(device) for name, value in batch.items() if name not in _FOR_MEASURING}
        outputs = model(**inputs)
        if questions is None:
            seen = model.dense_scores.float().cpu()
            for name, _, scores, labels in dense_groups(seen, batch["dense"]):
                there = labels > 0 if name != "background" else labels >= 0
                right[name] = right.get(name, 0) + int((scores.argmax(-1) == labels)[there].sum())
                asked[name] = asked.get(name, 0) + int(there.sum())
            continue
        labels = batch["labels"][:, 1:]
        wrong = (outputs["logits"][:, :-1].argmax(-1).cpu() != labels) & (labels >= 0)
        failed = torch.bincount(questions[:, 1:][wrong], minlength=len(tasks)).bool()
        for task, failure in zip(tasks.tolist(), failed.tolist()):
            right[TASKS[task]] = right.get(TASKS[task], 0) + (not failure)
            asked[TASKS[task]] = asked.get(TASKS[task], 0) + 1
    model.train(was_training)
    order = [name for name in (*TASKS, *asked) if name in asked]
    return {name: round(right[name] / asked[name], 4) for name in dict.fromkeys(order) if asked[name]}


def first_item(items):
    """Collates a list of one whole batch."""
    return {name: value for name, value in items[0].items() if name not in _FOR_MEASURING}


def fitting_workers(workers, batch) -> int:
    """Fewer workers where their finished batches, two each and one on its way, would not fit into shared memory."""
    if not workers or not os.path.isdir(_SHARED_MEMORY):
        return workers
    size = sum(value.numel() * value.element_size() for value in batch.values())
    room = 0.8 * shutil.disk_usage(_SHARED_MEMORY).free
    return max(1, min(workers, int(room / (3 * size))))


def run_stage(model, stage, preset, tokenizer, folder, clock, options) -> bool:
    """Trains one stage, or goes on with it. Returns whether it is finished; its model is then in `folder / "final"`."""
    model.enter(stage)
    batches = Batches(stage, tokenizer, preset.seed)
    held_back = Batches(stage, tokenizer, preset.seed, split="new", length=stage.steps + 2)
    held_back = [held_back[stage.steps + index] for index in range(2)] if preset.check_every else []
    on_gpu = torch.cuda.is_available()
    workers = fitting_workers(preset.workers if options.workers is None else options.workers, batches[0])
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=stage.steps,
        per_device_train_batch_size=1,  # an item of the data set is a batch
        learning_rate=stage.learning_rate,
        weight_decay=stage.weight_decay,
        max_grad_norm=1.0,
        bf16=True,
        use_cpu=not on_gpu,
        accelerator_config={"non_blocking": on_gpu},
        seed=preset.seed,
        save_steps=preset.save_every,
        save_total_limit=2,
        logging_steps=min(50, preset.save_every),
        logging_nan_inf_filter=False,
        report_to="none",
        remove_unused_columns=False,
        dataloader_num_workers=workers,
        dataloader_prefetch_factor=2 if workers else None,
        dataloader_persistent_workers=bool(workers),
        dataloader_pin_memory=on_gpu,
        disable_tqdm=options.quiet,
    )
    landing = options.land and (options.only is not None or stage.name == preset.stages[-1].name)
    watch = Watch(stage, clock, preset.check_every, held_back, Log(folder.parent / "log.jsonl"))
    trainer = StageTrainer(
        stage,
        clock,
        landing,
        model=model,
        args=arguments,
        train_dataset=batches,
        data_collator=first_item,
        callbacks=[watch],
    )
    watch.trainer = trainer
    last = last_checkpoint(folder)
    print(f"stage {stage.name}: {stage.steps} steps, {workers} workers, from {last or 'its beginning'}", flush=True)
    trainer.train(resume_from_checkpoint=last and str(last))
    step = trainer.state.global_step
    finished = step >= stage.steps or (landing and clock.share_left() == 0.0)
    if not finished:
        print(f"stage {stage.name} stopped at step {step} of {stage.steps}: give the same command to go on")
        return False
    watch.check(trainer.state)
    if stage.name == "symbols" and not options.no_gate and not _passes_gate(trainer, tokenizer, preset.seed):
        return False
    trainer.save_model(str(folder / "final"))
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    return True


def _passes_gate(trainer, tokenizer, seed) -> bool:
    """Whether enough was learnt for the other stages to make sense, on new single pictures."""
    (task, least), stage = GATE, replace(trainer.stage, mixture={"single": 1}, simple_steps=0)
    batches = Batches(stage, tokenizer, f"{seed}/gate", split="new", length=4)
    with trainer.compute_loss_context_manager():
        score = measure(trainer.model, (batches[index] for index in range(4)), trainer.args.device).get(task, 0.0)
    print(f"gate: {task!r} is at {score:.2f}, {least} is needed", flush=True)
    if score < least:
        print("give stage symbols more steps (--scale), which goes on from here, or pass --no-gate")
    return score >= least


def _fit_symbols(model, preset, tokenizer):
    """`fit_symbols` on new pictures: the same for each stage that begins so, in whatever process."""
    stage = next(stage for stage in preset.stages if stage.name == "vision")
    batches = Batches(stage, tokenizer, f"{preset.seed}/symbols", length=max(1, 1000 // stage.tiles))
    fit_symbols(model, tokenizer, batches)


def last_checkpoint(folder):
    """The newest complete checkpoint of a stage, or None. Its state is written last: without, the save was cut off."""
    complete = [path.parent for path in Path(folder).glob("checkpoint-*/trainer_state.json")]
    return max(complete, key=lambda path: int(path.name.split("-")[1]), default=None)


def load_weights(model: LearningModel, folder, stage=None) -> None:
    """Takes over what a finished stage has trained, or, without `stage`, all the weights of an export, which lacks the
    parts that only training needs.

    Raises:
        ValueError: weights are missing, or there are others.
    """
    weights, parts = load_file(Path(folder) / "model.safetensors"), TRAINED[stage or "joint"]
    if stage:
        weights = {name: value for name, value in weights.items() if name.startswith(parts)}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    missing = [name for name in missing if not name.endswith("lm_head.weight")]  # tied to the embeddings
    missing = [name for name in missing if name.startswith(parts) and (stage or not name.startswith(EXTRA_PARTS))]
    if missing or unexpected:
        raise ValueError(f"{folder} does not fit the model: missing {missing}, unexpected {unexpected}")


def compile_layers(model) -> None:
    """Compiles each layer of both towers: rows have one shape, the number of tiles varies."""
    for layer in model.vision_model.encoder.layers:
        layer.compile(dynamic=True)
    for layer in model.language_model.model.layers:
        layer.compile(dynamic=False)


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.train", description=__doc__.split("\n")[0])
    parser.add_argument("--preset", choices=list(PRESETS), required=True)
    parser.add_argument("--output", type=Path, help="folder of the run, default training/runs/PRESET")
    parser.add_argument("--scale", type=float, default=1.0, help="times the steps of each stage")
    parser.add_argument("--max-minutes", type=float, help="save and stop after this time")
    parser.add_argument("--land", action="store_true", help="let the last stage end with --max-minutes, rate at 0")
    parser.add_argument("--init", type=Path, help="folder with weights that the first unfinished stage begins with")
    parser.add_argument("--first", choices=STAGES, help="leave the stages before this one out (with --init)")
    parser.add_argument("--only", choices=STAGES, help="train this stage alone; two of them can run side by side")
    parser.add_argument("--seed", type=int, help="another seed than the preset's: a run that goes on sees new data")
    parser.add_argument("--workers", type=int, help="processes that make batches, default the preset's")
    parser.add_argument("--threads", type=int, help="threads of torch on the CPU")
    parser.add_argument("--compile", action="store_true", help="compile the layers (slow start, faster steps)")
    parser.add_argument("--no-gate", action="store_true", help="go on after stage symbols whatever it has learnt")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args(arguments)
    if options.land and options.max_minutes is None:
        parser.error("--land needs --max-minutes")

    clock = Clock(None if options.max_minutes is None else 60 * options.max_minutes)
    before = {number: signal.signal(number, clock.on_signal) for number in _SIGNALS}
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        preset = scaled(PRESETS[options.preset], options.scale)
        if options.seed is not None:
            preset = replace(preset, seed=options.seed)
        return _run(preset, clock, options)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(preset, clock, options) -> int:
    output = options.output or RUNS / options.preset
    output.mkdir(parents=True, exist_ok=True)
    if not (output / "tokenizer" / "tokenizer.json").is_file():
        make_tokenizer.save(make_tokenizer.train(), output / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(output / "tokenizer")
    model = fresh_model(preset.size, tokenizer, preset.seed)
    if options.compile:
        compile_layers(model)
    init, names = options.init, [stage.name for stage in preset.stages]
    for number, stage in enumerate(preset.stages, 1):
        folder = output / f"{number}-{stage.name}"
        if (folder / "final" / "model.safetensors").is_file():
            load_weights(model, folder / "final", stage.name)
            continue
        if number <= names.index(options.first or names[0]) or stage.name != (options.only or stage.name):
            continue
        if init is not None:
            if last_checkpoint(folder) is None:  # else all weights come from there
                load_weights(model, init)
                if stage.name != "joint":
                    _fit_symbols(model, preset, tokenizer)
            stage, init = replace(stage, simple_steps=0), None  # it has begun elsewhere
        if not run_stage(model, stage, preset, tokenizer, folder, clock, options):
            return 0 if clock.is_over() else 1
    done = (
        options.only or f"all stages, in {folder / 'final'}; now python -m training.export, python -m training.evaluate"
    )
    print(f"finished: {done}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
