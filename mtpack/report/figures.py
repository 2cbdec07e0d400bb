"""Figures of shards, counted in one pass over their record batches."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mtpack.counts import Counts
from mtpack.errors import InputError
from mtpack.packing.columns import Columns
from mtpack.shards.dataset import Shards
from mtpack.token_batch import Int32, Int64, segment_ids


@dataclass(frozen=True, slots=True)
class Bucket:
    """The documents or turns with lengths from one power of two up to the next."""

    low: int
    high: int
    """Inclusive."""
    count: int
    """The number of documents or turns of these lengths."""
    tokens: int
    """The number of their tokens."""
    count_share: float
    """Of all documents or turns."""
    token_share: float
    """Of the tokens of all documents or turns."""

    @property
    def label(self) -> str:
        """The lengths as text: `1`, `2-3`, `4-7`."""
        return str(self.low) if self.low == self.high else f"{self.low}-{self.high}"


@dataclass(frozen=True, slots=True)
class Histogram:
    """The lengths of documents or turns; the buckets have no gap from shortest to longest."""

    min: int
    median: float
    mean: float
    max: int
    buckets: tuple[Bucket, ...]


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
    tally: Counts | None
    """The counts of the run that packed the shards; None without a manifest."""

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
    def documents_per_sequence(self) -> float:
        """The mean number of documents in a sequence."""
        return self.documents / self.rows

    @property
    def turns_per_document(self) -> float:
        """The mean number of turns in a document."""
        return self.turns / self.documents

    def as_dict(self) -> dict[str, Any]:
        """Return the object that `inspect --json` prints; `tally` is null without a manifest."""
        ratios = ("fill", "loss_share", "documents_per_sequence", "turns_per_document")
        return {
            **asdict(self),
            "padding": self.padding,
            **{name: round(getattr(self, name), 6) for name in ratios},
            "document_lengths": _lengths_as_dict(
                self.document_lengths, "count_share", "token_share"
            ),
            "turn_lengths": _lengths_as_dict(self.turn_lengths, "turn_mean", "token_mean"),
        }


def _lengths_as_dict(lengths: Histogram, count_share: str, token_share: str) -> dict[str, Any]:
    return asdict(lengths) | {
        "mean": round(lengths.mean, 3),
        "buckets": [
            {
                "label": bucket.label,
                "count": bucket.count,
                "tokens": bucket.tokens,
                count_share: round(bucket.count_share, 6),
                token_share: round(bucket.token_share, 6),
            }
            for bucket in lengths.buckets
        ],
    }


def count_figures(shards: Shards) -> Figures:
    """Return the figures of shards; raise InputError if their columns contradict each other.

    Memory: an array of seq_len + 1 counts for documents, one for turns, and one id per dialogue.
    """
    metadata = shards.metadata
    document_counts = np.zeros(metadata.seq_len + 1, np.int64)
    turn_counts = np.zeros(metadata.seq_len + 1, np.int64)
    dialogues: list[Int64] = []
    for shard in shards.opened:
        for batch in shard.batches:
            try:
                turn_counts += _count_lengths(_read_turn_lengths(batch), metadata.seq_len)
                is_document = batch.dialogue_ids >= 0
                lengths = batch.document_lengths[is_document]
                document_counts += _count_lengths(lengths, metadata.seq_len)
            except InputError as error:
                raise InputError(f"{shard.path}: damaged: {error}; pack the data again") from error
            dialogues.append(np.unique(batch.dialogue_ids[is_document]))
    if not (document_counts.any() and turn_counts.any()):
        raise InputError(
            f"{shards.opened[0].path}: it holds no trained turn, so there is nothing to show"
        )
    lengths_counted = np.arange(metadata.seq_len + 1)
    return Figures(
        rows=len(shards),
        seq_len=metadata.seq_len,
        label_alignment=metadata.label_alignment,
        pad_documents_to=metadata.pad_documents_to,
        shards=len(shards.opened),
        documents=int(document_counts.sum()),
        dialogues=len(np.unique(np.concatenate(dialogues))),
        turns=int(turn_counts.sum()),
        tokens=int(document_counts @ lengths_counted),
        loss_tokens=int(turn_counts @ lengths_counted),
        document_lengths=make_histogram(document_counts),
        turn_lengths=make_histogram(turn_counts),
        tally=shards.manifest.report.tally if shards.manifest else None,
    )


def _read_turn_lengths(batch: Columns) -> Int32:
    """Return the number of loss tokens of each turn: the loss_token_num at its start."""
    if not np.array_equal(batch.turn_num, np.diff(batch.turn_offsets)):
        raise InputError("turn_num and turn_starts do not agree")
    starts = batch.turn_starts
    if starts.size and not 0 <= starts.min() <= starts.max() < batch.loss_mask.shape[1]:
        raise InputError("a turn starts outside of its sequence")
    lengths: Int32 = batch.loss_token_num[segment_ids(batch.turn_offsets), starts]
    if lengths.sum(dtype=np.int64) != np.count_nonzero(batch.loss_mask):
        raise InputError("loss_mask and loss_token_num do not agree")
    return lengths


def _count_lengths(lengths: Int32, seq_len: int) -> Int64:
    if lengths.size and not 1 <= lengths.min() <= lengths.max() <= seq_len:
        raise InputError("a document or turn has an impossible length")
    return np.bincount(lengths, minlength=seq_len + 1)


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
