"""The `internvl-chat` command, on the shipped checkpoint: in this process through typer's runner, and as a program of
its own where streams, signals and the terminal matter."""

import io
import json
import os
import pty
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import pytest
import torch
import transformers
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import internvl_chat
from internvl_chat import cli
from internvl_chat.cli import app

ROOT = Path(internvl_chat.__file__).parent
PROGRAM = [sys.executable, "-m", "internvl_chat.cli"]
SHORT = ["--max-num", "2", "--num-segments", "3", "--max-new-tokens", "12"]


@pytest.fixture(scope="module", autouse=True)
def silent_loading():
    """What `main()` does by environment variables, for commands that run in this process."""
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    yield
    if shown:
        transformers.utils.logging.enable_progress_bar()


@pytest.fixture(scope="module")
def model():
    return internvl_chat.InternVLChatModel.from_pretrained(ROOT, torch_dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(ROOT)


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """Folder with two images (the first needs two tiles and a thumbnail) and a video, rendered here."""
    folder = tmp_path_factory.mktemp("media")
    for name, size, color in (("wide.png", (800, 400), (222, 36, 36)), ("square.png", (300, 300), (36, 80, 220))):
        image = Image.new("RGB", size, (255, 255, 255))
        ImageDraw.Draw(image).ellipse((100, 50, 250, 200), fill=color)
        image.save(folder / name)
    with av.open(str(folder / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width = stream.height = 224
        stream.pix_fmt = "yuv420p"
        for index in range(16):
            image = Image.new("RGB", (224, 224), (255, 255, 255))
            ImageDraw.Draw(image).ellipse((10 + 8 * index, 80, 70 + 8 * index, 140), fill=(222, 36, 36))
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())
    (folder / "text.txt").write_text("no picture")
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "broken.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(500))
    return folder


@pytest.fixture
def asked(monkeypatch):
    """Arguments of each `stream_chat` call that was not refused; it is made all the same."""
    calls = []
    original = internvl_chat.InternVLChatModel.stream_chat

    def stream_chat(self, **arguments):
        stream = original(self, **arguments)
        calls.append(arguments)
        return stream

    monkeypatch.setattr(internvl_chat.InternVLChatModel, "stream_chat", stream_chat)
    return calls


def checkpoint(folder, without=(), tokenizer_config=None, **config):
    """A copy of the shipped checkpoint in `folder`, with other values in its configuration."""
    folder.mkdir()
    for path in ROOT.iterdir():
        if path.suffix in (".json", ".txt", ".safetensors") and path.name not in without:
            shutil.copyfile(path, folder / path.name)
    for name, changes in (("config.json", config), ("tokenizer_config.json", tokenizer_config or {})):
        values = json.loads((ROOT / name).read_text())
        for key, value in changes.items():
            values[key] = {**values[key], **value} if isinstance(value, dict) else value
        (folder / name).write_text(json.dumps(values))
    return folder


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    """A checkpoint that does not know its end mark, so that an answer goes on until it is interrupted."""
    return checkpoint(
        tmp_path_factory.mktemp("endless") / "checkpoint",
        without=("generation_config.json", "special_tokens_map.json"),
        tokenizer_config={"eos_token": "<|endoftext|>"},
        template="phi3-chat",
        llm_config={"eos_token_id": None},
    )


def run(*arguments, **options):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], **options)


# --- one question -----------------------------------------------------------------------------------------------------

FRAMES = "Frame1: <image>\nFrame2: <image>\nFrame3: <image>\n"
QUESTIONS = {
    "text": ("'Hello!'", "Hello!"),
    "image": ("'What color is it?' -i wide.png", "<image>\nWhat color is it?"),
    "images": ("chat Describe. -i wide.png --image square.png", "Image-1: <image>\nImage-2: <image>\nDescribe."),
    "video": ("-v clip.mp4 Describe.", FRAMES + "Describe."),
    "image and video": ("chat -v clip.mp4 -i square.png 'What is this?'", "<image>\n" + FRAMES + "What is this?"),
    "videos": ("Compare. -v clip.mp4 --video clip.mp4", f"Video-1:\n{FRAMES}Video-2:\n{FRAMES}Compare."),
    "placed": ("'Is <image> like <image>?' -i wide.png -i square.png", "Is <image> like <image>?"),
    "a command's name": ("chat info", "info"),
}


