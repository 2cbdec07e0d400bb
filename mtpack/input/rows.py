"""Reads a raw row into a `Dialogue` or a `Reject`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mtpack.input.alpaca import pop_exchanges
from mtpack.input.dialogue import (
    Dialogue,
    Messages,
    Origin,
    Reason,
    Reject,
    make_dialogue,
)
from mtpack.input.json_value import begins_nested
from mtpack.input.message import MessageReader
from mtpack.input.messages import (
    FoundMessages,
    pop_messages,
    pop_messages_at,
)
from mtpack.input.row_errors import (
    RowError,
    describe_type,
    list_keys,
    quote_name,
    refuse_long_line,
)
from mtpack.input.row_formats import find_shapes
from mtpack.input.row_keys import pop_system, pop_template_args, refuse_media, refuse_preferences
from mtpack.input.sharegpt import pop_conversation
from mtpack.input.strict_json import StrictJsonError, parse
from mtpack.input.tools import pop_tools

_FINDERS = {
    "messages": pop_messages,
    "sharegpt": pop_conversation,
    "alpaca": pop_exchanges,
}
_NEEDED = {
    "messages": '"messages" (or "prompt" and "completion")',
    "sharegpt": '"conversations"',
    "alpaca": '"instruction" and "output"',
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RowOptions:
    """How the rows of a run are read."""

    messages_key: str | None = None
    """Where the messages of each row are, if the user names it: a key, or keys joined by dots."""
    keeps_argument_text: bool = False
    """Whether tool-call arguments that are text stay as they are; otherwise they are parsed as
    JSON, into objects."""
    source_weight: float | None = None
    """The factor of the weights of messages; None if they may be 0 or 1 alone."""


_DEFAULT = RowOptions()


def read_dialogue(
    row: int,
    origin: Origin,
    text: bytes | None,
    line_limit: int,
    row_format: str | None = None,
    options: RowOptions = _DEFAULT,
) -> Dialogue | Reject:
    """Read one row; `text` is None if it is longer than `line_limit` bytes.

    row_format: the format of the row's file; None if no row of it so far fits a format. Then the
    format is detected from this row alone.
    """
    try:
        if text is None:
            raise refuse_long_line(line_limit)
        return _read_row(row, origin, parse(text), row_format, options)
    except (StrictJsonError, RowError) as error:
        return Reject(row, origin, error.reason, str(error))


def _read_row(
    row: int, origin: Origin, value: Any, row_format: str | None, options: RowOptions
) -> Dialogue:
    """Read the value of a row: its messages, and the keys next to them. Raises RowError."""
    fields = {key: item for key, item in _name_messages(value).items() if item is not None}
    refuse_preferences(fields, chose_messages=options.messages_key is not None)
    if options.messages_key is None:
        row_format = _choose_format(value, row_format)
        found = _FINDERS[row_format](fields)
    else:
        found = _find_messages_at(value, fields, options.messages_key)
    reader = MessageReader(options.keeps_argument_text, options.source_weight)
    reader.read(found.messages, found.num_context)
    if row_format != "messages" and fields.get("tools") == []:
        del fields["tools"]  # tables have the column, with a value or without
    tools = pop_tools(fields, reader.tools)
    system = _pop_other_system(fields, reader.messages)
    template_args = pop_template_args(fields)
    refuse_media(fields, reader.messages)
    return make_dialogue(
        row,
        origin,
        [*system, *reader.messages],
        tools,
        [index + len(system) for index in reader.untrained],
        template_args,
        (*fields, *reader.unread),
        {index + len(system): units for index, units in reader.turn_units.items()} or None,
    )


def _name_messages(value: Any) -> dict[str, Any]:
    """Return the value of a row as an object; a bare list is its messages."""
    if isinstance(value, list):
        return {"messages": value}
    return value if isinstance(value, dict) else {}


def _find_messages_at(value: Any, fields: dict[str, Any], path: str) -> FoundMessages:
    found = pop_messages_at(fields, path) if isinstance(value, dict) else None
    if found is None:
        raise RowError(
            Reason.INVALID_ROW,
            f"the row has no {quote_name(path)}, the key that --messages-key names; "
            f"{_describe_row(value)}",
        )
    return found


def _pop_other_system(fields: dict[str, Any], messages: Messages) -> Messages:
    """Return the row's `system` as messages, unless the messages begin with the same one."""
    system = pop_system(fields)
    if not system or messages[0]["role"] != "system":
        return system
    if messages[0]["content"] != system[0]["content"]:
        raise RowError(
            Reason.INVALID_ROW,
            'the row has a "system", and its messages begin with another system message; '
            "keep one of them",
        )
    return []


def _choose_format(value: Any, row_format: str | None) -> str:
    """Return the format to read a row in: that of its file, if the row fits; raise RowError."""
    if row_format:
        for shape in find_shapes(value):
            if shape.format == row_format:
                return row_format
    looks_like = next(find_shapes(value), None)
    if looks_like and row_format is None:
        return looks_like.format
    if looks_like:
        raise RowError(
            Reason.OTHER_FORMAT,
            f"the file is read as {row_format}, but this row looks like {looks_like}; "
            "put such rows into a separate file, or choose another --format",
        )
    if not isinstance(value, dict):
        raise RowError(Reason.INVALID_ROW, _describe_row(value))
    if row_format is None:
        found = f"the row has none of {', '.join(_NEEDED.values())}"
    else:
        found = f"the row has no {_NEEDED[row_format]}, and the file is read as {row_format}"
    may_hold = any(map(_may_hold_messages, value.values()))
    remedy = "; name the key of the messages with --messages-key" if may_hold else ""
    raise RowError(Reason.INVALID_ROW, f"{found}; {_describe_row(value)}{remedy}")


def _may_hold_messages(value: Any) -> bool:
    """Return whether a value may be a list of messages, or an object that holds one.

    A column of a table that is not read is `true`, whatever it holds.
    """
    return value is True or isinstance(value, list | dict) or begins_nested(value)


def _describe_row(value: Any) -> str:
    """Describe what a row is that has no messages: by its keys, if it is an object."""
    if not isinstance(value, dict):
        return f"the row must be an object, found {describe_type(value)}"
    return f"its keys are {list_keys(value)}" if value else "it has no keys"
