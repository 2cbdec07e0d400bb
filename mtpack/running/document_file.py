"""Document files: the documents of tokenized splits, each as two slices of a file.

Documents are shuffled, so a shard reads few documents from each of many files. The times that
matter are those to open a file (15 µs; an Arrow file of nine columns took 350) and to read a
document from it (0.5 µs). A file holds, for n documents:

    int64   n
    int64   offsets of the documents in `words`, n + 1
    int64   offsets of the documents in `ids`, n + 1
    int32   words: for each document, its row in the split, its numbers of turns and of spans; the
            message of each turn, the flags of each, the number of spans of each; then all span
            starts, all span ends; and, if the run takes weights, the units of each turn
    int32   ids
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from mtpack.shards.atomic_file import nameless_file
from mtpack.token_batch import Int32, Int64, TokenBatch, expand_ranges, offsets_from_lengths

_HEAD = 3  # number of words of a document before those of its turns


def save_batch(path: Path, batch: TokenBatch) -> str:
    """Write the documents of a split to a file, and return its sha256.

    Rows are numbered within the split, so the file does not depend on the rows before it.
    """
    num_turns = np.diff(batch.turn_offsets)
    num_spans = np.diff(batch.span_offsets[batch.turn_offsets])
    per_turn = 3 if batch.turn_units is None else 4
    word_offsets = offsets_from_lengths(_HEAD + per_turn * num_turns + 2 * num_spans)
    words = np.empty(word_offsets[-1], dtype=np.int32)
    head = word_offsets[:-1]
    words[head] = batch.document_rows
    words[head + 1] = num_turns
    words[head + 2] = num_spans
    positions = _WordPositions.of(head, num_turns, num_spans)
    words[positions.turn_messages] = batch.turn_messages
    words[positions.turn_flags] = batch.turn_flags
    words[positions.spans_per_turn] = np.diff(batch.span_offsets)
    words[positions.span_starts] = batch.span_starts
    words[positions.span_ends] = batch.span_ends
    if batch.turn_units is not None:
        words[_find_units(head, num_turns, num_spans)] = batch.turn_units
    digest = hashlib.sha256()
    number = np.array([batch.num_documents], dtype=np.int64)
    with nameless_file(path) as file:
        for array in (number, word_offsets, batch.document_offsets, words, batch.ids):
            content = np.ascontiguousarray(array).data
            digest.update(content)
            file.write(content)
    return digest.hexdigest()


class StoredDocuments(NamedTuple):
    """The documents of one split, mapped into memory. Slices of `words` and `ids` are views."""

    word_offsets: memoryview
    id_offsets: memoryview
    words: memoryview
    ids: memoryview


def open_documents(path: str) -> StoredDocuments:
    """Map a file that `save_batch` wrote into memory."""
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


def read_lengths(path: str) -> Int32:
    """Return the number of tokens of each document in a file, (documents,). Reads offsets only."""
    with open(path, "rb") as file:
        (num_documents,) = np.fromfile(file, np.int64, 1).tolist()
        file.seek(8 * (num_documents + 1), os.SEEK_CUR)
        offsets: Int64 = np.fromfile(file, np.int64, num_documents + 1)
    return np.diff(offsets).astype(np.int32)


def read_all(path: Path) -> TokenBatch:
    """Read all documents of a split."""
    stored = open_documents(str(path))
    word_offsets: Int64 = np.frombuffer(stored.word_offsets, dtype=np.int64)
    id_offsets: Int64 = np.frombuffer(stored.id_offsets, dtype=np.int64)
    num_words, num_ids = (offsets[1:] - offsets[:-1] for offsets in (word_offsets, id_offsets))
    return _build_batch(bytes(stored.words), num_words, bytes(stored.ids), num_ids)


def read_documents(documents: Iterable[tuple[StoredDocuments, int]]) -> TokenBatch:
    """Return the documents named by (file, number in the file), in that order.

    `document_rows` are relative to the first row of each document's split.
    """
    word_views, id_views = [], []
    for stored, number in documents:
        word_offsets, id_offsets, all_words, all_ids = stored
        word_views.append(all_words[word_offsets[number] : word_offsets[number + 1]])
        id_views.append(all_ids[id_offsets[number] : id_offsets[number + 1]])
    num_words = np.fromiter(map(len, word_views), np.int64, len(word_views))
    num_ids = np.fromiter(map(len, id_views), np.int64, len(id_views))
    return _build_batch(b"".join(word_views), num_words, b"".join(id_views), num_ids)


def _build_batch(all_words: bytes, num_words: Int64, all_ids: bytes, num_ids: Int64) -> TokenBatch:
    """Build a batch from the words and ids of its documents, one after the other.

    num_words, num_ids: (documents,).
    """
    words: Int32 = np.frombuffer(all_words, dtype=np.int32)
    head = offsets_from_lengths(num_words)[:-1]
    num_turns, num_spans = words[head + 1], words[head + 2]
    positions = _WordPositions.of(head, num_turns, num_spans)
    # All documents of a run have units, or none has. Each has a turn.
    has_units = len(head) and num_words[0] > _HEAD + 3 * num_turns[0] + 2 * num_spans[0]
    return TokenBatch(
        ids=np.frombuffer(all_ids, dtype=np.int32),
        document_offsets=offsets_from_lengths(num_ids),
        document_rows=words[head].astype(np.int64),
        turn_offsets=offsets_from_lengths(num_turns),
        turn_messages=words[positions.turn_messages],
        turn_flags=words[positions.turn_flags].astype(np.uint8),
        span_offsets=offsets_from_lengths(words[positions.spans_per_turn]),
        span_starts=words[positions.span_starts],
        span_ends=words[positions.span_ends],
        turn_units=words[_find_units(head, num_turns, num_spans)] if has_units else None,
    )


def _find_units(head: Int64, num_turns: Int32 | Int64, num_spans: Int32 | Int64) -> Int64:
    """Return the positions in `words` of the units of all turns, (turns,)."""
    return expand_ranges(head + _HEAD + 3 * num_turns + 2 * num_spans, num_turns)


class _WordPositions(NamedTuple):
    """The positions in `words` of the values of turns and spans: one for each turn or span."""

    turn_messages: Int64
    turn_flags: Int64
    spans_per_turn: Int64
    span_starts: Int64
    span_ends: Int64

    @classmethod
    def of(cls, head: Int64, num_turns: Int32 | Int64, num_spans: Int32 | Int64) -> _WordPositions:
        """Compute the positions.

        head: (documents,), where each document starts in `words`. num_turns, num_spans:
        (documents,).
        """
        turns = expand_ranges(head + _HEAD, num_turns)
        spans = expand_ranges(head + _HEAD + 3 * num_turns, num_spans)
        turn_step: Int64 = np.repeat(num_turns, num_turns)
        span_step: Int64 = np.repeat(num_spans, num_spans)
        return cls(turns, turns + turn_step, turns + 2 * turn_step, spans, spans + span_step)
