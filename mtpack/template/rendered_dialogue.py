"""The documents of a dialogue as texts, with their turns as columns.

All dialogues of one shape have the same text with slots, and differ in the texts that fill them
(`slots.py`). So a turn has the same position in all of them, apart from the lengths of these texts.
A document therefore keeps only these lengths, and `place_turns` computes the positions of the turns
of many documents in a few numpy calls. To compute them one by one would take longer than to fill
the slots. A plain text is a text without slots.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import NamedTuple

import numpy as np

from mtpack.template.markers import Range
from mtpack.token_batch import Bools, Int64, TurnFlag, gather_ranges, offsets_from_lengths
from mtpack.tokenizer.encode import EncodedText


class TurnText(NamedTuple):
    """One turn in a text."""

    message: int
    """The index of the message in its dialogue."""
    spans: tuple[Range, ...]
    """Ranges [start, end) of characters that carry loss; several only with generation tags."""
    start: int
    """The start of the turn: characters before it belong to the prompt."""
    end: int
    """The end of the turn: the position after its last character."""
    flags: TurnFlag


@dataclass(frozen=True, slots=True)
class TurnLayout:
    """The turns in the same document of all dialogues of a shape.

    A position in a text with slots is two numbers: the slots, and the other characters before it.
    """

    turns: Int64
    """(turns, 7): message index, `TurnFlag` bits, start, end, and the number of spans."""
    spans: Int64
    """(spans, 4): the start and the end of each span of all turns."""

    @classmethod
    def of(cls, turns: Sequence[TurnText], slots: Sequence[int] = ()) -> TurnLayout:
        """Make a layout from turns in a text; slots: the positions of the slots in it."""

        def divide(position: int) -> tuple[int, int]:
            num_slots = bisect_left(slots, position)
            return num_slots, position - num_slots

        turn_rows = [
            (turn.message, turn.flags, *divide(turn.start), *divide(turn.end), len(turn.spans))
            for turn in turns
        ]
        span_rows = [(*divide(start), *divide(end)) for turn in turns for start, end in turn.spans]
        return cls(
            np.array(turn_rows, dtype=np.int64).reshape(-1, 7),
            np.array(span_rows, dtype=np.int64).reshape(-1, 4),
        )


class Turns:
    """The turns of one document: their layout, and the length of the text in each slot."""

    __slots__ = ("layout", "lengths")
    __hash__ = None  # type: ignore[assignment]  # lists can be compared, but have no hash

    def __init__(self, layout: TurnLayout, lengths: Sequence[int] = ()) -> None:
        """lengths: in characters, of the slots of the document."""
        self.layout = layout
        self.lengths = lengths

    @classmethod
    def of(cls, turns: Sequence[TurnText]) -> Turns:
        """Make the columns of turns in a plain text."""
        return cls(TurnLayout.of(turns))

    def __len__(self) -> int:
        return len(self.layout.turns)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Turns) and self.to_list() == other.to_list()

    def to_list(self) -> list[TurnText]:
        """Return the turns with their positions."""
        placed = place_turns([self])
        spans = list(zip(placed.span_starts.tolist(), placed.span_ends.tolist(), strict=True))
        offsets = offsets_from_lengths(placed.num_spans).tolist()
        columns = (placed.messages, placed.starts, placed.ends, placed.flags)
        return [
            TurnText(message, tuple(spans[first:last]), start, end, TurnFlag(flags))
            for message, start, end, flags, first, last in zip(
                *(column.tolist() for column in columns), offsets[:-1], offsets[1:], strict=True
            )
        ]


class KnownTokens(NamedTuple):
    """The tokens of a text that its tokenizer alone would encode in another way."""

    whole: EncodedText
    encode_part: Callable[[int, int], EncodedText]
    """Encodes the characters [start, end) of the text apart from the others."""


class DocumentText(NamedTuple):
    """A rendered text and the turns that are trained in it."""

    text: str
    turns: Turns
    encoded: KnownTokens | None = None
    """The tokens of `text`, if they are known already."""


class RenderedDialogue(NamedTuple):
    """The documents of one dialogue, as text."""

    row: int
    """`Dialogue.row`."""
    merged: DocumentText
    """The whole dialogue, with the turns that are trained in it."""
    own: tuple[DocumentText, ...]
    """One document for each other turn."""
    merged_end: int
    """The end of the last turn in `merged`, if all turns were trained in it."""
    to_compare: tuple[tuple[int, DocumentText], ...] = ()
    """Turns of `merged`, by index, whose ids up to the end must be compared, since equal text does
    not decide. Each with the document that the turn gets if they differ."""

    @property
    def num_turns(self) -> int:
        """The number of turns in all documents."""
        return len(self.merged.turns) + len(self.own)


@dataclass(frozen=True, slots=True)
class PlacedTurns:
    """The turns of several documents with their positions, as columns.

    The columns are in the order of the documents, and have the shape (turns,), except those of
    documents and spans. Positions are from the start of the document's text: in characters, or in
    bytes.
    """

    num_turns: Int64
    """(documents,): the number of turns of each document."""
    messages: Int64
    """The index of the turn's message in its dialogue."""
    flags: Int64
    """`TurnFlag` bits."""
    starts: Int64
    ends: Int64
    num_spans: Int64
    """Turn t has the next `num_spans[t]` spans."""
    span_starts: Int64
    """(spans,)"""
    span_ends: Int64
    """(spans,)"""

    @classmethod
    def join(cls, parts: Sequence[PlacedTurns]) -> PlacedTurns:
        """Return the turns of the documents of all parts."""
        names = [field.name for field in fields(cls)]
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        return cls(**columns)

    def take(self, documents: Int64) -> PlacedTurns:
        """Return the turns of the documents with these indices, in that order."""
        turns = gather_ranges(offsets_from_lengths(self.num_turns), documents)
        spans = gather_ranges(offsets_from_lengths(self.num_spans), turns)
        return PlacedTurns(
            num_turns=self.num_turns[documents],
            messages=self.messages[turns],
            flags=self.flags[turns],
            starts=self.starts[turns],
            ends=self.ends[turns],
            num_spans=self.num_spans[turns],
            span_starts=self.span_starts[spans],
            span_ends=self.span_ends[spans],
        )

    def keep(self, kept: Bools, flags: Int64) -> PlacedTurns:
        """Return the turns that are `kept` (turns,), with other `flags` (turns,)."""
        documents = np.repeat(np.arange(len(self.num_turns)), self.num_turns)
        spans = np.repeat(kept, self.num_spans)
        return PlacedTurns(
            num_turns=np.bincount(documents[kept], minlength=len(self.num_turns)),
            messages=self.messages[kept],
            flags=flags[kept],
            starts=self.starts[kept],
            ends=self.ends[kept],
            num_spans=self.num_spans[kept],
            span_starts=self.span_starts[spans],
            span_ends=self.span_ends[spans],
        )


