"""Texts, turns and documents with slots, filled for each dialogue of a shape.

They are the result of `turn_spans.py` for the texts with slots of a shape. To get the result for
one of its dialogues, only strings are joined and positions moved.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mtpack.template.markers import Range
from mtpack.template.rendered_dialogue import (
    DocumentText,
    RenderedDialogue,
    TurnLayout,
    Turns,
    TurnText,
)
from mtpack.template.slots import SLOT, slot_number
from mtpack.template.turn_spans import LocatedTurns


@dataclass(frozen=True, slots=True)
class SlottedText:
    """A text with slots, and the value that fills each."""

    text: str
    literals: list[str]
    """The text between the slots: literals[0], the first slot, literals[1], ..."""
    value_indices: list[int]
    """The index of the value that goes into each slot."""
    slots: list[int]
    """The positions of the slots in `text`."""

    @classmethod
    def of(cls, text: str, value_indices: Sequence[int]) -> SlottedText:
        """value_indices: by `slot_number`, the index of the value for each slot."""
        slots = [match.start() for match in SLOT.finditer(text)]
        indices = [value_indices[slot_number(text[position])] for position in slots]
        return cls(text, SLOT.split(text), indices, slots)

    def fill(self, values: Sequence[Any]) -> tuple[str, list[int]]:
        """Return the text with the values in its slots, and their lengths."""
        texts = [values[index] for index in self.value_indices]
        parts = [""] * (len(self.literals) + len(texts))
        parts[::2] = self.literals
        parts[1::2] = texts
        return "".join(parts), list(map(len, texts))

    def divide(self, position: int) -> tuple[int, int]:
        """Return the number of slots, and that of other characters, before a position of `text`."""
        num_slots = bisect_left(self.slots, position)
        return num_slots, position - num_slots

    def place(self, position: int, lengths: Sequence[int]) -> int:
        """Return where a position of `text` is in a filled text; lengths: from `fill`."""
        num_slots, others = self.divide(position)
        return others + sum(lengths[:num_slots])


@dataclass(frozen=True, slots=True)
class _SlottedDocument:
    text: SlottedText
    layout: TurnLayout

    @classmethod
    def of(cls, document: DocumentText, value_indices: Sequence[int]) -> _SlottedDocument:
        text = SlottedText.of(document.text, value_indices)
        return cls(text, TurnLayout.of(document.turns.to_list(), text.slots))

    def fill(self, values: Sequence[Any]) -> DocumentText:
        text, lengths = self.text.fill(values)
        return DocumentText(text, Turns(self.layout, lengths))


@dataclass(frozen=True, slots=True)
class SlottedDialogue:
    """The documents and turns of all dialogues of a shape."""

    merged: _SlottedDocument
    own: tuple[_SlottedDocument, ...]
    to_compare: tuple[tuple[int, _SlottedDocument], ...]
    merged_end: int

    @classmethod
    def of(cls, rendered: RenderedDialogue, value_indices: Sequence[int]) -> SlottedDialogue:
        """Make it from documents with slots; value_indices: as for `SlottedText.of`."""
        return cls(
            merged=_SlottedDocument.of(rendered.merged, value_indices),
            own=tuple(_SlottedDocument.of(document, value_indices) for document in rendered.own),
            to_compare=tuple(
                (turn, _SlottedDocument.of(document, value_indices))
                for turn, document in rendered.to_compare
            ),
            merged_end=rendered.merged_end,
        )

    def fill(self, values: Sequence[Any], row: int) -> RenderedDialogue:
        """Return the documents of a dialogue."""
        merged = self.merged.fill(values)
        own = tuple([document.fill(values) for document in self.own])
        end = self.merged.text.place(self.merged_end, merged.turns.lengths)
        to_compare = tuple([(turn, document.fill(values)) for turn, document in self.to_compare])
        return RenderedDialogue(row, merged, own, end, to_compare)


@dataclass(frozen=True, slots=True)
class SlottedLocatedTurns:
    """The located turns of all dialogues of a shape, where merging depends on their texts."""

    full: SlottedText
    turns: list[tuple[TurnText, _SlottedDocument | None]]
    end: int

    @classmethod
    def of(cls, located: LocatedTurns, value_indices: Sequence[int]) -> SlottedLocatedTurns:
        """Make them from turns in texts with slots; value_indices: as for `SlottedText.of`."""
        turns = [
            (turn, None if served is None else _SlottedDocument.of(served, value_indices))
            for turn, served in located.turns
        ]
        return cls(SlottedText.of(located.full, value_indices), turns, located.end)

    def fill(self, values: Sequence[Any]) -> LocatedTurns:
        """Return the located turns of a dialogue."""
        full, full_lengths = self.full.fill(values)
        turns: list[tuple[TurnText, DocumentText | None]] = []
        for turn, served in self.turns:
            if served is None:
                turns.append((_move(turn, self.full, full_lengths), None))
            else:
                document = served.fill(values)
                turns.append((_move(turn, served.text, document.turns.lengths), document))
        return LocatedTurns(full, turns, self.full.place(self.end, full_lengths))


def _move(turn: TurnText, text: SlottedText, lengths: Sequence[int]) -> TurnText:
    """Return the turn in a filled text."""
    start, end = text.place(turn.start, lengths), text.place(turn.end, lengths)
    spans: tuple[Range, ...] = ((start, end),)
    if turn.spans != ((turn.start, turn.end),):
        spans = tuple(
            (text.place(first, lengths), text.place(last, lengths)) for first, last in turn.spans
        )
    return TurnText(turn.message, spans, start, end, turn.flags)
