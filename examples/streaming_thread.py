"""Streaming in the way of the model cards: `chat` in a thread, with a `TextIteratorStreamer` of transformers.

`stream_chat` (see streaming.py) is shorter, raises errors where you read and can be stopped.

Run: python examples/streaming_thread.py [IMAGE]
"""

import sys
from pathlib import Path
from threading import Thread

import torch
from transformers import AutoModel, AutoTokenizer, TextIteratorStreamer
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
streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=10)
generation_config = dict(num_beams=1, max_new_tokens=1024, do_sample=False, streamer=streamer)

question = "<image>\nPlease describe the image in detail."
pixel_values = model.load_image(image)
arguments = dict(tokenizer=tokenizer, pixel_values=pixel_values, question=question, history=None, return_history=False)
thread = Thread(target=model.chat, kwargs=dict(arguments, generation_config=generation_config))
thread.start()
print(f"User: {question}\nAssistant: ", end="")
for new_text in streamer:
    if new_text == model.conv_template.sep:
        break
    print(new_text, end="", flush=True)
print()
thread.join()
