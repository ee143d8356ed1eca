"""The options that name a checkpoint on the command line, and how it is loaded: for `cli.py` and `cli_demo.py`.

torch and transformers are imported by the functions and not here.
"""

import re
import sys
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console
from rich.text import Text

import internvl_chat
from internvl_chat.cli_convert import ProblemError

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


class Dtype(str, Enum):
    """Choices of `--dtype`."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


Model = Annotated[
    Optional[str],
    typer.Option(
        "--model",
        "-m",
        metavar="FOLDER_OR_ID",
        help="The checkpoint: a folder, or an id of the Hub.",
        show_default="the one in the package's folder",
    ),
]
Device = Annotated[
    str, typer.Option(help="cpu, cuda, cuda:1, mps, ...; auto is the first of cuda, mps and cpu that there is.")
]
DtypeOption = Annotated[Dtype, typer.Option(help="Of the weights; auto is the checkpoint's own, and float32 on a cpu.")]


@contextmanager
def explained(*errors, subject=""):
    """Turns errors of the libraries into one line for the user."""
    try:
        yield
    except errors as error:
        raise ProblemError(f"{subject}{error or type(error).__name__}") from error


def checkpoint_of(model) -> str:
    """What `--model` means, as `from_pretrained` takes it."""
    folder = Path(__file__).parent if model is None else Path(model).expanduser()
    if (folder / "config.json").is_file():
        return str(folder)
    if model is None:
        raise ProblemError("this installation has no checkpoint of its own: name one with --model FOLDER_OR_ID")
    if folder.is_dir():
        raise ProblemError(f"--model {model}: this folder holds no checkpoint, it has no config.json")
    if folder.exists():
        raise ProblemError(f"--model {model}: this is a file, not a folder or an id of the Hub")
    if not _HUB_ID.fullmatch(model):
        raise ProblemError(f"--model {model}: there is no such folder (and an id of the Hub has the form owner/name)")
    return model


def load_config(checkpoint):
    """Configuration and tokenizer."""
    from transformers import AutoConfig, AutoTokenizer

    # No error of these two is ours, and what a broken file makes the libraries raise is anything.
    with explained(Exception, subject=f"--model {checkpoint}: it cannot be loaded: "):
        config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
        if not isinstance(config, internvl_chat.InternVLChatConfig):
            raise ValueError(f"expected model_type 'internvl_chat' in config.json, got {config.model_type!r}")
        return config, AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)


def load_model(checkpoint, device, dtype, seed):
    """The model with its weights."""
    import torch

    if seed is not None:
        torch.manual_seed(seed)
    device = _device(device)
    if dtype == "auto" and device.type == "cpu":
        dtype = "float32"
    elif dtype == "auto" and device.type == "cuda" and torch.cuda.get_device_capability(device)[0] < 8:
        dtype = "float16"  # bfloat16 came with the GPUs of capability 8
    if sys.stderr.isatty():
        note(f"Loading {checkpoint} ({'own dtype' if dtype == 'auto' else dtype}, {device}) ...")
    with explained(Exception, subject=f"--model {checkpoint}: its weights cannot be loaded: "):
        model, report = internvl_chat.InternVLChatModel.from_pretrained(
            checkpoint,
            torch_dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            low_cpu_mem_usage=True,
            output_loading_info=True,
        )
        missing = sorted(report["missing_keys"])
        if missing:
            raise ValueError(f"{counted(len(missing), 'parameter')} missing, such as {missing[0]}")
        return model.eval().to(device)


def _device(name):
    import torch

    if name == "auto":
        mps = getattr(torch.backends, "mps", None)
        name = "cuda" if torch.cuda.is_available() else "mps" if mps is not None and mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()  # also fails on "meta", where there are no numbers
    except (AssertionError, RuntimeError) as error:  # the first from a torch without CUDA
        raise ProblemError(f"--device {name}: it cannot be used here: {str(error).splitlines()[0]}") from error
    return device


def counted(count, noun) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def note(message, style="dim") -> None:
    """Writes one line to stderr."""
    Console(stderr=True).print(Text(" ".join(message.splitlines()), style=style), soft_wrap=True)
