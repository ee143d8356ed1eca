"""Several rounds about one image: the image stays in the first question, the history carries the rounds.

Run: python examples/multi_round.py [IMAGE] [QUESTION ...]
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

EXAMPLES = Path(__file__).resolve().parent
CHECKPOINT = EXAMPLES.parent
image = sys.argv[1] if sys.argv[1:] else EXAMPLES / "image2.jpg"
questions = sys.argv[2:] or [
    "Please describe the image in detail.",
    "What shape is yellow?",
    "What is the background color?",
]

logging.set_verbosity_error()  # print nothing but the conversation
logging.disable_progress_bar()
# On a GPU: torch_dtype=torch.bfloat16 and .eval().cuda()
model = AutoModel.from_pretrained(
    CHECKPOINT, torch_dtype=torch.float32, low_cpu_mem_usage=True, trust_remote_code=True
).eval()
tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT, trust_remote_code=True, use_fast=False)
generation_config = dict(num_beams=1, max_new_tokens=1024, do_sample=False)

pixel_values = model.load_image(image)
history = None
for question in questions:
    if history is None:
        question = f"<image>\n{question}"
    response, history = model.chat(
        tokenizer, pixel_values, question, generation_config, history=history, return_history=True
    )
    print(f"User: {question}\nAssistant: {response}")
