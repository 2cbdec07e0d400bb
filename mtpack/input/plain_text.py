"""Reads a row of plain text, `{"text": ...}`, as it is used for pre-training.

Such a row is a `Dialogue` of one message, whose role is `text`: no template renders it.
"""

from __future__ import annotations

from mtpack.input.dialogue import Dialogue, Origin, Reason, Reject, make_dialogue
from mtpack.input.row_errors import RowError, describe_type, list_keys, refuse_long_line
from mtpack.input.strict_json import StrictJsonError, parse

KEY = "text"
"""The key of the text in a row, and the role of its message."""


def read_plain_text(
    row: int, origin: Origin, text: bytes | None, line_limit: int
) -> Dialogue | Reject:
    """Read one row; `text` is None if it is longer than `line_limit` bytes."""
    try:
        if text is None:
            raise refuse_long_line(line_limit)
        value = parse(text)
        if not isinstance(value, dict):
            found = f"the row must be an object, found {describe_type(value)}"
            raise RowError(Reason.INVALID_ROW, found)
        content = value.pop(KEY, None)
        if content is None:
            keys = f"its keys are {list_keys(value)}" if value else "it has no keys"
            raise RowError(
                Reason.INVALID_ROW,
                f'the row has no "{KEY}", and the file is read as plain text; {keys}',
            )
        if not isinstance(content, str):
            raise RowError(
                Reason.INVALID_ROW, f'"{KEY}" must be a string, found {describe_type(content)}'
            )
        unread = tuple([key for key, item in value.items() if item is not None])
        message = {"role": KEY, "content": content}
        return make_dialogue(row, origin, [message], unread=unread)
    except (StrictJsonError, RowError) as error:
        return Reject(row, origin, error.reason, str(error))
