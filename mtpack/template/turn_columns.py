"""Turns of most dialogues: of one span each, from where the model takes over to the end.

Where they stand is the same for all dialogues of a shape, but for how long the texts are that are
filled in. So a dialogue keeps these lengths alone, and its turns are placed with those of all
others at once: to make a `TurnText` of each takes longer than to fill in their dialogue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple, overload

import numpy as np

from mtpack.template.turn_spans import TurnText
from mtpack.token_batch import Int64, TurnFlag, offsets_from_lengths

Place = tuple[int, int]
"""How many cells (texts that are filled in), and how many other characters, stand before it."""


@dataclass(frozen=True, slots=True, eq=False)
class PlainPlaces:
    """Where the turns of a shape stand."""

    rows: Int64
    """(turns, 6): message, `TurnFlag` bits, cells and characters before the start, and the end."""

    @classmethod
    def of(
        cls,
        messages: Sequence[int],
        flags: Sequence[int],
        starts: Sequence[Place],
        ends: Sequence[Place],
    ) -> PlainPlaces:
        """Take the columns, one element a turn."""
        columns = [messages, flags, *zip(*starts, strict=True), *zip(*ends, strict=True)]
        return cls(np.array(columns, dtype=np.int64).T.copy())


class PlainTurns(Sequence[TurnText]):
    """The turns of one dialogue."""

    __slots__ = ("lengths", "places")
    __hash__ = None  # type: ignore[assignment]  # equal to a tuple, whose hash it hasn't

    def __init__(self, places: PlainPlaces, lengths: Sequence[int]) -> None:
        """Take the places of its shape, and how many characters each of its cells has."""
        self.places = places
        self.lengths = lengths

    def __len__(self) -> int:
        return len(self.places.rows)

    @overload
    def __getitem__(self, index: int) -> TurnText: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[TurnText, ...]: ...
    def __getitem__(self, index: int | slice) -> TurnText | tuple[TurnText, ...]:
        if isinstance(index, slice):
            return tuple(map(self.__getitem__, range(*index.indices(len(self)))))
        message, flags, *places = self.places.rows[index].tolist()
        start, end = (
            sum(self.lengths[:cells]) + chars for cells, chars in (places[:2], places[2:])
        )
        return TurnText(message, ((start, end),), start, end, TurnFlag(flags))

    def __eq__(self, other: object) -> bool:
        return tuple(self) == (tuple(other) if isinstance(other, PlainTurns) else other)


class PlacedTurns(NamedTuple):
    """Turns of several dialogues, one dialogue behind the other; places are characters."""

    num_turns: Int64
    """(dialogues,)"""
    messages: Int64
    """(turns,), as all below."""
    flags: Int64
    starts: Int64
    ends: Int64


def placed(dialogues: Sequence[PlainTurns]) -> PlacedTurns:
    """Place the turns of all dialogues."""
    rows = [turns.places.rows for turns in dialogues]
    lengths = [turns.lengths for turns in dialogues]
    num_turns = np.fromiter(map(len, rows), np.int64, len(rows))
    cells = offsets_from_lengths(np.fromiter(map(len, lengths), np.int64, len(lengths)))
    before = offsets_from_lengths(np.fromiter(chain.from_iterable(lengths), np.int64, cells[-1]))
    first: Int64 = np.repeat(cells[:-1], num_turns)
    nothing = np.empty((0, 6), dtype=np.int64)
    columns = np.concatenate([nothing, *rows]).T
    messages, flags, start_cells, start_chars, end_cells, end_chars = columns
    return PlacedTurns(
        num_turns=num_turns,
        messages=messages,
        flags=flags,
        starts=before[first + start_cells] - before[first] + start_chars,
        ends=before[first + end_cells] - before[first] + end_chars,
    )
