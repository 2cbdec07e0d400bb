"""The `messages` format, as the chat APIs have it.

`{"messages": [...], "tools": [...]}`, a bare list of messages, or `prompt` and `completion`, each
as text or as a list of messages. A prompt is given, not learned: its assistant messages are
trained only where they say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mtpack.input.dialogue import Message, Reason, TextMessages
from mtpack.input.message import ParsedRow, read_messages, texts_of
from mtpack.input.row_errors import RowError, kind
from mtpack.input.strict_json import surely_holds_strings
from mtpack.input.tools import read_tools

# Of values that are neither deep nor rounded: an integer beyond 64 bits is read as a float.
_SAFE = {str, int, bool, type(None)}


def from_messages(row: Any) -> ParsedRow:
    """Return what a row says; raise RowError."""
    if isinstance(row, list):
        return ParsedRow(read_messages(row), tools=None)
    if row.get("messages") is not None:
        messages: Sequence[Message] = read_messages(list_of_messages("messages", row["messages"]))
    else:
        prompt = _as_messages(row, "prompt", "user")
        completion = _as_messages(row, "completion", "assistant")
        asked = read_messages(prompt, trained=False)
        messages = [*asked, *read_messages(completion, first=len(prompt))]
    return ParsedRow(messages, read_tools(row.get("tools")))


def read_texts_alone(row: Any, text: bytes) -> TextMessages | None:
    """Return the messages of a row that says texts alone, as most do, and None for all others.

    row: read from `text`, not proven yet, which this makes up for.
    """
    if type(row) is not dict or type(row.get("messages")) is not list or "tools" in row:
        return None
    messages = row["messages"]
    # A message has two keys, a role and a text at least; with just so many strings in all, none
    # has another key, and no key comes twice.
    num_strings = 4 * len(messages) + len(row)
    if len(row) > 1:
        kinds = [type(value) for key, value in row.items() if key != "messages"]
        if not _SAFE.issuperset(kinds):
            return None
        num_strings += kinds.count(str)
    if not messages or not surely_holds_strings(text, num_strings):
        return None
    return texts_of(messages)


def list_of_messages(key: str, messages: Any) -> list[Any]:
    """Return `messages` if it is a list with something in it; raise RowError."""
    if not isinstance(messages, list) or not messages:
        found = "an empty list" if messages == [] else kind(messages)
        raise RowError(Reason.INVALID_ROW, f'"{key}" must be a list of messages, found {found}')
    return messages


def _as_messages(row: dict[str, Any], key: str, role: str) -> list[Any]:
    said = row[key]
    if isinstance(said, str):
        return [{"role": role, "content": said}]
    if not isinstance(said, list) or not said:
        found = "an empty list" if said == [] else kind(said)
        raise RowError(
            Reason.INVALID_ROW, f'"{key}" must be text or a list of messages, found {found}'
        )
    return said
