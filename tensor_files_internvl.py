"""Safetensors files, read and written piece by piece: no tensor is ever whole in memory, and torch is not needed.

The library safetensors reads files by mapping them into memory and writes a file from tensors that are all there at
once. Moving a checkpoint of any size needs neither: a header that tells where the bytes are, and a buffer. The format
(length of the header in 8 bytes, the header as JSON, the bytes) is that of https://github.com/huggingface/safetensors.
"""

import json
import math
import os
import re
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, NamedTuple, Optional

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_BUFFER = 8 * 1024 * 1024  # bytes
_MAX_HEADER = 100_000_000  # bytes, the limit of the format
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: `size` bytes from `start` on in the file `path`. `dtype` is the format's name, as "BF16"."""

    name: str
    path: Path
    dtype: str
    shape: tuple
    start: int
    size: int

    def rows(self, first: int, end: int) -> "Piece":
        """The bytes of the rows (first dimension) from `first` up to `end`."""
        row_size = self.size // self.shape[0] if self.shape and self.shape[0] else self.size
        return Piece(self, first * row_size, (end - first) * row_size)


class Piece(NamedTuple):
    """`size` bytes of a stored tensor, from its byte `offset` on."""

    tensor: StoredTensor
    offset: int
    size: int


@dataclass(frozen=True)
class NewTensor:
    """A tensor that is to be written: its bytes are those of `pieces`, one after the other."""

    name: str
    dtype: str
    shape: tuple
    pieces: tuple

    @property
    def size(self) -> int:
        return sum(piece.size for piece in self.pieces)


# --- reading ----------------------------------------------------------------------------------------------------------


def stored_in(folder) -> dict:
    """Every tensor of a checkpoint, {name: StoredTensor}, in the order of its files and of their bytes.

    Raises:
        ValueError: there are no safetensors files, one is missing, cut short or not of that format, or lacks a tensor
            that the index promises; the message names file and tensor.
    """
    folder = Path(folder)
    promised = {}
    if (folder / INDEX).is_file():
        promised = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(promised.values()))
    elif (folder / SINGLE).is_file():
        names = [SINGLE]
    else:
        found = sorted(path.name for path in folder.glob("*.bin"))
        hint = f"; {found[0]} must be saved as safetensors first" if found else ""
        raise ValueError(f"{folder} holds no {SINGLE} and no {INDEX}{hint}")
    tensors = {}
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise ValueError(f"{folder / INDEX} names {name!r}, which is not a file of this folder")
        for tensor in _stored_in_file(folder / name):
            if promised.get(tensor.name, name) == name:
                tensors[tensor.name] = tensor
    missing = sorted(set(promised) - set(tensors))
    if missing:
        raise ValueError(f"tensor {missing[0]} is not in {promised[missing[0]]}, where {INDEX} says it is")
    return tensors


def _stored_in_file(path: Path) -> list:
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            raise ValueError(f"{path} is no safetensors file, or was cut short")
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise ValueError(f"{path} is no safetensors file: {error}") from error
    tensors = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            (start, end), shape, dtype = entry["data_offsets"], tuple(entry["shape"]), entry["dtype"]
            elements = math.prod(shape)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"tensor {name} of {path} is not described as the format has it: {entry!r}") from error
        if start > end or (end - start) % (elements or 1) or (not elements and end > start):
            raise ValueError(f"tensor {name} of {path} has shape {shape} and {end - start} bytes, which do not match")
        if 8 + length + end > size:
            raise ValueError(f"tensor {name} of {path} ends behind the end of the file: it was cut short")
        tensors.append(StoredTensor(name, path, dtype, shape, 8 + length + start, end - start))
    return sorted(tensors, key=lambda tensor: tensor.start)


