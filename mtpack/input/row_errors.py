"""Why a row is refused, and how to speak of what it holds without telling its content."""

from __future__ import annotations

import json
from typing import Any

from mtpack.input.dialogue import Reason


class RowError(Exception):
    """The row is refused; `reason` says why by name."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def kind(value: Any) -> str:
    """Say what kind of JSON value it is."""
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
    return "null" if value is None else kinds.get(type(value), "a number")


def quoted(value: Any) -> str:
    """Show a short name from a row; anything longer might be content."""
    if not isinstance(value, str):
        return kind(value)
    text = json.dumps(value, ensure_ascii=not value.isprintable())
    return text if len(text) <= 32 else f"{text[:29]}..."
