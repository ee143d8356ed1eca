"""The package instead of remote code: after `import internvl_chat` the Auto classes know the model.

No `trust_remote_code`: only installed code runs, whatever Python files the checkpoint's folder holds.

Run: python examples/package_door.py [IMAGE]
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from internvl_chat import load_image

EXAMPLES = Path(__file__).resolve().parent
CHECKPOINT = EXAMPLES.parent
image = sys.argv[1] if sys.argv[1:] else EXAMPLES / "image2.jpg"

logging.set_verbosity_error()  # print nothing but the conversation
logging.disable_progress_bar()
# On a GPU: torch_dtype=torch.bfloat16 and .eval().cuda()
model = AutoModel.from_pretrained(CHECKPOINT, torch_dtype=torch.float32, low_cpu_mem_usage=True).eval()
tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT, use_fast=False)
generation_config = dict(num_beams=1, max_new_tokens=1024, do_sample=False)

print(f"Class: {type(model).__module__}.{type(model).__name__}")
pixel_values = load_image(image, input_size=448, max_num=12)  # the function of the model cards
question = "<image>\nWhat is the background color?"
response = model.chat(tokenizer, pixel_values, question, generation_config)
print(f"User: {question}\nAssistant: {response}")
