"""Two images behind one `<image>`: the model sees their tiles in a row, as if they were one picture.

Run: python examples/multi_image_combined.py
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

pixel_values = torch.cat([model.load_image(image) for image in images])
history = None
for question in ("<image>\nWhat shape is red?", "What shape is yellow?"):
    response, history = model.chat(
        tokenizer, pixel_values, question, generation_config, history=history, return_history=True
    )
    print(f"User: {question}\nAssistant: {response}")
