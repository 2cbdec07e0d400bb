"""Finds the messages of a row in the `messages` format, as in the chat APIs.

`{"messages": [...], "tools": [...]}`, a bare list of messages, or `prompt` and `completion`, each a
string or a list of messages. A prompt is context: its assistant messages are trained only if they
have a loss switch that says so. `--messages-key` names another key, or a path of keys.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from mtpack.input.dialogue import Reason
from mtpack.input.json_value import parse_nested
from mtpack.input.row_errors import RowError, describe_type
from mtpack.input.row_keys import MEANINGFUL_KEYS


class FoundMessages(NamedTuple):
    """The messages of a row as they are written."""

    messages: list[Any]
    num_context: int = 0
    """The number of first messages that are the prompt."""


def pop_messages(fields: dict[str, Any]) -> FoundMessages:
    """Remove the messages from the fields of a row and return them; raise RowError."""
    if "messages" in fields:
        return FoundMessages(require_message_list("messages", fields.pop("messages")))
    prompt = _to_message_list(fields, "prompt", "user")
    completion = _to_message_list(fields, "completion", "assistant")
    return FoundMessages([*prompt, *completion], num_context=len(prompt))


def pop_messages_at(fields: dict[str, Any], path: str) -> FoundMessages | None:
    """Remove the messages at a key, or at keys joined by dots, and return them.

    None if there is nothing. What is next to them in an inner object becomes part of `fields`:
    keys that have a meaning in a row as they are, others with the path before them. Raises
    RowError.
    """
    found = _pop_path(fields, path)
    return None if found is None else FoundMessages(require_message_list(path, found))


def _pop_path(fields: dict[str, Any], path: str) -> Any:
    if path in fields:
        return fields.pop(path)
    key, dot, rest = path.partition(".")
    if not dot or key not in fields:
        return None
    inner = parse_nested(fields[key], Reason.INVALID_ROW, f'"{key}" is')
    if not isinstance(inner, dict):
        return None
    inner = {name: value for name, value in inner.items() if value is not None}
    found = _pop_path(inner, rest)
    if found is None:
        return None
    del fields[key]
    for name, value in inner.items():
        if name not in MEANINGFUL_KEYS:
            fields[f"{key}.{name}"] = value
        elif fields.setdefault(name, value) != value:
            detail = f'"{name}" has different values in the row and in "{key}"; keep one of them'
            raise RowError(Reason.INVALID_ROW, detail)
    return found


def require_message_list(
    key: str, messages: Any, expected: str = "a list of messages"
) -> list[Any]:
    """Return `messages` if it is a list that is not empty, or its JSON text; raise RowError."""
    messages = parse_nested(messages, Reason.INVALID_ROW, f'"{key}" is')
    if not isinstance(messages, list) or not messages:
        found = "an empty list" if messages == [] else describe_type(messages)
        raise RowError(Reason.INVALID_ROW, f'"{key}" must be {expected}, found {found}')
    return messages


def _to_message_list(fields: dict[str, Any], key: str, role: str) -> list[Any]:
    value = fields.pop(key)
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    return require_message_list(key, value, "a string or a list of messages")
