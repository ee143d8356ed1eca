"""Several conversations in one batch: with one image, with a video, with none. The answers are those of `chat`.

Run: python examples/batch.py
"""

from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

EXAMPLES = Path(__file__).resolve().parent
CHECKPOINT = EXAMPLES.parent

logging.set_verbosity_error()  # print nothing but the conversation
logging.disable_progress_bar()
# On a GPU: torch_dtype=torch.bfloat16 and .eval().cuda()
model = AutoModel.from_pretrained(
    CHECKPOINT, torch_dtype=torch.float32, low_cpu_mem_usage=True, trust_remote_code=True
).eval()
tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT, trust_remote_code=True, use_fast=False)
generation_config = dict(num_beams=1, max_new_tokens=1024, do_sample=False)

image1, image2 = (model.load_image(EXAMPLES / name) for name in ("image1.jpg", "image2.jpg"))
frames, tiles_of_frames = model.load_video(EXAMPLES / "moving_circle.mp4", num_segments=8)
questions = [
    "<image>\nDescribe the image in detail.",
    "<image>\nDescribe the image in detail.",
    "<image>\n" * len(tiles_of_frames) + "What color is the circle?",
    "Hello, who are you?",
]
# An entry a question: the tiles of its image, a list where it has several images or frames, 0 for none.
responses = model.batch_chat(
    tokenizer,
    torch.cat((image1, image2, frames)),
    num_patches_list=[image1.size(0), image2.size(0), tiles_of_frames, 0],
    questions=questions,
    generation_config=generation_config,
)
for question, response in zip(questions, responses):
    print(f"User: {question}\nAssistant: {response}")
