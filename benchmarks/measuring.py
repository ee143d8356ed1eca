"""Time and memory: interleaved rounds, medians of ratios, and what the machine itself can do in the same run."""

import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass

import torch
import transformers

_MATRIX = 4096
_READ_BYTES = 1 << 30


def synchronize(device) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def seconds(function, device="cpu") -> float:
    """Time of one call, until the device has done what it was told."""
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - start


def interleaved(functions: dict, rounds: int, device="cpu") -> dict:
    """Times of each function, {name: [seconds]}: all of them once to warm up, then in turn, so that a disturbance of
    the machine meets all alike."""
    for function in functions.values():
        function()
    times = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            times[name].append(seconds(function, device))
    return times


def median_ratio(reference: list, own: list) -> float:
    """How many times as fast as the reference: the median over the rounds of the quotient within a round."""
    return statistics.median(a / b for a, b in zip(reference, own))


@dataclass
class Machine:
    """The device, and its limits as measured a moment ago.

    Attributes:
        matrix_rate: FLOP/s of a large matrix product in `dtype`.
        read_rate: bytes/s of products of large matrices with one vector in `dtype`, which is what decoding does.
        copy_rate: bytes/s read and written by a large copy.
    """

    device: torch.device
    dtype: torch.dtype
    matrix_rate: float = 0.0
    read_rate: float = 0.0
    copy_rate: float = 0.0

    @torch.no_grad()
    def measure(self) -> "Machine":
        """Measures the limits, best of several."""
        kind = {"device": self.device, "dtype": self.dtype}
        a, b, product = (torch.randn(_MATRIX, _MATRIX, **kind) for _ in range(3))
        self.matrix_rate = 2 * _MATRIX**3 / self._best(lambda: torch.mm(a, b, out=product))
        element = a.element_size()
        # Several matrices, each used once a round, so that no cache holds them.
        weights = torch.randn(_READ_BYTES // element // _MATRIX**2, _MATRIX, _MATRIX, **kind)
        vector = torch.randn(1, _MATRIX, **kind)
        self.read_rate = weights.numel() * element / self._best(lambda: [vector @ weight.T for weight in weights])
        target = torch.empty_like(weights)
        self.copy_rate = 2 * weights.numel() * element / self._best(lambda: target.copy_(weights))
        return self

    def _best(self, function, rounds=5):
        function()
        return min(seconds(function, self.device) for _ in range(rounds))

    def __str__(self):
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else platform.processor()
        return (
            f"{name or platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
            f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}; "
            f"{str(self.dtype).removeprefix('torch.')}: matrix product {self.matrix_rate / 1e12:.2f} TFLOP/s, "
            f"matrix-vector {self.read_rate / 1e9:.0f} GB/s, copy {self.copy_rate / 1e9:.0f} GB/s"
        )


def table(rows: list) -> str:
    """Dictionaries as a Markdown table; the columns are the keys in the order in which they first come."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = (row.get(name, "") for name in columns)
        lines.append(
            "| " + " | ".join(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells) + " |"
        )
    return "\n".join(lines)


def in_fresh_process(code: str) -> list:
    """The numbers that Python `code` prints, run in a process of its own: peak memory belongs to a process."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"a measuring process failed:\n{done.stderr[-2000:]}")
    return [float(word) for word in done.stdout.split()]
