"""The `messages` format, as in the chat APIs.

`{"messages": [...], "tools": [...]}`, a bare list of messages, or `prompt` and `completion`, each a
string or a list of messages. A prompt is context: its assistant messages are trained only if they
have a loss switch that says so.
"""

from __future__ import annotations

from typing import Any

from mtpack.input.dialogue import Reason
from mtpack.input.message import ParsedRow, read_messages
from mtpack.input.row_errors import RowError, describe_type
from mtpack.input.strict_json import count_strings
from mtpack.input.tools import read_tools

_NOT_NESTED = {str, int, float, bool, type(None)}


def parse_messages(row: Any) -> ParsedRow:
    """Return the messages and tools of a row; raise RowError."""
    if isinstance(row, list):
        row = {"messages": row}
    if row.get("messages") is not None:
        messages, untrained = read_messages(require_message_list("messages", row["messages"]))
    else:
        prompt = _to_message_list(row, "prompt", "user")
        completion = _to_message_list(row, "completion", "assistant")
        messages, untrained = read_messages([*prompt, *completion], num_context=len(prompt))
    return ParsedRow(messages, read_tools(row.get("tools")), untrained)


def find_messages(row: Any) -> list[Any] | None:
    """Return the `messages` of a row that has no tools; None if there is no such list."""
    if type(row) is dict and type(row.get("messages")) is list and row.get("tools") is None:
        return row["messages"] or None
    return None


def has_only_texts(row: dict[str, Any], text: bytes) -> bool:
    """Return whether messages with a role and a text have no other key, and no key appears twice.

    row: the value of `text`, not validated yet; if this returns True, it is valid.
    """
    num_strings = 4 * len(row["messages"]) + len(row)
    if len(row) > 1:
        types = [type(value) for key, value in row.items() if key != "messages"]
        if not _NOT_NESTED.issuperset(types):
            return False
        num_strings += types.count(str)
    # Every further key, and every key that appears twice, is one more string.
    return count_strings(text) == num_strings


def require_message_list(
    key: str, messages: Any, expected: str = "a list of messages"
) -> list[Any]:
    """Return `messages` if it is a list that is not empty; raise RowError."""
    if not isinstance(messages, list) or not messages:
        found = "an empty list" if messages == [] else describe_type(messages)
        raise RowError(Reason.INVALID_ROW, f'"{key}" must be {expected}, found {found}')
    return messages


def _to_message_list(row: dict[str, Any], key: str, role: str) -> list[Any]:
    value = row[key]
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    return require_message_list(key, value, "a string or a list of messages")
