"""Questions for the servers: through `model.chat` (`expect`), through an OpenAI-compatible server (`ask`)."""

import argparse
import base64
import io
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FRAMES = 4
SETTINGS = {"max_new_tokens": 48, "do_sample": False}
DESCRIBE = "Please describe the image."
CLIENTS, PICTURES = (1, 4, 16), 48


def jpeg_frames(examples: Path) -> list:
    """Frames of the example's video as JPEG: the same bytes for both sides, so that no decoder stands between them."""
    import av

    with av.open(str(examples / "moving_circle.mp4")) as container:
        images = [frame.to_image() for frame in container.decode(video=0)]
    files = []
    for image in images[:: len(images) // FRAMES][:FRAMES]:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=95)
        files.append(buffer.getvalue())
    return files


def numbered(picture: bytes) -> list:
    """Pictures for measuring: each differs from the others by a number in a corner, so that no cache helps."""
    from PIL import Image, ImageDraw

    files = []
    for number in range(PICTURES):
        image = Image.open(io.BytesIO(picture)).convert("RGB")
        ImageDraw.Draw(image).text((4, 4), str(number), fill="white")
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=95)
        files.append(buffer.getvalue())
    return files


def measured(name: str, answer_all) -> None:
    """Prints what `answer_all(clients)` manages, which answers all pictures and returns the tokens of its answers."""
    for clients in CLIENTS:
        began = time.monotonic()
        tokens = answer_all(clients)
        seconds = time.monotonic() - began
        print(
            f"{name}, {clients} at a time: {PICTURES / seconds:.2f} answers a second, {tokens / seconds:.1f} tokens a "
            "second",
            flush=True,
        )


