"""Tokens and turns as flat arrays: documents one behind the other, with offsets.

A `TokenBatch` is what flows between tokenizing and writing: three nested lists (documents hold
turns, turns hold spans of loss tokens), each stored as one array and the offsets that cut it.
Everything here is integers in, integers out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from enum import IntFlag
from typing import Any

import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Bools = NDArray[np.bool_]


UInt8 = NDArray[np.uint8]


class TurnFlag(IntFlag):
    """What is to be told about a turn; the report counts each (docs/turns.md)."""

    OWN_DOCUMENT = 1
    """Merging is not exact, so the turn has a document of its own."""
    PROMPT_DIFFERS = 2
    """What the model is prompted with is not what the turn's message starts with."""
    NO_EOT = 4
    """The turn does not end in a control token."""
    UNPROVEN = 8
    """The dialogue up to this turn can't be rendered alone, so merging can't be checked."""
    BENT = 16
    """Merged although that is not exact (`--merge always`)."""


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Documents as tokens, with their turns.

    Document d holds `ids[document_offsets[d]:document_offsets[d+1]]` and the turns
    `turn_offsets[d]:turn_offsets[d+1]`; turn t holds the spans `span_offsets[t]:span_offsets[t+1]`.
    A span is half open and counted from the start of its document. Turns and spans ascend.
    """

    ids: Int32
    """(tokens,)"""
    document_offsets: Int64
    """(documents + 1,)"""
    document_rows: Int64
    """(documents,): the index of the input row."""
    turn_offsets: Int64
    """(documents + 1,)"""
    turn_messages: Int32
    """(turns,): the index of the turn's message in its dialogue."""
    turn_flags: UInt8
    """(turns,): `TurnFlag` bits."""
    span_offsets: Int64
    """(turns + 1,)"""
    span_starts: Int32
    """(spans,)"""
    span_ends: Int32
    """(spans,)"""

    @property
    def num_documents(self) -> int:
        """The number of documents."""
        return len(self.document_rows)

    @property
    def num_turns(self) -> int:
        """The number of turns."""
        return len(self.turn_messages)

    @property
    def document_lengths(self) -> Int64:
        """Tokens of each document, (documents,)."""
        return np.diff(self.document_offsets)

    @property
    def turn_documents(self) -> Int64:
        """The document of each turn, (turns,)."""
        return segment_ids(self.turn_offsets)

    @property
    def span_turns(self) -> Int64:
        """The turn of each span, (spans,)."""
        return segment_ids(self.span_offsets)

    @property
    def loss_token_num(self) -> Int64:
        """Loss tokens of each turn, (turns,)."""
        covered = offsets_from_lengths(self.span_ends - self.span_starts)
        return np.diff(covered[self.span_offsets])

    @property
    def turn_ends(self) -> Int32:
        """The position behind each turn's last loss token, in its document, (turns,).

        Every turn must have a span.
        """
        return self.span_ends[self.span_offsets[1:] - 1]

    def take(self, documents: Int64) -> TokenBatch:
        """Gather `documents`, in that order."""
        turns = gather_ranges(self.turn_offsets, documents)
        spans = gather_ranges(self.span_offsets, turns)
        return TokenBatch(
            ids=self.ids[gather_ranges(self.document_offsets, documents)],
            document_offsets=offsets_from_lengths(self.document_lengths[documents]),
            document_rows=self.document_rows[documents],
            turn_offsets=offsets_from_lengths(np.diff(self.turn_offsets)[documents]),
            turn_messages=self.turn_messages[turns],
            turn_flags=self.turn_flags[turns],
            span_offsets=offsets_from_lengths(np.diff(self.span_offsets)[turns]),
            span_starts=self.span_starts[spans],
            span_ends=self.span_ends[spans],
        )


def offsets_from_lengths(lengths: NDArray[np.integer]) -> Int64:
    """Return where each of consecutive pieces starts, and where the last one ends.

    >>> offsets_from_lengths(np.array([3, 0, 2])).tolist()
    [0, 3, 3, 5]
    """
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def segment_ids(offsets: Int64) -> Int64:
    """Return for every element which piece it lies in.

    >>> segment_ids(np.array([0, 3, 3, 5])).tolist()
    [0, 0, 0, 2, 2]
    """
    return np.repeat(np.arange(len(offsets) - 1, dtype=np.int64), np.diff(offsets))


