"""The `sharegpt` format: `{"conversations": [{"from": "human", "value": "..."}, ...]}`.

Each message is put into the words of the chat APIs and then read as one of theirs, so that loss
switches and all other keys mean the same. A row's `system` becomes the first message.
"""

from __future__ import annotations

from typing import Any

from mtpack.input.dialogue import Message, Reason
from mtpack.input.message import ParsedRow, filled, read_messages
from mtpack.input.messages import list_of_messages
from mtpack.input.row_errors import RowError, kind, quoted
from mtpack.input.tools import calls_in_text, read_tools

_FUNCTION_CALLS = ("function_call", "tool_call")
# What the datasets of this format call whom.
_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard"), "assistant"),
    **dict.fromkeys(("claude", "model", *_FUNCTION_CALLS), "assistant"),
    **dict.fromkeys(("tool", "observation", "function_response", "tool_response"), "tool"),
    "system": "system",
    "developer": "developer",
}


def from_sharegpt(row: dict[str, Any]) -> ParsedRow:
    """Return what a row says; raise RowError."""
    key = next(key for key in ("conversations", "conversation") if row.get(key) is not None)
    said = list_of_messages(key, row[key])
    messages = read_messages(_translate(index, message) for index, message in enumerate(said))
    system = read_system(row)
    if system and messages[0].role == "system":
        raise RowError(
            Reason.INVALID_ROW, f'a "system" beside the system message in "{key}"; keep one'
        )
    return ParsedRow([*system, *messages], read_tools(row.get("tools") or None))


def read_system(row: dict[str, Any]) -> list[Message]:
    """Return the system message that a row's `system` says, if any; raise RowError."""
    said = row.get("system")
    if said is None or said == "":  # tables have the column, filled or not
        return []
    if not isinstance(said, str):
        raise RowError(Reason.INVALID_ROW, f'"system" must be text, found {kind(said)}')
    return [Message("system", {"role": "system", "content": said}, trained=False)]


def _translate(index: int, message: Any) -> dict[str, Any]:
    fields = filled(index, message)
    name = _take(index, fields, "from", "role")
    said = _take(index, fields, "value", "content")
    if not isinstance(name, str) or name not in _ROLES:
        found = 'no "from"' if name is None else f"role {quoted(name)}"
        raise RowError(
            Reason.UNKNOWN_ROLE, f"message {index}: {found}; expected one of {', '.join(_ROLES)}"
        )
    where = f"message {index} ({name})"
    if name in _FUNCTION_CALLS:
        return {"role": "assistant", **fields, "tool_calls": calls_in_text(where, said)}
    if said is None and _ROLES[name] != "assistant":
        raise RowError(Reason.INVALID_CONTENT, f'{where}: no "value"')
    return {"role": _ROLES[name], "content": said, **fields}


def _take(index: int, fields: dict[str, Any], key: str, other: str) -> Any:
    """Take what stands under either key out of `fields`; None if neither is there."""
    if key in fields and other in fields and fields[key] != fields[other]:
        raise RowError(
            Reason.INVALID_MESSAGE,
            f'message {index}: "{key}" and "{other}" contradict each other; keep one',
        )
    values = fields.pop(key, None), fields.pop(other, None)
    return values[0] if values[0] is not None else values[1]
