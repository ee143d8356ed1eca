"""An answer piece by piece, with `stream_chat`; then one that is stopped early.

Run: python examples/streaming.py [IMAGE]
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

EXAMPLES = Path(__file__).resolve().parent
CHECKPOINT = EXAMPLES.parent
image = sys.argv[1] if sys.argv[1:] else EXAMPLES / "image1.jpg"

logging.set_verbosity_error()  # print nothing but the conversation
logging.disable_progress_bar()
# On a GPU: torch_dtype=torch.bfloat16 and .eval().cuda()
model = AutoModel.from_pretrained(
    CHECKPOINT, torch_dtype=torch.float32, low_cpu_mem_usage=True, trust_remote_code=True
).eval()
tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT, trust_remote_code=True, use_fast=False)
generation_config = dict(num_beams=1, max_new_tokens=1024, do_sample=False)

pixel_values = model.load_image(image)
question = "<image>\nPlease describe the image in detail."
print(f"User: {question}\nAssistant: ", end="")
stream = model.stream_chat(tokenizer, pixel_values, question, generation_config)
for piece in stream:
    print(piece, end="", flush=True)
print()

# `stream.history` is what `chat(return_history=True)` returns. Leaving the `with` block ends the generation.
question = "What is the background color?"
print(f"User: {question}\nAssistant: ", end="")
with model.stream_chat(tokenizer, pixel_values, question, generation_config, history=stream.history) as stream:
    for piece in stream:
        print(piece, end="", flush=True)
        if len(stream.text.split()) == 3:
            break
print(" [stopped after three words]")
