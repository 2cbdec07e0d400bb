"""The values of options: how a size is written, and what a value must be."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from typing import Any

from mtpack.errors import SetupError

_UNITS = {"": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def parse_size(text: str, unit: str) -> int:
    """Parse a size such as 256MiB (unit `B`) or 256Mi (no unit); raise ValueError.

    >>> parse_size("256MiB", "B"), parse_size("4Mi", ""), parse_size("1000", "B")
    (268435456, 4194304, 1000)
    """
    match = re.fullmatch(r"(\d+)\s*((?:[KMGT]i)?)" + (f"{unit}?" if unit else ""), text.strip())
    if not match or not int(match[1]):
        raise ValueError(text)
    return int(match[1]) * _UNITS[match[2]]


def check_value(
    name: str, value: Any, choices: tuple[str, ...], metadata: Mapping[str, Any]
) -> None:
    """Raise SetupError if an option can't have this value.

    name: the flag. choices: the values of a fixed set, or () if any will do. metadata: that of the
    field, which `options.py` describes.
    """
    if choices and value not in choices:
        raise SetupError(f"{name} {value}: must be one of {', '.join(choices)}")
    if "minimum" in metadata:
        minimum, maximum = metadata["minimum"], metadata.get("maximum", 2**63)
        if type(value) is not int or value < minimum:
            raise SetupError(f"{name} {value}: must be an integer of at least {minimum}")
        if value > maximum:
            raise SetupError(f"{name} {value}: must be at most {maximum:,}")
    if "size" in metadata:
        unit = metadata["size"]
        try:
            parse_size(value, unit)
        except ValueError:
            raise SetupError(
                f"{name} {value}: not a size; write it as 256Mi{unit} or 1Gi{unit}"
            ) from None
    if "date" in metadata:
        try:
            datetime.date.fromisoformat(value)
        except ValueError:
            example = metadata["date"]
            raise SetupError(f"{name} {value}: not a date; write it as {example}") from None
