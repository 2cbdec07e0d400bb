"""JSON as a standard would have it: what other parsers let pass in silence is an error here.

Duplicate keys (parsers keep the last), NaN and infinities, lone surrogates, bytes that are not
UTF-8 and nesting bombs are refused by name. Integers keep all their digits; one that no double can
come near (309 digits and more) is refused as infinite.
"""

from __future__ import annotations

import json
from typing import Any

import orjson

from mtpack.input.dialogue import Reason

MAX_DEPTH = 100
# Integers of 19 digits and more may leave the 64 bits up to which orjson keeps them exact.
_ALL_DIGITS_0 = bytes.maketrans(b"123456789", b"000000000")
_LONG_INTEGER = b"0" * 19


class StrictJsonError(ValueError):
    """The text is refused; `reason` says why by name."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def parse(text: bytes) -> Any:
    """Return what `text` holds; raise StrictJsonError.

    >>> parse(b'{"role": "user"}')
    {'role': 'user'}
    """
    return proven(text, loads(text))


def loads(text: bytes) -> Any:
    """Return what `text` holds, still to be proven; raise StrictJsonError."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise _explain(text, error) from None


def proven(text: bytes, value: Any) -> Any:
    """Return `value`, read from `text`, with all digits; raise StrictJsonError."""
    if text.count(b"{") + text.count(b"[") > MAX_DEPTH:
        _check_depth(value)
    # What the value is written as holds no key twice and no integer that was rounded. Where the
    # text is that already, as most files are written, the proof takes 1 µs a row and not 25.
    written = orjson.dumps(value)
    if written == text:
        return value
    if _num_quotes(text) != _num_quotes(written):
        raise StrictJsonError(
            Reason.DUPLICATE_KEY, "an object has the same key twice; keep the one that is meant"
        )
    if _LONG_INTEGER in text.translate(_ALL_DIGITS_0):
        return json.loads(text)  # orjson rounds them to floats
    return value


def surely_holds_strings(text: bytes, number: int) -> bool:
    """Return whether valid JSON has just so many keys and strings, and no quote in any.

    If that is how many the value has that was read from it, then no key came twice.
    """
    return text.count(b'"') == 2 * number


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


def _num_quotes(text: bytes) -> int:
    """Count the quotes around the keys and strings of valid JSON.

    A key that comes twice is read once, so its quotes are missing in what the value is written as.
    """
    if b"\\" in text:
        text = text.replace(rb"\\", b"")  # behind which a quote is not escaped
    return text.count(b'"') - text.count(rb"\"")


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
            f"column {error.colno} has half of a surrogate pair (\\ud800 to \\udfff); repair it",
        )
    if "depth" in problem_text or "recursion" in problem_text:
        return StrictJsonError(Reason.TOO_DEEP, f"nested more than {MAX_DEPTH} levels deep")
    if "infinity" in problem_text or error.doc.startswith(("NaN", "Infinity"), error.pos):
        return StrictJsonError(
            Reason.NOT_A_NUMBER, "NaN, infinite or too large a number, which JSON does not have"
        )
    return StrictJsonError(
        Reason.INVALID_JSON, f"column {error.colno}: {problem_text.split(':')[0]}"
    )
