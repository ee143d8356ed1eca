"""Checkpoints of the family in another layout: published ("original") and transformers' own ("native"), both ways.

Nothing is computed: tensors are renamed and their rows dealt out, bytes are copied from file to file through a buffer.
A tensor therefore comes back as it was, to the byte, and no model needs to fit into memory. The new folder grows under
another name beside its place and gets its own at the end; the source is only read.
"""

import errno
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional

import torch

from .configuration_internvl_chat import InternVLChatConfig
from .install_internvl import code_files
from .modeling_internvl_chat import InternVLChatModel
from .native_config_internvl import RECORD, native_config, original_config, read_original
from .native_processing_internvl import (
    VOCABULARY_FILES,
    as_json,
    image_token_id,
    native_files,
    original_files,
    read_json,
    tiles_of,
)
from .native_tensors_internvl import HEADS, TABLES, name_on_disk, native_pieces, with_separate_experts
from .tensor_files_internvl import NewTensor, bytes_of, check_written, equal_bytes, stored_in, write_tensors

LAYOUTS = ("native", "original")
_MODEL_TYPES = {"internvl_chat": "original", "internvl": "native"}
_LICENSES = ("LICENSE*", "NOTICE*")
_ROOM = 32 * 1024 * 1024  # bytes beside the tensors and the copied files, on the disk
# Buffers that old releases of transformers saved with a model; every release computes them.
_COMPUTED = "rotary_emb.inv_freq"


@dataclass(frozen=True)
class Conversion:
    """What `convert` did.

    Attributes:
        target: the new folder.
        layout: "native" or "original".
        tensors: number of tensors in it, `size` their bytes.
        files: names of the files with tensors.
        notes: what the new layout does not have or does differently, a sentence each.
    """

    target: Path
    layout: str
    tensors: int
    size: int
    files: tuple
    notes: tuple


def convert(
    source,
    target,
    to: str = "native",
    *,
    template: Optional[str] = None,
    max_shard_size="5GB",
    verify: bool = True,
    progress: Optional[Callable] = None,
) -> Conversion:
    """Writes the checkpoint in the folder `source` into the folder `target`, in the other layout.

    Args:
        source: folder with `config.json` and safetensors files; tokenizer files are taken along where there are some.
        target: folder to make; it may exist if it is empty. Until the end it is called `.NAME.converting`.
        to: "native", for `transformers.InternVLForConditionalGeneration` and its processor, or "original", for this
            package and every engine that reads the published checkpoints. InternLM2 becomes Llama in the native layout,
            and InternLM2 again on the way back.
        template: to "original": the prompt template, where the native checkpoint was not made by `convert` and is not
            of the kind that is assumed (see docs/converting.md).
        max_shard_size: most bytes of tensors in a file, a number or "5GB".
        verify: read everything back and compare it with the source.
        progress: called as `progress(stage, done, total)` in bytes; the stage is "writing" or "checking".

    Returns:
        `Conversion`.

    Raises:
        ValueError: an argument cannot be meant, the checkpoint is of another family or in that layout already, the
            layout cannot hold it, or a tensor is missing, unknown or of another shape than the configuration says; the
            message names it. Nothing was written then.
        OSError: files cannot be read or written, or the disk is too small (`errno.ENOSPC`, before anything is written).
    """
    if to not in LAYOUTS:
        raise ValueError(f"to={to!r} is unknown; choices: {', '.join(LAYOUTS)}")
    bytes_of(max_shard_size)
    source, target = Path(source).expanduser(), Path(target).expanduser().resolve()
    values = _check_folders(source, target, to)
    if template is not None and to != "original":
        raise ValueError(f"template={template!r} is for conversions to 'original'; the native layout has none")
    plan = _to_native(source, values) if to == "native" else _to_original(source, values, template)
    _check_room(target.parent, plan)

    total, done = sum(tensor.size for tensor in plan.tensors), {}

    def count(stage):
        def add(number):
            done[stage] = done.get(stage, 0) + number
            progress(stage, done[stage], total)

        return add if progress is not None else None

    target.parent.mkdir(parents=True, exist_ok=True)
    staging = _staging(target)
    staging.mkdir()
    try:
        paths = write_tensors(staging, plan.tensors, max_shard_size, count("writing"))
        if verify:
            check_written(staging, plan.tensors, count("checking"))
        for path in plan.copied:
            shutil.copyfile(path, staging / path.name)
        for name, text in plan.files.items():
            (staging / name).write_text(text, encoding="utf-8")
        if target.is_dir():
            target.rmdir()  # empty, as was checked; fails if it no longer is
        os.replace(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    names = tuple(path.name for path in paths)
    return Conversion(target, to, len(plan.tensors), total, names, tuple(plan.notes))


# --- before anything is written ---------------------------------------------------------------------------------------


def _staging(target: Path) -> Path:
    return target.parent / f".{target.name}.converting"


def _check_folders(source: Path, target: Path, to: str) -> dict:
    """Content of the source's `config.json`."""
    if not source.is_dir():
        raise ValueError(f"{source} is no folder that is there; checkpoints of the Hub must be downloaded first")
    if not (source / "config.json").is_file():
        raise ValueError(f"{source} is no checkpoint: it has no config.json")
    values = read_json(source / "config.json")
    layout = _MODEL_TYPES.get(values.get("model_type"))
    if layout is None:
        known = ", ".join(f"{kind} ({name})" for kind, name in _MODEL_TYPES.items())
        raise ValueError(f"{source} has model_type {values.get('model_type')!r}; known: {known}")
    if layout == to:
        raise ValueError(f"{source} is in the {to} layout already (model_type {values['model_type']!r})")
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target} is a file, expected a folder that is empty or not there")
    if target.is_dir() and any(target.iterdir()):
        raise ValueError(f"{target} is not empty: name a folder that is empty or not there")
    if os.path.ismount(target):
        raise ValueError(f"{target} is the root of a disk, which cannot be renamed: name a folder in it")
    if source.resolve() in target.parents:
        raise ValueError(f"{target} lies in the source, {source}, which stays as it is: name another place")
    if _staging(target).exists():
        raise ValueError(
            f"{_staging(target)} is there: another process is making {target}, or was killed; remove it in that case"
        )
    return values


