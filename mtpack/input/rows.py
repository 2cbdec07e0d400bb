"""Reads a raw row into a `Dialogue` or a `Reject`."""

from __future__ import annotations

from typing import Any

from mtpack.input.alpaca import parse_alpaca
from mtpack.input.dialogue import (
    Dialogue,
    Origin,
    Reason,
    Reject,
    make_dialogue,
    make_text_dialogue,
)
from mtpack.input.messages import find_messages, has_only_texts, parse_messages
from mtpack.input.row_errors import RowError, describe_type
from mtpack.input.row_formats import find_shapes
from mtpack.input.sharegpt import parse_sharegpt
from mtpack.input.strict_json import StrictJsonError, loads, validate
from mtpack.input.tools import parse_arguments

_READERS = {"messages": parse_messages, "sharegpt": parse_sharegpt, "alpaca": parse_alpaca}
_NEEDED = {
    "messages": '"messages" (or "prompt" and "completion")',
    "sharegpt": '"conversations"',
    "alpaca": '"instruction" and "output"',
}


def read_dialogue(
    row: int,
    origin: Origin,
    text: bytes | None,
    line_limit: int,
    row_format: str | None = None,
    *,
    keeps_argument_text: bool = False,
) -> Dialogue | Reject:
    """Read one row; `text` is None if it is longer than `line_limit` bytes.

    row_format: the format of the row's file; None if no row of it so far fits a format. Then the
    format is detected from this row alone. keeps_argument_text: whether tool-call arguments that
    are text stay as they are; otherwise they are parsed as JSON, into objects.
    """
    try:
        if text is None:
            raise RowError(
                Reason.LINE_TOO_LONG, f"longer than {line_limit:,} bytes; is a newline missing?"
            )
        value = loads(text)
        messages = find_messages(value) if row_format in (None, "messages") else None
        dialogue = make_text_dialogue(row, origin, messages) if messages else None
        if dialogue and has_only_texts(value, text):
            return dialogue  # the usual case, without the time for `validate`
        value = validate(text, value)
        if dialogue and set(map(len, dialogue.messages)) == {2}:
            return dialogue
        parsed = _READERS[_choose_format(value, row_format)](value)
        if not keeps_argument_text:
            parse_arguments(parsed.messages, parsed.num_before)
        return make_dialogue(row, origin, parsed.messages, parsed.tools, parsed.untrained)
    except (StrictJsonError, RowError) as error:
        return Reject(row, origin, error.reason, str(error))


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
        raise RowError(
            Reason.INVALID_ROW, f"the row must be an object, found {describe_type(value)}"
        )
    if row_format is None:
        found = f"the row has none of {', '.join(_NEEDED.values())}"
    else:
        found = f"the row has no {_NEEDED[row_format]}; the file is read as {row_format}"
    raise RowError(Reason.INVALID_ROW, found)
