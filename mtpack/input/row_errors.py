"""Errors of rows, and how to describe a value in a message without showing its content."""

from __future__ import annotations

import json
from itertools import islice
from typing import Any

from mtpack.input.dialogue import Reason


class RowError(Exception):
    """The row is rejected; `reason` is the category, the message says what is wrong."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def refuse_long_line(line_limit: int) -> RowError:
    """Return the error of a row that is longer than so many bytes."""
    return RowError(
        Reason.LINE_TOO_LONG, f"longer than {line_limit:,} bytes; is a newline missing?"
    )


def describe_type(value: Any) -> str:
    """Return the JSON type of a value, in words."""
    types = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return "null" if value is None else types.get(type(value), "a number")


def quote_name(value: Any) -> str:
    """Return a short name from a row in quotes; cut a longer one, since it may be content."""
    return _cut(_write(value)) if isinstance(value, str) else describe_type(value)


def shorten_name(name: str) -> str:
    """Return the same as `quote_name`, without quotes."""
    return _cut(_write(name)[1:-1])


def _write(name: str) -> str:
    return json.dumps(name, ensure_ascii=not name.isprintable())


def _cut(text: str) -> str:
    return text if len(text) <= 32 else f"{text[:29]}..."


_MOST_KEYS = 12


def list_keys(row: dict[str, Any]) -> str:
    """Return the keys of a row, or the first of them, in one line.

    >>> list_keys({"id": 1, "text": "Hello"})
    '"id", "text"'
    """
    names = [quote_name(key) for key in islice(row, _MOST_KEYS)]
    return ", ".join([*names, *(["..."] if len(row) > _MOST_KEYS else [])])
