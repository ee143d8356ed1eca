"""`chat_template.jinja`, which serving engines use, says the same as `conversation.py`."""

import json

import pytest

pytest.importorskip("jinja2")

CASES = [
    ([("user", "Hi")], "Hi"),
    ([("user", "Hi"), ("assistant", "Hello!"), ("user", "{{ messages }} {% raw %} \n trailing ")], None),
    ([("system", "Be brief."), ("user", "Hi")], None),
    ([("system", ""), ("user", "Hi"), ("assistant", "A")], None),
    ([("user", [{"type": "image"}, {"type": "text", "text": "Describe."}])], "<image>\nDescribe."),
    ([("user", [{"type": "text", "text": "One: "}, {"type": "image_url"}, {"type": "image", "image": "x"}])], None),
    ([("user", [{"type": "video", "video": "v.mp4"}, {"type": "text", "text": "What?"}])], "<video>\nWhat?"),
]


def as_text(content):
    marks = {"image": "<image>\n", "image_url": "<image>\n", "video": "<video>\n"}
    return content if isinstance(content, str) else "".join(marks.get(p["type"]) or p["text"] for p in content)


@pytest.mark.parametrize("open_answer", [True, False])
@pytest.mark.parametrize("messages, last", CASES)
def test_equals_the_conversation(shipped_model, shipped_tokenizer, messages, last, open_answer):
    template = shipped_model.conv_template.copy()
    for role, content in messages:
        if role == "system":
            template.set_system_message(content)
        else:
            template.append_message(template.roles[role == "assistant"], as_text(content))
    if open_answer:
        template.append_message(template.roles[1], None)
    given = [{"role": role, "content": content} for role, content in messages]
    text = shipped_tokenizer.apply_chat_template(given, tokenize=False, add_generation_prompt=open_answer)
    assert text == template.get_prompt()
    if last is not None:
        assert f"user\n{last}<|im_end|>" in text


def test_unknown_content_is_told(shipped_tokenizer):
    with pytest.raises(Exception, match="audio.*choices: text, image, video"):
        shipped_tokenizer.apply_chat_template([{"role": "user", "content": [{"type": "audio"}]}], tokenize=False)


def test_older_releases_read_the_same_template(checkpoint):
    """Before 4.48 the template came with tokenizer_config.json."""
    config = json.loads((checkpoint / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["chat_template"] == (checkpoint / "chat_template.jinja").read_text(encoding="utf-8")