def _check_room(parent: Path, plan) -> None:
    while not parent.exists():
        parent = parent.parent
    needed = sum(tensor.size for tensor in plan.tensors) + sum(path.stat().st_size for path in plan.copied) + _ROOM
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"the new folder needs {needed:,} bytes, the disk has {free:,} left", str(parent))


@dataclass(frozen=True)
class _Plan:
    """What goes into the new folder: tensors, copies of files, and files with new content, {name: text}."""

    tensors: list
    copied: list
    files: dict
    notes: list


def _to_native(source: Path, values: dict) -> _Plan:
    config = read_original(values)
    stored, notes = _stored(source)
    head, table = (next((stored[name] for name in names if name in stored), None) for names in (HEADS, TABLES))
    tied = config.tie_word_embeddings and (head is None or (table is not None and equal_bytes(head, table)))
    native = native_config(config, image_token_id(source, config), tied)
    files, record = native_files(source, config)
    native[RECORD] = {"config": values, **record}
    tensors = []
    for name, shape in _expected(config, stored).items():
        tensor = _as_expected(stored, name, shape)
        for target, ranges in native_pieces(name, shape, _internlm2_heads(config)):
            pieces = tuple(tensor.rows(*rows) for rows in ranges)
            count = sum(end - first for first, end in ranges)
            tensors.append(NewTensor(target, tensor.dtype, (count, *shape[1:]) if shape else shape, pieces))
    notes += _notes_to_native(config, tied)
    if not any(name.startswith("tokenizer") for name in files):
        notes.append("the source has no tokenizer, so that the new folder has neither tokenizer nor processor")
    return _Plan(tensors, _copies(source, files), {**files, "config.json": as_json(native)}, notes)


