"""Answers in 8 and 4 bits against those in bfloat16: the shipped checkpoint, on pictures that it has never seen.

Run: python -m benchmarks.quantization [questions of each kind]

Questions and pictures are those of `training.evaluate`, asked one by one with `model.chat`, greedily. float32 stands
beside the rest as the control: it differs from bfloat16 by rounding alone.
"""

import sys

import torch
import transformers

import internvl_chat
from training import evaluate
from training.world import render

ROOT = internvl_chat.__path__[0]
KINDS = (
    *("color", "shape", "background", "count 1-4", "left/right/top/bottom"),
    *("where (nine places)", "presence", "description", "words", "numbers"),
)
NF4 = transformers.BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.bfloat16,
)
WAYS = {
    "bfloat16": {"torch_dtype": torch.bfloat16},
    "float32": {"torch_dtype": torch.float32},
    "load_in_8bit=True": {"torch_dtype": torch.bfloat16, "load_in_8bit": True},
    "load_in_4bit=True": {"torch_dtype": torch.bfloat16, "load_in_4bit": True},
    "nf4, double quantisation": {"torch_dtype": torch.bfloat16, "quantization_config": NF4},
}


def answers(model, tokenizer, items):
    """The model's answers; a question of a second round comes after the model's own first answer."""
    settings = dict(max_new_tokens=128, do_sample=False)
    said = []
    for _, example, dialogue, place in items:
        tiles, history = model.load_image(render(example.scenes[0]), max_num=example.max_num), None
        for turn in dialogue[: place + 1]:
            answer, history = model.chat(tokenizer, tiles, turn.question, settings, history, return_history=True)
        said.append(answer)
    return said


def main():
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 4
    items = evaluate.gather("new", number, KINDS)
    tokenizer = transformers.AutoTokenizer.from_pretrained(ROOT)
    print(f"{len(items)} questions; torch {torch.__version__}, transformers {transformers.__version__}")
    print("| weights | language model | as in bfloat16 | right |\n|---|---|---|---|")
    exact = None
    for name, keywords in WAYS.items():
        model = internvl_chat.InternVLChatModel.from_pretrained(ROOT, **keywords).eval()
        size = sum(p.numel() * p.element_size() for p in model.language_model.parameters())
        said = answers(model, tokenizer, items)
        exact = exact or said
        same = sum(one == other for one, other in zip(said, exact))
        right = sum(right for right, _ in evaluate.score(items, said).values())
        print(f"| {name} | {size / 1e6:.2f} MB | {same} | {right} |", flush=True)


if __name__ == "__main__":
    main()
