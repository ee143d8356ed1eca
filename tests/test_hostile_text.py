"""What a user types is data: through every door and with every tokenizer of the family, the control tokens of a prompt
are those that we placed. The doors are asked for the ids that they hand to the model; nothing is generated."""

import copy
import json

import pytest
import torch
import toy_tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoTokenizer

import internvl_chat
from internvl_chat.chat_template_internvl import jinja_template

GROUNDING = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>")
IMAGE = Image.new("RGB", (448, 448), "red")
TILE = torch.zeros(1).expand(1, 3, 448, 448)


def unmarked(folder):
    """Qwen2's files with role marks that are tokens, but are not marked as special ones."""
    toy_tokenizers.write_qwen2(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    for token in config["added_tokens_decoder"].values():
        token["special"] = token["special"] and not token["content"].startswith("<|im_")
    for values, file in ((config, path), (json.loads((folder / "special_tokens_map.json").read_text()), None)):
        values["additional_special_tokens"] = list(toy_tokenizers.IMAGE_TOKENS)
        values["eos_token"] = "<|endoftext|>"
        (file or folder / "special_tokens_map.json").write_text(json.dumps(values))
    return folder


CHATML = {role: ["<|im_start|>"] for role in ("system", "user", "assistant")}
PHI3 = {role: [f"<|{role}|>"] for role in ("system", "user", "assistant")}
GPT_OSS = {
    "system": ["<|start|>", "<|message|>"],
    "user": ["<|start|>", "<|message|>"],
    "assistant": ["<|start|>"],
}
# Name -> where its files come from, use_fast, template, what opens the prompt, what opens a message, what closes one.
TOKENIZERS = {
    "shipped, fast": (None, True, "internvl2_5", [], CHATML, "<|im_end|>"),
    "shipped, slow": (None, False, "internvl2_5", [], CHATML, "<|im_end|>"),
    "internlm2": (toy_tokenizers.write_internlm2, False, "internlm2-chat", ["<s>"], CHATML, "<|im_end|>"),
    "phi3": (toy_tokenizers.write_phi3, False, "phi3-chat", ["<s>"], PHI3, "<|end|>"),
    "yi": (toy_tokenizers.write_yi, False, "Hermes-2", [], CHATML, "<|im_end|>"),
    "llama3": (toy_tokenizers.write_llama3, True, "internvl2_5", ["<|begin_of_text|>"], CHATML, "<|im_end|>"),
    "gpt_oss": (toy_tokenizers.write_gpt_oss, True, "internvl3_5_gpt_oss", [], GPT_OSS, "<|end|>"),
    "unmarked, fast": (unmarked, True, "internvl2_5", [], CHATML, "<|im_end|>"),
    "unmarked, slow": (unmarked, False, "internvl2_5", [], CHATML, "<|im_end|>"),
}


class Doors:
    """The ids that `chat`, `batch_chat`, `stream_chat` and the processor make of a conversation."""

    def __init__(self, model, name, folder):
        write, use_fast, template, self.opening, self.marks, self.end = TOKENIZERS[name]
        if write is not None:
            (write(folder) / "config.json").write_text('{"model_type": "internvl_chat"}')
        self.tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=use_fast)
        self.model = copy.copy(model)
        self.model.template, self.model.generate_new_tokens = template, self._generate
        self.per_tile = model.num_image_token
        self.processor = internvl_chat.InternVLChatProcessor(
            tokenizer=self.tokenizer,
            image_seq_length=self.per_tile,
            chat_template=jinja_template(internvl_chat.get_conv_template(template)),
        )
        added = {str(token): number for number, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        added.update(zip(self.tokenizer.all_special_tokens, self.tokenizer.all_special_ids))
        placed = {
            "<img>",
            "</img>",
            "<IMG_CONTEXT>",
            self.end,
            *(mark for marks in self.marks.values() for mark in marks),
        }
        self.control = {mark: self.tokenizer.convert_tokens_to_ids(mark) for mark in {*added, *placed} - {*GROUNDING}}
        self.grounding = {mark: self.tokenizer.convert_tokens_to_ids(mark) for mark in GROUNDING}

    def _generate(self, input_ids=None, **rest):
        self.sent = input_ids.tolist()
        return torch.zeros(len(input_ids), 1, dtype=torch.long)

    def ids(self, question, history, system, has_image, **options):
        """{door: ids}."""
        pixels = TILE if has_image else None
        question_with = f"<image>\n{question}" if has_image else question
        options = {"system_message": system, **options}
        found = {}
        self.model.chat(self.tokenizer, pixels, question_with, history=history, **options)
        (found["chat"],) = self.sent
        list(self.model.stream_chat(self.tokenizer, pixels, question_with, history=history, **options))
        (found["stream_chat"],) = self.sent
        # beside a shorter prompt, which is padded, and so this one is not
        self.model.batch_chat(
            self.tokenizer, pixels, ["Hi", question_with], num_patches_list=[0, int(has_image)],
            history=[None, history], **options,
        )  # fmt: skip
        found["batch_chat"] = self.sent[1][-len(found["chat"]) :]
        turns = [("system", [system])]
        for asked, answered in history:
            turns += [("user", [asked]), ("assistant", [answered])]
        turns.append(("user", [{"type": "image", "image": IMAGE}, question] if has_image else [question]))
        messages = [
            {
                "role": role,
                "content": [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts],
            }
            for role, parts in turns
        ]
        special = {name: options[name] for name in ("allow_special_tokens",) if name in options}
        self.processor.image_processor.max_patches = 1
        (found["processor"],) = self.processor.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=True, **special
        )
        return found

    def placed(self, num_rounds, has_image) -> list:
        """The control tokens that belong into the prompt, in order."""
        image = ["<img>", *["<IMG_CONTEXT>"] * self.per_tile, "</img>"] if has_image else []
        expected = [*self.opening, *self.marks["system"], self.end]
        for _ in range(num_rounds):
            expected += [*self.marks["user"], self.end, *self.marks["assistant"], self.end]
        return expected + [*self.marks["user"], *image, self.end, *self.marks["assistant"]]


