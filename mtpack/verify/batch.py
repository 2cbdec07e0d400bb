"""A record batch as the laws of a shard see it, and the violation that a law reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpack.packing.columns import Columns, Layout
from mtpack.token_batch import Bools, Int64, offsets_from_lengths, segment_ids

Location = tuple[int, int | None]
"""The index of a sequence in the batch, and a position in it: None for the whole sequence."""


@dataclass(frozen=True, slots=True)
class BatchViolation:
    """The violation of a law: the first position in a batch that breaks it, and what is wrong."""

    row: int
    """The index of the sequence in the batch."""
    position: int | None
    """In the sequence; None if the law is about the whole sequence."""
    detail: str


@dataclass(frozen=True)
class ColumnBatch:
    """Columns, and what laws derive from them. A derived value needs the earlier laws to hold.

    Positions count through all sequences of the batch: position p is position p % seq_len of
    sequence p // seq_len. An entry is an element of seq_lengths: a document, or padding.
    """

    columns: Columns
    layout: Layout

    @property
    def num_sequences(self) -> int:
        """The number of sequences."""
        return len(self.columns.turn_num)

    @cached_property
    def is_document(self) -> Bools:
        """(entries,): whether the entry is a document, not padding."""
        return np.greater_equal(self.columns.dialogue_ids, 0)

    @cached_property
    def entry_starts(self) -> Int64:
        """(entries + 1,): the position where each entry starts, and the end of the last one."""
        return offsets_from_lengths(self.columns.seq_lengths)

    @cached_property
    def turn_positions(self) -> Int64:
        """(turns,): the position where each turn starts, ascending."""
        return (
            segment_ids(self.columns.turn_offsets) * self.layout.seq_len + self.columns.turn_starts
        )

    @cached_property
    def turn_entries(self) -> Int64:
        """(turns,): the index of the entry in which each turn starts."""
        return self.find_entries_at(self.turn_positions)

    @cached_property
    def loss_positions(self) -> Int64:
        """(loss tokens,): the positions where loss_mask is not 0, ascending."""
        return np.flatnonzero(self.columns.loss_mask)

    @cached_property
    def turn_lengths(self) -> Int64:
        """(turns,): the number of loss tokens from each turn's start to the next turn's start."""
        before = np.searchsorted(self.loss_positions, self.turn_positions)
        return np.diff(before, append=len(self.loss_positions))

    @cached_property
    def has_no_loss(self) -> Bools:
        """(sequences, seq_len): whether the position carries no loss."""
        return np.equal(self.columns.loss_mask, 0)

    def find_entries_at(self, positions: Int64) -> Int64:
        """Return the index of the entry that each position is in."""
        return np.searchsorted(self.entry_starts, positions, side="right") - 1

    def find(
        self, locate: Callable[[int], Location], wrong: NDArray[Any], detail: str, *values: Any
    ) -> BatchViolation | None:
        """Return the violation of the first wrong item, or None.

        locate: returns the location of an item, for example `locate_turn`. wrong: bool, one element
        for each item. detail: a format string, filled with the item's elements of `values`.
        """
        if not wrong.any():
            return None
        index = int(wrong.argmax())
        filled = detail.format(*(value.flat[index] for value in values))
        return BatchViolation(*locate(index), filled)

    def find_among(
        self, positions: Int64, wrong: Bools, detail: str, *values: Any
    ) -> BatchViolation | None:
        """Return the violation of the first wrong one of some positions, as `find` does."""
        return self.find(
            lambda index: self.locate_position(int(positions[index])), wrong, detail, *values
        )

    def locate_sequence(self, row: int) -> Location:
        """Return the location of a sequence."""
        return row, None

    def locate_entry(self, entry: int) -> Location:
        """Return the location of the first position of an entry."""
        offsets = self.columns.entry_offsets
        row = int(np.searchsorted(offsets, entry, side="right")) - 1
        before = self.columns.seq_lengths[offsets[row] : entry]
        return row, int(before.sum(dtype=np.int64))

    def locate_turn(self, turn: int) -> Location:
        """Return the location of the start of a turn."""
        row = int(np.searchsorted(self.columns.turn_offsets, turn, side="right")) - 1
        return row, int(self.columns.turn_starts[turn])

    def locate_position(self, position: int) -> Location:
        """Return the location of a position of the batch."""
        return divmod(position, self.layout.seq_len)


Law = Callable[[ColumnBatch], BatchViolation | None]
"""Returns the first violation of the law in a batch, or None if the batch keeps the law."""
