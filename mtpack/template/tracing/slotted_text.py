"""Texts with slots: the literal text that all dialogues of a shape share, and its marks.

Between the literals are slots, each with the number of a program's slot. A `SlotPosition` is the
number of slots and the number of literal characters before it. In a filled text, that is one index.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from os.path import commonprefix
from typing import Any

from mtpack.template.markers import MarkedText, Range
from mtpack.template.tracing.interpreter import TextPiece
from mtpack.template.turn_columns import SlotPosition


@dataclass(frozen=True, slots=True)
class SlottedMark:
    """A mark and its position."""

    kind: str
    message: int | None
    position: SlotPosition


@dataclass(frozen=True, slots=True)
class SlottedText:
    """A text with slots: literals[0], slots[0], literals[1], ..., slots[-1], literals[-1]."""

    literals: list[str]
    slots: list[int]
    """The number of the program's slot whose text goes here."""
    marks: list[SlottedMark]

    @property
    def end(self) -> SlotPosition:
        """The position after the last character."""
        return len(self.slots), sum(map(len, self.literals))

    def drop_marks(self) -> SlottedText:
        """Return a copy without marks."""
        return SlottedText(self.literals, self.slots, [])

    def find_literal_before(self, position: SlotPosition) -> str:
        """Return the literal text between the last slot before a position and the position."""
        num_slots, num_chars = position
        return self.literals[num_slots][: num_chars - sum(map(len, self.literals[:num_slots]))]

    def fill(self, values: Sequence[Any]) -> tuple[str, list[int]]:
        """Return the text for a program's values, and its slot offsets.

        slot_offsets[n] is the number of characters in the first n slots.
        """
        texts = [values[slot] for slot in self.slots]
        return self.join(texts), list(accumulate(map(len, texts), initial=0))

    def join(self, texts: Sequence[str]) -> str:
        """Return the text for the texts of its slots."""
        parts = [""] * (len(self.literals) + len(texts))
        parts[::2] = self.literals
        parts[1::2] = texts
        return "".join(parts)

    def fill_marked(self, values: Sequence[Any], has_generations: bool) -> MarkedText:
        """Return the filled text and its regions, as `read_marks` does for a marked text."""
        text, slot_offsets = self.fill(values)
        opened: list[tuple[int, int]] = []  # message, start
        regions: dict[int, list[Range]] = defaultdict(list)
        empty_regions: dict[int, int] = {}
        generations: list[Range] = []
        generation_start = 0
        for mark in self.marks:
            position = slot_offsets[mark.position[0]] + mark.position[1]
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
                message: position
                for message, position in empty_regions.items()
                if message not in regions
            },
        )


def make_slotted_text(pieces: Sequence[TextPiece]) -> SlottedText:
    """Make a text with slots from the pieces that an interpreter wrote."""
    literals, slots, marks = [""], [], []
    num_chars = 0
    for piece in pieces:
        if isinstance(piece, str):
            literals[-1] += piece
            num_chars += len(piece)
        elif isinstance(piece, int):
            slots.append(piece)
            literals.append("")
        else:
            message = piece[1] if len(piece) > 1 else None
            marks.append(SlottedMark(piece[0], message, (len(slots), num_chars)))
    return SlottedText(literals, slots, marks)


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far two texts with slots are equal, whatever text fills the slots."""

    position: SlotPosition
    """The end of their common prefix."""
    differs: bool
    """Whether they certainly differ there; otherwise one ends there, or it depends on slots."""


def find_agreement(one: SlottedText, other: SlottedText) -> Agreement:
    """Find the common prefix of two texts with slots."""
    num_chars = 0
    for index, (literal, twin) in enumerate(zip(one.literals, other.literals, strict=False)):
        if literal is not twin and literal != twin:
            shared = len(commonprefix([literal, twin]))  # noqa: RUF071 (by character, as meant)
            return Agreement(
                (index, num_chars + shared), shared < len(literal) and shared < len(twin)
            )
        num_chars += len(literal)
        if one.slots[index : index + 1] != other.slots[index : index + 1]:
            return Agreement((index, num_chars), False)
    return Agreement((len(one.slots), num_chars), False)
