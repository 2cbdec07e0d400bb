"""Tokenized splits on disk, laid out so that any document is two slices of its split's file.

Documents are shuffled, so a shard takes few of them from each of many files: what counts is the
time to open a file (15 µs; as an Arrow file of nine columns it was 350) and to take a document out
of it (0.5 µs). A file holds, for n documents:

    int64   n
    int64   offsets of the documents in `words`, n + 1
    int64   offsets of the documents in `ids`, n + 1
    int32   words: of each document its row in the split, its number of turns and of spans; for each
            turn its message, its flags, its number of spans; then all span starts, all span ends
    int32   ids
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from mtpack.shards.atomic_file import atomic_file
from mtpack.token_batch import Int32, Int64, TokenBatch, expand_ranges, offsets_from_lengths

_HEAD = 3  # words of a document before its turns


def save_batch(path: Path, batch: TokenBatch, first_row: int) -> None:
    """Write the documents of a split; first_row: the index of the split's first row.

    Rows are stored relative to it, so the file says nothing of what stood before the split.
    """
    num_turns = np.diff(batch.turn_offsets)
    num_spans = np.diff(batch.span_offsets[batch.turn_offsets])
    word_offsets = offsets_from_lengths(_HEAD + 3 * num_turns + 2 * num_spans)
    words = np.empty(word_offsets[-1], dtype=np.int32)
    head = word_offsets[:-1]
    words[head] = batch.document_rows - first_row
    words[head + 1] = num_turns
    words[head + 2] = num_spans
    at = _WordPlaces.of(head, num_turns, num_spans)
    words[at.turn_messages] = batch.turn_messages
    words[at.turn_flags] = batch.turn_flags
    words[at.spans_per_turn] = np.diff(batch.span_offsets)
    words[at.span_starts] = batch.span_starts
    words[at.span_ends] = batch.span_ends
    with atomic_file(path) as file:
        file.write(np.int64(batch.num_documents).tobytes())
        for array in (word_offsets, batch.document_offsets, words, batch.ids):
            file.write(np.ascontiguousarray(array).data)


class StoredDocuments(NamedTuple):
    """The documents of one split, mapped into memory; the slices of `words` and `ids` are views."""

    word_offsets: memoryview
    id_offsets: memoryview
    words: memoryview
    ids: memoryview


def open_documents(path: str) -> StoredDocuments:
    """Map a file that `save_batch` has written."""
    with pa.memory_map(path) as file:  # unlike Python's mmap, it keeps no file open
        view = memoryview(file.read_buffer())
    (num_documents,) = view[:8].cast("q")
    words_start = 8 * (1 + 2 * (num_documents + 1))
    offsets = view[8:words_start].cast("q")
    numbers = view[words_start:].cast("i")
    num_words = offsets[num_documents]
    return StoredDocuments(
        offsets[: num_documents + 1],
        offsets[num_documents + 1 :],
        numbers[:num_words],
        numbers[num_words:],
    )


def read_all(path: Path, first_row: int) -> TokenBatch:
    """Read all documents of a split whose first row has the index `first_row`."""
    stored = open_documents(str(path))
    word_offsets: Int64 = np.frombuffer(stored.word_offsets, dtype=np.int64)
    id_offsets: Int64 = np.frombuffer(stored.id_offsets, dtype=np.int64)
    batch = _batch_of(
        words=np.frombuffer(stored.words, dtype=np.int32),
        num_words=np.diff(word_offsets),
        ids=np.frombuffer(stored.ids, dtype=np.int32),
        num_ids=np.diff(id_offsets),
    )
    return replace(batch, document_rows=batch.document_rows + first_row)


def read_documents(documents: Iterable[tuple[StoredDocuments, int]]) -> TokenBatch:
    """Gather documents, each by its file and its number there, in the order given.

    `document_rows` are relative to the documents' splits.
    """
    word_views, id_views = [], []
    for stored, number in documents:
        word_offsets, id_offsets, words, ids = stored
        word_views.append(words[word_offsets[number] : word_offsets[number + 1]])
        id_views.append(ids[id_offsets[number] : id_offsets[number + 1]])
    return _batch_of(
        words=np.frombuffer(b"".join(word_views), dtype=np.int32),
        num_words=np.fromiter(map(len, word_views), np.int64, len(word_views)),
        ids=np.frombuffer(b"".join(id_views), dtype=np.int32),
        num_ids=np.fromiter(map(len, id_views), np.int64, len(id_views)),
    )


def _batch_of(words: Int32, num_words: Int64, ids: Int32, num_ids: Int64) -> TokenBatch:
    head = offsets_from_lengths(num_words)[:-1]
    num_turns, num_spans = words[head + 1], words[head + 2]
    at = _WordPlaces.of(head, num_turns, num_spans)
    return TokenBatch(
        ids=ids,
        document_offsets=offsets_from_lengths(num_ids),
        document_rows=words[head].astype(np.int64),
        turn_offsets=offsets_from_lengths(num_turns),
        turn_messages=words[at.turn_messages],
        turn_flags=words[at.turn_flags].astype(np.uint8),
        span_offsets=offsets_from_lengths(words[at.spans_per_turn]),
        span_starts=words[at.span_starts],
        span_ends=words[at.span_ends],
    )


class _WordPlaces(NamedTuple):
    """Where in `words` the values of turns and spans stand, one place a turn or a span."""

    turn_messages: Int64
    turn_flags: Int64
    spans_per_turn: Int64
    span_starts: Int64
    span_ends: Int64

    @classmethod
    def of(cls, head: Int64, num_turns: Int32 | Int64, num_spans: Int32 | Int64) -> _WordPlaces:
        """Compute them from where documents start and how many turns and spans they have."""
        turns = expand_ranges(head + _HEAD, num_turns)
        spans = expand_ranges(head + _HEAD + 3 * num_turns, num_spans)
        turn_step: Int64 = np.repeat(num_turns, num_turns)
        span_step: Int64 = np.repeat(num_spans, num_spans)
        return cls(turns, turns + turn_step, turns + 2 * turn_step, spans, spans + span_step)
