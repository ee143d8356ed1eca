"""The commands `internvl-chat convert` and `internvl-chat install`; `cli.py` adds them to its own.

What was done goes to stdout, the progress bar and notes to stderr; whatever cannot be done is told in one line. The
libraries are imported by the commands and not here.
"""

import signal
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

INTERRUPTED = 130  # 128 + SIGINT, as shells report it
# Besides Ctrl-C: a termination, and the end of the terminal.
_ENDINGS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


class ProblemError(Exception):
    """What the user gets to read in place of a traceback."""

    def __init__(self, message, exit_code=2):
        super().__init__(message)
        self.exit_code = exit_code

    def format_message(self) -> str:  # as the command line library's own errors are asked
        return str(self)


class Layout(str, Enum):
    """Choices of `--to`."""

    native = "native"
    original = "original"


@contextmanager
def _in_order():
    """Errors about the user's files become one line, and every signal that ends the work has it put away first."""

    def interrupt(number, frame):
        raise KeyboardInterrupt

    heard = [number for number in _ENDINGS if signal.getsignal(number) != signal.SIG_IGN]  # ignored under nohup
    before = {number: signal.signal(number, interrupt) for number in heard}
    try:
        yield
    except (ValueError, ImportError) as error:
        raise ProblemError(str(error)) from error
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise ProblemError(f"{where}{error.strerror or error}") from error
    except KeyboardInterrupt:
        raise ProblemError("interrupted; everything is as it was before", INTERRUPTED) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def convert(
    source: Annotated[Path, typer.Argument(help="Folder of the checkpoint.", show_default=False)],
    target: Annotated[Path, typer.Argument(help="Folder to make.", show_default=False)],
    to: Annotated[Layout, typer.Option(help="The layout of the new folder.")] = Layout.native,
    template: Annotated[
        Optional[str], typer.Option(help="Prompt template, to original.", show_default="the checkpoint's")
    ] = None,
    max_shard_size: Annotated[str, typer.Option(help="Most bytes of a file with tensors.")] = "5GB",
    verify: Annotated[bool, typer.Option(help="Read the new folder back and compare it with the source.")] = True,
) -> None:
    """Write a checkpoint in another layout: that of transformers' own InternVL (native), or the published (original).

    Tensors are copied byte by byte, so that a way there and back gives the same checkpoint. The source is only read;
    the new folder gets its name when it is complete.
    """
    from internvl_chat.convert_internvl import convert as run

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    tasks = {}

    def progress(stage, done, total):
        if stage not in tasks:
            tasks[stage] = bar.add_task(stage, total=total)
        bar.update(tasks[stage], completed=done)

    with _in_order(), Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        options = {"template": template, "max_shard_size": max_shard_size, "verify": verify}
        done = run(source, target, to.value, **options, progress=progress)
    for note in done.notes:
        typer.echo(f"Note: {note}.", err=True)
    files = f"{len(done.files)} file" + "s" * (len(done.files) != 1)
    typer.echo(f"{target}: {done.layout}, {done.tensors} tensors, {done.size:,} bytes in {files}")


def install(
    folder: Annotated[Path, typer.Argument(help="Folder of a published checkpoint.", show_default=False)],
    undo: Annotated[bool, typer.Option("--undo", help="Bring back what was there before.")] = False,
) -> None:
    """Put this package's code into the folder of a published checkpoint, in place of the code that came with it.

    Everything that reads the folder with `trust_remote_code=True` runs our code then. What was there before is kept in
    the subfolder `published_code`.
    """
    from internvl_chat.install_internvl import install as run

    with _in_order():
        changes = run(folder, undo=undo)
    for change in changes:
        typer.echo(change)
    if not changes:
        typer.echo(f"{folder}: nothing to change")
