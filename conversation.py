"""Prompt templates of the InternVL family, as data.

A template is one row of `_TEMPLATES`; `Conversation.get_prompt` is the only code that turns messages into text.
This module knows nothing of tokenizers, images or models.
"""

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Optional

# System messages of the published checkpoints: the ones up to InternVL2, the ones from InternVL2.5 on, and GPT-OSS.
_SYSTEM_V2 = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
_SYSTEM_V2_5 = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
_SYSTEM_GPT_OSS = (
    "You are InternVL, a large language model trained by Shanghai AI Laboratory.\n"
    "Knowledge cutoff: 2024-06\nCurrent date: 2025-08-06\n\nReasoning: low\n\n"
    "# Valid channels: final. Channel must be included for every message."
)


class SeparatorStyle(Enum):
    """What follows a message: `MPT` has `sep` after each one, `MPT_TWO` ends the last assistant message with `sep2`."""

    MPT = "MPT"
    MPT_TWO = "MPT_TWO"


@dataclass
class Conversation:
    """A prompt template together with the messages said so far.

    Attributes:
        name: name of the template, as the checkpoint's `config.json` spells it (`template`).
        system_template: text before the first message; `{system_message}` marks the place of the system message.
        system_message: the system message; an empty one is honoured.
        roles: the text that opens a user message and the one that opens an assistant message.
        messages: `[role, text]` pairs; a text of `None` is the message that the model is to write.
        sep_style, sep, sep2: what closes a message, see `SeparatorStyle`.
        stop_token_ids: further ids that end an answer, beside the template's own end mark.
    """

    name: str
    system_template: str = "{system_message}"
    system_message: str = ""
    roles: tuple = ("USER", "ASSISTANT")
    messages: list = field(default_factory=list)
    offset: int = 0
    sep_style: SeparatorStyle = SeparatorStyle.MPT
    sep: str = "\n"
    sep2: Optional[str] = None
    stop_str: Optional[str] = None
    stop_token_ids: Optional[list] = None

    def parts(self):
        """The prompt as `(text, author)` pairs in order.

        `author` is `"template"`, `"system"`, `"user"` or `"assistant"`: it tells which text is ours and which came from
        outside, so that a reserved token inside a question can be told from the one that we placed (see
        `prompt_internvl.py`). Joined, the texts are `get_prompt()`.
        """
        before, _, after = self.system_template.partition("{system_message}")
        yield before, "template"
        yield self.system_message, "system"
        yield after + self.sep, "template"
        last = len(self.messages) - 1
        for index, (role, text) in enumerate(self.messages):
            yield role, "template"
            if text is None:
                continue
            is_answer = role == self.roles[1]
            yield text, "assistant" if is_answer else "user"
            closes = self.sep_style is SeparatorStyle.MPT_TWO and is_answer and index == last
            yield self.sep2 if closes else self.sep, "template"

    def get_prompt(self) -> str:
        """The prompt as one string, byte-equal to the published `conversation.py` for the same messages."""
        return "".join(text for text, _ in self.parts())

    def end_marks(self) -> tuple:
        """Texts that end an answer: `sep`, and `sep2` where the style has one, without surrounding white space."""
        return tuple(mark.strip() for mark in (self.sep, self.sep2) if mark and mark.strip())

    def set_system_message(self, system_message: str) -> None:
        self.system_message = system_message

    def append_message(self, role: str, message: Optional[str]) -> None:
        """Adds a message; `None` opens the one that the model is to write."""
        self.messages.append([role, message])

    def update_last_message(self, message: str) -> None:
        """Fills the last message, usually the open one.

        Raises:
            ValueError: there is no message yet.
        """
        if not self.messages:
            raise ValueError("there is no message to update: append one first")
        self.messages[-1][1] = message

    def copy(self) -> "Conversation":
        """An independent copy: messages of the one do not show in the other."""
        stops = None if self.stop_token_ids is None else list(self.stop_token_ids)
        return replace(self, messages=[list(message) for message in self.messages], stop_token_ids=stops)

    def to_openai_api_messages(self) -> list:
        """The conversation as `[{"role": ..., "content": ...}]`, without the open message; the system message first."""
        named = {self.roles[0]: "user", self.roles[1]: "assistant"}
        messages = [{"role": "system", "content": self.system_message}]
        messages += [
            {"role": named.get(role, role), "content": text} for role, text in self.messages if text is not None
        ]
        return messages


def _chatml(name: str, system_message: str, sep: str) -> Conversation:
    return Conversation(
        name=name,
        system_template="<|im_start|>system\n{system_message}",
        system_message=system_message,
        roles=("<|im_start|>user\n", "<|im_start|>assistant\n"),
        sep=sep,
    )


_TEMPLATES = {
    template.name: template
    for template in (
        _chatml("Hermes-2", _SYSTEM_V2, "<|im_end|>"),
        _chatml("internlm2-chat", _SYSTEM_V2, "<|im_end|>"),
        Conversation(
            name="phi3-chat",
            system_template="<|system|>\n{system_message}",
            system_message=_SYSTEM_V2,
            roles=("<|user|>\n", "<|assistant|>\n"),
            sep="<|end|>",
        ),
        _chatml("internvl2_5", _SYSTEM_V2_5, "<|im_end|>\n"),
        Conversation(
            name="internvl3_5_gpt_oss",
            system_template="<|start|>system<|message|>{system_message}",
            system_message=_SYSTEM_GPT_OSS,
            roles=("<|start|>user<|message|>", "<|start|>assistant"),
            sep_style=SeparatorStyle.MPT_TWO,
            sep="<|end|>",
            sep2="<|return|>",
        ),
    )
}


def conv_template_names() -> tuple:
    """Names of the registered templates, in the order of registration."""
    return tuple(_TEMPLATES)


def register_conv_template(template: Conversation, override: bool = False) -> None:
    """Makes `template` available under its name to `get_conv_template` and to configurations.

    Raises:
        TypeError: `template` is not a `Conversation`.
        ValueError: the name is taken and `override` is false.
    """
    if not isinstance(template, Conversation):
        raise TypeError(f"expected a Conversation, got {type(template).__name__}")
    if template.name in _TEMPLATES and not override:
        raise ValueError(f"a template named {template.name!r} is registered already; pass override=True to replace it")
    _TEMPLATES[template.name] = template.copy()


def get_conv_template(name: str) -> Conversation:
    """A fresh copy of the template called `name`.

    Raises:
        ValueError: no template has that name; the message lists the known ones.
    """
    if name not in _TEMPLATES:
        raise ValueError(f"unknown conversation template {name!r}; known templates: {', '.join(_TEMPLATES)}")
    return _TEMPLATES[name].copy()
