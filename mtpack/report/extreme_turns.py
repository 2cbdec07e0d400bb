"""The turns whose loss tokens have the most and the least weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mtpack.packing.columns import Columns
from mtpack.report.batches import read_turns, visit_batches
from mtpack.shards.dataset import Shards
from mtpack.token_batch import Int64, offsets_from_lengths, segment_ids
from mtpack.verify.weights import TurnWeights


@dataclass(frozen=True, slots=True)
class TurnEntry:
    """One turn of an output, with its weight."""

    sequence: int
    turn: int
    """The index of the turn in its sequence, from 0."""
    dialogue: int
    message: int
    loss_tokens: int
    in_document: int
    """The number of loss tokens of its document."""


@dataclass(frozen=True, slots=True)
class ExtremeTurns:
    """The shortest and the longest turns of an output.

    Under the turn mean, all turns have the same weight, so each token of a turn of n loss tokens
    has 1/n of it.
    """

    turns: int
    """The number of all turns."""
    loss_tokens: int
    """Those of all turns."""
    documents: int
    """The number of all documents with a turn."""
    shortest: tuple[TurnEntry, ...]
    """From short to long; equally long ones in the order of the sequences."""
    longest: tuple[TurnEntry, ...]
    """From long to short."""

    def weigh(self, turn: TurnEntry) -> dict[str, float]:
        """Return the weight of a turn under each mean, where that of all turns has the mean 1."""
        return {
            "turn_mean": 1.0,
            "token_mean": turn.loss_tokens * self.turns / self.loss_tokens,
            "dialogue_mean": turn.loss_tokens / turn.in_document * self.turns / self.documents,
        }

    def as_dict(self) -> dict[str, Any]:
        """Return the object that `inspect --turns --json` prints."""
        return {
            "turns": self.turns,
            **{
                name: [
                    {
                        "sequence": turn.sequence,
                        "turn": turn.turn,
                        "dialogue": turn.dialogue,
                        "message": turn.message,
                        "loss_tokens": turn.loss_tokens,
                        "token_weight": 1 / turn.loss_tokens,
                        **{mean: round(weight, 6) for mean, weight in self.weigh(turn).items()},
                    }
                    for turn in entries
                ]
                for name, entries in (("shortest", self.shortest), ("longest", self.longest))
            },
        }


def find_extreme_turns(shards: Shards, limit: int) -> ExtremeTurns:
    """Return the shortest and the longest turns, `limit` of each, in one pass.

    Raises InputError for damaged shards.
    """
    shortest: list[TurnEntry] = []
    longest: list[TurnEntry] = []
    sums = np.zeros(2, np.int64)
    documents = 0.0

    def visit(first: int, batch: Columns) -> None:
        nonlocal shortest, longest, documents
        turns = read_turns(batch, shards.metadata.seq_len)
        sums[:] += len(turns.loss_tokens), turns.loss_tokens.sum()
        documents += turns.under("dialogue_mean").sum()
        found = turns.loss_tokens
        by_length = np.argsort(found, kind="stable")[:limit]
        shortest += _read_entries(batch, first, turns, by_length)
        shortest = sorted(shortest, key=lambda turn: turn.loss_tokens)[:limit]
        by_length = np.argsort(-found, kind="stable")[:limit]
        longest += _read_entries(batch, first, turns, by_length)
        longest = sorted(longest, key=lambda turn: -turn.loss_tokens)[:limit]

    for _ in visit_batches(shards, visit):
        pass
    turns, loss_tokens = sums.tolist()
    return ExtremeTurns(turns, loss_tokens, round(documents), tuple(shortest), tuple(longest))


def _read_entries(
    batch: Columns, first: int, weights: TurnWeights, chosen: Int64
) -> list[TurnEntry]:
    """Return turns of a record batch by their indexes; first: the number of its first sequence."""
    rows = segment_ids(batch.turn_offsets)[chosen]
    turns = chosen - batch.turn_offsets[rows]
    positions = rows * batch.input_ids.shape[1] + batch.turn_starts[chosen]
    starts = offsets_from_lengths(batch.seq_lengths)
    documents = np.searchsorted(starts, positions, side="right") - 1
    columns = (
        rows + first,
        turns,
        batch.dialogue_ids[documents],
        batch.turn_messages[chosen],
        weights.loss_tokens[chosen],
        weights.in_document[chosen],
    )
    return [TurnEntry(*entry) for entry in zip(*(each.tolist() for each in columns), strict=True)]
