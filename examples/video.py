"""Questions about a video: evenly spaced frames, each with an `<image>` of its own.

Run: python examples/video.py [VIDEO] [QUESTION ...]
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

EXAMPLES = Path(__file__).resolve().parent
CHECKPOINT = EXAMPLES.parent
video = sys.argv[1] if sys.argv[1:] else EXAMPLES / "moving_circle.mp4"
questions = sys.argv[2:] or ["What color is the circle?", "What is the background color?"]

logging.set_verbosity_error()  # print nothing but the conversation
logging.disable_progress_bar()
# On a GPU: torch_dtype=torch.bfloat16 and .eval().cuda()
model = AutoModel.from_pretrained(
    CHECKPOINT, torch_dtype=torch.float32, low_cpu_mem_usage=True, trust_remote_code=True
).eval()
tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT, trust_remote_code=True, use_fast=False)
generation_config = dict(num_beams=1, max_new_tokens=1024, do_sample=False)

pixel_values, num_patches_list = model.load_video(video, num_segments=8, max_num=1)
history = None
for question in questions:
    if history is None:  # Frame1: <image>, Frame2: <image>, ...
        question = "".join(f"Frame{i + 1}: <image>\n" for i in range(len(num_patches_list))) + question
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
