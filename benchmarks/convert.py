"""Peak memory and speed of `internvl-chat convert` on a checkpoint of a few GB with random tensors, there and back.

Run: python -m benchmarks.convert [layers] [folder]

The checkpoint has InternVL2-8B's sizes (InternLM2, so that rows are dealt out to several tensors) with fewer layers, in
files of 1 GB. Its largest tensor has 758 MB. The folder needs room for three of them and is left as it was. For
comparison, the checkpoint of this repository: what the imports take.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

import internvl_chat

GB = 10**9
ROOT = Path(__file__).resolve().parent.parent
# Runs the command and tells the peak of its resident memory. `ru_maxrss` would not do: on Linux a new process takes it
# over from the one that started it.
COMMAND = """
import atexit, re, sys
from internvl_chat.cli import main
status = lambda: open("/proc/self/status").read()
atexit.register(lambda: print("PEAK", re.search(r"VmHWM:\\s+(\\d+) kB", status())[1]))
sys.argv[0] = "internvl-chat"
main()
"""


def config_of(layers) -> internvl_chat.InternVLChatConfig:
    sizes = {"vocab_size": 92553, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": layers}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8, "bias": False}
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    return internvl_chat.InternVLChatConfig(
        vision_config={**vision, "qkv_bias": True, "qk_normalization": False, "norm_type": "layer_norm"},
        llm_config={"architectures": ["InternLM2ForCausalLM"], **sizes, **heads},
        dynamic_image_size=True,
        use_thumbnail=True,
        ps_version="v2",
        img_context_token_id=92546,
        architectures=["InternVLChatModel"],
    )


def make_checkpoint(folder, config, shard_size=GB) -> tuple:
    """Writes random bits as bfloat16 in files of `shard_size` bytes; returns (bytes of all, of the largest tensor)."""
    config.save_pretrained(folder)
    with torch.device("meta"):
        model = internvl_chat.InternVLChatModel(config)
    sizes = {name: 2 * tensor.numel() for name, tensor in model.state_dict().items()}
    weight_map, shard, filled, number = {}, {}, 0, 0
    for index, (name, tensor) in enumerate(model.state_dict().items()):
        shard[name] = torch.randint(-(2**15), 2**15, tensor.shape, dtype=torch.int16).view(torch.bfloat16)
        filled += sizes[name]
        if filled > shard_size or index == len(sizes) - 1:
            file = f"model-{number:05d}.safetensors"
            save_file(shard, Path(folder) / file, metadata={"format": "pt"})
            weight_map.update(dict.fromkeys(shard, file))
            shard, filled, number = {}, 0, number + 1
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
    (Path(folder) / "model.safetensors.index.json").write_text(json.dumps(index))
    return sum(sizes.values()), max(sizes.values())


def peak_of(*arguments) -> tuple:
    """Runs `internvl-chat` with these arguments; returns (bytes of peak resident memory, seconds)."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", COMMAND, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return int(done.stdout.rsplit("PEAK", 1)[1]) * 1024, time.perf_counter() - start


def main():
    layers = int(sys.argv[1]) if len(sys.argv) > 1 else 4
    with tempfile.TemporaryDirectory(dir=sys.argv[2] if len(sys.argv) > 2 else None) as folder:
        folder = Path(folder)
        total, largest = make_checkpoint(folder / "original", config_of(layers))
        files = len(list((folder / "original").glob("*.safetensors")))
        print(f"{total / GB:.2f} GB in {files} files, largest tensor {largest / GB:.2f} GB")
        for source, target, layout in (
            (ROOT, "tiny", "native"),
            ("original", "native", "native"),
            ("native", "again", "original"),
        ):
            peak, seconds = peak_of("convert", folder / source, folder / target, "--to", layout)
            print(f"{target}: peak {peak / GB:.2f} GB of {(2 * largest + GB) / GB:.2f} allowed, {seconds:.1f} s")


if __name__ == "__main__":
    main()
