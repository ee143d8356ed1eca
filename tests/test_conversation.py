"""Prompt templates: literal prompts, byte for byte, and conversations that do not share anything."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import internvl_chat.conversation as templates
from internvl_chat import Conversation, conv_template_names, get_conv_template, register_conv_template

# The published system messages.
V2 = "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
V2_5 = "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
OSS = """You are InternVL, a large language model trained by Shanghai AI Laboratory.
Knowledge cutoff: 2024-06
Current date: 2025-08-06

Reasoning: low

# Valid channels: final. Channel must be included for every message."""

# (system message or None for the template's own, messages of user and assistant in turn, None for the open one).
TALKS = {
    "nothing said": (None, []),
    "first question": (None, ["Hello", None]),
    "two rounds and a question": (None, ["<image>\nWhat?", "A cat.", "Sure?", "Yes.", "Why?", None]),
    "own system message": ("Be brief.", ["Hello", None]),
    "empty system message": ("", ["Hello", None]),
    "complete": (None, ["Hello", "Hi!"]),
}

CHATML_V2 = {
    "nothing said": f"<|im_start|>system\n{V2}<|im_end|>",
    "first question": (f"<|im_start|>system\n{V2}<|im_end|><|im_start|>user\nHello<|im_end|><|im_start|>assistant\n"),
    "two rounds and a question": (
        f"<|im_start|>system\n{V2}<|im_end|>"
        "<|im_start|>user\n<image>\nWhat?<|im_end|><|im_start|>assistant\nA cat.<|im_end|>"
        "<|im_start|>user\nSure?<|im_end|><|im_start|>assistant\nYes.<|im_end|>"
        "<|im_start|>user\nWhy?<|im_end|><|im_start|>assistant\n"
    ),
    "own system message": (
        "<|im_start|>system\nBe brief.<|im_end|><|im_start|>user\nHello<|im_end|><|im_start|>assistant\n"
    ),
    "empty system message": ("<|im_start|>system\n<|im_end|><|im_start|>user\nHello<|im_end|><|im_start|>assistant\n"),
    "complete": (
        f"<|im_start|>system\n{V2}<|im_end|><|im_start|>user\nHello<|im_end|><|im_start|>assistant\nHi!<|im_end|>"
    ),
}
PROMPTS = {
    "Hermes-2": CHATML_V2,
    "internlm2-chat": CHATML_V2,
    "phi3-chat": {
        "nothing said": f"<|system|>\n{V2}<|end|>",
        "first question": f"<|system|>\n{V2}<|end|><|user|>\nHello<|end|><|assistant|>\n",
        "two rounds and a question": (
            f"<|system|>\n{V2}<|end|>"
            "<|user|>\n<image>\nWhat?<|end|><|assistant|>\nA cat.<|end|>"
            "<|user|>\nSure?<|end|><|assistant|>\nYes.<|end|>"
            "<|user|>\nWhy?<|end|><|assistant|>\n"
        ),
        "own system message": "<|system|>\nBe brief.<|end|><|user|>\nHello<|end|><|assistant|>\n",
        "empty system message": "<|system|>\n<|end|><|user|>\nHello<|end|><|assistant|>\n",
        "complete": f"<|system|>\n{V2}<|end|><|user|>\nHello<|end|><|assistant|>\nHi!<|end|>",
    },
    "internvl2_5": {
        "nothing said": f"<|im_start|>system\n{V2_5}<|im_end|>\n",
        "first question": (
            f"<|im_start|>system\n{V2_5}<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
        ),
        "two rounds and a question": (
            f"<|im_start|>system\n{V2_5}<|im_end|>\n"
            "<|im_start|>user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\nA cat.<|im_end|>\n"
            "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n"
            "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
        ),
        "own system message": (
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
        ),
        "empty system message": (
            "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
        ),
        "complete": (
            f"<|im_start|>system\n{V2_5}<|im_end|>\n"
            "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi!<|im_end|>\n"
        ),
    },
    "internvl3_5_gpt_oss": {
        "nothing said": f"<|start|>system<|message|>{OSS}<|end|>",
        "first question": (
            f"<|start|>system<|message|>{OSS}<|end|><|start|>user<|message|>Hello<|end|><|start|>assistant"
        ),
        "two rounds and a question": (
            f"<|start|>system<|message|>{OSS}<|end|>"
            "<|start|>user<|message|><image>\nWhat?<|end|><|start|>assistantA cat.<|end|>"
            "<|start|>user<|message|>Sure?<|end|><|start|>assistantYes.<|end|>"
            "<|start|>user<|message|>Why?<|end|><|start|>assistant"
        ),
        "own system message": (
            "<|start|>system<|message|>Be brief.<|end|><|start|>user<|message|>Hello<|end|><|start|>assistant"
        ),
        "empty system message": (
            "<|start|>system<|message|><|end|><|start|>user<|message|>Hello<|end|><|start|>assistant"
        ),
        "complete": (
            f"<|start|>system<|message|>{OSS}<|end|><|start|>user<|message|>Hello<|end|><|start|>assistantHi!<|return|>"
        ),
    },
}


def conversation_of(template, talk):
    system_message, texts = talk
    conversation = get_conv_template(template)
    if system_message is not None:
        conversation.set_system_message(system_message)
    for index, text in enumerate(texts):
        conversation.append_message(conversation.roles[index % 2], text)
    return conversation


def test_the_table_is_complete():
    assert conv_template_names() == tuple(PROMPTS)
    assert all(set(prompts) == set(TALKS) for prompts in PROMPTS.values())


@pytest.mark.parametrize("talk", TALKS, ids=str)
@pytest.mark.parametrize("template", PROMPTS, ids=str)
def test_prompts_are_the_published_ones(template, talk):
    conversation = conversation_of(template, TALKS[talk])
    assert conversation.get_prompt() == PROMPTS[template][talk]
    assert conversation.get_prompt() == PROMPTS[template][talk], "asking twice gives the same"


