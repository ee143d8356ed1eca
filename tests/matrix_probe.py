"""What the installed release of transformers answers, for `matrix.py`, which says what it is compared with.

    matrix_probe.py make FOLDER COLUMN...           writes a checkpoint for each column, as FOLDER/COLUMN
    matrix_probe.py ask FOLDER ANSWERS COLUMN...    loads each through both doors, asks, and writes ANSWERS, a JSON file

A check returns ids, texts and numbers, which must be the same on every release. What must hold within one release (a
stream equals the answer, a saved model the one in memory) it asserts itself.
"""

import copy
import importlib
import json
import logging
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from matrix import DOORS, KINDS, REFUSAL, ROOT, SHIPPED
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoProcessor, AutoTokenizer

# As the model cards have them. Answers are those of float32: in bfloat16 the two best of random logits may tie.
CARD = dict(torch_dtype=torch.bfloat16, low_cpu_mem_usage=True, use_flash_attn=True, trust_remote_code=True)
FLOAT32 = {**CARD, "torch_dtype": torch.float32}
TOKENIZER = dict(trust_remote_code=True, use_fast=False)
SETTINGS = dict(num_beams=1, max_new_tokens=12, do_sample=False)
QUESTION = "<image>\nDescribe the image."
SAVED = "saved"  # subfolder of a checkpoint: the same, as the newest release saves it

# --- the checkpoints --------------------------------------------------------------------------------------------------

_VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
_VISION.update(image_size=64, patch_size=8)  # 16 tokens a tile
_LLM = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
_LLM.update(num_key_value_heads=2, max_position_embeddings=4096)
_HEAD_DIM = 16


