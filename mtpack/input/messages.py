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
from mtpack.input.strict_json import has_num_strings
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


def find_text_messages(row: Any, text: bytes) -> list[Any] | None:
    """Return the messages of a row if no key is in them but `role` and `content`, else None.

    row: the value of `text`, not validated yet. It is valid if each message has both keys.
    """
    if type(row) is not dict or type(row.get("messages")) is not list or "tools" in row:
        return None
    messages: list[Any] = row["messages"]
    # A message has at least two keys, a role and a text. If the row has exactly as many strings as
    # this makes, then no message has another key, and no key appears twice.
    num_strings = 4 * len(messages) + len(row)
    if len(row) > 1:
        types = [type(value) for key, value in row.items() if key != "messages"]
        if not _NOT_NESTED.issuperset(types):
            return None
        num_strings += types.count(str)
    return messages if messages and has_num_strings(text, num_strings) else None


def require_message_list(key: str, messages: Any) -> list[Any]:
    """Return `messages` if it is a list that is not empty; raise RowError."""
    if not isinstance(messages, list) or not messages:
        found = "an empty list" if messages == [] else describe_type(messages)
        raise RowError(Reason.INVALID_ROW, f'"{key}" must be a list of messages, found {found}')
    return messages


def _to_message_list(row: dict[str, Any], key: str, role: str) -> list[Any]:
    value = row[key]
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, list) or not value:
        found = "an empty list" if value == [] else describe_type(value)
        raise RowError(
            Reason.INVALID_ROW, f'"{key}" must be a string or a list of messages, found {found}'
        )
    return value