@pytest.mark.parametrize(
    "template, marks",
    [
        ("Hermes-2", ("<|im_end|>",)),
        ("internlm2-chat", ("<|im_end|>",)),
        ("phi3-chat", ("<|end|>",)),
        ("internvl2_5", ("<|im_end|>",)),
        ("internvl3_5_gpt_oss", ("<|end|>", "<|return|>")),
    ],
)
def test_end_marks(template, marks):
    conversation = get_conv_template(template)
    assert conversation.end_marks() == marks
    # The published way to cut an answer (model cards).
    assert conversation.sep.strip() == marks[0]


TEXT = st.text(max_size=12) | st.sampled_from(["{system_message}", "{", "}", "%s", "<|im_end|>", "\n", "<image>"])


@given(
    template=st.sampled_from(sorted(PROMPTS)),
    system=TEXT,
    rounds=st.lists(st.tuples(TEXT, TEXT), max_size=3),
    is_open=st.booleans(),
)
def test_parts_join_to_the_prompt_and_tell_the_author(template, system, rounds, is_open):
    """Whatever is said: texts come through unchanged, each with its author."""
    texts = [text for pair in rounds for text in pair] + (["last question", None] if is_open else [])
    conversation = conversation_of(template, (system, texts))
    parts = list(conversation.parts())
    assert "".join(text for text, _ in parts) == conversation.get_prompt()
    assert [text for text, author in parts if author == "system"] == [system]
    assert [text for text, author in parts if author == "user"] == texts[::2]
    answers = [text for text in texts[1::2] if text is not None]
    assert [text for text, author in parts if author == "assistant"] == answers
    assert {author for _, author in parts} <= {"template", "system", "user", "assistant"}


def test_copies_share_nothing():
    original = conversation_of("internvl2_5", TALKS["complete"])
    original.stop_token_ids = [1, 2]
    prompt = original.get_prompt()
    copied = original.copy()
    assert copied == original and copied is not original
    copied.append_message(copied.roles[0], "More?")
    copied.update_last_message("Less?")
    copied.messages[0][1] = "changed"
    copied.stop_token_ids.append(3)
    copied.set_system_message("changed")
    assert original.get_prompt() == prompt
    assert original.stop_token_ids == [1, 2]
    assert "Less?" in copied.get_prompt() and "More?" not in copied.get_prompt()


@pytest.mark.parametrize("template", PROMPTS, ids=str)
def test_templates_are_fresh(template):
    used = get_conv_template(template)
    used.append_message(used.roles[0], "Hello")
    used.set_system_message("changed")
    used.sep = "changed"
    assert get_conv_template(template).get_prompt() == PROMPTS[template]["nothing said"]


@pytest.mark.parametrize(
    "talk, expected",
    [
        ("nothing said", [("system", V2_5)]),
        ("first question", [("system", V2_5), ("user", "Hello")]),
        ("complete", [("system", V2_5), ("user", "Hello"), ("assistant", "Hi!")]),
        ("own system message", [("system", "Be brief."), ("user", "Hello")]),
        (
            "two rounds and a question",
            [
                ("system", V2_5),
                ("user", "<image>\nWhat?"),
                ("assistant", "A cat."),
                ("user", "Sure?"),
                ("assistant", "Yes."),
                ("user", "Why?"),
            ],
        ),
    ],
)
def test_openai_messages(talk, expected):
    messages = conversation_of("internvl2_5", TALKS[talk]).to_openai_api_messages()
    assert messages == [{"role": role, "content": text} for role, text in expected]


def test_open_message_is_filled():
    conversation = conversation_of("internvl2_5", TALKS["first question"])
    conversation.update_last_message("Hi!")
    assert conversation.get_prompt() == PROMPTS["internvl2_5"]["complete"]
    with pytest.raises(ValueError, match="no message"):
        get_conv_template("internvl2_5").update_last_message("Hi!")


@pytest.fixture
def own_template(monkeypatch):
    """A template of a user; the registry is as before after the test."""
    monkeypatch.setattr(templates, "_TEMPLATES", dict(templates._TEMPLATES))
    return Conversation(name="own", system_template="[{system_message}]", roles=("Q: ", "A: "), sep="\n")


def test_registered_template(own_template, toy_config):
    register_conv_template(own_template)
    assert conv_template_names()[-1] == "own"
    own_template.sep = "changed afterwards"
    conversation = conversation_of("own", ("Be brief.", ["Hello", "Hi!", "Why?", None]))
    assert conversation.get_prompt() == "[Be brief.]\nQ: Hello\nA: Hi!\nQ: Why?\nA: "
    assert toy_config(template="own").template == "own"


def test_names_are_taken_once(own_template):
    register_conv_template(own_template)
    with pytest.raises(ValueError, match="'own'.*override=True"):
        register_conv_template(own_template)
    own_template.sep = "!"
    register_conv_template(own_template, override=True)
    assert get_conv_template("own").sep == "!"


@pytest.mark.parametrize(
    "call, error, named",
    [
        (lambda: get_conv_template("vicuna"), ValueError, "'vicuna'.*Hermes-2.*internvl3_5_gpt_oss"),
        (lambda: get_conv_template(None), ValueError, "None.*Hermes-2"),
        (lambda: register_conv_template("internvl2_5"), TypeError, "Conversation.*str"),
        (lambda: register_conv_template(get_conv_template("Hermes-2")), ValueError, "'Hermes-2'"),
    ],
    ids=["unknown", "None", "not a conversation", "taken"],
)
def test_errors(call, error, named):
    with pytest.raises(error, match=named):
        call()
