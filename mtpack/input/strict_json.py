"""A strict JSON parser: what other parsers accept without a warning is an error here.

Each of these has its own reason: duplicate keys (other parsers keep the last), NaN and infinities,
lone surrogates, bytes that are not UTF-8, and nesting bombs. Integers keep all their digits; one
that is too large for a double (309 digits and more) is rejected as infinite.
"""

from __future__ import annotations

import json
from typing import Any

import orjson

from mtpack.input.dialogue import Reason

MAX_DEPTH = 100
# orjson keeps integers exact up to 64 bits. Those of 19 digits and more may be larger.
_ALL_DIGITS_0 = bytes.maketrans(b"123456789", b"000000000")
_LONG_INTEGER = b"0" * 19


class StrictJsonError(ValueError):
    """The text is not strict JSON; `reason` is the category, the message says what is wrong."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def parse(text: bytes) -> Any:
    """Return the value of JSON text; raise StrictJsonError.

    >>> parse(b'{"role": "user"}')
    {'role': 'user'}
    """
    return validate(text, loads(text))


def loads(text: bytes) -> Any:
    """Return the value of JSON text, still to be validated; raise StrictJsonError."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise _explain(text, error) from None


def validate(text: bytes, value: Any) -> Any:
    """Return the value that `loads` read from `text`, integers exact; raise StrictJsonError."""
    if text.count(b"{") + text.count(b"[") > MAX_DEPTH:
        _check_depth(value)
    # The value, written again, has no duplicate key and no integer that was rounded. If it equals
    # the text, as in most files, this takes 1 µs per row, not 25.
    written = orjson.dumps(value)
    if written == text:
        return value
    if count_strings(text) != count_strings(written):
        raise StrictJsonError(
            Reason.DUPLICATE_KEY, "an object has the same key twice; remove one of them"
        )
    if _LONG_INTEGER in text.translate(_ALL_DIGITS_0):
        return json.loads(text)  # orjson rounds them to floats
    return value


def _check_depth(value: Any) -> None:
    level: list[Any] = [[value]]
    for _ in range(MAX_DEPTH + 1):
        level = [
            item
            for outer in level
            for item in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(item, dict | list)
        ]
    if level:
        raise StrictJsonError(Reason.TOO_DEEP, f"nested more than {MAX_DEPTH} levels deep")


def count_strings(text: bytes) -> int:
    """Count the keys and strings of valid JSON; a key that appears twice counts twice."""
    num_quotes = text.count(b'"')
    if b"\\" in text:
        num_quotes -= hide_escaped_backslashes(text).count(rb"\"")
    return num_quotes // 2


def hide_escaped_backslashes(text: bytes) -> bytes:
    """Return valid JSON of the same length in which every backslash escapes what follows it."""
    return text.replace(rb"\\", b"--") if rb"\\" in text else text


def _explain(text: bytes, error: orjson.JSONDecodeError) -> StrictJsonError:
    try:
        text.decode()
    except UnicodeDecodeError as problem:
        return StrictJsonError(
            Reason.NOT_UTF8, f"byte {problem.start + 1} is not UTF-8; convert the file"
        )
    problem_text = str(error)
    if "surrogate" in problem_text:
        return StrictJsonError(
            Reason.LONE_SURROGATE,
            f"column {error.colno} has half of a surrogate pair (\\ud800 to \\udfff); complete it",
        )
    if "depth" in problem_text or "recursion" in problem_text:
        return StrictJsonError(Reason.TOO_DEEP, f"nested more than {MAX_DEPTH} levels deep")
    if "infinity" in problem_text or error.doc.startswith(("NaN", "Infinity"), error.pos):
        return StrictJsonError(
            Reason.NOT_A_NUMBER,
            "NaN, an infinity or a number that is too large; JSON has none of these",
        )
    return StrictJsonError(
        Reason.INVALID_JSON, f"column {error.colno}: {problem_text.split(':')[0]}"
    )
