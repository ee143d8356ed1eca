"""Which part of the model goes to which GPU: the `device_map` of `split_model`, tried out without a GPU.

Run: python examples/split_model_cpu.py [NUMBER OF GPUS]
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from internvl_chat import split_model

EXAMPLES = Path(__file__).resolve().parent
CHECKPOINT = EXAMPLES.parent
world_size = int(sys.argv[1]) if sys.argv[1:] else 2

device_map = split_model(CHECKPOINT, world_size=world_size)
for gpu in range(world_size):
    print(f"GPU {gpu}: {', '.join(name for name, device in device_map.items() if device == gpu)}")

# With the GPUs there, pass `device_map=device_map`; here every part goes to the CPU.
logging.set_verbosity_error()  # print nothing but the conversation
logging.disable_progress_bar()
model = AutoModel.from_pretrained(
    CHECKPOINT, torch_dtype=torch.float32, low_cpu_mem_usage=True, device_map=dict.fromkeys(device_map, "cpu")
).eval()
tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT, use_fast=False)
generation_config = dict(num_beams=1, max_new_tokens=1024, do_sample=False)

question = "<image>\nWhat color is the circle?"
response = model.chat(tokenizer, model.load_image(EXAMPLES / "image1.jpg"), question, generation_config)
print(f"User: {question}\nAssistant: {response}")
