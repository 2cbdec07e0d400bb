"""What another mean would have done: how much turns of each length weigh, over all of the shards.

Under the turn mean every turn weighs the same; under the token mean, its share of the loss tokens;
under the dialogue mean every document weighs the same, and a turn its share of its document's loss
tokens; under the square root, the root of its length.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mtpack.packing.columns import Columns
from mtpack.shards.dataset import Shards
from mtpack.token_batch import Int64, offsets_from_lengths, segment_ids

MEANS = ("turn_mean", "token_mean", "dialogue_mean", "square_root")


@dataclass(frozen=True, slots=True)
class WeightBin:
    """The turns whose number of loss tokens lies from one power of two up to the next."""

    low: int
    high: int
    """Inclusive."""
    turns: int
    tokens: int
    weights: dict[str, float]
    """Under each of `MEANS`, the share of the whole loss that these turns decide."""

    @property
    def turn_share(self) -> float:
        """Of all turns, how many these are: what they weigh where each turn weighs the same."""
        return self.weights["turn_mean"]

    @property
    def token_share(self) -> float:
        """Of all loss tokens, how many these turns have."""
        return self.weights["token_mean"]

    @property
    def label(self) -> str:
        """The lengths as text: `1`, `2-3`, `4-7`."""
        return str(self.low) if self.low == self.high else f"{self.low:,}-{self.high:,}"

    def as_dict(self) -> dict[str, Any]:
        """Return the object that `verify --json` prints."""
        rounded = {name: round(weight, 6) for name, weight in self.weights.items()}
        return asdict(self) | {
            "turn_share": round(self.turn_share, 6),
            "token_share": round(self.token_share, 6),
            "weights": rounded,
        }


def weight_bins(shards: Shards) -> list[WeightBin]:
    """Weigh the turns of shards whose structure has passed, from the shortest to the longest.

    In one pass over the record batches, with a count for each power of two.
    """
    sums = np.zeros((len(MEANS), 32))
    for shard in shards.opened:
        for batch in shard.batches:
            sums += _batch_sums(batch, shards.metadata.seq_len)
    weights = sums / sums.sum(axis=1, keepdims=True)
    turns, tokens, *_ = sums.astype(np.int64)
    present = np.flatnonzero(turns)
    return [
        WeightBin(
            low=2**exponent,
            high=2 ** (exponent + 1) - 1,
            turns=int(turns[exponent]),
            tokens=int(tokens[exponent]),
            weights=dict(zip(MEANS, weights[:, exponent].tolist(), strict=True)),
        )
        for exponent in range(present[0], present[-1] + 1)
    ]


def _batch_sums(batch: Columns, seq_len: int) -> Any:
    """Return reference_step weights by each of `MEANS`, for each power of two.

    By the first two, those are how many turns and how many tokens there are.
    """
    rows = segment_ids(batch.turn_offsets)
    lengths = batch.loss_token_num[rows, batch.turn_starts].astype(np.int64)
    starts = offsets_from_lengths(batch.seq_lengths)
    documents = np.searchsorted(starts, rows * seq_len + batch.turn_starts, side="right") - 1
    in_document: Int64 = np.bincount(documents, weights=lengths)[documents]
    exponents = np.frexp(lengths)[1] - 1
    values = (
        np.ones(len(lengths)),
        lengths,
        lengths / in_document,
        np.sqrt(lengths),
    )
    return np.stack([np.bincount(exponents, weights=one, minlength=32) for one in values])