@pytest.mark.parametrize("case", QUESTIONS)
def test_one_question(case, media, model, tokenizer, asked, monkeypatch):
    """The answer alone on stdout, the one that `chat` gives to the prompt of the model cards."""
    monkeypatch.chdir(media)
    arguments, prompt = QUESTIONS[case]
    result = run(*shlex.split(arguments), *SHORT)
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    assert [call["question"] for call in asked] == [prompt]

    names = re.findall(r"\S+\.(?:png|mp4)", arguments)
    tiles, counts = [], []
    for name in sorted(names, key=lambda name: name.endswith("mp4")):
        if name.endswith("png"):
            tiles.append(model.load_image(name, max_num=2))
            counts.append(len(tiles[-1]))
        else:
            pixel_values, frames = model.load_video(name, num_segments=3)
            tiles.append(pixel_values)
            counts.extend(frames)
    pixel_values = torch.cat(tiles) if tiles else None
    settings = {"max_new_tokens": 12, "do_sample": False}
    expected = model.chat(tokenizer, pixel_values, prompt, settings, num_patches_list=counts or None)
    assert result.stdout == expected + "\n"


def test_settings_reach_the_model(asked):
    options = ["--max-new-tokens", "12", "--temperature", "5.0", "--seed", "7", "--system", "", "--dtype", "bfloat16"]
    first, second = (run("Tell me a story.", *options, "--device", "cpu") for _ in range(2))
    assert first.exit_code == 0, first.stderr
    assert first.stdout == second.stdout
    assert asked[0]["generation_config"] == {"max_new_tokens": 12, "do_sample": True, "temperature": 5.0}
    assert asked[0]["system_message"] == ""
    assert run("Tell me a story.", *options[:4], "--seed", "8").stdout != first.stdout


def test_a_conversation_beyond_the_context_is_refused(tmp_path):
    folder = checkpoint(tmp_path / "short", llm_config={"max_position_embeddings": 16})
    check_problem(run("What can you do?", "--model", folder), "in the 16 that the model knows: 0 of 0 images")


# --- conversations ----------------------------------------------------------------------------------------------------


def test_conversation(media, model, tokenizer, asked, monkeypatch):
    """Rounds with history, an image before the first and another before the third, and a fresh start."""
    monkeypatch.chdir(media)
    lines = [
        "/image wide.png",
        "What color is the circle?",
        "",
        "What is the background color?",
        "/image 'square.png'",
        "Which image has a blue circle?",
        "/image nowhere.png",
        "/frobnicate",
        "Is <image> there?",
        "/video clip.mp4",
        "/reset",
        "Hello!",
        "/help",
        "/quit",
        "never asked",
    ]
    result = run("chat", *SHORT, input="\n".join(lines))
    assert result.exit_code == 0, result.stderr

    wide, square = model.load_image("wide.png", max_num=2), model.load_image("square.png", max_num=2)
    settings = {"max_new_tokens": 12, "do_sample": False}
    answers, history = [], None
    for question, tiles in (
        ("<image>\nWhat color is the circle?", [wide]),
        ("What is the background color?", [wide]),
        ("Image-2: <image>\nWhich image has a blue circle?", [wide, square]),
        ("Hello!", []),
    ):
        if not tiles:
            history = None
        answer, history = model.chat(
            tokenizer,
            torch.cat(tiles) if tiles else None,
            question,
            settings,
            history=history,
            return_history=True,
            num_patches_list=[len(part) for part in tiles],
        )
        answers.append((question, answer))
    assert [call["question"] for call in asked] == [question for question, _ in answers]
    assert result.stdout.splitlines() == [answer for _, answer in answers]

    notes = result.stderr.splitlines()
    assert notes[0] == "The next question shows wide.png: 800 x 400 pixels, 3 tiles."
    assert notes[1] == "The next question shows square.png: 300 x 300 pixels, 1 tile."
    assert "nowhere.png" in notes[2]
    assert notes[3] == "unknown command /frobnicate; there are /image, /video, /reset, /help, /quit"
    assert "3 <image> placeholders" in notes[4] and "2 images" in notes[4]
    assert notes[5] == "The next question shows clip.mp4: 3 of 16 frames (2.0 s, 8 a second), 3 tiles."
    assert notes[6] == "Forgotten: 3 rounds, 3 files."
    assert [note.split()[0].rstrip(":") for note in notes[7:]] == ["/image", "/video", "/reset", "/help", "/quit"]