def small_config(published: dict, tokenizer) -> dict:
    """The published `config.json` with small sizes, for the vocabulary of `tokenizer`."""
    values = copy.deepcopy(published)
    values["force_image_size"] = _VISION["image_size"]
    values["vision_config"].update(_VISION)
    llm = values["llm_config"]
    llm.update(_LLM, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    llm.update({key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id") if key in llm})
    if "head_dim" in llm:
        llm["head_dim"] = _HEAD_DIM
    if "original_max_position_embeddings" in llm:  # Phi-3 has one rotary table up to here, another beyond
        llm["original_max_position_embeddings"] = 512  # which only the prompt with 13 tiles exceeds
        for factors in ("short_factor", "long_factor"):
            llm["rope_scaling"][factors] = llm["rope_scaling"][factors][: _HEAD_DIM // 2]
    return values


@torch.no_grad()
def random_weights(config: dict, unsaid: list) -> dict:
    """{published name: float32 tensor}, the same on every machine. Every norm and bias matters, and layers and table of
    the language model are strong enough that an answer depends on its whole prompt. The ids `unsaid` are in none."""
    package = importlib.import_module("internvl_chat")
    model = package.InternVLChatModel(package.InternVLChatConfig(**copy.deepcopy(config)))
    generator, weights = torch.Generator().manual_seed(0), {}
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() == 1:
            weights[name] = 0.5 + 0.2 * noise
        elif name.endswith(("embed_tokens.weight", "tok_embeddings.weight")):
            weights[name] = noise
        else:
            gain = 4 if name.startswith("language_model.") and ".layers." in name else 1
            weights[name] = noise * gain * max(parameter[0].numel(), 1) ** -0.5
        if name.endswith(("lm_head.weight", ".output.weight")):
            weights[name][unsaid] = 0
    return weights


def make(folder: Path, columns) -> None:
    """Writes the checkpoints: config, weights and tokenizer in the published layout, and this bundle's code."""
    for column in columns:
        target = folder / column
        target.mkdir(parents=True)
        if column == SHIPPED:
            for pattern in ("*.py", "*.json", "*.txt", "*.jinja", "*.safetensors"):
                for path in ROOT.glob(pattern):
                    shutil.copyfile(path, target / path.name)
        else:
            getattr(importlib.import_module("toy_tokenizers"), KINDS[column].tokenizer)(target)
            tokenizer = AutoTokenizer.from_pretrained(target, use_fast=False)
            published = importlib.import_module("published_configs").PUBLISHED[KINDS[column].copied]
            config = small_config(published, tokenizer)
            (target / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
            # How parts of characters are written differs between releases of tokenizers.
            parts = [index for index in range(len(tokenizer)) if "\ufffd" in tokenizer.decode([index])]
            weights = random_weights(config, [*tokenizer.get_added_vocab().values(), *parts])
            save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
            importlib.import_module("internvl_chat.install_internvl").install(target)
        package = importlib.import_module("internvl_chat")
        package.InternVLChatModel.from_pretrained(target, torch_dtype=torch.float32).save_pretrained(target / SAVED)


# --- one checkpoint through one door ----------------------------------------------------------------------------------


def picture(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 3, y * 2, x + y * 5], axis=-1).astype(np.uint8))


SQUARE = picture(300, 300)


class Asked:
    """A checkpoint loaded through one door in float32, and the inputs that the checks share."""

    def __init__(self, folder: Path, door: str):
        self.folder, self.door = folder, door
        self.model, self.tokenizer = self.load(**FLOAT32), AutoTokenizer.from_pretrained(folder, **TOKENIZER)
        self.one = self.model.load_image(SQUARE, max_num=1)
        self.three = self.model.load_image(picture(400, 200), max_num=2)
        self.thirteen = self.model.load_image(picture(800, 600), max_num=12)
        assert [len(pixels) for pixels in (self.one, self.three, self.thirteen)] == [1, 3, 13]

    def check_door(self, loaded) -> None:
        module, expected = type(loaded).__module__, {"bundle": "transformers_modules.", "package": "internvl_chat."}
        assert module.startswith(expected[self.door]), f"{type(loaded).__name__} came from {module}"

    def load(self, auto_class=AutoModel, folder=None, **keywords):
        model = auto_class.from_pretrained(folder or self.folder, **keywords).eval()
        self.check_door(model)
        return model

    def ask(self, method, *args, model=None, tokenizer=None, **keywords) -> dict:
        """What a method of the chat interface returns, and the ids that the language model was given and gave."""
        model, calls = model or self.model, []
        generate = model.generate_new_tokens

        def record(**given):
            calls.append((given["input_ids"], generate(**given)))
            return calls[-1][1]

        model.generate_new_tokens = record
        try:
            answer = getattr(model, method)(tokenizer or self.tokenizer, *args, **keywords)
            answer = "".join(answer) if method == "stream_chat" else answer
        finally:
            del model.generate_new_tokens
        ((prompt, new),) = calls
        new = getattr(new, "sequences", new)  # with what a history keeps, where one is asked for
        return {"ids": new.tolist(), "answer": answer, "prompt": prompt.tolist()}

    def describe(self, **keywords) -> dict:
        """The answer about one image, which several checks compare with."""
        return self.ask("chat", self.one, QUESTION, SETTINGS, **keywords)

    def forward(self, model, **keywords):
        """`forward` as the published training code calls it, about one image."""
        ids = torch.tensor(self.describe()["prompt"])
        model.img_context_token_id = self.tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
        flags = torch.ones(len(self.one), 1, dtype=torch.long)
        pixels, mask = self.one.to(model.dtype), torch.ones_like(ids)
        return model(pixels, ids, attention_mask=mask, image_flags=flags, labels=ids, **keywords)


@torch.no_grad()
def check_load(asked: Asked):
    """Every tensor is the file's, none is made up, and nothing beside them is: the logits are those of float32."""
    model = asked.load(**CARD)
    stored, state = load_file(asked.folder / "model.safetensors"), model.state_dict()
    assert dict(model.named_parameters()).keys() <= stored.keys() <= state.keys()
    wrong = [name for name, tensor in stored.items() if not torch.equal(state[name], tensor.to(torch.bfloat16))]
    assert not wrong, f"not as in the file: {wrong}"
    logits = [asked.forward(each).logits[0].float() for each in (model, asked.model)]
    similarity = torch.nn.functional.cosine_similarity(*logits, dim=-1).min()
    assert similarity > 0.9, f"the logits in bfloat16 are others, similarity {similarity:.2f}"
    return sorted(state)


def check_text(asked: Asked):
    return asked.ask("chat", None, "Hello, who are you?", SETTINGS)


def check_image(asked: Asked):
    return asked.describe()


def check_thirteen(asked: Asked):
    return asked.ask("chat", asked.thirteen, QUESTION, SETTINGS)


def check_several(asked: Asked):
    question = "Image-1: <image>\nImage-2: <image>\nDescribe the two images."
    return asked.ask("chat", torch.cat((asked.one, asked.three)), question, SETTINGS, num_patches_list=[1, 3])


def check_second_round(asked: Asked):
    _, history = asked.model.chat(asked.tokenizer, asked.one, QUESTION, SETTINGS, return_history=True)
    return asked.ask("chat", asked.one, "What else?", SETTINGS, history=history)


def check_batch(asked: Asked):
    questions = [QUESTION, "Hello, who are you?", "<image> and <image>: describe them."]
    pixels = torch.cat((asked.one, asked.one, asked.three))
    batch = asked.ask("batch_chat", pixels, questions, SETTINGS, num_patches_list=[1, 0, [1, 3]])
    assert batch["answer"][:2] == [asked.describe()["answer"], check_text(asked)["answer"]]
    return batch


def check_stream(asked: Asked):
    answer, expected = asked.ask("stream_chat", asked.one, QUESTION, SETTINGS), asked.describe()
    assert answer == expected, f"{answer} instead of {expected}"
    return answer


def check_default_tokenizer(asked: Asked):
    return asked.describe(tokenizer=AutoTokenizer.from_pretrained(asked.folder, trust_remote_code=True))


def check_forward(asked: Asked):
    output = asked.forward(asked.model)
    output.loss.backward()
    gradient = sum(float(parameter.grad.abs().mean()) for parameter in asked.model.parameters())
    asked.model.zero_grad()
    return [output.loss.item(), gradient, *output.logits[0, -1, ::16].tolist()]


def check_save(asked: Asked):
    with tempfile.TemporaryDirectory() as folder:
        asked.model.save_pretrained(folder)
        asked.tokenizer.save_pretrained(folder)
        model, tokenizer = asked.load(folder=folder, **FLOAT32), AutoTokenizer.from_pretrained(folder, **TOKENIZER)
        answer, expected = asked.describe(model=model, tokenizer=tokenizer), asked.describe()
    assert answer == expected, f"{answer} instead of {expected}"
    return answer


def check_saved_by_newest(asked: Asked):
    return asked.describe(model=asked.load(folder=asked.folder / SAVED, **FLOAT32))


def check_native(asked: Asked):
    """As transformers' documentation of InternVL asks. `AutoModelForImageTextToText` came with 4.46, and its `generate`
    returns the prompt, too; before, `AutoModel` is asked with the processor's inputs."""
    processor = AutoProcessor.from_pretrained(asked.folder, trust_remote_code=True)
    asked.check_door(processor)
    content = [{"type": "image", "image": SQUARE}, {"type": "text", "text": "Describe the image."}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        **dict(add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", max_patches=1),
    )
    model = asked.load(getattr(transformers, "AutoModelForImageTextToText", AutoModel), **FLOAT32)
    output, prompt = model.generate(**inputs, **SETTINGS).tolist(), inputs["input_ids"].tolist()
    if hasattr(transformers, "AutoModelForImageTextToText"):
        assert output[0][: len(prompt[0])] == prompt[0]
        output = [output[0][len(prompt[0]) :]]
    expected = asked.describe()
    assert prompt == expected["prompt"] and output == expected["ids"]
    return {"prompt": prompt, "ids": output, "answer": processor.decode(output[0], skip_special_tokens=True)}


# What the README calls a check -> the check.
CHECKS = {
    "loading with the model cards' keywords": check_load,
    "text": check_text,
    "one image": check_image,
    "13 tiles": check_thirteen,
    "several images": check_several,
    "a second round": check_second_round,
    "a batch": check_batch,
    "a stream": check_stream,
    "the tokenizer with and without `use_fast=False`": check_default_tokenizer,
    "`forward` and backward": check_forward,
    "saving and loading again": check_save,
    "loading what the newest release saved": check_saved_by_newest,
    "`AutoProcessor` with `AutoModelForImageTextToText`": check_native,
}


def attempt(check, *args) -> dict:
    """{"answer": what the check returns} or {"error": one line}."""
    try:
        return {"answer": check(*args)}
    except Exception as error:
        return {"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}


def check_refusal(folder: Path, door: str, llm: str):
    try:
        Asked(folder, door)
    except ValueError as error:
        assert llm in str(error) and "newer transformers" in str(error), str(error)
        return True
    raise AssertionError(f"loaded without {llm}")


def ask(folder: Path, door: str) -> dict:
    """{check: outcome} for a checkpoint."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (llm,) = config["llm_config"]["architectures"]
    if llm != "InternLM2ForCausalLM" and not hasattr(transformers, llm):
        return {REFUSAL: attempt(check_refusal, folder, door, llm)}
    loading = attempt(Asked, folder, door)
    return {
        name: loading if "error" in loading else attempt(check, loading["answer"]) for name, check in CHECKS.items()
    }


def main(action, folder, *arguments) -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    if action == "make":
        make(Path(folder), arguments)
        return
    answers, *columns = arguments
    cells = {column: {} for column in columns}
    for door in DOORS:
        if door == "package":
            assert "internvl_chat" not in sys.modules
            importlib.import_module("internvl_chat")
        for column in columns:
            cells[column][door] = ask(Path(folder) / column, door)
    result = {"transformers": transformers.__version__, "cells": cells}
    Path(answers).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