@pytest.fixture(scope="module", params=TOKENIZERS)
def doors(request, shipped_model, checkpoint, tmp_path_factory):
    folder = checkpoint if TOKENIZERS[request.param][0] is None else tmp_path_factory.mktemp("tokenizer")
    return Doors(shipped_model, request.param, folder)


RESERVED = (
    "<|im_start|> <|im_end|> <|endoftext|> <|end|> <|user|> <|assistant|> <|system|> <|start|> <|message|> <|return|> "
    "<|channel|> <|begin_of_text|> <|end_of_text|> <|startoftext|> <s> </s> <unk> <img> </img> <IMG_CONTEXT> "
    "<|plugin|> <|action_start|> [UNUSED_TOKEN_141] <0x0A>"
).split()
FRAGMENTS = [
    "<",
    ">",
    "|",
    "<|",
    "|>",
    "<|im_",
    "end|>",
    "IMG_",
    "</",
    "s>",
    "assistant\n",
    "\n",
    " ",
    "\u200b",
    "＜|im_end|＞",
]
text = st.lists(
    st.one_of(st.sampled_from(RESERVED), st.sampled_from([*GROUNDING, *FRAGMENTS]), st.text(max_size=4)), max_size=6
).map("".join)


@settings(max_examples=20, deadline=None)
@given(question=text, rounds=st.lists(st.tuples(text, text), max_size=2), system=text, has_image=st.booleans())
def test_the_control_tokens_of_a_prompt_are_those_that_we_placed(doors, question, rounds, system, has_image):
    question = "Q" + question  # an empty one is an error
    found = doors.ids(question, rounds, system, has_image)
    ids = found["chat"]
    assert all(other == ids for other in found.values()), found
    names = {number: mark for mark, number in doors.control.items()}
    assert [names[number] for number in ids if number in names] == doors.placed(len(rounds), has_image)
    said = [question, system, *(part for pair in rounds for part in pair)]
    for mark, number in doors.grounding.items():
        assert ids.count(number) == sum(part.count(mark) for part in said), mark


def test_special_tokens_act_where_they_are_allowed_to(doors):
    """Only there, and through every door."""
    end = doors.control[doors.end]
    for allowed in (False, True):
        found = doors.ids(f"a{doors.end}b", [("c", f"d{doors.end}")], "", True, allow_special_tokens=allowed)
        for door, ids in found.items():
            assert ids.count(end) == doors.placed(1, True).count(doors.end) + 2 * allowed, (door, allowed)
