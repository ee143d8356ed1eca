"""A new image in a later round: pass the tiles of all images so far, in the order of their `<image>`.

Run: python examples/new_image_later_round.py
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

rounds = [
    ("image1.jpg", "<image>\nWhat shape is red?"),
    ("image2.jpg", "<image>\nWhich shape is yellow?"),
]
tiles, history = [], None
for image, question in rounds:
    tiles.append(model.load_image(EXAMPLES / image))
    response, history = model.chat(
        tokenizer,
        torch.cat(tiles),
        question,
        generation_config,
        num_patches_list=[part.size(0) for part in tiles],
        history=history,
        return_history=True,
    )
    print(f"User: {question}\nAssistant: {response}")