def test_interruption_between_questions(asked, monkeypatch):
    typed = iter([KeyboardInterrupt, "Hello!", EOFError])

    def read(*_):
        line = next(typed)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr("builtins.input", read)
    result = run(*SHORT)
    assert result.exit_code == 0
    assert result.stderr == "Interrupted; Ctrl-D or /quit ends the conversation.\n"
    assert [call["question"] for call in asked] == ["Hello!"] and result.stdout.count("\n") == 1


def test_a_terminal_is_not_controlled_by_answers(monkeypatch):
    class Screen(io.StringIO):
        def isatty(self):
            return True

    for screen, expected in ((Screen(), "[31mred\tand\nblue é"), (io.StringIO(), "\x1b[31mred\tand\nblue\x07 é\x9b")):
        monkeypatch.setattr(sys, "stdout", screen)
        cli._say("\x1b[31mred\tand\nblue\x07 é\x9b")
        assert screen.getvalue() == expected


# --- info -------------------------------------------------------------------------------------------------------------


def test_info(media, model, tokenizer, monkeypatch):
    """Every number against the loaded model, which `info` itself does not load."""
    monkeypatch.chdir(media)

    def no_loading(*arguments, **options):
        raise AssertionError("info must not load the weights")

    monkeypatch.setattr(internvl_chat.InternVLChatModel, "from_pretrained", no_loading)
    result = run(
        "info", "-i", "wide.png", "-i", "square.png", "-v", "clip.mp4", "--max-num", "6", "--num-segments", "4"
    )
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    sections = dict(re.findall(r"^(\w.*)\n((?:  .*\n)+)", result.stdout, re.MULTILINE))
    facts = {title: dict(re.findall(r"^  (.+?): (.*)$", text, re.MULTILINE)) for title, text in sections.items()}
    assert list(facts) == ["Model", "Prompt", "Memory (estimate)"]

    config, shown = model.config, facts["Model"]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert shown["checkpoint"] == str(ROOT)
    assert shown["parameters"] == f"{parameters / 1e6:.2f} M, bfloat16"
    assert shown["language model"].startswith(f"{type(model.language_model).__name__}, ")
    assert shown["prompt template"] == config.template
    assert shown["vocabulary"] == f"{len(tokenizer):,} tokens"
    assert shown["context length"] == f"{config.llm_config.max_position_embeddings:,} tokens"
    assert shown["tile"] == f"448 x 448 pixels, {model.num_image_token} tokens"
    assert shown["tiles of an image"].startswith(f"1 to {config.max_dynamic_patch}, ")

    shown, per_tile = facts["Prompt"], model.num_image_token
    tiles = [internvl_chat.count_tiles(800, 400, max_num=6), 1, 4]
    assert shown["image (1)"] == f"wide.png: 800 x 400 pixels, {tiles[0]} tiles, {tiles[0] * per_tile:,} tokens"
    assert shown["image (2)"] == f"square.png: 300 x 300 pixels, 1 tile, {per_tile:,} tokens"
    assert shown["video (3)"] == f"clip.mp4: 4 of 16 frames (2.0 s, 8 a second), 4 tiles, {4 * per_tile:,} tokens"
    prompt = "Image-1: <image>\nImage-2: <image>\n" + internvl_chat.frame_prefix(4)
    pixel_values = torch.zeros(sum(tiles), 3, 448, 448)
    length = model.count_tokens(tokenizer, pixel_values, prompt, num_patches_list=[*tiles[:2], 1, 1, 1, 1])
    assert shown["in all"].startswith(f"{length:,} tokens ")

    ids = torch.ones(1, 999, dtype=torch.long)  # the first of two new tokens joins them in the cache
    output = model.generate(input_ids=ids, min_new_tokens=2, max_new_tokens=2, return_dict_in_generate=True)
    cache = output.past_key_values
    layers = [(layer.keys, layer.values) for layer in cache.layers] if hasattr(cache, "layers") else list(cache)
    numbers = sum(keys.numel() + values.numel() for keys, values in layers)
    shown = facts["Memory (estimate)"]
    assert shown["weights"] == f"{2 * parameters / 2**20:.1f} MiB"
    assert shown["KV cache"] == f"{2 * numbers / 2**10:.1f} KiB for 1,000 tokens"
    assert re.fullmatch(r"[\d.]+ MiB for the 8 tiles .*", shown["vision activations"])
    assert re.fullmatch(r"[\d.]+ MiB with the weights", shown["this prompt"])


