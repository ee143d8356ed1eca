"""The `internvl-chat` command: conversations about images and videos in a terminal, and what a checkpoint costs.

Uses the public names of the package only. Answers and facts go to stdout, everything else to stderr; whatever the user
got wrong is told in one line, with exit code 2. torch and transformers are imported by the commands and not here, so
that `--help` and wrong options are answered at once.
"""

import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, List, Optional

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

import internvl_chat
from internvl_chat import cli_convert, cli_demo
from internvl_chat.cli_checkpoint import (
    Device,
    Dtype,
    DtypeOption,
    Model,
    checkpoint_of,
    counted,
    explained,
    load_config,
    load_model,
    note,
)
from internvl_chat.cli_convert import INTERRUPTED, ProblemError

# What an answer could do to the terminal that shows it: every control character but line feed and tab.
_CONTROLS = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


class _Commands(TyperGroup):
    """The commands, of which `chat` is meant where none is named."""

    def parse_args(self, ctx, args):
        own = {*self.commands, "--version", *self.get_help_option_names(ctx)}
        return super().parse_args(ctx, args if args and args[0] in own else ["chat", *args])

    def main(self, *args, **extra):
        extra["standalone_mode"] = False
        try:
            status = super().main(*args, **extra)
        except typer.Abort:  # how older releases of typer report Ctrl-C
            status = INTERRUPTED
        except Exception as error:
            if not hasattr(error, "format_message"):
                raise
            note(f"internvl-chat: {error.format_message()}", style="red")
            status = error.exit_code if isinstance(error, ProblemError) else 2
        sys.exit(status or 0)


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    subcommand_metavar="[chat] [QUESTION] ... | info ... | convert ... | install ... | demo ...",
    context_settings={"help_option_names": ["-h", "--help"]},
)


_FILE = {"exists": True, "dir_okay": False, "readable": True, "show_default": False}
_Images = Annotated[Optional[List[Path]], typer.Option("--image", "-i", help="An image; repeatable.", **_FILE)]
_Videos = Annotated[Optional[List[Path]], typer.Option("--video", "-v", help="A video; repeatable.", **_FILE)]
_MaxNum = Annotated[
    Optional[int], typer.Option(min=1, help="Most tiles that an image is cut into.", show_default="the checkpoint's")
]
_NumSegments = Annotated[int, typer.Option(min=1, help="Frames that are taken from a video.")]


def main() -> None:
    """Console entry point."""
    # The libraries read these when they are imported; what the user has set stays. Progress belongs on a terminal.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    for stream in (sys.stdin, sys.stdout):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        app()
    except SystemExit as end:
        if end.code != INTERRUPTED:
            raise
        # The thread that generates may be in the middle of a long step: leave without waiting for it.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(INTERRUPTED)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"internvl-chat {internvl_chat.__version__}")
        raise typer.Exit()


