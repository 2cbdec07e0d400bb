"""What a row looks like: the format of a row that no one has named."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from mtpack.input.strict_json import StrictJsonError, parse


class Shape(NamedTuple):
    """A way to write rows of a format, known by keys that have a value."""

    format: str
    keys: tuple[str, ...]

    def __str__(self) -> str:
        found = " and ".join(f'"{key}"' for key in self.keys) or "a bare list"
        return f"{self.format} ({found})"


_BARE_LIST = Shape("messages", ())
# In the order in which a row that fits several is taken: datasets of messages often keep the
# prompt in a column of its own.
_SHAPES = (
    Shape("messages", ("messages",)),
    Shape("sharegpt", ("conversations",)),
    Shape("sharegpt", ("conversation",)),
    Shape("messages", ("prompt", "completion")),
    Shape("alpaca", ("instruction",)),
    Shape("alpaca", ("output",)),
)
# All keys of a row that mean something in one of the formats: the columns of a table to read.
ROW_KEYS = (
    *dict.fromkeys(key for shape in _SHAPES for key in shape.keys),
    *("input", "system", "history", "tools"),
)


def shapes_of(row: Any) -> Iterator[Shape]:
    """Yield the shapes that a row fits, the one to prefer first.

    >>> [shape.format for shape in shapes_of({"prompt": "1 + 1", "completion": "2", "output": "2"})]
    ['messages', 'alpaca']
    """
    if isinstance(row, list):
        if row and isinstance(row[0], dict):
            yield _BARE_LIST
    elif isinstance(row, dict):
        for shape in _SHAPES:
            if None not in map(row.get, shape.keys):
                yield shape


def format_of(text: bytes | None) -> str | None:
    """Return the format that a row looks like, None where it fits none or can't be read."""
    if text is None:
        return None
    try:
        shape = next(shapes_of(parse(text)), None)
    except StrictJsonError:
        return None
    return shape.format if shape else None
