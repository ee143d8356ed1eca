"""The prompt templates of `conversation.py` as Jinja: the text of `chat_template.jinja`.

Serving engines and `transformers` render prompts with Jinja. The template is made from the same row that
`Conversation.get_prompt` reads, so the two give the same bytes. Knows nothing of tokenizers, images or models.
"""

import re

from .conversation import Conversation, SeparatorStyle

# How the language models behind the ChatML templates (Qwen2.5, Qwen3) were trained to be told of tools, to call them
# and to be given the results; the wording is part of that format.
_TOOLS_HEAD = (
    "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
_TOOLS_TAIL = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    "<tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)

# Words in capitals stand for string literals, filled in below. What is between the tags does not reach the prompt: each
# line break has a dash on one side of it.
_TEXT_OF = """\
{%- macro text_of(content) -%}
{%- if content is string -%}{{ content }}
{%- elif content -%}
{%- for part in content -%}
{%- if part is string -%}{{ part }}
{%- elif part.type in ['image', 'image_url'] -%}{{ '<image>\\n' }}
{%- elif part.type in ['video', 'video_url'] -%}{{ '<video>\\n' }}
{%- elif part.type == 'text' -%}{{ part.text }}
{%- else -%}{{ raise_exception("content of type " ~ part.type ~ " is not known; choices: text, image, video") }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
"""
_TOOLS = """\
{%- macro tools_text() -%}
{%- if tools -%}
{{ TOOLS_HEAD }}
{%- for tool in tools -%}{{ '\\n' }}{{ tool | tojson }}{%- endfor -%}
{{ TOOLS_TAIL }}
{%- endif -%}
{%- endmacro -%}
"""
_NO_TOOLS = """\
{%- macro tools_text() -%}
{%- if tools -%}{{ raise_exception("this prompt template has no form for tools") }}{%- endif -%}
{%- endmacro -%}
"""
_SYSTEM_AND_USER = """\
{%- if messages[0].role != 'system' -%}
{{ BEFORE_SYSTEM ~ SYSTEM_MESSAGE }}{{ tools_text() }}{{ AFTER_SYSTEM }}
{%- endif -%}
{%- for message in messages -%}
{%- set text = text_of(message.content) -%}
{%- if message.role == 'system' -%}
{{ BEFORE_SYSTEM ~ text }}{%- if loop.first -%}{{ tools_text() }}{%- endif -%}{{ AFTER_SYSTEM }}
{%- elif message.role == 'user' -%}{{ USER ~ text ~ END }}
"""
_TOOL_RESULTS = """\
{%- elif message.role == 'tool' -%}
{{ USER if loop.first or loop.previtem.role != 'tool' else '\\n' }}
{{- '<tool_response>\\n' ~ text ~ '\\n</tool_response>' }}
{%- if loop.last or loop.nextitem.role != 'tool' -%}{{ END }}{%- endif -%}
"""
_ASSISTANT = """\
{%- elif message.role == 'assistant' -%}{{ ASSISTANT ~ text }}
"""
_TOOL_CALLS = """\
{%- for item in message.tool_calls or [] -%}
{%- set call = item.function or item -%}
{{ '\\n' if text or not loop.first else '' }}{{ '<tool_call>\\n{"name": ' }}{{ call.name | tojson }}
{{- ', "arguments": ' }}
{%- if call.arguments is string -%}{{ call.arguments }}{%- else -%}{{ call.arguments | tojson }}{%- endif -%}
{{ '}\\n</tool_call>' }}
{%- endfor -%}
"""
_REST = """\
{{- LAST_END }}
{%- else -%}{{ raise_exception("role " ~ message.role ~ " is not known; choices: ROLES") }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ ASSISTANT }}{%- endif -%}
"""


def jinja_template(conversation: Conversation) -> str:
    """A conversation's template and system message as a Jinja chat template.

    Messages are dictionaries with `role` and `content`; the content is a text or a list of parts of type `text`,
    `image` and `video`, of which an image becomes the line `<image>` and a video the line `<video>`. ChatML templates
    also write `tools`, the `tool_calls` of an assistant and messages of the role `tool`, in the form of Qwen2.5.
    """
    before, _, after = conversation.system_template.partition("{system_message}")
    user, assistant = conversation.roles
    end = last_end = _literal(conversation.sep)
    if conversation.sep_style is SeparatorStyle.MPT_TWO:
        last_end = f"({_literal(conversation.sep2)} if loop.last and not add_generation_prompt else {end})"
    if user.startswith("<|im_start|>"):
        blocks = (_TEXT_OF, _TOOLS, _SYSTEM_AND_USER, _TOOL_RESULTS, _ASSISTANT, _TOOL_CALLS, _REST)
        roles = "system, user, assistant, tool"
    else:
        blocks = (_TEXT_OF, _NO_TOOLS, _SYSTEM_AND_USER, _ASSISTANT, _REST)
        roles = "system, user, assistant"
    values = {
        "TOOLS_HEAD": _literal(_TOOLS_HEAD),
        "TOOLS_TAIL": _literal(_TOOLS_TAIL),
        "BEFORE_SYSTEM": _literal(before),
        "SYSTEM_MESSAGE": _literal(conversation.system_message),
        "AFTER_SYSTEM": _literal(after + conversation.sep),
        "USER": _literal(user),
        "ASSISTANT": _literal(assistant),
        "LAST_END": last_end,
        "END": end,
        "ROLES": roles,
    }
    return re.sub(r"\b[A-Z_]{3,}\b", lambda match: values[match.group()], "".join(blocks))


def _literal(text: str) -> str:
    """`text` as a Jinja string literal."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"