def expect(folder: Path, target: Path, benchmark: bool) -> None:
    """Answers of `model.chat`, with what the server is to be asked."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    torch.set_num_threads(2)
    model = AutoModel.from_pretrained(folder, torch_dtype=torch.float32, trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    examples = folder / "examples"
    one, two = ((examples / name).read_bytes() for name in ("image1.jpg", "wide.png"))
    frames = jpeg_frames(examples)

    def link(data, kind="image/png"):
        return f"data:{kind};base64,{base64.b64encode(data).decode()}"

    def image(data):
        return {"type": "image_url", "image_url": {"url": link(data)}}

    def words(text):
        return {"type": "text", "text": text}

    def chat(question, *files, history=None):
        tiles = [model.load_image(file) for file in files]
        pixels = torch.cat(tiles) if tiles else None
        counts = [len(tile) for tile in tiles]
        return model.chat(tokenizer, pixels, question, SETTINGS, history, return_history=True, num_patches_list=counts)

    cases = {}
    answer, _ = chat("Hello, who are you?")
    cases["text"] = ([{"role": "user", "content": "Hello, who are you?"}], answer)
    first, history = chat(f"<image>\n{DESCRIBE}", one)
    asked = {"role": "user", "content": [image(one), words(DESCRIBE)]}
    cases["one image"] = ([asked], first)
    answer, _ = chat("<image>\n<image>\nDescribe the two images.", one, two)
    both = [image(one), image(two), words("Describe the two images.")]
    cases["two images"] = ([{"role": "user", "content": both}], answer)
    answer, _ = chat("What is the background color?", one, history=history)
    again = {"role": "user", "content": "What is the background color?"}
    cases["two rounds"] = ([asked, {"role": "assistant", "content": first}, again], answer)
    # vLLM writes the frames of a video without the line feeds that the model cards put between them.
    prefix = "".join(f"Frame{number}: <image>" for number in range(1, FRAMES + 1))
    tiles = torch.cat([model.load_image(frame, max_num=1) for frame in frames])
    question = "What color is the circle?"
    answer = model.chat(tokenizer, tiles, f"{prefix}\n{question}", SETTINGS, num_patches_list=[1] * FRAMES)
    url = "data:video/jpeg;base64," + ",".join(base64.b64encode(frame).decode() for frame in frames)
    shown = [{"type": "video_url", "video_url": {"url": url}}, words(question)]
    cases["video"] = ([{"role": "user", "content": shown}], answer)
    clip = (examples / "moving_circle.mp4").read_bytes()
    shown = [{"type": "video_url", "video_url": {"url": link(clip, "video/mp4")}}, words(question)]
    # Its frames are chosen and decoded by vLLM: there is an answer, of which nothing more is asked.
    cases["video file"] = ([{"role": "user", "content": shown}], None)
    for name, (_, answer) in cases.items():
        print(f"{name}: {answer}")
    pictures = numbered(one) if benchmark else []
    shown = [[{"role": "user", "content": [image(file), words(DESCRIBE)]}] for file in pictures]
    target.write_text(json.dumps({"cases": cases, "pictures": shown}))
    if not benchmark:
        return

    def in_process(at_once):
        answers = []
        for start in range(0, PICTURES, at_once):
            tiles = [model.load_image(file) for file in pictures[start : start + at_once]]
            counts = [len(tile) for tile in tiles]
            questions = [f"<image>\n{DESCRIBE}"] * len(tiles)
            answers += model.batch_chat(tokenizer, torch.cat(tiles), questions, SETTINGS, num_patches_list=counts)
        return sum(len(tokenizer(answer).input_ids) + 1 for answer in answers)

    in_process(1)  # to warm up
    measured("batch_chat in this process", in_process)


def publish(folder: Path, target: Path) -> None:
    """Makes `target` a checkpoint as published (code that must not run, neither chat template nor processor), and
    installs ours there."""
    from internvl_chat.install_internvl import install

    for name in ("config.json", "generation_config.json", "model.safetensors", "vocab.json", "merges.txt"):
        (target / name).write_bytes((folder / name).read_bytes())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (target / "tokenizer_config.json").write_text(json.dumps(settings))
    for name in ("tokenizer.json", "added_tokens.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            (target / name).write_bytes((folder / name).read_bytes())
    for name in ("configuration_internvl_chat.py", "modeling_internvl_chat.py", "conversation.py"):
        (target / name).write_text("raise RuntimeError('the published code was run')\n")
    print("\n".join(install(target)))


def ask(address: str, expected: Path, server: int, model: str, images_only: bool, benchmark: bool) -> None:
    """The same through the server, and what it must refuse. AssertionError where something is not as expected.

    `images_only` leaves out videos and what is asked to be refused.
    """
    import openai

    client = openai.OpenAI(base_url=address, api_key="none", timeout=300, max_retries=0)
    wait_for(client, server)
    stored = json.loads(expected.read_text())
    cases = stored["cases"]
    if images_only:
        cases = {name: case for name, case in cases.items() if not name.startswith("video")}

    def answer(messages, **more):
        settings = {"max_tokens": SETTINGS["max_new_tokens"], "temperature": 0, "stream": False, **more}
        return client.chat.completions.create(model=model, messages=messages, **settings)

    wrong = []
    for name, (messages, wanted) in cases.items():
        got = answer(messages).choices[0].message.content.strip()
        print(f"{name}: {got}", flush=True)
        if wanted is not None and got != wanted:
            wrong.append(f"{name}: expected {wanted!r}, got {got!r}")
    assert not wrong, "\n".join(wrong)

    messages, wanted = cases["one image"]
    pieces = [chunk.choices[0].delta.content or "" for chunk in answer(messages, stream=True) if chunk.choices]
    assert "".join(pieces).strip() == wanted and sum(map(bool, pieces)) > 3, pieces
    print(f"streaming: {sum(map(bool, pieces))} pieces")
    if images_only:
        return

    broken = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    elsewhere = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/picture.png"}}
    refused = {
        "wrong image": [{"role": "user", "content": [broken, {"type": "text", "text": DESCRIBE}]}],
        "image of another host": [{"role": "user", "content": [elsewhere, {"type": "text", "text": DESCRIBE}]}],
        "over-long prompt": [{"role": "user", "content": "word " * 20_000}],
    }
    for name, messages in refused.items():
        try:
            answer(messages)
        except openai.APIStatusError as error:
            print(f"{name}: {error.status_code}, {str(error)[:160]}")
            assert error.status_code < 500 or name != "over-long prompt"
        else:
            raise AssertionError(f"{name}: answered")
    messages, wanted = cases["text"]
    assert answer(messages).choices[0].message.content.strip() == wanted  # it goes on

    with ThreadPoolExecutor(8) as pool:  # side by side, in batches of the server's own making: the same answers
        names = [name for name, (_, wanted) in cases.items() if wanted] * 3
        for name, result in zip(names, pool.map(lambda name: answer(cases[name][0]), names)):
            assert result.choices[0].message.content.strip() == cases[name][1], name
    print(f"{len(names)} questions by 8 clients: all as expected")
    if benchmark:
        shown = stored["pictures"]

        def served(clients):
            with ThreadPoolExecutor(clients) as pool:
                return sum(result.usage.completion_tokens for result in pool.map(answer, shown))

        measured("clients of the server", served)


def wait_for(client, server: int, seconds=900) -> None:
    """Until the server answers; RuntimeError where its process is gone before."""
    import openai

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            client.models.list(timeout=5)
            return
        except openai.InternalServerError:  # transformers serve lists a cache that may not be there; it answers
            return
        except openai.OpenAIError:
            try:
                os.kill(server, 0)
            except ProcessLookupError:
                raise RuntimeError("the server ended before it answered") from None
            time.sleep(2)
    raise RuntimeError(f"the server did not answer within {seconds} seconds")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("expect")
    first.add_argument("folder", type=Path)
    first.add_argument("target", type=Path)
    first.add_argument("--benchmark", action="store_true")
    published = commands.add_parser("publish")
    published.add_argument("folder", type=Path)
    published.add_argument("target", type=Path)
    second = commands.add_parser("ask")
    second.add_argument("address")
    second.add_argument("expected", type=Path)
    second.add_argument("server", type=int)
    second.add_argument("--model", default="internvl-chat")
    second.add_argument("--images-only", action="store_true")
    second.add_argument("--benchmark", action="store_true")
    given = parser.parse_args()
    if given.command == "expect":
        expect(given.folder, given.target, given.benchmark)
    elif given.command == "publish":
        publish(given.folder, given.target)
    else:
        ask(given.address, given.expected, given.server, given.model, given.images_only, given.benchmark)
