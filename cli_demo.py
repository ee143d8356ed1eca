"""The command `internvl-chat demo`; `cli.py` adds it to its own. The libraries are imported by the command."""

import importlib
import ipaddress
import os
import signal
from typing import Annotated

import typer

from internvl_chat.cli_checkpoint import Device, Dtype, DtypeOption, Model, checkpoint_of, load_config, load_model
from internvl_chat.cli_convert import ProblemError

_MIB = 2**20


def _is_loopback(host) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _tell(address) -> None:
    typer.echo(f"The demo is at {address} (Ctrl-C ends it).", err=True)


def demo(
    model: Model = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7860,
    device: Device = "auto",
    dtype: DtypeOption = Dtype.auto,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer that a visitor may ask for.")] = 1024,
    max_files: Annotated[int, typer.Option(min=1, help="Most images and videos of a conversation.")] = 16,
    max_upload: Annotated[int, typer.Option(min=1, help="Largest file, in MiB.")] = 100,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Chat in the browser: a page on this machine (needs the extra `demo`: Gradio).

    Only this machine can reach it, unless `--host` says otherwise; nothing is sent elsewhere. Ctrl-C ends it.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read by gradio when it is imported
    try:
        importlib.import_module("gradio.blocks")  # a folder called gradio does not count
    except ImportError as error:
        raise ProblemError(f"the demo needs Gradio: pip install 'internvl_chat[demo]' ({error})") from error
    from internvl_chat.demo_internvl import Limits
    from internvl_chat.demo_page_internvl import serve

    checkpoint = checkpoint_of(model)
    _, tokenizer = load_config(checkpoint)
    loaded = load_model(checkpoint, device, dtype.value, None)
    if not _is_loopback(host):
        typer.echo(f"Note: {host} is reached from other machines: whoever finds the page may use it.", err=True)
    limits = Limits(max_new_tokens=max_new_tokens, files=max_files, upload_bytes=max_upload * _MIB)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the uploads are deleted then, too
    try:
        serve(loaded, tokenizer, limits, host=host, port=port, open_browser=open_browser, on_ready=_tell)
    except KeyboardInterrupt:
        pass
    except OSError as error:
        raise ProblemError(f"--host {host} --port {port}: {error}", exit_code=1) from error
