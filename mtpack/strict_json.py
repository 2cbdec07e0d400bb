"""JSON as a standard would have it: what other parsers let pass in silence is an error here.

Duplicate keys (parsers keep the last), NaN and infinities, lone surrogates, bytes that are not
UTF-8 and nesting bombs are refused by name. Integers keep all their digits; one that no double can
come near (309 digits and more) is refused as infinite.
"""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

from mtpack.dialogue import Reason

MAX_DEPTH = 100
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_LONG_INTEGER = re.compile(rb"[0-9]{19,}")


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
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise _explain(text, error) from None
    # Outside of strings, colons stand between keys and values only and digits in numbers only.
    outside_strings = _STRING.sub(b"", text)
    if outside_strings.count(b":") != _count_keys(value, 0):
        raise StrictJsonError(
            Reason.DUPLICATE_KEY, "an object has the same key twice; keep the one that is meant"
        )
    if _LONG_INTEGER.search(outside_strings):
        return json.loads(text)  # orjson rounds them to floats
    return value


def _count_keys(value: Any, depth: int) -> int:
    if not isinstance(value, dict | list):
        return 0
    if depth == MAX_DEPTH:
        raise StrictJsonError(Reason.TOO_DEEP, f"nested more than {MAX_DEPTH} levels deep")
    if isinstance(value, dict):
        return len(value) + sum(_count_keys(item, depth + 1) for item in value.values())
    return sum(_count_keys(item, depth + 1) for item in value)


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
