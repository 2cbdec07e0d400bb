"""The rows that fuzzing starts from, and the inputs that once failed."""

from __future__ import annotations

from typing import Any

from tests.fuzz.mutations import SECRET

_CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "look_up", "arguments": {"word": SECRET}},
}
_TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": SECRET,
        "parameters": {"type": "object", "properties": {"word": {"type": "string"}}},
    },
}


def _say(role: str, content: Any = SECRET, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


ROWS: dict[str, dict[str, Any]] = {
    "plain": {"messages": [_say("system"), _say("user"), _say("assistant")]},
    "tools": {
        "messages": [
            _say("user"),
            _say("assistant", None, tool_calls=[_CALL], reasoning_content=SECRET),
            _say("tool", tool_call_id="c1", name="look_up"),
            _say("assistant", train=False),
            _say("assistant", weight=1.0),
        ],
        "tools": [_TOOL],
        "chat_template_kwargs": {"enable_thinking": True, "documents": [SECRET]},
    },
    "parts": {
        "messages": [
            _say("user", [{"type": "text", "text": SECRET}, {"type": "text", "text": "b"}]),
            _say("assistant", [{"type": "thinking", "thinking": SECRET}, {"type": "text"}]),
        ],
        "source": SECRET,
        "images": [],
    },
    "prompt and completion": {"prompt": SECRET, "completion": [_say("assistant")]},
    "sharegpt": {
        "conversations": [
            {"from": "human", "value": SECRET},
            {"from": "function_call", "value": '{"name": "f", "arguments": {"a": 1}}'},
            {"from": "observation", "value": SECRET},
            {"from": "gpt", "value": SECRET, "loss": 1},
        ],
        "system": SECRET,
        "tools": '[{"name": "f", "parameters": {}}]',
    },
    "alpaca": {
        "instruction": SECRET,
        "input": SECRET,
        "output": SECRET,
        "history": [[SECRET, SECRET]],
    },
    "preference": {"prompt": SECRET, "chosen": [_say("assistant")], "rejected": SECRET},
    "nested": {"data": {"messages": [_say("user"), _say("assistant")], "label": True}},
}
"""One row of every format, with every kind of key."""

HARD_ROWS = [
    b"",
    b"null",
    b"[[]]",
    b'{"messages": "[{"}',
    b'{"messages": {"0": {"role": "user"}}}',
    b'{"messages": [{"role": "assistant", "content": 1e999}]}',
    b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    b'{"messages": [{"role": ["user"], "content": {"text": []}}]}',
    b'{"messages": [{"role": "user", "content": [[{"type": "text"}]]}]}',
    b'{"messages": [{"role": "assistant", "content": null, "tool_calls": [[], null, 1]}]}',
    b'{"messages": [{"role": "assistant", "content": "a", "weight": 1e308}], "tools": [[]]}',
    b'{"conversations": [{"from": "gpt", "value": ["a"]}], "system": ["a"], "tools": "[1"}',
    b'{"conversations": [["user", "a"], ["assistant", "b"]]}',
    b'{"instruction": {"a": 1}, "output": "a", "history": [["a"], "b", [1, 2]]}',
    b'{"prompt": [], "completion": ""}',
    b'{"messages": [{"role": "user", "content": "a", "n": 1000000000000000000000000000000}]}',
    b'{"messages": [{"role": "user"}], "chat_template_kwargs": {"a b": 1}, "tools": {"": null}}',
    b'{"data": "{\\"messages\\": [{}]}", "messages": [{"role": "tool", "content": {"a": [1]}}]}',
]
"""Rows that once failed in some reader, or are near to those that do."""

_EACH = "{% for m in messages %}{{ m.role }}{{ m.content }}<|im_end|>{% endfor %}"
HARD_TEMPLATES = [
    "{{ messages",
    "{{ messages|map(attribute='content')|join }}",
    "{% for m in messages recursive %}{{ loop(m) }}{% endfor %}",
    "{% macro a(m) %}{{ a(m) }}{% endmacro %}{{ a(messages) }}",
    "{{ raise_exception(messages[0].content) }}",
    "{{ messages[0].content.nothing.more }}",
    "{% for m in messages %}{{ m.content / 0 }}{{ m.content[m] }}{% endfor %}",
    "{% extends messages[0].content %}",
    "{% include 'messages' %}",
    "{{ messages.__class__.__mro__ }}{{ ''|attr('__class__') }}",
    _EACH + "{{ strftime_now(messages[0].content) }}",
    _EACH + "{{ messages.append(messages[0]) }}",
    _EACH + "{% set messages = messages + messages %}{{ messages|tojson(indent=-1) }}",
    _EACH + "{% if messages|length > 1 %}{{ '%d' % messages[0].content }}{% endif %}",
    _EACH * 3,
    "{% generation %}" * 30 + _EACH,
    "{{ (" + "(" * 300 + "messages" + ")" * 301 + " }}",
    "{% if messages %}" * 150 + _EACH + "{% endif %}" * 150,
]
"""Templates that once failed, or are near to those that do."""

HARD_TOKENIZERS: list[dict[str, Any]] = [
    {"tokenizer.json": {}},
    {"tokenizer.json": {"model": None}},
    {"tokenizer_config.json": {"added_tokens_decoder": {"-1": {"content": "a"}}}},
    {"tokenizer_config.json": {"added_tokens_decoder": {"1e9": {"content": "a"}}}},
    {"tokenizer_config.json": {"added_tokens_decoder": [["a"]]}},
    {"tokenizer_config.json": {"eos_token": {"content": None}}},
    {"tokenizer_config.json": {"eos_token": "", "pad_token": "\0"}},
    {"tokenizer_config.json": {"chat_template": [{"name": "default"}]}},
    {"tokenizer_config.json": {"chat_template": {"default": 1}}},
    {"tokenizer_config.json": {"extra_special_tokens": [None, [], {}]}},
    {"generation_config.json": {"eos_token_id": [[1]]}},
    {"generation_config.json": {"eos_token_id": 10**30}},
    {"special_tokens_map.json": {"eos_token": ["a"]}},
    {"added_tokens.json": {"a": "b"}},
    {"added_tokens.json": {"a": 2**40}},
    {"chat_template.json": {"chat_template": {"a": {"b": None}}}},
]
"""Contents of tokenizer files, by file name, that once failed, or are near to those that do."""