def place_turns(documents: Sequence[Turns]) -> PlacedTurns:
    """Compute the positions of the turns of all `documents`."""
    slots = offsets_from_lengths(_to_column(len(turns.lengths) for turns in documents))
    lengths = chain.from_iterable([turns.lengths for turns in documents])
    layouts = [turns.layout for turns in documents]
    return place_layouts(
        np.concatenate([_NO_TURNS, *(layout.turns for layout in layouts)]),
        np.concatenate([_NO_SPANS, *(layout.spans for layout in layouts)]),
        _to_column(len(layout.turns) for layout in layouts),
        slots[:-1],
        offsets_from_lengths(np.fromiter(lengths, np.int64, slots[-1])),
    )


def place_layouts(
    turns: Int64, spans: Int64, num_turns: Int64, first_slots: Int64, before: Int64
) -> PlacedTurns:
    """Compute the positions of the turns of several documents.

    turns, spans: as in `TurnLayout`, of all documents. num_turns: of each document, (documents,).
    first_slots: the first slot of each document, (documents,). before: how much the slots before
    each fill, (slots + 1,).
    """
    turn_slots = np.repeat(first_slots, num_turns)
    span_slots = np.repeat(turn_slots, turns[:, 6])

    def place(positions: Int64, first: Int64) -> Int64:
        num_slots, others = positions.T
        filled: Int64 = before[first + num_slots] - before[first] + others
        return filled

    return PlacedTurns(
        num_turns=num_turns,
        messages=turns[:, 0],
        flags=turns[:, 1],
        starts=place(turns[:, 2:4], turn_slots),
        ends=place(turns[:, 4:6], turn_slots),
        num_spans=turns[:, 6],
        span_starts=place(spans[:, :2], span_slots),
        span_ends=place(spans[:, 2:], span_slots),
    )


_NO_TURNS: Int64 = np.empty((0, 7), dtype=np.int64)
_NO_SPANS: Int64 = np.empty((0, 4), dtype=np.int64)


def _to_column(values: Iterable[int]) -> Int64:
    return np.fromiter(values, np.int64)
