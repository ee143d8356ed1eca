"""Several images, each with an `<image>` of its own; `num_patches_list` tells which tiles are whose.

Run: python examples/multi_image_separate.py
"""

from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

EXAMPLES = Path(__file__).resolve().parent
CHECKPOINT = EXAMPLES.parent
images = [EXAMPLES / "image1.jpg", EXAMPLES / "image2.jpg"]

logging.set_verbosity_error()  # print nothing but the conversation
logging.disable_progress_bar()
# On a GPU: torch_dtype=torch.bfloat16 and .eval().cuda()
model = AutoModel.from_pretrained(
    CHECKPOINT, torch_dtype=torch.float32, low_cpu_mem_usage=True, trust_remote_code=True
).eval()
tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT, trust_remote_code=True, use_fast=False)
generation_config = dict(num_beams=1, max_new_tokens=1024, do_sample=False)

tiles = [model.load_image(image) for image in images]
pixel_values = torch.cat(tiles)
num_patches_list = [part.size(0) for part in tiles]
prefix = "".join(f"Image-{index}: <image>\n" for index in range(1, len(images) + 1))
history = None
for question in (f"{prefix}What shape is red?", "What shape is yellow?"):
    response, history = model.chat(
        tokenizer,
        pixel_values,
        question,
        generation_config,
        num_patches_list=num_patches_list,
        history=history,
        return_history=True,
    )
    print(f"User: {question}\nAssistant: {response}")
