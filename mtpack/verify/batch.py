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
    def is_last(self) -> Bools:
        """(entries,): whether the entry is the last one of its sequence."""
        last = np.zeros(len(self.columns.seq_lengths), np.bool_)
        filled = np.diff(self.columns.entry_offsets) > 0
        last[self.columns.entry_offsets[1:][filled] - 1] = True
        return last

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

    def find_wrong_sequence(
        self, wrong: Bools, detail: Callable[[int], str]
    ) -> BatchViolation | None:
        """Return the violation of the first wrong sequence: wrong is bool (sequences,)."""
        row = _first(wrong)
        return None if row is None else BatchViolation(row, None, detail(row))

    def find_wrong_entry(self, wrong: Bools, detail: Callable[[int], str]) -> BatchViolation | None:
        """Return the violation of the first wrong entry: wrong is bool (entries,)."""
        entry = _first(wrong)
        if entry is None:
            return None
        offsets = self.columns.entry_offsets
        row = int(np.searchsorted(offsets, entry, side="right")) - 1
        before = self.columns.seq_lengths[offsets[row] : entry]
        return BatchViolation(row, int(before.sum(dtype=np.int64)), detail(entry))

    def find_wrong_turn(self, wrong: Bools, detail: Callable[[int], str]) -> BatchViolation | None:
        """Return the violation of the first wrong turn: wrong is bool (turns,)."""
        turn = _first(wrong)
        if turn is None:
            return None
        row = int(np.searchsorted(self.columns.turn_offsets, turn, side="right")) - 1
        return BatchViolation(row, int(self.columns.turn_starts[turn]), detail(turn))

    def find_wrong_position(
        self, wrong: NDArray[Any], detail: Callable[[int], str]
    ) -> BatchViolation | None:
        """Return the violation of the first wrong position: wrong is bool (sequences, seq_len)."""
        position = _first(wrong.ravel())
        return None if position is None else self.locate_violation(position, detail(position))

    def find_wrong_among(
        self, positions: Int64, wrong: Bools, detail: Callable[[int], str]
    ) -> BatchViolation | None:
        """Return the violation of the first wrong one of `positions`: wrong is bool (positions,).

        detail: called with the index into `positions`.
        """
        index = _first(wrong)
        return (
            None if index is None else self.locate_violation(int(positions[index]), detail(index))
        )

    def locate_violation(self, position: int, detail: str) -> BatchViolation:
        """Return the violation at a position of the batch."""
        row, position_in_row = divmod(position, self.layout.seq_len)
        return BatchViolation(row, position_in_row, detail)


def _first(wrong: NDArray[Any]) -> int | None:
    return int(wrong.argmax()) if wrong.any() else None


Law = Callable[[ColumnBatch], BatchViolation | None]
"""Returns the first violation of the law in a batch, or None if the batch keeps the law."""
