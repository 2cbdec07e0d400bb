"""The `sharegpt` format: `{"conversations": [{"from": "human", "value": "..."}, ...]}`.

Each message is converted to the keys of the chat APIs and then read like a message of these. So
loss switches and all other keys have the same meaning. A row's `system` becomes the first message.
"""

from __future__ import annotations

from typing import Any

from mtpack.input.dialogue import Messages, Reason
from mtpack.input.message import ParsedRow, read_fields, read_messages
from mtpack.input.messages import require_message_list
from mtpack.input.row_errors import RowError, describe_type, quote_name
from mtpack.input.tools import parse_function_calls, read_tools

_FUNCTION_CALLS = ("function_call", "tool_call")
# Role names in datasets of this format, and the role of the chat APIs that each stands for.
_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard"), "assistant"),
    **dict.fromkeys(("claude", "model", *_FUNCTION_CALLS), "assistant"),
    **dict.fromkeys(("tool", "observation", "function_response", "tool_response"), "tool"),
    "system": "system",
    "developer": "developer",
}


def parse_sharegpt(row: dict[str, Any]) -> ParsedRow:
    """Return the messages and tools of a row; raise RowError."""
    key = next(key for key in ("conversations", "conversation") if row.get(key) is not None)
    conversation = require_message_list(key, row[key])
    messages, untrained = read_messages(
        [_to_chat_message(index, message) for index, message in enumerate(conversation)]
    )
    system = read_system(row)
    if system and messages[0]["role"] == "system":
        raise RowError(
            Reason.INVALID_ROW,
            f'the row has a "system" and a system message in "{key}"; keep one of them',
        )
    return ParsedRow(
        [*system, *messages],
        read_tools(row.get("tools") or None),
        [index + len(system) for index in untrained],
        num_before=len(system),
    )


def read_system(row: dict[str, Any]) -> Messages:
    """Return a row's `system` as a list of one message, or no message; raise RowError."""
    system = row.get("system")
    if system is None or system == "":  # tables have the column, with a value or without
        return []
    if not isinstance(system, str):
        raise RowError(
            Reason.INVALID_ROW, f'"system" must be a string, found {describe_type(system)}'
        )
    return [{"role": "system", "content": system}]


def _to_chat_message(index: int, message: Any) -> dict[str, Any]:
    fields = read_fields(index, message)
    name = _pop_either(index, fields, "from", "role")
    value = _pop_either(index, fields, "value", "content")
    if not isinstance(name, str) or name not in _ROLES:
        found = 'no "from"' if name is None else f"unknown role {quote_name(name)}"
        raise RowError(
            Reason.UNKNOWN_ROLE, f"message {index}: {found}; expected one of {', '.join(_ROLES)}"
        )
    where = f"message {index} ({name})"
    if name in _FUNCTION_CALLS:
        return {"role": "assistant", **fields, "tool_calls": parse_function_calls(where, value)}
    if value is None and _ROLES[name] not in ("assistant", "tool"):
        raise RowError(Reason.INVALID_CONTENT, f'{where}: no "value"')
    return {"role": _ROLES[name], "content": value, **fields}


def _pop_either(index: int, fields: dict[str, Any], key: str, other: str) -> Any:
    """Remove both keys from `fields` and return the value of either; None if neither is there."""
    if key in fields and other in fields and fields[key] != fields[other]:
        raise RowError(
            Reason.INVALID_MESSAGE,
            f'message {index}: "{key}" and "{other}" have different values; keep one of them',
        )
    values = fields.pop(key, None), fields.pop(other, None)
    return values[0] if values[0] is not None else values[1]
