"""Figures of shards, counted in one pass over their record batches."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mtpack.counts import Counts
from mtpack.errors import InputError
from mtpack.packing.columns import Columns
from mtpack.report.batches import read_turns, visit_batches
from mtpack.shards.dataset import Shards
from mtpack.shards.manifest import SourceRecord
from mtpack.token_batch import Int32, Int64
from mtpack.verify.weights import WeightBucket, WeightSums

_FILL_BINS = 20


@dataclass(frozen=True, slots=True)
class Bucket:
    """The items of a histogram from one power of two up to the next."""

    low: int
    high: int
    """Inclusive."""
    count: int
    """The number of these items."""
    tokens: int
    """The sum of their sizes: the number of their tokens, if sizes are lengths."""
    count_share: float
    """Of all items."""
    token_share: float
    """Of the sum of all sizes."""

    @property
    def label(self) -> str:
        """The sizes as text: `1`, `2-3`, `4-7`."""
        return make_label(self.low, self.high)


@dataclass(frozen=True, slots=True)
class Histogram:
    """The sizes of items, such as the lengths of turns; the buckets have no gap between them."""

    min: int
    median: float
    mean: float
    max: int
    buckets: tuple[Bucket, ...]


@dataclass(frozen=True, slots=True)
class FillBin:
    """The sequences that are filled with tokens of documents from one share up to another."""

    low: float
    """Exclusive."""
    high: float
    """Inclusive."""
    sequences: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The figures of shards."""

    rows: int
    """The number of sequences."""
    seq_len: int
    label_alignment: str
    pad_documents_to: int
    shards: int
    documents: int
    dialogues: int
    """The number of different dialogues: a dialogue can have several documents."""
    turns: int
    tokens: int
    """Tokens of documents, without padding."""
    loss_tokens: int
    document_lengths: Histogram
    turn_lengths: Histogram
    """In loss tokens. The share of the loss that a bucket has is its `token_share` under the token
    mean, and its `count_share` under the turn mean."""
    documents_per_sequence: Histogram
    """The number of documents of each sequence; `tokens` of a bucket are documents."""
    turns_per_sequence: Histogram
    """The number of turns of each sequence; `tokens` of a bucket are turns."""
    fill_of_sequences: tuple[FillBin, ...]
    """20 bins of a twentieth each, from the emptiest to the fullest."""
    weight_by_length: tuple[WeightBucket, ...]
    """The share of the gradient that the turns of each length have under each mean of
    `mtpack.loss`: the weights of their losses, divided by the sum of all weights."""
    tally: Counts | None
    """The counts of the run that packed the shards; None without a manifest."""
    sources: tuple[SourceRecord, ...] = ()
    """Those of the run, if it had several or one with a name."""

    @property
    def padding(self) -> int:
        """The number of positions that hold no token of a document."""
        return self.rows * self.seq_len - self.tokens

    @property
    def fill(self) -> float:
        """The share of all positions that hold a token of a document."""
        return self.tokens / (self.rows * self.seq_len)

    @property
    def loss_share(self) -> float:
        """The share of the documents' tokens that are loss tokens."""
        return self.loss_tokens / self.tokens

    @property
    def compute_share(self) -> float:
        """The share of all positions, with padding, that carry loss: a step computes them all."""
        return self.loss_tokens / (self.rows * self.seq_len)

    @property
    def turns_per_document(self) -> float:
        """The mean number of turns in a document."""
        return self.turns / self.documents

    def as_dict(self) -> dict[str, Any]:
        """Return the object that `inspect --json` prints; `tally` is null without a manifest."""
        ratios = ("fill", "loss_share", "compute_share", "turns_per_document")
        return {
            **asdict(self),
            "sources": [source.as_dict() for source in self.sources],
            "padding": self.padding,
            **{name: round(getattr(self, name), 6) for name in ratios},
            "document_lengths": _sizes_as_dict(self.document_lengths, "count_share", "token_share"),
            "turn_lengths": _sizes_as_dict(self.turn_lengths, "turn_mean", "token_mean"),
            "documents_per_sequence": _sizes_as_dict(self.documents_per_sequence, "count_share"),
            "turns_per_sequence": _sizes_as_dict(self.turns_per_sequence, "count_share"),
            "weight_by_length": [_weights_as_dict(bucket) for bucket in self.weight_by_length],
        }


def _sizes_as_dict(
    sizes: Histogram, count_share: str, token_share: str | None = None
) -> dict[str, Any]:
    """Return a histogram as JSON values: shares by these names, tokens only with their share."""
    buckets = []
    for bucket in sizes.buckets:
        values: dict[str, Any] = {"label": bucket.label, "count": bucket.count}
        if token_share is not None:
            values["tokens"] = bucket.tokens
        values[count_share] = round(bucket.count_share, 6)
        if token_share is not None:
            values[token_share] = round(bucket.token_share, 6)
        buckets.append(values)
    return asdict(sizes) | {"mean": round(sizes.mean, 3), "buckets": buckets}


