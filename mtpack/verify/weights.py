"""Compute the weight of turns of each length under several means, over all shards.

A weight of the turn itself (`turn_weights`) multiplies that of the mean, as in `mtpack.loss`.

Under the turn mean, every turn has the same weight. Under the token mean, the weight of a turn is
its number of loss tokens. Under the dialogue mean, every document has the same weight, and a turn
has its share of its document's loss tokens. Under the square root, the weight of a turn is the
square root of its number of loss tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtpack.packing.columns import Columns, Float32
from mtpack.shards.dataset import Shards
from mtpack.token_batch import Int64, offsets_from_lengths, segment_ids

MEANS = ("turn_mean", "token_mean", "dialogue_mean", "square_root")


@dataclass(frozen=True, slots=True)
class WeightBucket:
    """The turns with a number of loss tokens from one power of two up to the next."""

    low: int
    high: int
    """Inclusive."""
    turns: int
    tokens: int
    weights: dict[str, float]
    """For each of `MEANS`, the share of the whole loss that these turns have."""


@dataclass(frozen=True, slots=True)
class TurnWeights:
    """What the weight of each turn of a record batch depends on."""

    loss_tokens: Int64
    """(turns,): the number of loss tokens of each turn."""
    in_document: Int64
    """(turns,): the number of loss tokens of its whole document."""
    own: Float32 | None = None
    """(turns,): the weight of each turn; None if all have the weight 1."""

    def under(self, mean: str) -> NDArray[np.float64]:
        """Return the weight of each turn under one of `MEANS`, up to a factor: float64 (turns,)."""
        by_mean = self._weigh_by(mean)
        return by_mean if self.own is None else by_mean * self.own

    def _weigh_by(self, mean: str) -> NDArray[np.float64]:
        if mean == "turn_mean":
            return np.ones(len(self.loss_tokens))
        if mean == "token_mean":
            return self.loss_tokens.astype(np.float64)
        if mean == "dialogue_mean":
            return self.loss_tokens / self.in_document
        return np.sqrt(self.loss_tokens)


def read_turn_weights(batch: Columns, seq_len: int) -> TurnWeights:
    """Return what the weights of a record batch's turns depend on; its columns are not damaged."""
    rows = segment_ids(batch.turn_offsets)
    lengths = batch.loss_token_num[rows, batch.turn_starts].astype(np.int64)
    starts = offsets_from_lengths(batch.seq_lengths)
    documents = np.searchsorted(starts, rows * seq_len + batch.turn_starts, side="right") - 1
    in_document = np.bincount(documents, weights=lengths)[documents]
    return TurnWeights(lengths, in_document.astype(np.int64), batch.turn_weights)


class WeightSums:
    """The weights of turns, summed up by their lengths: one sum for each mean and power of two."""

    def __init__(self) -> None:
        """Start with no turn."""
        self._sums = np.zeros((len(MEANS), 32))
        self._counts = np.zeros((2, 32), np.int64)
        """Of turns, and of their loss tokens."""

    def add(self, turns: TurnWeights) -> None:
        """Add turns."""
        exponents = np.frexp(turns.loss_tokens)[1] - 1
        self._counts[0] += np.bincount(exponents, minlength=32)
        tokens = np.bincount(exponents, weights=turns.loss_tokens, minlength=32)
        self._counts[1] += tokens.astype(np.int64)
        for sums, mean in zip(self._sums, MEANS, strict=True):
            sums += np.bincount(exponents, weights=turns.under(mean), minlength=32)

    def make_buckets(self) -> list[WeightBucket]:
        """Return the buckets, from short to long turns; there is at least one turn."""
        weights = self._sums / self._sums.sum(axis=1, keepdims=True)
        turns, tokens = self._counts
        present = np.flatnonzero(turns)
        return [
            WeightBucket(
                low=2**exponent,
                high=2 ** (exponent + 1) - 1,
                turns=int(turns[exponent]),
                tokens=int(tokens[exponent]),
                weights=dict(zip(MEANS, weights[:, exponent].tolist(), strict=True)),
            )
            for exponent in range(present[0], present[-1] + 1)
        ]


def compute_weight_buckets(shards: Shards) -> list[WeightBucket]:
    """Return the buckets of shards that passed the structure check, in one pass."""
    sums = WeightSums()
    for batch in shards.batches():
        sums.add(read_turn_weights(batch, shards.metadata.seq_len))
    return sums.make_buckets()
