"""Fold long lines of text that may be in any script, between words or wide characters.

`rich` folds between words alone. A Chinese paragraph is a single word to it, so it would start a
line of its own.
"""

from __future__ import annotations

import unicodedata

from rich.cells import cell_len
from rich.text import Text

_JOINER = "\u200d"  # between emoji that are drawn as one
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
    folds: list[int] = []
    start = last = 0
    for position in range(1, len(line)):
        if position > start and _may_fold(line, position):
            last = position
        is_short = position - start < _MOST_CHARACTERS * width
        if line[position] == " " or (is_short and cell_len(line[start : position + 1]) <= width):
            continue
        if last <= start:  # a word that is longer than a line
            last = position
            while last > start + 1 and continues_character(line, last):
                last -= 1
        folds.append(last)
        start = last
    return folds


def _may_fold(line: str, position: int) -> bool:
    before, after = line[position - 1], line[position]
    if after == " " or continues_character(line, position):
        return False
    if before == " ":
        return True
    return (cell_len(before) == 2 or cell_len(after) == 2) and after not in _NEVER_FIRST


def continues_character(text: str, position: int) -> bool:
    """Return whether a character is drawn together with the one before it."""
    if position == 0:
        return False
    before, character = text[position - 1], text[position]
    if before == _JOINER or unicodedata.category(character) in ("Mn", "Me", "Mc", "Cf", "Sk"):
        return not character.isascii()
    flags = 0
    while flags < min(position, _MOST_CHARACTERS) and _is_flag_letter(text[position - flags]):
        flags += 1
    return flags > 0 and flags % 2 == 0


def _is_flag_letter(character: str) -> bool:
    """Return whether a character is one of the pairs of letters that make flags."""
    return "\U0001f1e6" <= character <= "\U0001f1ff"
