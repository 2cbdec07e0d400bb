"""The `messages` format, as in the chat APIs.

`{"messages": [...], "tools": [...]}`, a bare list of messages, or `prompt` and `completion`, each a
string or a list of messages. A prompt is context: its assistant messages are trained only if they
have a loss switch that says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mtpack.input.dialogue import Message, Reason, TextMessages
from mtpack.input.message import ParsedRow, read_messages, to_text_messages
from mtpack.input.row_errors import RowError, describe_type
from mtpack.input.strict_json import has_num_strings
from mtpack.input.tools import read_tools

# Types whose values are neither nested nor rounded. (float: an integer above 64 bits is read as
# one, and rounded.)
_SAFE = {str, int, bool, type(None)}


def parse_messages(row: Any) -> ParsedRow:
    """Return the messages and tools of a row; raise RowError."""
    if isinstance(row, list):
        return ParsedRow(read_messages(row), tools=None)
    if row.get("messages") is not None:
        listed = require_message_list("messages", row["messages"])
        messages: Sequence[Message] = read_messages(listed)
    else:
        prompt = _to_message_list(row, "prompt", "user")
        completion = _to_message_list(row, "completion", "assistant")
        context = read_messages(prompt, trained=False)
        messages = [*context, *read_messages(completion, first=len(prompt))]
    return ParsedRow(messages, read_tools(row.get("tools")))


def read_text_messages_row(row: Any, text: bytes) -> TextMessages | None:
    """Return the messages of a row of text messages, the usual case, and None for other rows.

    row: the value of `text`, not validated yet. What this returns needs no `validate`.
    """
    if type(row) is not dict or type(row.get("messages")) is not list or "tools" in row:
        return None
    messages = row["messages"]
    # A message has at least two keys, a role and a text. If the row has exactly as many strings as
    # this makes, then no message has another key, and no key appears twice.
    num_strings = 4 * len(messages) + len(row)
    if len(row) > 1:
        types = [type(value) for key, value in row.items() if key != "messages"]
        if not _SAFE.issuperset(types):
            return None
        num_strings += types.count(str)
    if not messages or not has_num_strings(text, num_strings):
        return None
    return to_text_messages(messages)


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
