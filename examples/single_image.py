"""One question about one image; a large image is cut into tiles by the model's own rule.

Run: python examples/single_image.py [IMAGE] [QUESTION]
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

EXAMPLES = Path(__file__).resolve().parent
CHECKPOINT = EXAMPLES.parent
parser = argparse.ArgumentParser()
parser.add_argument("image", nargs="?", default=EXAMPLES / "image1.jpg")
parser.add_argument("question", nargs="?", default="Please describe the image shortly.")
args = parser.parse_args()

logging.set_verbosity_error()  # print nothing but the conversation
logging.disable_progress_bar()
# On a GPU: torch_dtype=torch.bfloat16 and .eval().cuda()
model = AutoModel.from_pretrained(
    CHECKPOINT, torch_dtype=torch.float32, low_cpu_mem_usage=True, trust_remote_code=True
).eval()
tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT, trust_remote_code=True, use_fast=False)
generation_config = dict(num_beams=1, max_new_tokens=1024, do_sample=False)

# Tiles on the model's device and in its dtype: (tiles, 3, 448, 448).
pixel_values = model.load_image(args.image, max_num=12)
question = f"<image>\n{args.question}"
print(f"{pixel_values.shape[0]} tile(s), {model.count_tokens(tokenizer, pixel_values, question)} tokens of prompt")
response = model.chat(tokenizer, pixel_values, question, generation_config)
print(f"User: {question}\nAssistant: {response}")