def equal_bytes(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two tensors have the same dtype, shape and bytes."""
    if (one.dtype, one.shape, one.size) != (other.dtype, other.shape, other.size):
        return False
    with ExitStack() as stack:
        files = _Files(stack)
        pairs = zip(files.chunks(Piece(one, 0, one.size)), files.chunks(Piece(other, 0, other.size)))
        return all(first == second for first, second in pairs)


class _Files:
    """The files that pieces are read from, each opened once."""

    def __init__(self, stack: ExitStack):
        self._stack = stack
        self._open = {}

    def chunks(self, piece: Piece, size: int = _BUFFER):
        """The bytes of a piece, at most `size` at a time; each chunk is good until the next one."""
        path = piece.tensor.path
        if path not in self._open:
            self._open[path] = self._stack.enter_context(open(path, "rb", buffering=0))
        file, position, left = self._open[path], piece.tensor.start + piece.offset, piece.size
        buffer = memoryview(bytearray(min(size, left)))
        while left:
            file.seek(position)
            read = file.readinto(buffer[: min(len(buffer), left)])
            if not read:
                raise ValueError(f"tensor {piece.tensor.name}: {path} ended while it was read")
            yield buffer[:read]
            position, left = position + read, left - read


# --- writing ----------------------------------------------------------------------------------------------------------


def bytes_of(size) -> int:
    """A number of bytes, given as such or as text: "5GB" (decimal units, as in transformers), "300MiB".

    Raises:
        ValueError: it is neither, or below 1.
    """
    match = re.fullmatch(r"(\d+)\s*([A-Za-z]*)", str(size).strip())
    if isinstance(size, bool) or match is None or match[2].upper() not in _UNITS or int(match[1]) < 1:
        raise ValueError(f"a size must be a number of bytes or like '5GB', got {size!r}")
    return int(match[1]) * _UNITS[match[2].upper()]


def write_tensors(folder, tensors, max_shard_size, progress: Optional[Callable] = None) -> list:
    """Writes `tensors` (`NewTensor`) into safetensors files, with an index where there are several.

    Args:
        folder: an existing folder.
        max_shard_size: most bytes of tensors in a file, see `bytes_of`; a larger tensor has a file of its own.
        progress: called with the number of bytes written since the last call.

    Returns:
        Paths of the files with tensors.
    """
    folder, limit = Path(folder), bytes_of(max_shard_size)
    shards, filled = [[]], 0
    for tensor in tensors:
        if shards[-1] and filled + tensor.size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.size
    count = len(shards)
    names = [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    names = [SINGLE] if count == 1 else names
    with ExitStack() as stack:
        files = _Files(stack)
        for name, shard in zip(names, shards):
            _write_file(folder / name, shard, files, progress or (lambda count: None))
    if count > 1:
        weight_map = {tensor.name: name for name, shard in zip(names, shards) for tensor in shard}
        total = sum(tensor.size for tensor in tensors)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return [folder / name for name in names]


def _write_file(path, shard, files, progress) -> None:
    # The widest numbers first, so that each tensor begins at a multiple of its own width, as the format wants it.
    shard = sorted(shard, key=lambda tensor: -(tensor.size // (math.prod(tensor.shape) or 1)))
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for tensor in shard:
        offsets = [end, end := end + tensor.size]
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for tensor in shard:
            for piece in tensor.pieces:
                for chunk in files.chunks(piece):
                    file.write(chunk)
                    progress(len(chunk))
        file.flush()
        os.fsync(file.fileno())  # the folder's new name must not become known before its content


def check_written(folder, tensors, progress: Optional[Callable] = None) -> None:
    """Reads what `write_tensors` wrote and compares it with where it came from, byte by byte.

    Raises:
        ValueError: a tensor is missing or differs; the message names it.
    """
    written = stored_in(folder)
    with ExitStack() as stack:
        files = _Files(stack)
        for tensor in tensors:
            found = written.get(tensor.name)
            if found is None or (found.dtype, found.shape, found.size) != (tensor.dtype, tensor.shape, tensor.size):
                raise ValueError(f"tensor {tensor.name} was not written as it should be")
            offset = 0
            for piece in tensor.pieces:
                expected, actual = files.chunks(piece), files.chunks(Piece(found, offset, piece.size))
                for one, other in zip(expected, actual):
                    if one != other:
                        raise ValueError(f"tensor {tensor.name} differs from what was written: the disk is not sound")
                    if progress is not None:
                        progress(len(one))
                offset += piece.size
