"""Documents with their tokens and turns, as flat arrays with offsets.

A `TokenBatch` is the data that flows from tokenizing to writing. Documents contain turns, and turns
contain spans of loss tokens. Each level is stored as one array for all documents, with the offsets
that divide it. All values are integers.
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

WEIGHT_UNITS = 1024
"""The units of the weight 1 of a turn."""


class TurnFlag(IntFlag):
    """Facts about a turn that the report counts (docs/turns.md)."""

    OWN_DOCUMENT = 1
    """Merging is not exact, so the turn has a document of its own."""
    PROMPT_DIFFERS = 2
    """The dialogue up to this turn does not start with the prompt that the model gets."""
    NO_EOT = 4
    """The turn does not end in a control token."""
    UNPROVEN = 8
    """The dialogue up to this turn can't be rendered alone, so exact merging can't be checked."""
    BENT = 16
    """The turn is merged although that is not exact (`--merge always`)."""
    PROMPT_OTHER_MODE = 32
    """The turn continues the prompt of another mode of the template."""
    PROMPT_CONTEXT = 64
    """The context of the turn is the prompt, which its dialogue does not start with."""
    NOT_A_STOP = 128
    """The turn ends in a control token that is no stop token."""


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Documents as tokens, with their turns.

    Document d has the ids `ids[document_offsets[d]:document_offsets[d+1]]` and the turns
    `turn_offsets[d]:turn_offsets[d+1]`. Turn t has the spans `span_offsets[t]:span_offsets[t+1]`.
    A span is a half-open range of positions in its document. Turns and spans ascend.
    """

    ids: Int32
    """(tokens,)"""
    document_offsets: Int64
    """(documents + 1,)"""
    document_rows: Int64
    """(documents,): the index of the document's input row."""
    turn_offsets: Int64
    """(documents + 1,)"""
    turn_messages: Int32
    """(turns,): the index of the turn's message in its dialogue."""
    turn_flags: UInt8
    """(turns,): `TurnFlag` bits."""
    span_offsets: Int64
    """(turns + 1,)"""
    span_starts: Int32
    """(spans,): the first position of each span."""
    span_ends: Int32
    """(spans,): the position after the last one of each span."""
    turn_units: Int32 | None = None
    """(turns,): the weight of each turn in units of 1/1024. None if all have the weight 1."""

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
        """The number of tokens of each document, (documents,)."""
        return np.diff(self.document_offsets)

    @property
    def turn_documents(self) -> Int64:
        """The index of the document of each turn, (turns,)."""
        return segment_ids(self.turn_offsets)

    @property
    def span_turns(self) -> Int64:
        """The index of the turn of each span, (spans,)."""
        return segment_ids(self.span_offsets)

    @property
    def loss_token_num(self) -> Int64:
        """The number of loss tokens of each turn, (turns,)."""
        covered = offsets_from_lengths(self.span_ends - self.span_starts)
        return np.diff(covered[self.span_offsets])

    @property
    def turn_ends(self) -> Int32:
        """The position after each turn's last loss token, in its document, (turns,).

        Every turn must have a span.
        """
        return self.span_ends[self.span_offsets[1:] - 1]

    def list_units(self) -> Int32:
        """Return the weight of each turn in units of 1/1024, (turns,)."""
        if self.turn_units is not None:
            return self.turn_units
        return np.full(self.num_turns, WEIGHT_UNITS, np.int32)

    def take(self, documents: Int64) -> TokenBatch:
        """Return a batch of the documents with these indices, in that order."""
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
            turn_units=None if self.turn_units is None else self.turn_units[turns],
        )


def offsets_from_lengths(lengths: NDArray[np.integer]) -> Int64:
    """Return the offsets of consecutive segments: the start of each, and the end of the last.

    >>> offsets_from_lengths(np.array([3, 0, 2])).tolist()
    [0, 3, 3, 5]
    """
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def segment_ids(offsets: Int64) -> Int64:
    """Return the index of the segment of every element.

    >>> segment_ids(np.array([0, 3, 3, 5])).tolist()
    [0, 0, 0, 2, 2]
    """
    return np.repeat(np.arange(len(offsets) - 1, dtype=np.int64), np.diff(offsets))


def expand_ranges(starts: NDArray[np.integer], lengths: NDArray[np.integer]) -> Int64:
    """Return the integers of all ranges `[start, start + length)`, one range after another.

    >>> expand_ranges(np.array([10, 4]), np.array([2, 3])).tolist()
    [10, 11, 4, 5, 6]
    """
    offsets = offsets_from_lengths(lengths)
    return np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1], dtype=np.int64)


def gather_ranges(offsets: Int64, segments: Int64) -> Int64:
    """Return the indices of all elements of `segments`, in that order."""
    starts = offsets[:-1][segments]
    return expand_ranges(starts, offsets[1:][segments] - starts)


def concatenate(batches: Sequence[TokenBatch]) -> TokenBatch:
    """Return the documents of all batches as one batch, in order."""
    joined: dict[str, Any] = {}
    for field in fields(TokenBatch):
        arrays = [getattr(batch, field.name) for batch in (_EMPTY, *batches)]
        if field.name == "turn_units":
            joined[field.name] = _join_units(batches)
        elif field.name.endswith("_offsets"):
            joined[field.name] = offsets_from_lengths(
                np.concatenate([np.diff(array) for array in arrays])
            )
        else:
            joined[field.name] = np.concatenate(arrays)
    return TokenBatch(**joined)


def _join_units(batches: Sequence[TokenBatch]) -> Int32 | None:
    if all(batch.turn_units is None for batch in batches):
        return None
    return np.concatenate([batch.list_units() for batch in batches])


def keep_turns(batch: TokenBatch, kept: Bools) -> TokenBatch:
    """Return a batch of the turns that are marked in `kept`, bool (turns,).

    A document then ends with its last kept turn. A document without kept turns is dropped.
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
        turn_units=None if batch.turn_units is None else batch.turn_units[turns],
    )


def keep_loss_tokens_before(batch: TokenBatch, limit: int) -> TokenBatch:
    """Drop all loss tokens at or after position `limit` of their document.

    Turns without loss tokens are dropped, and documents without turns. The `loss_token_num` of a
    cut turn counts the tokens that are left, because it is computed from the spans.
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
