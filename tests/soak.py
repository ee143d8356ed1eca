"""Many chats on the shipped checkpoint, with faults thrown in: `python -m tests.soak --chats 1000`.

Asks the same questions before and after, counts what was asked and what went wrong on purpose, and watches memory:
tensors, threads and open files must be as many as in the beginning, the resident memory must not grow. Prints one line
of JSON; exit code 1 where something was lost. A short run is part of the tests (`test_soak.py`).
"""

import argparse
import ctypes
import gc
import json
import os
import random
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from transformers import AutoTokenizer

import internvl_chat

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = dict(max_new_tokens=8, do_sample=False)
CONVERSATIONS, ROUNDS = 5, 6  # kept at a time; rounds before one begins anew
# An allocator that keeps some pages is no leak; one kilobyte a chat, lost 1,000 times, is.
BYTES_A_CHAT = 1024


class Fault(RuntimeError):
    """Thrown into a generation."""


class Soak:
    """Chats of every kind and their faults, drawn by `seed`; `counts` says what was done."""

    def __init__(self, model, tokenizer, folder, seed=0):
        self.counts, self.faults = Counter(), Counter()
        self._model, self._tokenizer, self._folder = model, tokenizer, Path(folder)
        self._draw = random.Random(seed)
        self._conversations = [(None, [], [])] * CONVERSATIONS  # pixels, patches, history
        self._make_media()

    def _make_media(self) -> None:
        for number, (color, size) in enumerate([("red", (448, 448)), ("blue", (900, 448)), ("green", (448, 900))]):
            image = Image.new("RGB", size, "white")
            ImageDraw.Draw(image).ellipse((100, 100, 300, 300), fill=color)
            image.save(self._folder / f"{number}.png")
        whole = (self._folder / "0.png").read_bytes()
        clip = (ROOT / "examples" / "moving_circle.mp4").read_bytes()
        for name, content in {"empty": b"", "cut.png": whole[:200], "text.png": b"text", "cut.mp4": clip[:500]}.items():
            (self._folder / name).write_bytes(content)

    def _image(self):
        return self._model.load_image(self._folder / f"{self._draw.randrange(3)}.png", max_num=2)

    def probes(self) -> list:
        """The answers that must be the same before and after."""
        model, tokenizer = self._model, self._tokenizer
        tiles = [model.load_image(self._folder / f"{number}.png", max_num=2) for number in range(3)]
        answers = [model.chat(tokenizer, one, "Describe the image.", dict(max_new_tokens=24)) for one in tiles]
        answers.append(model.chat(tokenizer, None, "Hello, who are you?", dict(max_new_tokens=24), return_history=True))
        counts = [len(one) for one in tiles]
        answers.append(
            model.batch_chat(tokenizer, torch.cat(tiles), ["What is this?"] * 3, SETTINGS, num_patches_list=counts)
        )
        return json.loads(json.dumps(answers))

    def step(self) -> None:
        """One chat, or one fault in place of it."""
        if self._draw.random() < 0.3:
            fault = self._draw.choice(FAULTS)
            self.faults[fault.__name__[1:]] += 1
            fault(self)
        else:
            chat = self._draw.choice(CHATS)
            self.counts[chat.__name__[1:]] += 1
            chat(self)

    # --- chats --------------------------------------------------------------------------------------------------------

    def _text(self):
        assert isinstance(self._model.chat(self._tokenizer, None, "Tell me a story.", SETTINGS), str)

    def _picture(self):
        assert self._model.chat(self._tokenizer, self._image(), "<image>\nDescribe the image.", SETTINGS)

    def _round(self):
        """A further round of one of the conversations, now and then with a new picture."""
        number = self._draw.randrange(CONVERSATIONS)
        pixels, patches, history = self._conversations[number]
        if len(history) == ROUNDS:
            pixels, patches, history = None, [], []
        question = "What color is it?"
        if pixels is None or self._draw.random() < 0.2:
            new = self._image()
            pixels = new if pixels is None else torch.cat((pixels, new))
            patches, question = [*patches, len(new)], "<image>\nDescribe the image."
        _, history = self._model.chat(
            self._tokenizer, pixels, question, SETTINGS, history, True, num_patches_list=patches
        )
        self._conversations[number] = (pixels, patches, history)

    def _batch(self):
        image = self._image()
        answers = self._model.batch_chat(
            self._tokenizer, image, ["Hello!", "What is it?"], SETTINGS, num_patches_list=[0, len(image)]
        )
        assert len(answers) == 2

    def _stream(self):
        with self._model.stream_chat(self._tokenizer, self._image(), "Describe the image.", SETTINGS) as stream:
            assert "".join(stream) == stream.text

    def _video(self):
        pixels, patches = self._model.load_video(ROOT / "examples" / "moving_circle.mp4", num_segments=3)
        question = internvl_chat.frame_prefix(len(patches)) + "What moves?"
        self._model.chat(self._tokenizer, pixels, question, SETTINGS, num_patches_list=patches)

    # --- faults -------------------------------------------------------------------------------------------------------

    def _refused(self, error, call) -> None:
        try:
            call()
        except error:
            return
        raise AssertionError(f"no {error} by {call}")

    def _bad_file(self):
        load = self._draw.choice([self._model.load_image, self._model.load_video])
        name = self._draw.choice(["empty", "cut.png", "text.png", "cut.mp4"])
        self._refused(internvl_chat.MediaLoadError, lambda: load(self._folder / name))

    def _cancelled_stream(self):
        stream = self._model.stream_chat(self._tokenizer, self._image(), "Tell me a story.", dict(max_new_tokens=500))
        for _ in range(self._draw.randrange(3)):
            next(stream, None)
        if self._draw.random() < 0.5:
            stream.close()
        else:
            thread = stream._thread
            del stream
            thread.join()

    def _wrong_counts(self):
        image = self._image()
        question, options = self._draw.choice(
            [("<image><image>", {}), ("Hi", {"num_patches_list": [len(image) + 1]}), ("", {}), ("word " * 9000, {})]
        )
        self._refused(ValueError, lambda: self._model.chat(self._tokenizer, image, question, SETTINGS, **options))
        self._refused(ValueError, lambda: self._model.chat(self._tokenizer, image[:, :, 32:], "Hi", SETTINGS))

    def _error_inside(self):
        """In one of the towers, at the first or at a later step, of a blocking or of a streamed answer."""
        calls, at = iter(range(10**6)), self._draw.randrange(3)
        tower = self._draw.choice(["vision_model", "language_model"])

        def fail(*_):
            if tower == "vision_model" or next(calls) == at:
                raise Fault(tower)

        ask = self._draw.choice([self._model.chat, lambda *given: list(self._model.stream_chat(*given))])
        settings = {**SETTINGS, "min_new_tokens": 4}
        hook = getattr(self._model, tower).register_forward_pre_hook(fail)
        try:
            self._refused(Fault, lambda: ask(self._tokenizer, self._image(), "Tell me a story.", settings))
        finally:
            hook.remove()

    def forget(self) -> None:
        """Drops the conversations."""
        self._conversations = [(None, [], [])] * CONVERSATIONS


