"""JSON text in place of a value, as in columns that have one type for all rows."""

from __future__ import annotations

from typing import Any

from mtpack.input.dialogue import Reason
from mtpack.input.row_errors import RowError
from mtpack.input.strict_json import StrictJsonError, parse


def parse_json_text(value: Any, reason: Reason, subject: str) -> Any:
    """Return the value that a string holds as JSON; return any other value as it is.

    subject: the start of an error, such as `"tools" is`. Raises RowError.

    >>> parse_json_text('[1]', Reason.INVALID_ROW, "it is")
    [1]
    """
    if not isinstance(value, str):
        return value
    try:
        return parse(value.encode())
    except StrictJsonError as error:
        raise RowError(reason, f"{subject} a string but not JSON: {error}") from None


def parse_nested(value: Any, reason: Reason, subject: str) -> Any:
    """Return the object or list that a string holds as JSON; return any other value as it is.

    A string that begins neither is no JSON text but a wrong value, and gets the error for one.
    Raises RowError.
    """
    return parse_json_text(value, reason, subject) if begins_nested(value) else value


def begins_nested(value: Any) -> bool:
    """Return whether a value is a string that begins an object or a list in JSON."""
    return isinstance(value, str) and value.lstrip()[:1] in ("{", "[")