def expand_ranges(starts: NDArray[np.integer], lengths: NDArray[np.integer]) -> Int64:
    """Return all the integers of the ranges `[start, start + length)`, one range after the other.

    >>> expand_ranges(np.array([10, 4]), np.array([2, 3])).tolist()
    [10, 11, 4, 5, 6]
    """
    offsets = offsets_from_lengths(lengths)
    return np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1], dtype=np.int64)


def gather_ranges(offsets: Int64, pieces: Int64) -> Int64:
    """Return the indices of all elements of `pieces`, in that order."""
    starts = offsets[:-1][pieces]
    return expand_ranges(starts, offsets[1:][pieces] - starts)


def concatenate(batches: Sequence[TokenBatch]) -> TokenBatch:
    """Put batches one behind the other."""
    joined: dict[str, Any] = {}
    for field in fields(TokenBatch):
        arrays = [getattr(batch, field.name) for batch in (_EMPTY, *batches)]
        if field.name.endswith("_offsets"):
            joined[field.name] = offsets_from_lengths(
                np.concatenate([np.diff(array) for array in arrays])
            )
        else:
            joined[field.name] = np.concatenate(arrays)
    return TokenBatch(**joined)


def keep_turns(batch: TokenBatch, kept: Bools) -> TokenBatch:
    """Keep the turns that are marked; a document ends with its last turn, or goes with it.

    kept: bool (turns,).
    """
    turns = np.flatnonzero(kept)
    spans = gather_ranges(batch.span_offsets, turns)
    turn_documents = batch.turn_documents[turns]
    turns_per_document = np.bincount(turn_documents, minlength=batch.num_documents)
    documents = np.flatnonzero(turns_per_document)
    turn_offsets = offsets_from_lengths(turns_per_document[documents])
    turn_ends = batch.span_ends[batch.span_offsets[1:][turns] - 1]
    lengths = turn_ends[turn_offsets[1:] - 1]
    starts = batch.document_offsets[documents]
    return TokenBatch(
        ids=batch.ids[expand_ranges(starts, lengths)],
        document_offsets=offsets_from_lengths(lengths),
        document_rows=batch.document_rows[documents],
        turn_offsets=turn_offsets,
        turn_messages=batch.turn_messages[turns],
        turn_flags=batch.turn_flags[turns],
        span_offsets=offsets_from_lengths(np.diff(batch.span_offsets)[turns]),
        span_starts=batch.span_starts[spans],
        span_ends=batch.span_ends[spans],
    )


def keep_loss_tokens_before(batch: TokenBatch, limit: int) -> TokenBatch:
    """Cut every document's loss tokens at `limit`; turns left without any go, with their documents.

    Counts follow from the spans, so a cut turn's `loss_token_num` is of what is left of it.
    """
    starts = np.minimum(batch.span_starts, limit).astype(np.int32)
    ends = np.minimum(batch.span_ends, limit).astype(np.int32)
    kept_spans = np.flatnonzero(ends > starts)
    spans_per_turn = np.bincount(batch.span_turns[kept_spans], minlength=batch.num_turns)
    cut = replace(
        batch,
        span_offsets=offsets_from_lengths(spans_per_turn),
        span_starts=starts[kept_spans],
        span_ends=ends[kept_spans],
    )
    return keep_turns(cut, spans_per_turn > 0)


_EMPTY = TokenBatch(
    ids=np.empty(0, np.int32),
    document_offsets=np.zeros(1, np.int64),
    document_rows=np.empty(0, np.int64),
    turn_offsets=np.zeros(1, np.int64),
    turn_messages=np.empty(0, np.int32),
    turn_flags=np.empty(0, np.uint8),
    span_offsets=np.zeros(1, np.int64),
    span_starts=np.empty(0, np.int32),
    span_ends=np.empty(0, np.int32),
)