def _to_original(source: Path, native: dict, template) -> _Plan:
    record = native.get(RECORD) or {}
    stored, notes = _stored(source)
    stored = {name_on_disk(name): tensor for name, tensor in stored.items()}
    tiles, tile_size = tiles_of(source)
    values = original_config(native, tiles, tile_size, template, has_head=HEADS[0] in stored)
    config = read_original(values)
    heads, tensors, seen = _internlm2_heads(config), [], set()
    for name, shape in _shapes(config, stored).items():
        targets = native_pieces(name, shape, heads)
        if name in HEADS and targets[0][0] not in stored and config.tie_word_embeddings:
            continue
        pieces, dtypes = [], {}
        for native_name, ranges in targets:
            count = sum(end - first for first, end in ranges)
            tensor = _as_expected(stored, native_name, (count, *shape[1:]) if shape else shape)
            seen.add(native_name)
            dtypes[tensor.dtype] = native_name
            row = 0
            for first, end in ranges:
                pieces.append((first, tensor.rows(row, row + end - first)))
                row += end - first
        if len(dtypes) > 1:
            raise ValueError(f"tensor {name} would be made of several dtypes: {dtypes}")
        in_order = tuple(piece for _, piece in sorted(pieces, key=lambda pair: pair[0]))
        tensors.append(NewTensor(name, next(iter(dtypes)), shape, in_order))
    _refuse_unknown(set(stored) - seen)
    files = original_files(source, record, values)
    made = record.get("made", ()) if (source / "tokenizer.model").is_file() else ()
    copied = [path for path in _copies(source, files) if path.name not in made]
    copied += code_files(json.loads(files.get("tokenizer_config.json", "{}")))
    if not record and template is None:
        notes.append(f"template {values['template']!r} is assumed: the native configuration names none")
    return _Plan(tensors, copied, {**files, "config.json": as_json(values)}, notes)


def _copies(source: Path, files: dict) -> list:
    """Files of the source that the new folder gets as they are."""
    names = [source / name for name in VOCABULARY_FILES if name not in files]
    licenses = [path for pattern in _LICENSES for path in sorted(source.glob(pattern))]
    return [path for path in (*names, *licenses) if path.is_file()]


def _notes_to_native(config, tied) -> list:
    notes = []
    if config.llm_config.tie_word_embeddings and not tied:
        notes.append("the head differs from the embedding table: tie_word_embeddings is false in the new folder")
    if config.select_layer != -1:
        notes.append(f"select_layer={config.select_layer}: the native model of transformers 4 fails, that of 5 works")
    if getattr(config.vision_config, "drop_path_rate", 0):
        notes.append("drop_path_rate: the native vision tower has no stochastic depth (training only)")
    rope = getattr(config.llm_config, "rope_scaling", None) or {}
    if config.llm_config.architectures[0] == "InternLM2ForCausalLM" and "dynamic" in rope.values():
        notes.append("dynamic rope in a batch: the native model scales all rows by the longest one, this package each")
    return notes


# --- tensors ----------------------------------------------------------------------------------------------------------


def _stored(source: Path) -> tuple:
    """({name: tensor}, notes) of a folder, without what is computed anyway."""
    stored = stored_in(source)
    computed = [name for name in stored if name.endswith(_COMPUTED)]
    notes = [f"{len(computed)} tensors {_COMPUTED} are left out: they are computed"] if computed else []
    return {name: tensor for name, tensor in stored.items() if name not in computed}, notes


def _shapes(config: InternVLChatConfig, stored: dict) -> dict:
    """{name: shape} of every tensor of the model, in the names of published files; experts in the form of `stored`."""
    with torch.device("meta"):  # shapes without values
        model = InternVLChatModel(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    has_fused_experts = any(name.endswith(".mlp.experts.gate_up_proj") for name in stored)
    if config.llm_config.architectures[0] == "Qwen3MoeForCausalLM" and not has_fused_experts:
        return with_separate_experts(shapes)
    return shapes


def _expected(config: InternVLChatConfig, stored: dict) -> dict:
    """{name: shape} of what an original checkpoint must hold, once it is known that it holds nothing else."""
    shapes = _shapes(config, stored)
    if config.tie_word_embeddings:
        for head in HEADS:
            if head not in stored:
                shapes.pop(head, None)
    _refuse_unknown(set(stored) - set(shapes))
    return shapes


def _as_expected(stored: dict, name: str, shape: tuple):
    if name not in stored:
        raise ValueError(f"tensor {name} is missing from the checkpoint")
    if stored[name].shape != shape:
        raise ValueError(f"tensor {name} has shape {stored[name].shape}; the configuration asks for {shape}")
    return stored[name]


def _refuse_unknown(names) -> None:
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise ValueError(f"tensor {min(names)}{more} is none that the configuration asks for")


def _internlm2_heads(config: InternVLChatConfig):
    llm = config.llm_config
    if llm.architectures[0] != "InternLM2ForCausalLM":
        return None
    return llm.num_attention_heads, llm.num_key_value_heads
