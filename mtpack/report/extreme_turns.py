"""The turns whose loss tokens have the most and the least weight."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mtpack.packing.columns import Columns, Float32
from mtpack.report.batches import read_turns, visit_batches
from mtpack.shards.dataset import Shards
from mtpack.token_batch import Int64, offsets_from_lengths, segment_ids
from mtpack.verify.weights import MEANS, TurnWeights

_MEANS = MEANS[:3]


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
    turn_weight: float | None = None
    """Its own weight; None if its shard has no weights."""

    @property
    def token_weight(self) -> float:
        """The weight of each of its loss tokens under the turn mean."""
        return (self.turn_weight or 1) / self.loss_tokens

    def under(self, mean: str) -> float:
        """Return the weight of the turn under a mean, up to a factor."""
        own: Float32 | None = None
        if self.turn_weight is not None:
            own = np.array([self.turn_weight], np.float32)
        lengths = np.array([self.loss_tokens]), np.array([self.in_document])
        return float(TurnWeights(*lengths, own).under(mean)[0])


@dataclass(frozen=True, slots=True)
class ExtremeTurns:
    """The turns of an output whose tokens have the most and the least weight.

    Under the turn mean, all turns have the same weight, so each token of a turn of n loss tokens
    has 1/n of it: these are the shortest and the longest turns. A turn with a weight w of its own
    counts as one of n/w tokens.
    """

    turns: int
    """The number of all turns."""
    weights: dict[str, float]
    """The sum of the weights of all turns under each mean."""
    shortest: tuple[TurnEntry, ...]
    """From short to long; equally long ones in the order of the sequences."""
    longest: tuple[TurnEntry, ...]
    """From long to short."""

    def weigh(self, turn: TurnEntry) -> dict[str, float]:
        """Return the weight of a turn under each mean, where that of all turns has the mean 1."""
        return {mean: turn.under(mean) * self.turns / total for mean, total in self.weights.items()}

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
                        "token_weight": turn.token_weight,
                        **{mean: round(weight, 6) for mean, weight in self.weigh(turn).items()},
                    }
                    for turn in entries
                ]
                for name, entries in (("shortest", self.shortest), ("longest", self.longest))
            },
        }


def find_extreme_turns(shards: Shards, limit: int) -> ExtremeTurns:
    """Return the turns whose tokens have the most and the least weight, `limit` of each.

    Raises InputError for damaged shards.
    """
    shortest: list[TurnEntry] = []
    longest: list[TurnEntry] = []
    number = 0
    weights = dict.fromkeys(_MEANS, 0.0)

    def visit(first: int, batch: Columns) -> None:
        nonlocal shortest, longest, number
        turns = read_turns(batch, shards.metadata.seq_len)
        number += len(turns.loss_tokens)
        for mean in _MEANS:
            weights[mean] += float(turns.under(mean).sum())
        found = turns.loss_tokens if turns.own is None else turns.loss_tokens / turns.own
        by_length = np.argsort(found, kind="stable")[:limit]
        shortest += _read_entries(batch, first, turns, by_length)
        shortest = sorted(shortest, key=lambda turn: -turn.token_weight)[:limit]
        by_length = np.argsort(-found, kind="stable")[:limit]
        longest += _read_entries(batch, first, turns, by_length)
        longest = sorted(longest, key=lambda turn: turn.token_weight)[:limit]

    for _ in visit_batches(shards, visit):
        pass
    return ExtremeTurns(number, weights, tuple(shortest), tuple(longest))


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
    entries = [TurnEntry(*entry) for entry in zip(*(c.tolist() for c in columns), strict=True)]
    if weights.own is None:
        return entries
    own = weights.own[chosen].tolist()
    return [replace(entry, turn_weight=weight) for entry, weight in zip(entries, own, strict=True)]
