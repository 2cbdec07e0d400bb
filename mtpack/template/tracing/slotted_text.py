"""Texts with blanks: what is the same in every text of a shape, and where its marks stand.

An outline is plain text with cells of a sheet in between. A place in it is (how many cells lie
before it, how many plain characters lie before it); in a filled text that is one position.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from os.path import commonprefix
from typing import Any

from mtpack.template.markers import MarkedText, Range
from mtpack.template.tracing.interpreter import Piece
from mtpack.template.turn_columns import Place


@dataclass(frozen=True, slots=True)
class SlottedMark:
    """A mark, and where it stands."""

    kind: str
    message: int | None
    place: Place


@dataclass(frozen=True, slots=True)
class SlottedText:
    """A text with blanks. `literals` has one more element than `cells`."""

    literals: list[str]
    cells: list[int]
    marks: list[SlottedMark]

    @property
    def end(self) -> Place:
        """The place behind everything."""
        return len(self.cells), sum(map(len, self.literals))

    def without_marks(self) -> SlottedText:
        """Return the text alone."""
        return SlottedText(self.literals, self.cells, [])

    def literal_before(self, place: Place) -> str:
        """Return the plain text that stands directly before a place."""
        num_cells, num_chars = place
        return self.literals[num_cells][: num_chars - sum(map(len, self.literals[:num_cells]))]

    def filled(self, values: Sequence[Any]) -> tuple[str, list[int]]:
        """Return the text for a sheet's values, and how many characters lie in its first cells."""
        texts = [values[cell] for cell in self.cells]
        return self.joined(texts), list(accumulate(map(len, texts), initial=0))

    def joined(self, texts: Sequence[str]) -> str:
        """Return the text for what the cells hold."""
        parts = [""] * (len(self.literals) + len(texts))
        parts[::2] = self.literals
        parts[1::2] = texts
        return "".join(parts)

    def marked(self, values: Sequence[Any], has_generations: bool) -> MarkedText:
        """Return the text, and what its marks say (`marking.read_marks` for outlines)."""
        text, sums = self.filled(values)
        opened: list[tuple[int, int]] = []  # message, start
        regions: dict[int, list[Range]] = defaultdict(list)
        empty_regions: dict[int, int] = {}
        generations: list[Range] = []
        generation_start = 0
        for mark in self.marks:
            position = sums[mark.place[0]] + mark.place[1]
            if mark.message is not None:
                opened.append((mark.message, position))
            elif mark.kind == "generation":
                generation_start = position
            elif mark.kind == "end_generation":
                generations.append((generation_start, position))
            else:
                message, start = opened.pop()
                if start < position:
                    regions[message].append((start, position))
                else:
                    empty_regions[message] = position
        return MarkedText(
            text=text,
            regions={message: found[0] for message, found in regions.items() if len(found) == 1},
            generations=generations if has_generations else None,
            empty_regions={
                message: place for message, place in empty_regions.items() if message not in regions
            },
        )


def slotted_text_of(pieces: Sequence[Piece]) -> SlottedText:
    """Return the outline of a walk's text."""
    literals, cells, marks = [""], [], []
    num_chars = 0
    for piece in pieces:
        if isinstance(piece, str):
            literals[-1] += piece
            num_chars += len(piece)
        elif isinstance(piece, int):
            cells.append(piece)
            literals.append("")
        else:
            message = piece[1] if len(piece) > 1 else None
            marks.append(SlottedMark(piece[0], message, (len(cells), num_chars)))
    return SlottedText(literals, cells, marks)


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far two outlines are the same, whatever their cells hold."""

    place: Place
    differs: bool
    """Whether they surely differ there; otherwise one ends there, or it depends on cells."""


def agreement(one: SlottedText, other: SlottedText) -> Agreement:
    """Compare two outlines from their start."""
    num_chars = 0
    for number, (literal, twin) in enumerate(zip(one.literals, other.literals, strict=False)):
        if literal is not twin and literal != twin:
            shared = len(commonprefix([literal, twin]))  # noqa: RUF071 (by character, as meant)
            return Agreement(
                (number, num_chars + shared), shared < len(literal) and shared < len(twin)
            )
        num_chars += len(literal)
        if one.cells[number : number + 1] != other.cells[number : number + 1]:
            return Agreement((number, num_chars), False)
    return Agreement((len(one.cells), num_chars), False)
