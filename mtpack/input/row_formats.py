"""Detects the format of a row from its keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from mtpack.input.row_keys import COMMON_KEYS
from mtpack.input.strict_json import StrictJsonError, parse


class Shape(NamedTuple):
    """One form of the rows of a format: the keys that must have a value."""

    format: str
    keys: tuple[str, ...]

    def __str__(self) -> str:
        found = " and ".join(f'"{key}"' for key in self.keys) or "a bare list"
        return f"{self.format} ({found})"


_BARE_LIST = Shape("messages", ())
# In order of priority for a row that fits several: datasets of messages often have the prompt in a
# column of its own.
_SHAPES = (
    Shape("messages", ("messages",)),
    Shape("sharegpt", ("conversations",)),
    Shape("sharegpt", ("conversation",)),
    Shape("messages", ("prompt", "completion")),
    Shape("alpaca", ("instruction",)),
    Shape("alpaca", ("output",)),
)
# All keys of a row that are read in one of the formats: the columns of a table to read.
ROW_KEYS = (
    *dict.fromkeys(key for shape in _SHAPES for key in shape.keys),
    *("input", "history"),
    *COMMON_KEYS,
)


def find_shapes(row: Any) -> Iterator[Shape]:
    """Yield the shapes that a row fits, in order of priority.

    >>> row = {"prompt": "1 + 1", "completion": "2", "output": "2"}
    >>> [shape.format for shape in find_shapes(row)]
    ['messages', 'alpaca']
    """
    if isinstance(row, list):
        if row and isinstance(row[0], dict):
            yield _BARE_LIST
    elif isinstance(row, dict):
        for shape in _SHAPES:
            if None not in map(row.get, shape.keys):
                yield shape


def detect_format(text: bytes | None) -> str | None:
    """Return the format of a row; None if it fits none or can't be parsed."""
    if text is None:
        return None
    try:
        shape = next(find_shapes(parse(text)), None)
    except StrictJsonError:
        return None
    return shape.format if shape else None
