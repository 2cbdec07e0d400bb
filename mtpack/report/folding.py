"""Fold long lines of text that may be in any script, between words or wide characters.

`rich` folds between words alone. A Chinese paragraph is a single word to it, so it would start a
line of its own.
"""

from __future__ import annotations

import unicodedata

from rich.cells import cell_len
from rich.text import Text

_JOINER = "\u200d"  # between emoji that are drawn as one
_CONTINUING = frozenset(("Mn", "Me", "Mc", "Cf", "Sk"))  # categories of characters
_MOST_CHARACTERS = 16
"""More characters for each column are folded: a text may hold any number without a width."""
_NEVER_FIRST = frozenset("。，、；：？！）】》」』”’…·％,.;:?!)]}%⟧")  # in a line


def fold(text: Text, width: int) -> Text:
    """Return a text whose lines take at most `width` columns; its tabs become spaces."""
    text.expand_tabs(8)
    lines: list[Text] = []
    for line in text.split("\n", allow_blank=True):
        if line.cell_len <= width:
            lines.append(line)
            continue
        for part in line.divide(_find_folds(line.plain, width)):
            part.rstrip()
            lines.append(part)
    return Text("\n").join(lines)


def _find_folds(line: str, width: int) -> list[int]:
    """Return where a line is cut, so that each part has at most `width` columns."""
    continues = find_continuing(line)
    folds: list[int] = []
    start = last = 0
    for position in range(1, len(line)):
        if not continues[position] and _may_fold(line[position - 1], line[position]):
            last = position
        is_short = position - start < _MOST_CHARACTERS * width
        if line[position] == " " or (is_short and cell_len(line[start : position + 1]) <= width):
            continue
        if last <= start:  # a word that is longer than a line
            last = position
            while continues[last] and last > start:
                last -= 1
            last = last if last > start else position
        folds.append(last)
        start = last
    return folds


def _may_fold(before: str, after: str) -> bool:
    """Return whether a line may end between two characters."""
    if after == " " or before == " ":
        return after != " "
    return (cell_len(before) == 2 or cell_len(after) == 2) and after not in _NEVER_FIRST


def find_continuing(text: str) -> list[bool]:
    """Return for each character whether it is drawn together with the one before it."""
    continuing: list[bool] = []
    before, letters = "", 0
    for character in text:
        letters = letters + 1 if "\U0001f1e6" <= character <= "\U0001f1ff" else 0
        continuing.append(
            before == _JOINER
            or (letters > 0 and letters % 2 == 0)  # a flag is a pair of such letters
            or (not character.isascii() and unicodedata.category(character) in _CONTINUING)
        )
        before = character
    if continuing:
        continuing[0] = False
    return continuing