def test_vision_activations_are_those_measured(model):
    """The estimate of `info` is the peak of the allocations while tiles are encoded."""
    pixel_values = torch.randn(8, 3, 448, 448)
    with torch.no_grad(), torch.profiler.profile(profile_memory=True) as profile:
        model.extract_feature(pixel_values)
    changes = sorted(
        (event.start_ns(), event.nbytes())
        for event in profile.profiler.kineto_results.events()
        if event.name() == "[memory]"
    )
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    estimate = re.search(r"vision activations: ([\d.]+) MiB for the 8 tiles", run("info").stdout).group(1)
    in_bfloat16 = peak / 2
    assert float(estimate) == pytest.approx(in_bfloat16 / 2**20, rel=0.05)


def test_info_is_a_table_on_a_terminal():
    result = run("info", env={"FORCE_COLOR": "1", "COLUMNS": "120"})
    assert result.exit_code == 0
    assert re.search(r"│ prompt template +│ internvl2_5 +│", result.stdout)


# --- what users get wrong ---------------------------------------------------------------------------------------------

WRONG = {
    "an option": ("--frobnicate", "--frobnicate"),
    "a number of tiles": ("hello --max-num 0", "--max-num"),
    "a number of frames": ("hello --num-segments 0", "--num-segments"),
    "a number of tokens": ("hello --max-new-tokens many", "--max-new-tokens"),
    "a temperature": ("hello --temperature -1", "--temperature"),
    "a dtype": ("hello --dtype int8", "'auto', 'float32', 'bfloat16', 'float16'"),
    "a device": ("hello --device toaster", "--device toaster: it cannot be used here"),
    "a device that is not there": ("hello --device cuda:99", "--device cuda:99: it cannot be used here"),
    "a device without numbers": ("hello --device meta", "--device meta: it cannot be used here"),
    "a word too many": ("hello there", "there"),
    "no question": ("chat ''", "the question is empty"),
    "a missing image": ("hello -i nowhere.png", "'nowhere.png' does not exist"),
    "a missing video": ("info -v nowhere.mp4", "'nowhere.mp4' does not exist"),
    "a folder as image": ("hello -i .", "'.' is a directory"),
    "a text as image": ("hello -i text.txt", "cannot read an image from 'text.txt'"),
    "an empty video": ("hello -v empty.mp4", "cannot read a video from 'empty.mp4': it is empty"),
    "a broken video": ("info -v broken.mp4", "cannot read a video from 'broken.mp4'"),
    "placeholders": ("'<image> or <image>?' -i square.png", "2 <image> placeholders"),
    "a folder": ("hello --model ./nowhere", "--model ./nowhere: there is no such folder"),
    "a name": ("info --model nowhere", "--model nowhere: there is no such folder"),
    "a folder without checkpoint": ("hello --model .", "--model .: this folder holds no checkpoint"),
    "a file as folder": ("hello --model text.txt", "--model text.txt: this is a file"),
    "an id": ("hello --model nobody/nothing", "--model nobody/nothing: it cannot be loaded: "),
}


