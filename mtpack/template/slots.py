"""Texts with slots: one text for all dialogues of a shape, and the questions that it can answer.

A *slot* is one character that stands for a text of any length, which differs from dialogue to
dialogue. Slots are lone surrogates, which no valid text contains. The same slot stands for the same
text, in all texts of a dialogue. A plain text is a text without slots.

The functions here answer questions about texts. If the answer depends on what fills the slots, they
raise `UndecidedError`. For plain texts, they never do.
"""

from __future__ import annotations

import re

_FIRST_SLOT, _LAST_SLOT = 0xD800, 0xDFFF
NUM_SLOTS = _LAST_SLOT - _FIRST_SLOT + 1
"""The number of different slots that texts can have."""

SLOT = re.compile(f"[{chr(_FIRST_SLOT)}-{chr(_LAST_SLOT)}]")
_ONLY_SLOTS = re.compile(f"{SLOT.pattern}*")


class UndecidedError(Exception):
    """The answer depends on the texts in the slots."""


def make_slot(number: int) -> str:
    """Return the slot with this number, from 0 to `NUM_SLOTS` - 1."""
    return chr(_FIRST_SLOT + number)


def slot_number(slot: str) -> int:
    """Return the number of a slot."""
    return ord(slot) - _FIRST_SLOT


def require_no_slots(*texts: str) -> None:
    """Raise UndecidedError if a text has a slot: for rules that look at the whole text."""
    if any(SLOT.search(text) for text in texts):
        raise UndecidedError


def find_common_length(one: str, other: str) -> int:
    """Return the length of the common prefix of two texts.

    By halves, so that Python compares long ranges at once.
    """
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def starts_with(text: str, prefix: str) -> bool:
    """Return whether `text` starts with `prefix`."""
    if text.startswith(prefix):
        return True
    if text.isascii() and prefix.isascii():  # no slots: the fast way for most plain texts
        return False
    common = find_common_length(text, prefix)
    if common == len(text):  # a part of `prefix` follows, which may be empty
        return not has_text_between(prefix, common, len(prefix))
    if SLOT.match(text, common) or SLOT.match(prefix, common):
        raise UndecidedError
    return False


def are_equal(one: str, other: str) -> bool:
    """Return whether two texts are equal."""
    return starts_with(one, other) and starts_with(other, one)


def has_text_between(text: str, start: int, end: int) -> bool:
    """Return whether there is text from `start` to `end`: whether `start` comes first."""
    if start >= end:
        return False
    if _ONLY_SLOTS.fullmatch(text, start, end):
        raise UndecidedError
    return True


def strip_end(text: str) -> str:
    """Return `text` without the white space at its end."""
    stripped = text.rstrip()
    if SLOT.match(stripped[-1:]):
        raise UndecidedError
    return stripped


def ends_in(text: str, endings: tuple[str, ...]) -> bool:
    """Return whether `text` ends in one of `endings`."""
    if text.endswith(endings):
        return True
    longest = max(map(len, endings), default=0)
    *_, literal = SLOT.split(text[max(len(text) - longest, 0) :])
    has_slot = len(literal) < min(longest, len(text))
    if has_slot and any(ending.endswith(literal) for ending in endings):
        raise UndecidedError
    return False
