"""The keys of a recipe: which ones there are, and what their values must be.

A message names the file, the table and the key, and says what is expected.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from mtpack.errors import SetupError
from mtpack.options import flag
from mtpack.token_batch import WEIGHT_UNITS
from mtpack.turn_weight import MAX_WEIGHT

_Table = TypeVar("_Table")
_MOST_LISTED = 12
_TOML_TYPES = {
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a table",
}


def name_key(field_name: str) -> str:
    """Return the key of a field in a recipe.

    >>> name_key("seq_len")
    'seq-len'
    """
    return flag(field_name).removeprefix("--")


def refuse_unknown_keys(where: str, table: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise SetupError for a key that does not exist, with the nearest one that does."""
    for key in table:
        if key not in known:
            from difflib import get_close_matches  # takes 1 ms, and few runs need it

            nearest = get_close_matches(key, known, n=1)
            if nearest:
                remedy = f"did you mean {nearest[0]}?"
            elif len(known) <= _MOST_LISTED:
                remedy = f"there are {', '.join(known)}"
            else:
                remedy = "mtpack pack --help lists the options"
            raise SetupError(f"{where}: no such key: {quote_key(key)}; {remedy}")


def quote_key(key: str) -> str:
    """Return a key that fits into one line of a message."""
    return key if key.isprintable() and 0 < len(key) <= 60 else repr(key[:60])


def describe_value(value: Any) -> str:
    """Return a value, or what it is, for a message."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float) or (isinstance(value, str) and not value):
        return repr(value)
    kind = next((text for kind, text in _TOML_TYPES.items() if isinstance(value, kind)), None)
    return kind or "a date or time"


def refuse_value(where: str, expected: str, value: Any) -> SetupError:
    """Return the error of a key whose value is another one than expected."""
    return SetupError(f"{where}: must be {expected}, found {describe_value(value)}")


def read_text(where: str, value: Any) -> str:
    """Return a text that is not empty; raise SetupError."""
    if not isinstance(value, str) or not value:
        raise refuse_value(where, "text", value)
    return value


def read_name(where: str, value: Any) -> str:
    """Return a text that fits into one line; raise SetupError."""
    name = read_text(where, value)
    if not name.isprintable() or len(name) > 100:
        raise SetupError(f"{where}: must be printable and have at most 100 characters")
    return name


def read_texts(where: str, value: Any) -> tuple[str, ...]:
    """Return one text or a list of texts, at least one; raise SetupError."""
    values = value if isinstance(value, list | tuple) else [value]
    expected = "text, or a list of texts"
    if not values:
        raise SetupError(f"{where}: must be {expected}; the list is empty")
    for each in values:
        if not isinstance(each, str) or not each:
            raise refuse_value(where, expected, each)
    return tuple(values)


def read_positive_integer(where: str, value: Any) -> int:
    """Return an integer of at least 1; raise SetupError."""
    if type(value) is not int or value < 1:
        raise refuse_value(where, "an integer of at least 1", value)
    return value


def read_positive(where: str, value: Any) -> float:
    """Return a number above 0; raise SetupError."""
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise refuse_value(where, "a number above 0", value)
    return float(value)


def read_weight(where: str, value: Any) -> float:
    """Return a weight that is a multiple of 1/1024, once rounded; raise SetupError."""
    if type(value) not in (int, float) or not 1 / WEIGHT_UNITS <= value <= MAX_WEIGHT:
        raise refuse_value(where, f"a number from 1/{WEIGHT_UNITS} to {MAX_WEIGHT:,}", value)
    return float(value)


def read_share(where: str, value: Any) -> float:
    """Return a number above 0 and up to 1; raise SetupError."""
    if type(value) not in (int, float) or not 0 < value <= 1:
        raise refuse_value(where, "a number above 0 and at most 1", value)
    return float(value)


def read_variables(where: str, value: Any) -> dict[str, Any]:
    """Return the variables of a chat template, without those that are null; raise SetupError."""
    if not isinstance(value, Mapping):
        raise refuse_value(where, "a table", value)
    return {key: to_json(f"{where}.{key}", item) for key, item in value.items() if item is not None}


def to_json(where: str, value: Any) -> Any:
    """Return a value of TOML as a value of JSON; raise SetupError for one that JSON lacks."""
    if isinstance(value, Mapping):
        return {key: to_json(f"{where}.{key}", item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(where, item) for item in value]
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise SetupError(f"{where}: JSON has no such value; write another one")


def make_choice(values: Collection[str]) -> Callable[[str, Any], str]:
    """Return a function that reads one of these values, and raises SetupError for others."""

    def read_choice(where: str, value: Any) -> str:
        if value not in values:
            raise refuse_value(where, f"one of {', '.join(values)}", value)
        return str(value)

    return read_choice


def read_table(kind: type[_Table], where: str, table: Any) -> _Table:
    """Build a data class from a table; raise SetupError.

    Its fields are the keys; the metadata of each has the function that reads its value, `read`.
    """
    if not isinstance(table, Mapping):
        raise refuse_value(where, "a table", table)
    readers = {
        name_key(each.name): each.metadata["read"]
        for each in fields(kind)  # type: ignore[arg-type]  # `_Table` is any data class
        if "read" in each.metadata
    }
    refuse_unknown_keys(where, table, readers)
    values = {
        key.replace("-", "_"): readers[key](f"{where}: {key}", value)
        for key, value in table.items()
    }
    return kind(**values)
