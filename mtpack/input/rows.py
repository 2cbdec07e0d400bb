"""A raw row becomes a `Dialogue` or a `Reject`."""

from __future__ import annotations

from typing import Any

from mtpack.input.alpaca import from_alpaca
from mtpack.input.dialogue import Dialogue, Origin, Reason, Reject
from mtpack.input.message import settled
from mtpack.input.messages import from_messages, read_texts_alone
from mtpack.input.row_errors import RowError, kind
from mtpack.input.row_formats import shapes_of
from mtpack.input.sharegpt import from_sharegpt
from mtpack.input.strict_json import StrictJsonError, loads, proven

_READERS = {"messages": from_messages, "sharegpt": from_sharegpt, "alpaca": from_alpaca}
_OF_MESSAGES = ("messages", None)
_NEEDED = {
    "messages": '"messages" (or "prompt" and "completion")',
    "sharegpt": '"conversations"',
    "alpaca": '"instruction" and "output"',
}


def read_dialogue(
    row: int, origin: Origin, text: bytes | None, line_limit: int, row_format: str | None = None
) -> Dialogue | Reject:
    """Read one row; `text` is None where it is longer than `line_limit` bytes.

    row_format: the format of the row's file; None where nothing in it told so far, and then the
    row is read as what it looks like.
    """
    try:
        if text is None:
            raise RowError(
                Reason.LINE_TOO_LONG, f"longer than {line_limit:,} bytes; is a newline missing?"
            )
        value = loads(text)
        if row_format in _OF_MESSAGES:
            messages = read_texts_alone(value, text)
            if messages is not None:
                return Dialogue(row, origin, messages, None)
        value = proven(text, value)
        said = _READERS[_choose(value, row_format)](value)
        return Dialogue(row, origin, settled(said.messages), said.tools)
    except (StrictJsonError, RowError) as error:
        return Reject(row, origin, error.reason, str(error))


def _choose(value: Any, row_format: str | None) -> str:
    """Return the format to read a row by: that of its file, if it fits; raise RowError."""
    if row_format:
        for shape in shapes_of(value):
            if shape.format == row_format:
                return row_format
    looks_like = next(shapes_of(value), None)
    if looks_like and row_format is None:
        return looks_like.format
    if looks_like:
        raise RowError(
            Reason.OTHER_FORMAT,
            f"the file is read as {row_format}, but this row looks like {looks_like}; "
            "put such rows into a file of their own, or choose another --format",
        )
    if not isinstance(value, dict):
        raise RowError(Reason.INVALID_ROW, f"expected an object, found {kind(value)}")
    if row_format is None:
        found = f"none of {', '.join(_NEEDED.values())}"
    else:
        found = f"no {_NEEDED[row_format]}; the file is read as {row_format}"
    raise RowError(Reason.INVALID_ROW, found)
