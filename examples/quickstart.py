"""Plays every use of the chat interface on the checkpoint in this repository and prints the transcript. No network.

Run: python examples/quickstart.py

Each use also has a small script of its own beside this one. The answers are the model's; where one misses what the
picture shows (known from `render_media.py`), a note says so.
"""

import time

START = time.perf_counter()  # before the imports: what is told at the end includes them

from pathlib import Path  # noqa: E402

import torch  # noqa: E402
from render_media import PICTURES, VIDEOS, caption  # noqa: E402
from transformers import AutoModel, AutoTokenizer  # noqa: E402
from transformers.utils import logging  # noqa: E402

EXAMPLES = Path(__file__).resolve().parent
CHECKPOINT = EXAMPLES.parent
GENERATION = dict(num_beams=1, max_new_tokens=1024, do_sample=False)

IMAGE1, IMAGE2, WIDE, VIDEO = "image1.jpg", "image2.jpg", "wide.png", "moving_circle.mp4"
(CIRCLE,), (STAR,), (SQUARE,) = (PICTURES[name].shapes for name in (IMAGE1, IMAGE2, WIDE))
(MOVING,) = VIDEOS[VIDEO].first.shapes


def title(text, *names):
    print(f"\n== {text} ==")
    for name in names:
        print(f"{name} shows {caption((PICTURES | VIDEOS)[name])}.")


def tell(question, response, *facts):
    """Prints a round, and a note if a fact that belongs into the answer is not in it."""
    print(f"User: {question}\nAssistant: {response}")
    check(response, *facts)


def check(response, *facts):
    missing = [fact for fact in facts if fact not in response]
    if missing:
        print(f"Note: a right answer says {' and '.join(map(repr, missing))}; this early checkpoint is weak here.")


def pure_text(model, tokenizer):
    title("Pure text, two rounds")
    question = "Hello, who are you?"
    response, history = model.chat(tokenizer, None, question, GENERATION, history=None, return_history=True)
    tell(question, response)
    question = "Which shapes do you know?"
    response, history = model.chat(tokenizer, None, question, GENERATION, history=history, return_history=True)
    tell(question, response, CIRCLE.kind, STAR.kind, SQUARE.kind)


def one_image(model, tokenizer):
    title("One image", IMAGE1)
    pixel_values = model.load_image(EXAMPLES / IMAGE1)
    question = "<image>\nPlease describe the image shortly."
    response = model.chat(tokenizer, pixel_values, question, GENERATION)
    tell(question, response, CIRCLE.name, PICTURES[IMAGE1].background)


def wide_image(model, tokenizer):
    title("One wide image, cut into tiles", WIDE)
    pixel_values = model.load_image(EXAMPLES / WIDE, max_num=12)
    question = f"<image>\nWhat color is the {SQUARE.kind}?"
    tokens = model.count_tokens(tokenizer, pixel_values, question)
    print(f"({pixel_values.shape[0]} tiles, the last one a thumbnail of the whole; {tokens} tokens of prompt)")
    tell(question, model.chat(tokenizer, pixel_values, question, GENERATION), SQUARE.color)


def one_image_two_rounds(model, tokenizer):
    title("One image, two rounds", IMAGE2)
    pixel_values = model.load_image(EXAMPLES / IMAGE2)
    question = "<image>\nPlease describe the image in detail."
    response, history = model.chat(tokenizer, pixel_values, question, GENERATION, history=None, return_history=True)
    tell(question, response, STAR.name, PICTURES[IMAGE2].background)
    question = "What is the background color?"
    response, history = model.chat(tokenizer, pixel_values, question, GENERATION, history=history, return_history=True)
    tell(question, response, PICTURES[IMAGE2].background)


def load_two_images(model):
    pixel_values1 = model.load_image(EXAMPLES / IMAGE1)
    pixel_values2 = model.load_image(EXAMPLES / IMAGE2)
    pixel_values = torch.cat((pixel_values1, pixel_values2), dim=0)
    return pixel_values, [pixel_values1.size(0), pixel_values2.size(0)]


