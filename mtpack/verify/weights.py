"""Compute the weight of turns of each length under several means, over all shards.

Under the turn mean, every turn has the same weight. Under the token mean, the weight of a turn is
its number of loss tokens. Under the dialogue mean, every document has the same weight, and a turn
has its share of its document's loss tokens. Under the square root, the weight of a turn is the
square root of its number of loss tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mtpack.packing.columns import Columns
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


def compute_weight_buckets(shards: Shards) -> list[WeightBucket]:
    """Return the buckets of shards that passed the structure check, from short to long turns.

    One pass over the record batches, with one sum for each mean and power of two.
    """
    sums = np.zeros((len(MEANS), 32))
    for shard in shards.opened:
        for batch in shard.batches:
            sums += _sum_weights(batch, shards.metadata.seq_len)
    weights = sums / sums.sum(axis=1, keepdims=True)
    turns, tokens, *_ = sums.astype(np.int64)
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


def _sum_weights(batch: Columns, seq_len: int) -> Any:
    """Return the weights of turns, not yet divided by their sum: (means, powers of two).

    The first two rows are the numbers of turns and of loss tokens.
    """
    rows = segment_ids(batch.turn_offsets)
    lengths = batch.loss_token_num[rows, batch.turn_starts].astype(np.int64)
    starts = offsets_from_lengths(batch.seq_lengths)
    documents = np.searchsorted(starts, rows * seq_len + batch.turn_starts, side="right") - 1
    in_document: Int64 = np.bincount(documents, weights=lengths)[documents]
    exponents = np.frexp(lengths)[1] - 1
    values = (np.ones(len(lengths)), lengths, lengths / in_document, np.sqrt(lengths))
    return np.stack([np.bincount(exponents, weights=one, minlength=32) for one in values])
