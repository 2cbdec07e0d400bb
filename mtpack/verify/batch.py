"""Sequences as the laws of a shard look at them, and how a law names the place that breaks it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpack.packing.columns import Columns, Layout
from mtpack.token_batch import Bools, Int64, offsets_from_lengths, segment_ids


@dataclass(frozen=True, slots=True)
class Breach:
    """Where a law is first broken in a batch, and how."""

    row: int
    """In the batch."""
    position: int | None
    """In the sequence; None where the whole sequence is concerned."""
    detail: str


@dataclass(frozen=True)
class Batch:
    """Columns, and what follows from them once the laws that it rests on hold.

    Places are counted through all sequences: place p is position p % seq_len of row p // seq_len.
    """

    columns: Columns
    layout: Layout

    @property
    def num_rows(self) -> int:
        """The number of sequences."""
        return len(self.columns.turn_num)

    @cached_property
    def is_document(self) -> Bools:
        """(entries,): whether the entry is a document, not padding."""
        return np.greater_equal(self.columns.dialogue_ids, 0)

    @cached_property
    def is_last(self) -> Bools:
        """(entries,): whether the entry is the last one of its sequence."""
        last = np.zeros(len(self.columns.seq_lengths), np.bool_)
        filled = np.diff(self.columns.entry_offsets) > 0
        last[self.columns.entry_offsets[1:][filled] - 1] = True
        return last

    @cached_property
    def entry_places(self) -> Int64:
        """(entries + 1,): where each entry starts."""
        return offsets_from_lengths(self.columns.seq_lengths)

    @cached_property
    def head_places(self) -> Int64:
        """(turns,): where each turn starts, ascending."""
        return (
            segment_ids(self.columns.turn_offsets) * self.layout.seq_len + self.columns.turn_starts
        )

    @cached_property
    def head_entries(self) -> Int64:
        """(turns,): the entry that each turn starts in."""
        return self.entries_at(self.head_places)

    @cached_property
    def loss_places(self) -> Int64:
        """(loss tokens,): where they are, ascending."""
        return np.flatnonzero(self.columns.loss_mask)

    @cached_property
    def turn_lengths(self) -> Int64:
        """(turns,): loss tokens from each turn's start to the next one."""
        before = np.searchsorted(self.loss_places, self.head_places)
        return np.diff(before, append=len(self.loss_places))

    @cached_property
    def no_loss(self) -> Bools:
        """(sequences, seq_len): whether the place carries no loss."""
        return np.equal(self.columns.loss_mask, 0)

    def entries_at(self, places: Int64) -> Int64:
        """Return the entry that each place lies in."""
        return np.searchsorted(self.entry_places, places, side="right") - 1

    def at_row(self, wrong: Bools, detail: Callable[[int], str]) -> Breach | None:
        """Name the first wrong sequence."""
        row = _first(wrong)
        return None if row is None else Breach(row, None, detail(row))

    def at_entry(self, wrong: Bools, detail: Callable[[int], str]) -> Breach | None:
        """Name the first wrong entry."""
        entry = _first(wrong)
        if entry is None:
            return None
        offsets = self.columns.entry_offsets
        row = int(np.searchsorted(offsets, entry, side="right")) - 1
        before = self.columns.seq_lengths[offsets[row] : entry]
        return Breach(row, int(before.sum(dtype=np.int64)), detail(entry))

    def at_turn(self, wrong: Bools, detail: Callable[[int], str]) -> Breach | None:
        """Name the first wrong turn."""
        turn = _first(wrong)
        if turn is None:
            return None
        row = int(np.searchsorted(self.columns.turn_offsets, turn, side="right")) - 1
        return Breach(row, int(self.columns.turn_starts[turn]), detail(turn))

    def at_place(self, wrong: NDArray[Any], detail: Callable[[int], str]) -> Breach | None:
        """Name the first wrong place: wrong is bool (sequences, seq_len)."""
        place = _first(wrong.ravel())
        return None if place is None else self.breach_at(place, detail(place))

    def at_one_of(self, places: Int64, wrong: Bools, detail: Callable[[int], str]) -> Breach | None:
        """Name the first wrong one of some places; `detail` is told which of them it is."""
        number = _first(wrong)
        return None if number is None else self.breach_at(int(places[number]), detail(number))

    def breach_at(self, place: int, detail: str) -> Breach:
        """Name a place."""
        row, position = divmod(place, self.layout.seq_len)
        return Breach(row, position, detail)


def _first(wrong: NDArray[Any]) -> int | None:
    return int(wrong.argmax()) if wrong.any() else None


Law = Callable[[Batch], Breach | None]
"""Where the batch first breaks the law, if it does."""