def check_problem(result, expected):
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("internvl-chat: "), result.stderr
    assert expected in result.stderr


@pytest.mark.parametrize("case", WRONG)
def test_problems(case, media, monkeypatch):
    """One line on stderr, nothing on stdout, exit code 2."""
    monkeypatch.chdir(media)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    arguments, expected = WRONG[case]
    check_problem(CliRunner().invoke(app, arguments, env={"COLUMNS": "40"}), expected)


def test_problems_with_a_checkpoint(tmp_path):
    """Folders that look like a checkpoint and are none."""
    folders = {
        "bert": ("expected model_type 'internvl_chat' in config.json, got 'bert'", {"model_type": "bert"}),
        "template": ("template='chatty' is unknown; choices: ", {"template": "chatty"}),
    }
    for name, (expected, changes) in folders.items():
        folder = checkpoint(tmp_path / name, **changes)
        check_problem(run("info", "--model", folder), expected)

    folder = checkpoint(tmp_path / "json")
    (folder / "config.json").write_text("{")
    check_problem(run("hello", "--model", folder), f"--model {folder}: it cannot be loaded: ")
    folder = checkpoint(tmp_path / "tokenizer", without=[path.name for path in ROOT.glob("*token*.json")])
    for path in (folder / "vocab.json", folder / "merges.txt", folder / "tokenizer_config.json"):
        path.unlink(missing_ok=True)
    check_problem(run("hello", "--model", folder), f"--model {folder}: it cannot be loaded: ")
    folder = checkpoint(tmp_path / "weights", without=["model.safetensors"])
    check_problem(run("hello", "--model", folder), f"--model {folder}: its weights cannot be loaded: ")
    (folder / "model.safetensors").write_bytes((ROOT / "model.safetensors").read_bytes()[:100_000])
    check_problem(run("hello", "--model", folder), f"--model {folder}: its weights cannot be loaded: ")
    weights = load_file(ROOT / "model.safetensors")
    del weights["mlp1.1.weight"], weights["mlp1.3.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    check_problem(run("hello", "--model", folder), "2 parameters missing, such as mlp1.1.weight")


def test_out_of_memory_is_told_in_one_line(monkeypatch):
    def exhausted(*arguments, **options):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")

    monkeypatch.setattr(internvl_chat.InternVLChatModel, "generate_new_tokens", exhausted)
    result = run("Hello!")
    assert (result.exit_code, result.stdout) == (1, "")
    assert re.fullmatch(r"internvl-chat: the device is out of memory; .*--max-num.*\n", result.stderr)


# --- as a program -----------------------------------------------------------------------------------------------------


def test_version_and_help():
    assert run("--version").stdout == f"internvl-chat {internvl_chat.__version__}\n"
    for arguments in (["--help"], ["-h"]):
        assert re.search(r"chat .*\n(.*\n)*.* info ", run(*arguments).stdout)
    for name in ("--image", "--model", "--max-num", "--num-segments"):
        assert name in run("chat", "--help").stdout and name in run("info", "--help").stdout


def test_help_imports_nothing_heavy():
    code = "import sys, internvl_chat.cli; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_installed_without_a_checkpoint(tmp_path):
    """A wheel holds the code alone."""
    package = tmp_path / "internvl_chat"
    package.mkdir()
    for path in ROOT.glob("*.py"):
        shutil.copyfile(path, package / path.name)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run([*PROGRAM, "Hello!"], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "internvl-chat: this installation has no checkpoint of its own: name one with --model FOLDER_OR_ID\n"
    )


def test_piped(media, model, tokenizer):
    """A pipe gets the answer and nothing else; stderr stays empty."""
    question = "What is the background color?"
    result = subprocess.run([*PROGRAM, question, "-i", media / "square.png"], capture_output=True, text=True)
    expected = model.chat(tokenizer, model.load_image(media / "square.png"), question)
    assert (result.returncode, result.stdout, result.stderr) == (0, expected + "\n", "")


def _heed_ctrl_c():
    """Shells start what runs in the background deaf to SIGINT, and the tests may run there."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_answers_that_are_cut_short(endless):
    """Pieces arrive before the answer has ended. Ctrl-C ends it with the exit code of SIGINT; a reader that goes away
    ends it too, without a word and without the abort that a thread in the middle of a step caused at exit."""
    command = [*PROGRAM, "Hello!", "--model", endless, "--max-new-tokens", "5000"]
    interrupted, unread = (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=_heed_ctrl_c)
        for _ in range(2)
    )
    with interrupted, unread:
        assert interrupted.stdout.read(1)
        interrupted.send_signal(signal.SIGINT)
        assert interrupted.communicate(timeout=120)[1] == b""
        assert interrupted.returncode == 130
        assert unread.stdout.read(1)
        unread.stdout.close()
        assert unread.stderr.read() == b""
        assert unread.wait(timeout=120) == 1


class Terminal:
    """A program that runs in a terminal of its own, with `typed` as its keyboard."""

    def __init__(self, command):
        self._master, slave = pty.openpty()
        # The terminal must be the controlling one for Ctrl-C to become a signal.
        controlled = (
            "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", controlled, *map(str, command)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=_heed_ctrl_c,
            env={**os.environ, "TERM": "dumb", "COLUMNS": "200"},
        )
        os.close(slave)
        self.seen = ""

    def type(self, text):
        os.write(self._master, text.encode())

    def wait_for(self, pattern, seconds=120):
        """Reads until `pattern` matches what has come since the last match."""
        end = time.monotonic() + seconds
        while not re.search(pattern, self.seen):
            ready, _, _ = select.select([self._master], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"no {pattern!r} in {self.seen!r}"
            try:
                self.seen += os.read(self._master, 4096).decode(errors="replace")
            except OSError:  # the other end is closed
                raise AssertionError(f"it ended without {pattern!r}: {self.seen!r}") from None
        self.seen = self.seen[re.search(pattern, self.seen).end() :]

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)


def test_conversation_in_a_terminal(endless):
    """Ctrl-C ends an answer and keeps the conversation with what was said of it; Ctrl-D ends the conversation."""
    terminal = Terminal([*PROGRAM, "--model", endless, "--max-new-tokens", "5000"])
    try:
        terminal.wait_for(r"/help lists the commands, Ctrl-D quits\.\r\n")
        terminal.wait_for("> ")
        terminal.type("Hello!\n")
        terminal.wait_for(r"Hello!\r\n\W*\w")
        terminal.type("\x03")
        terminal.wait_for(r"Interrupted; Ctrl-D or /quit ends the conversation\.\r\n")
        terminal.wait_for("> ")
        terminal.type("/reset\n")
        terminal.wait_for(r"Forgotten: 1 round, 0 files\.\r\n")
        terminal.wait_for("> ")
        terminal.type("\x04")
        assert terminal.process.wait(timeout=120) == 0
    finally:
        terminal.close()