def _weights_as_dict(bucket: WeightBucket) -> dict[str, Any]:
    return {
        "label": make_label(bucket.low, bucket.high),
        "turns": bucket.turns,
        "tokens": bucket.tokens,
        **{mean: round(share, 6) for mean, share in bucket.weights.items()},
    }


def make_label(low: int, high: int) -> str:
    """Return the sizes of a bucket as text: `1`, `2-3`, `4-7`."""
    return str(low) if low == high else f"{low}-{high}"


class _Counter:
    """Counts what is in record batches.

    Memory: four arrays of seq_len + 1 counts, and one id per dialogue and batch.
    """

    def __init__(self, seq_len: int) -> None:
        self.seq_len = seq_len
        shape = seq_len + 1
        self.documents, self.turns = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        self.documents_in_rows = np.zeros(shape, np.int64)
        self.turns_in_rows = np.zeros(shape, np.int64)
        self.fill = np.zeros(_FILL_BINS, np.int64)
        self.weights = WeightSums()
        self.dialogues: list[Int64] = []

    def add(self, _: int, batch: Columns) -> None:
        """Add a record batch; raise InputError if its columns contradict each other."""
        turns = read_turns(batch, self.seq_len)
        is_document = batch.dialogue_ids >= 0
        firsts = batch.entry_offsets[:-1]  # every sequence has at least one entry
        documents = np.add.reduceat(is_document.astype(np.int64), firsts)
        tokens = np.add.reduceat(batch.document_lengths.astype(np.int64) * is_document, firsts)
        if len(documents) and documents.min() < 1:
            raise InputError("a sequence has no document")
        _count_sizes(self.turns, turns.loss_tokens)
        _count_sizes(self.documents, batch.document_lengths[is_document])
        _count_sizes(self.documents_in_rows, documents)
        _count_sizes(self.turns_in_rows, batch.turn_num)
        self.fill += np.bincount(-(-tokens * _FILL_BINS // self.seq_len) - 1, minlength=_FILL_BINS)
        self.weights.add(turns)
        self.dialogues.append(np.unique(batch.dialogue_ids[is_document]))


def count_figures(shards: Shards) -> Figures:
    """Return the figures of shards; raise InputError if their columns contradict each other."""
    metadata = shards.metadata
    counted = _Counter(metadata.seq_len)
    for _ in visit_batches(shards, counted.add):
        pass
    if not (counted.documents.any() and counted.turns.any()):
        raise InputError(
            f"{shards.opened[0].path}: it holds no trained turn, so there is nothing to show"
        )
    sizes = np.arange(metadata.seq_len + 1)
    return Figures(
        rows=len(shards),
        seq_len=metadata.seq_len,
        label_alignment=metadata.label_alignment,
        pad_documents_to=metadata.pad_documents_to,
        shards=len(shards.opened),
        documents=int(counted.documents.sum()),
        dialogues=len(np.unique(np.concatenate(counted.dialogues))),
        turns=int(counted.turns.sum()),
        tokens=int(counted.documents @ sizes),
        loss_tokens=int(counted.turns @ sizes),
        document_lengths=make_histogram(counted.documents),
        turn_lengths=make_histogram(counted.turns),
        documents_per_sequence=make_histogram(counted.documents_in_rows),
        turns_per_sequence=make_histogram(counted.turns_in_rows),
        fill_of_sequences=tuple(
            FillBin(number / _FILL_BINS, (number + 1) / _FILL_BINS, int(sequences))
            for number, sequences in enumerate(counted.fill)
        ),
        weight_by_length=tuple(counted.weights.make_buckets()),
        tally=shards.manifest.report.tally if shards.manifest else None,
        sources=tuple(shards.manifest.report.sources) if shards.manifest else (),
    )


def _count_sizes(counts: Int64, sizes: Int32 | Int64) -> None:
    found = np.bincount(sizes)
    counts[: len(found)] += found


def make_histogram(counts: Int64) -> Histogram:
    """Return the histogram of lengths, with a bucket for each power of two.

    counts: int64; counts[n] is the number of items of length n. counts[0] is 0, the sum is not.

    >>> [bucket.label for bucket in make_histogram(np.array([0, 2, 0, 0, 1, 1])).buckets]
    ['1', '2-3', '4-7']
    """
    tokens = counts * np.arange(len(counts))
    total, total_tokens = int(counts.sum()), int(tokens.sum())
    present = np.flatnonzero(counts)
    middles = np.searchsorted(np.cumsum(counts), [(total - 1) // 2, total // 2], side="right")
    shortest, longest = int(present[0]), int(present[-1])
    buckets = []
    for exponent in range(shortest.bit_length() - 1, longest.bit_length()):
        lengths = slice(2**exponent, 2 ** (exponent + 1))
        count, bucket_tokens = int(counts[lengths].sum()), int(tokens[lengths].sum())
        buckets.append(
            Bucket(
                low=lengths.start,
                high=lengths.stop - 1,
                count=count,
                tokens=bucket_tokens,
                count_share=count / total,
                token_share=bucket_tokens / total_tokens,
            )
        )
    return Histogram(
        min=shortest,
        median=float(middles.mean()),
        mean=total_tokens / total,
        max=longest,
        buckets=tuple(buckets),
    )