CHATS = [Soak._text, Soak._picture, Soak._round, Soak._batch, Soak._stream, Soak._video]
FAULTS = [Soak._bad_file, Soak._cancelled_stream, Soak._wrong_counts, Soak._error_inside]


def held() -> dict:
    """What the process holds: tensors and their bytes, threads, open files, resident bytes."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    memory = Path("/proc/self/statm")
    resident = int(memory.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if memory.exists() else 0
    return {
        "tensors": len(tensors),
        "tensor_bytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        "threads": threading.active_count(),
        "files": len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0,
        "resident": resident,
    }


def growth(resident) -> tuple:
    """Slope of resident memory in bytes a chat and its standard error, from [(chats, bytes)]; the first fifth, in which
    libraries still load and pools still fill, does not count."""
    chats, size = np.array(resident[len(resident) // 5 :], dtype=float).T
    (slope, _), covariance = np.polyfit(chats, size, 1, cov=True)
    return float(slope), float(covariance[0, 0] ** 0.5)


def run(model, tokenizer, chats, seed=0, warm_up=20, every=20) -> dict:
    """Plays `chats` steps; returns figures, and in `lost` what is not as it was."""
    with tempfile.TemporaryDirectory(prefix="internvl-soak-") as folder:
        soak = Soak(model, tokenizer, folder, seed)
        before = soak.probes()
        for _ in range(warm_up):
            soak.step()
        soak.forget()
        start, resident = held(), []
        for number in range(1, chats + 1):
            soak.step()
            if number % every == 0:
                now = held()  # what the conversations hold at the moment is theirs
                resident.append((number, now["resident"] - now["tensor_bytes"]))
        soak.forget()
        end, after = held(), soak.probes()
    lost = [name for name in ("tensors", "tensor_bytes", "threads", "files") if start[name] != end[name]]
    figures = {"chats": chats, "kinds": dict(soak.counts), "faults": dict(soak.faults), "start": start, "end": end}
    if len(resident) >= 25:
        slope, error = growth(resident)
        figures["bytes_a_chat"], figures["standard_error"] = round(slope), round(error)
        figures["resident"] = [size for _, size in resident]
        if slope - 2 * error > BYTES_A_CHAT:
            lost.append("resident")
    return {**figures, "lost": lost + ["answers"] * (before != after)}


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.split("\n")[0])
    parser.add_argument("--chats", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    options = parser.parse_args(arguments)
    if "MALLOC_ARENA_MAX" not in os.environ:  # glibc gives threads memory of their own: much noise, and no leak
        os.environ["MALLOC_ARENA_MAX"] = "1"
        os.execv(
            sys.executable, [sys.executable, "-m", "tests.soak", *(sys.argv[1:] if arguments is None else arguments)]
        )
    torch.set_num_threads(options.threads)
    model = internvl_chat.InternVLChatModel.from_pretrained(ROOT, torch_dtype=torch.float32).eval()
    found = run(model, AutoTokenizer.from_pretrained(ROOT), options.chats, options.seed)
    print(json.dumps(found))
    return 1 if found["lost"] else 0


if __name__ == "__main__":
    sys.exit(main())
