"""Weights of turns (`--turn-weights`): those of dialogues become those of the turns of a batch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from mtpack.counts import Counts
from mtpack.input.dialogue import Dialogue
from mtpack.token_batch import Int32, Int64, TokenBatch


@dataclass(slots=True)
class TurnUnits:
    """The weights of the turns of a split, in units of 1/1024."""

    default: int
    """Of turns whose message has no other weight than 1: that of their source."""
    _others: dict[tuple[int, int], int] = field(default_factory=dict)
    """Of all other messages, by row and message."""

    def add(self, dialogue: Dialogue) -> None:
        """Add an accepted dialogue with `turn_units`."""
        for message, units in (dialogue.turn_units or {}).items():
            self._others[dialogue.row, message] = units

    def count(self) -> Counts:
        """Count the messages that carry no loss, since their weight is rounded to 0 units."""
        return Counts(weight_too_small=sum(not units for units in self._others.values()))

    def weigh(self, batch: TokenBatch) -> TokenBatch:
        """Return a batch of these dialogues with the weights of its turns."""
        units: Int32 = np.full(batch.num_turns, self.default, np.int32)
        if self._others:
            keys = _make_keys(batch.document_rows[batch.turn_documents], batch.turn_messages)
            rows, messages = np.array(list(self._others), np.int64).T
            other_keys = _make_keys(rows, messages)
            order = np.argsort(other_keys)
            found = order[np.searchsorted(other_keys, keys, sorter=order).clip(max=len(order) - 1)]
            is_other = other_keys[found] == keys
            others = np.fromiter(self._others.values(), np.int32, len(order))
            units[is_other] = others[found[is_other]]
        return replace(batch, turn_units=units)


def _make_keys(rows: Int64, messages: Int64 | Int32) -> Int64:
    # Rows are numbered within their split, so both fit into 32 bits.
    return rows * 2**32 + messages
