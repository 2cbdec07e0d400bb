"""Turns of texts with slots: their positions, computed for many dialogues at once.

All dialogues of one shape have the same text with slots, and differ in the texts that fill them. So
a turn has the same position in all of them, apart from the lengths of these texts. A dialogue
therefore keeps only its lengths, and `place_turns` computes the positions of the turns of many
dialogues in a few numpy calls. To make one `TurnText` for each turn would take longer than to
fill the slots of its dialogue.

Such turns have one span each: from the start of the turn to its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple, overload

import numpy as np

from mtpack.template.turn_spans import TurnText
from mtpack.token_batch import Int64, TurnFlag, offsets_from_lengths

SlotPosition = tuple[int, int]
"""A position in a text with slots: the number of slots and of other characters before it."""


@dataclass(frozen=True, slots=True, eq=False)
class TurnLayout:
    """The positions of the turns in all dialogues of one shape."""

    table: Int64
    """(turns, 6): message index, `TurnFlag` bits, then the `SlotPosition` of start and end."""

    @classmethod
    def from_columns(
        cls,
        messages: Sequence[int],
        flags: Sequence[int],
        starts: Sequence[SlotPosition],
        ends: Sequence[SlotPosition],
    ) -> TurnLayout:
        """Make a layout from columns with one element for each turn."""
        columns = [messages, flags, *zip(*starts, strict=True), *zip(*ends, strict=True)]
        return cls(np.array(columns, dtype=np.int64).T.copy())


class SlottedTurns(Sequence[TurnText]):
    """The turns of one dialogue, as the layout of its shape and the lengths of its slots."""

    __slots__ = ("layout", "lengths")
    __hash__ = None  # type: ignore[assignment]  # it equals a tuple, but has not the tuple's hash

    def __init__(self, layout: TurnLayout, lengths: Sequence[int]) -> None:
        """Take the layout of the dialogue's shape, and the number of characters in each slot."""
        self.layout = layout
        self.lengths = lengths

    def __len__(self) -> int:
        return len(self.layout.table)

    @overload
    def __getitem__(self, index: int) -> TurnText: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[TurnText, ...]: ...
    def __getitem__(self, index: int | slice) -> TurnText | tuple[TurnText, ...]:
        if isinstance(index, slice):
            return tuple(map(self.__getitem__, range(*index.indices(len(self)))))
        message, flags, *positions = self.layout.table[index].tolist()
        start, end = (
            sum(self.lengths[:slots]) + chars for slots, chars in (positions[:2], positions[2:])
        )
        return TurnText(message, ((start, end),), start, end, TurnFlag(flags))

    def __eq__(self, other: object) -> bool:
        return tuple(self) == (tuple(other) if isinstance(other, SlottedTurns) else other)


class TurnColumns(NamedTuple):
    """The turns of several dialogues, in the order of the dialogues, as columns.

    All columns but the first have the shape (turns,).
    """

    num_turns: Int64
    """(dialogues,): the number of turns of each dialogue."""
    messages: Int64
    """The index of the turn's message in its dialogue."""
    flags: Int64
    """`TurnFlag` bits."""
    starts: Int64
    """In characters, from the start of the turn's text."""
    ends: Int64
    """In characters, from the start of the turn's text."""


def place_turns(dialogues: Sequence[SlottedTurns]) -> TurnColumns:
    """Compute the positions of all turns of `dialogues`."""
    tables = [turns.layout.table for turns in dialogues]
    lengths = [turns.lengths for turns in dialogues]
    num_turns = np.fromiter(map(len, tables), np.int64, len(tables))
    slots = offsets_from_lengths(np.fromiter(map(len, lengths), np.int64, len(lengths)))
    before = offsets_from_lengths(np.fromiter(chain.from_iterable(lengths), np.int64, slots[-1]))
    first: Int64 = np.repeat(slots[:-1], num_turns)
    no_turns = np.empty((0, 6), dtype=np.int64)
    columns = np.concatenate([no_turns, *tables]).T
    messages, flags, start_slots, start_chars, end_slots, end_chars = columns
    return TurnColumns(
        num_turns=num_turns,
        messages=messages,
        flags=flags,
        starts=before[first + start_slots] - before[first] + start_chars,
        ends=before[first + end_slots] - before[first] + end_chars,
    )
