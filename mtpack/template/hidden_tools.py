"""Refuse dialogues whose tool calls or tool results the template never shows the model.

Many templates ignore tools. A message that calls a tool is then an empty answer, and the next
answer comes without the result that it is made of. To train either would teach the model to do so.

A message is *hidden* if the first text in which the model sees it (`dropped_content.py`) does not
depend on the names and arguments of its calls, or on its result. The kind of the message says
whether it may be; then the dialogue itself is rendered with other words there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from mtpack.input.content import make_text_parts
from mtpack.input.dialogue import Dialogue, Reason, Reject
from mtpack.template.chat_template import ChatTemplate, TemplateRaisedError
from mtpack.template.dropped_content import Kind, find_dropped_parts, list_kinds
from mtpack.template.limits import TemplateLimitError
from mtpack.template.made_up import ARGUMENTS, NAME, WORDS
from mtpack.tokenizer.added_tokens import AddedTokens

_PARTS = {"assistant": "assistant.tool_calls", "tool": "tool.content"}
_DETAILS = {
    "assistant": "the chat template does not write the tool calls of this message, so an answer "
    "without them would be trained; choose a template that knows tools with --chat-template, or "
    "write the calls into the content",
    "tool": "the chat template does not write this tool's result, so later answers would be "
    "trained without it; choose a template that knows tools with --chat-template, or give the "
    "result in a message of the user",
}


def list_tool_kinds(dialogue: Dialogue) -> list[Kind] | None:
    """Return what `list_kinds` returns for a dialogue with tool calls or results; else None."""
    if dialogue.has_only_texts:
        uses_tools = "tool" in dialogue.roles
    else:
        uses_tools = any(
            message["role"] == "tool" or "tool_calls" in message for message in dialogue.messages
        )
    return list_kinds(dialogue) if uses_tools else None


def refuse_hidden_tools(
    template: ChatTemplate, added_tokens: AddedTokens, dialogue: Dialogue, kinds: list[Kind]
) -> Reject | None:
    """Return a Reject if a tool's call or result is hidden, and a turn there or later is trained.

    kinds: from `list_kinds`. Returns None if the template refuses the dialogue: to render it gives
    the reason.
    """
    for index, kind in enumerate(kinds):
        message = dialogue.messages[index]
        role = message["role"]
        if role != "tool" and not message.get("tool_calls"):
            continue
        if _PARTS.get(role) not in find_dropped_parts(template, added_tokens, kind).wholly:
            continue
        if role == "assistant" and _spells_calls(message):
            continue
        if _is_hidden(template, dialogue, index):
            return dialogue.reject(Reason.TOOLS_NOT_SHOWN, f"message {index}: {_DETAILS[role]}")
    return None


def _is_hidden(template: ChatTemplate, dialogue: Dialogue, index: int) -> bool:
    """Return whether the text in which the model sees a message stays the same with other words."""
    messages = dialogue.messages
    end = 1 + dialogue.roles.index("assistant", index)
    changed = [*messages[:index], _change_words(messages[index]), *messages[index + 1 : end]]
    try:
        template.render(messages, dialogue.tools)
        seen = template.render(messages[:end], dialogue.tools)
        return seen == template.render(changed, dialogue.tools)
    except (TemplateRaisedError, TemplateLimitError):
        return False


def _change_words(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message with another result, or with other names and arguments in its calls."""
    if message["role"] == "tool":
        is_list = isinstance(message["content"], list)
        result = WORDS["tool"]
        return message | {"content": make_text_parts(result) if is_list else result}
    return message | {"tool_calls": [_change_call(call) for call in message["tool_calls"]]}


def _change_call(call: dict[str, Any]) -> dict[str, Any]:
    if "function" in call:
        return call | {"function": _change_call(call["function"])}
    is_text = isinstance(call.get("arguments"), str)
    return call | {"name": NAME, "arguments": json.dumps(ARGUMENTS) if is_text else ARGUMENTS}


def _spells_calls(message: dict[str, Any]) -> bool:
    """Return whether the content has the name and all words of the arguments of each call."""
    content = message.get("content") or ""
    if not isinstance(content, str):
        content = "".join(part["text"] for part in content)
    return all(
        _spells(content, word) for call in message["tool_calls"] for word in _list_words(call)
    )


def _spells(content: str, word: Any) -> bool:
    written = {json.dumps(word), json.dumps(word, ensure_ascii=False)}
    if isinstance(word, str):
        written = {word, *(text[1:-1] for text in written)}
    return any(text in content for text in written)


def _list_words(call: dict[str, Any]) -> Iterator[Any]:
    """Yield the name of a call, and the keys and values of its arguments."""
    function = call.get("function", call)
    yield function["name"]
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        with suppress(ValueError, RecursionError):
            arguments = json.loads(arguments)
    yield from _list_leaves(arguments)


def _list_leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield key
            yield from _list_leaves(each)
    elif isinstance(value, list):
        for each in value:
            yield from _list_leaves(each)
    elif value is not None:
        yield value