@app.callback()
def _about(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Chat with InternVL checkpoints about images and videos.

    `internvl-chat "What is this?" --image cat.jpg` asks once.

    `internvl-chat` holds a conversation.

    `internvl-chat info --image cat.jpg` tells what that costs.

    The options are listed by `internvl-chat chat --help` and `internvl-chat info --help`.
    """


@app.command()
def chat(
    question: Annotated[Optional[str], typer.Argument(help="Asked once; without it a conversation begins.")] = None,
    image: _Images = None,
    video: _Videos = None,
    model: Model = None,
    max_num: _MaxNum = None,
    num_segments: _NumSegments = 8,
    system: Annotated[
        Optional[str], typer.Option(help="System message; may be empty.", show_default="the checkpoint's")
    ] = None,
    device: Device = "auto",
    dtype: DtypeOption = Dtype.auto,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 1024,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of sampling; 0 takes the likeliest token.")] = 0.0,
    seed: Annotated[Optional[int], typer.Option(help="Makes sampling repeatable.", show_default="random")] = None,
) -> None:
    """Ask one question, or hold a conversation (the command that is meant where none is named).

    With a question its answer is streamed to stdout. Without one, questions are read line by line, each answered with
    what came before in mind; `/help` lists the commands in between, such as `/image PATH`. Ctrl-C ends an answer,
    Ctrl-D the conversation.

    Images come before videos and both before the question, unless it has one `<image>` for each image or frame.
    """
    if question is not None and not question.strip():
        raise ProblemError("the question is empty")
    from internvl_chat.session_internvl import Session

    checkpoint = checkpoint_of(model)
    _, tokenizer = load_config(checkpoint)
    settings = {"max_new_tokens": max_new_tokens, "do_sample": temperature > 0}
    if temperature > 0:
        settings["temperature"] = temperature
    loaded = load_model(checkpoint, device, dtype.value, seed)
    conversation = _Conversation(Session(loaded, tokenizer, max_num, num_segments, system, settings))
    conversation.add(image, video)
    if question is None:
        conversation.hold(checkpoint)
    else:
        conversation.ask(question)


@app.command()
def info(
    image: _Images = None,
    video: _Videos = None,
    model: Model = None,
    max_num: _MaxNum = None,
    num_segments: _NumSegments = 8,
) -> None:
    """Tell what a checkpoint is and what images and videos cost, without loading its weights."""
    import torch

    from internvl_chat.session_internvl import Session

    checkpoint = checkpoint_of(model)
    config, tokenizer = load_config(checkpoint)
    with torch.device("meta"):  # no weights, but all that there is to count
        empty = internvl_chat.InternVLChatModel(config)
    empty.tie_weights()
    conversation = _Conversation(Session(empty, tokenizer, max_num, num_segments))
    conversation.add(image, video)
    _print_facts("Model", _model_facts(checkpoint, config, tokenizer, empty))
    if conversation.session.media:
        _print_facts("Prompt", _prompt_facts(config, conversation))
    _print_facts("Memory (estimate)", _memory_facts(config, empty, conversation))


app.command()(cli_convert.convert)
app.command()(cli_convert.install)
app.command()(cli_demo.demo)


# --- the conversation -------------------------------------------------------------------------------------------------


class _Conversation:
    """A `Session` in the terminal."""

    def __init__(self, session):
        self.session = session

    def add(self, images, videos) -> None:
        with explained(OSError, ValueError, ImportError):
            for path in images or ():
                self.session.add_image(path)
            for path in videos or ():
                self.session.add_video(path)

    def count_tokens(self) -> int:
        """Tokens of the conversation with its new media, without a question."""
        return self.session.model.count_tokens(**self.session.inputs(""))

    def ask(self, question) -> None:
        """Streams the answer to stdout. What came before an interruption stays in the conversation."""
        with explained(ValueError):
            stream = self.session.start(self.session.inputs(question))
        try:
            for piece in stream:
                _say(piece)
        except OSError:  # nobody reads on, as in `internvl-chat ... | head -1`
            stream.close()
            raise
        except RuntimeError as error:
            if "out of memory" not in str(error):
                raise
            hint = "fewer tiles (--max-num) or frames (--num-segments) need less"
            raise ProblemError(f"the device is out of memory; {hint}", exit_code=1) from error
        finally:
            if self.session.keep():
                _say("\n")

    def hold(self, checkpoint) -> None:
        """Reads questions and commands from stdin until its end."""
        if sys.stdin.isatty():
            note(f"internvl-chat {internvl_chat.__version__}, {checkpoint}. /help lists the commands, Ctrl-D quits.")
        try:
            while True:
                self._turn()
        except EOFError:
            return

    def _turn(self) -> None:
        try:
            line = _read_line().strip()
            name, _, argument = line.partition(" ")
            if not name.startswith("/"):
                if line:
                    self.ask(line)
            elif name in _SLASH_COMMANDS:
                _SLASH_COMMANDS[name][0](self, argument.strip().strip("'\""))
            else:
                raise ProblemError(f"unknown command {name}; there are {', '.join(_SLASH_COMMANDS)}")
        except ProblemError as problem:
            note(str(problem), style="red")
        except KeyboardInterrupt:
            self.session.stop()
            note("Interrupted; Ctrl-D or /quit ends the conversation.")

    # What is between the questions; each takes the rest of its line.

    def show_image(self, path) -> None:
        self.add([Path(path).expanduser()], [])
        note(f"The next question shows {self.session.media[-1]}.")

    def show_video(self, path) -> None:
        self.add([], [Path(path).expanduser()])
        note(f"The next question shows {self.session.media[-1]}.")

    def reset(self, _) -> None:
        rounds, files = len(self.session.history), len(self.session.media)
        note(f"Forgotten: {counted(rounds, 'round')}, {counted(files, 'file')}.")
        self.session.reset()

    def help(self, _) -> None:
        for name, (_run, argument, meaning) in _SLASH_COMMANDS.items():
            note(f"{name} {argument}: {meaning}" if argument else f"{name}: {meaning}")

    def quit(self, _) -> None:
        raise EOFError


_SLASH_COMMANDS = {
    "/image": (_Conversation.show_image, "PATH", "show an image with the next question"),
    "/video": (_Conversation.show_video, "PATH", "show a video with the next question"),
    "/reset": (_Conversation.reset, "", "forget everything said and shown"),
    "/help": (_Conversation.help, "", "list the commands"),
    "/quit": (_Conversation.quit, "", "end the conversation, as Ctrl-D does (Ctrl-C only ends an answer)"),
}


# --- facts ------------------------------------------------------------------------------------------------------------


def _model_facts(checkpoint, config, tokenizer, model) -> dict:
    def tower(module, part):
        size = f"{part.num_hidden_layers} layers of {part.hidden_size}"
        return f"{type(module).__name__}, {size}, {_short(_parameters(module))} parameters"

    llm = config.get_text_config()
    tiles = f"{config.min_dynamic_patch} to {config.max_dynamic_patch}" if config.dynamic_image_size else "1"
    return {
        "checkpoint": checkpoint,
        "vision tower": tower(model.vision_model, config.vision_config),
        "projector": f"{_short(_parameters(model.mlp1))} parameters",
        "language model": tower(model.language_model, llm),
        "parameters": f"{_short(_parameters(model))}, {_dtype(config)}",
        "prompt template": config.template,
        "system message": repr(model.system_message),
        "vocabulary": f"{len(tokenizer):,} tokens",
        "context length": f"{llm.max_position_embeddings:,} tokens",
        "tile": f"{config.tile_size} x {config.tile_size} pixels, {config.num_image_token} tokens",
        "tiles of an image": tiles + (", and one of the whole where it was cut" if config.use_thumbnail else ""),
    }


def _prompt_facts(config, conversation) -> dict:
    facts = {}
    for number, medium in enumerate(conversation.session.media, 1):
        tokens = len(medium.pixel_values) * config.num_image_token
        facts[f"{medium.kind.lower()} ({number})"] = f"{medium}, {tokens:,} tokens"
    length, limit = conversation.count_tokens(), config.get_text_config().max_position_embeddings
    facts["in all"] = f"{length:,} tokens and those of the question, {length / limit:.1%} of the context length"
    return facts


def _memory_facts(config, model, conversation) -> dict:
    import torch

    at_once = internvl_chat.modeling_internvl_chat.VISION_BATCH_SIZE
    width = getattr(torch, _dtype(config)).itemsize
    weights, token, tile = width * _parameters(model), width * _token_values(config), width * _tile_values(config)
    facts = {
        "dtype": _dtype(config) + (", twice as much in float32" if width == 2 else ""),
        "weights": _short(weights, 1024),
        "KV cache": f"{_short(1000 * token, 1024)} for 1,000 tokens",
        "vision activations": (
            f"{_short(tile * at_once, 1024)} for the {at_once} tiles encoded at a time (on a CPU fewer)"
        ),
    }
    if conversation.session.media:
        tiles = min(at_once, sum(len(medium.pixel_values) for medium in conversation.session.media))
        total = weights + token * conversation.count_tokens() + tile * tiles
        facts["this prompt"] = f"{_short(total, 1024)} with the weights"
    return facts


def _parameters(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _token_values(config) -> int:
    """Numbers kept of a token by the language model: a key and a value for each layer and key/value head. It is less in
    long texts where layers look at a window only."""
    llm = config.get_text_config()
    heads = getattr(llm, "num_key_value_heads", None) or llm.num_attention_heads
    head_size = getattr(llm, "head_dim", None) or llm.hidden_size // llm.num_attention_heads
    return 2 * llm.num_hidden_layers * heads * head_size


def _tile_values(config) -> int:
    """Numbers held at once for a tile that is being encoded: the tower's input and, in the MLP of a layer, that of the
    layer, the sum after attention, that normalised, and the hidden layer before and after the activation function. It
    is the peak that torch's profiler shows for `extract_feature` (float32, CPU, sdpa)."""
    vision = config.vision_config
    return ((config.tile_size // vision.patch_size) ** 2 + 1) * (4 * vision.hidden_size + 2 * vision.intermediate_size)


def _dtype(config) -> str:
    return str(config.to_dict().get("torch_dtype") or "float32").rpartition(".")[2]


def _print_facts(title, facts) -> None:
    """A table on a terminal, `label: value` lines elsewhere."""
    console = Console()
    if console.is_terminal:
        table = Table(title=title, title_justify="left", title_style="bold", show_header=False)
        for label, value in facts.items():
            table.add_row(label, Text(value))
        console.print(table)
    else:
        typer.echo("\n".join([title, *(f"  {label}: {value}" for label, value in facts.items())]))


def _short(count, base=1000) -> str:
    """A count with a unit: of 1000 (k, M, B), or of 1024 for bytes."""
    for power, unit in ((3, "B"), (2, "M"), (1, "k")) if base == 1000 else ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if count >= base**power:
            return f"{count / base**power:.{2 if base == 1000 else 1}f} {unit}"
    return str(count)


# --- the terminal -----------------------------------------------------------------------------------------------------


def _say(text) -> None:
    """Writes a piece of an answer to stdout, at once."""
    sys.stdout.write(text.translate(_CONTROLS) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def _read_line() -> str:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return input()
    try:
        import readline  # noqa: F401  gives input() its line editing
    except ImportError:  # Windows has its own
        pass
    return input("> ")


if __name__ == "__main__":
    main()
