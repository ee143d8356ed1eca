"""A conversation without images: two rounds, the second with the history of the first.

Run: python examples/pure_text.py [QUESTION] [QUESTION ...]
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

CHECKPOINT = Path(__file__).resolve().parent.parent
questions = sys.argv[1:] or ["Hello, who are you?", "Which shapes do you know?"]

logging.set_verbosity_error()  # print nothing but the conversation
logging.disable_progress_bar()
# On a GPU: torch_dtype=torch.bfloat16 and .eval().cuda()
model = AutoModel.from_pretrained(
    CHECKPOINT, torch_dtype=torch.float32, low_cpu_mem_usage=True, trust_remote_code=True
).eval()
tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT, trust_remote_code=True, use_fast=False)
generation_config = dict(num_beams=1, max_new_tokens=1024, do_sample=False)

history = None
for question in questions:
    response, history = model.chat(tokenizer, None, question, generation_config, history=history, return_history=True)
    print(f"User: {question}\nAssistant: {response}")