def two_images_combined(model, tokenizer):
    title("Two images, combined in one placeholder", IMAGE1, IMAGE2)
    pixel_values, _ = load_two_images(model)
    history = None
    for question, facts in (
        (f"<image>\nWhat shape is {CIRCLE.color}?", [CIRCLE.kind]),
        (f"What shape is {STAR.color}?", [STAR.kind]),
        ("Describe the two images in detail.", [CIRCLE.name, STAR.name]),
    ):
        response, history = model.chat(
            tokenizer, pixel_values, question, GENERATION, history=history, return_history=True
        )
        tell(question, response, *facts)


def two_images_separate(model, tokenizer):
    title("Two images, separate", IMAGE1, IMAGE2)
    pixel_values, num_patches_list = load_two_images(model)
    history = None
    for question, facts in (
        (f"Image-1: <image>\nImage-2: <image>\nWhat shape is {CIRCLE.color}?", [CIRCLE.kind]),
        (f"What shape is {STAR.color}?", [STAR.kind]),
        ("What is the difference between the two images?", [CIRCLE.name, STAR.name]),
    ):
        response, history = model.chat(
            tokenizer,
            pixel_values,
            question,
            GENERATION,
            num_patches_list=num_patches_list,
            history=history,
            return_history=True,
        )
        tell(question, response, *facts)


def batch(model, tokenizer):
    title("Batch: two questions with an image each, one without", IMAGE1, IMAGE2)
    pixel_values, num_patches_list = load_two_images(model)
    questions = ["<image>\nDescribe the image in detail."] * 2 + ["Hello, who are you?"]
    responses = model.batch_chat(
        tokenizer,
        pixel_values,
        questions=questions,
        num_patches_list=[*num_patches_list, 0],
        generation_config=GENERATION,
    )
    for question, response, facts in zip(questions, responses, ([CIRCLE.name], [STAR.name], [])):
        tell(question, response, *facts)


def video(model, tokenizer):
    title("Video, several rounds", VIDEO)
    pixel_values, num_patches_list = model.load_video(EXAMPLES / VIDEO, num_segments=8, max_num=1)
    video_prefix = "".join(f"Frame{i + 1}: <image>\n" for i in range(len(num_patches_list)))
    history = None
    for question, facts in (
        (video_prefix + f"What color is the {MOVING.kind}?", [MOVING.color]),
        ("What is the background color?", [VIDEOS[VIDEO].first.background]),
        (f"What is the {MOVING.kind} doing?", [VIDEOS[VIDEO].motion]),
    ):
        response, history = model.chat(
            tokenizer,
            pixel_values,
            question,
            GENERATION,
            num_patches_list=num_patches_list,
            history=history,
            return_history=True,
        )
        tell(question, response, *facts)


def streaming(model, tokenizer):
    title("Streaming", IMAGE1)
    pixel_values = model.load_image(EXAMPLES / IMAGE1)
    question = "<image>\nPlease describe the image in detail."
    print(f"User: {question}\nAssistant: ", end="")
    stream = model.stream_chat(tokenizer, pixel_values, question, GENERATION)
    pieces = 0
    for piece in stream:
        print(piece, end="", flush=True)
        pieces += 1
    print(f"\n({pieces} pieces, printed as they came)")
    check(stream.text, CIRCLE.name)


USES = (
    pure_text,
    one_image,
    wide_image,
    one_image_two_rounds,
    two_images_combined,
    two_images_separate,
    batch,
    video,
    streaming,
)


def main():
    logging.set_verbosity_error()  # the transcript is all that is printed
    logging.disable_progress_bar()
    torch.set_num_threads(1)  # the model is so small that several threads mostly wait for each other
    # float32: on a CPU it is as fast as bfloat16 or faster, and a 16-bit rounding decides no answer. On a GPU use
    # torch.bfloat16 and .cuda(), as the model cards do.
    model = AutoModel.from_pretrained(
        CHECKPOINT, torch_dtype=torch.float32, low_cpu_mem_usage=True, trust_remote_code=True
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT, trust_remote_code=True, use_fast=False)
    print(f"Model: {CHECKPOINT.name}/, {model.num_parameters() / 1e6:.1f} million parameters")
    for use in USES:
        use(model, tokenizer)
    print(f"\nTime used: {time.perf_counter() - START:.1f} s, imports and loading included")


if __name__ == "__main__":
    main()
