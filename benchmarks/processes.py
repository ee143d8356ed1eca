"""(g) memory of long videos, (h) loading and starting: each measured in a process of its own."""

import statistics
import tempfile

from .measuring import in_fresh_process
from .models import ROOT, native_model

# Peak resident memory of this process in MB, mapped weights that were touched included. Not `ru_maxrss`, which a new
# process takes over from the one that started it.
_PEAK = """
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))
"""

_VIDEO = """
import torch
from benchmarks.measuring import Machine
from benchmarks.models import our_model, shipped_tokenizer
machine = Machine(torch.device("{device}"), torch.{dtype})
model = our_model("{size}", machine, shipped_tokenizer())
pixels = torch.randn({frames}, 3, 448, 448, dtype=machine.dtype).to(machine.device)
cuda = machine.device.type == "cuda"
with torch.no_grad():
    model.extract_feature(pixels[:1])  # what the first call alone needs
    before = torch.cuda.max_memory_allocated() / 2**20 if cuda else peak()
    model.extract_feature(pixels)
print(before, torch.cuda.max_memory_allocated() / 2**20 if cuda else peak())
"""

_LOAD = """
import time, torch, transformers
from transformers import Qwen2ForCausalLM
{imports}
start = time.perf_counter()
model = {load}
# Mapped weights count once they were read.
total = sum(float(p.detach().view(-1)[:: 1024].float().sum()) for p in model.parameters())
print(time.perf_counter() - start, peak(), sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20)
"""
_NOTHING = "import torch, transformers\nfrom transformers import AutoModel, Qwen2ForCausalLM\n{imports}\nprint(peak())"


def video_memory(machine, rounds, size, model):
    """Peak memory in MB of encoding the frames of a video, and how much of it came with the frames."""
    rows = []
    for frames in (4, 8) if size == "tiny" else (8, 16, 32, 64):
        code = _PEAK + _VIDEO.format(
            device=machine.device, dtype=str(machine.dtype).removeprefix("torch."), size=size, frames=frames
        )
        before, after = in_fresh_process(code)
        rows.append({"frames": frames, "peak, MB": after, "of it activations, MB": after - before})
    return rows


def loading(machine, rounds, size, model):
    """Seconds and peak memory of `from_pretrained` by each door: memory beyond what the imports take, as a share of the
    weights. Native is transformers' own InternVL over the same tensors."""
    with tempfile.TemporaryDirectory() as folder:
        original, native = f"{folder}/original", f"{folder}/native"
        model.save_pretrained(original)
        native_model(model, size).save_pretrained(native)
        kind = f"dtype={machine.dtype}"
        doors = {
            "package": ("import internvl_chat", f"transformers.AutoModel.from_pretrained({original!r}, {kind})"),
            "bundle": ("", f"transformers.AutoModel.from_pretrained({original!r}, {kind}, trust_remote_code=True)"),
            "native": ("", f"transformers.AutoModelForImageTextToText.from_pretrained({native!r}, {kind})"),
        }
        return [_loading_row(door, *lines, rounds) for door, lines in doors.items()]


def _loading_row(door, imports, load, rounds) -> dict:
    (empty,) = in_fresh_process(_PEAK + _NOTHING.format(imports=imports))
    code = _PEAK + _LOAD.format(imports=imports, load=load)
    time, peak, weights = (
        statistics.median(column) for column in zip(*(in_fresh_process(code) for _ in range(rounds)))
    )
    return {
        "door": door,
        "load, s": time,
        "weights, MB": weights,
        "peak beyond imports / weights": (peak - empty) / weights,
    }


def starting(machine, rounds, size, model):
    """Seconds that `import internvl_chat` adds to Python's own start."""
    clock = "import time; start = time.perf_counter()\n{line}\nprint(time.perf_counter() - start)"
    imports = [in_fresh_process(clock.format(line="import internvl_chat"))[0] for _ in range(2 * rounds + 1)]
    return [{"import internvl_chat, s": statistics.median(imports), "root": ROOT.rsplit("/", 1)[-1]}]
