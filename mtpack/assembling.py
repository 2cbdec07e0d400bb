"""Documents and a plan to the columns of the shards: numpy gathers, nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mtpack.turns import Int32, Int64, TokenBatch, UInt8, expand_ranges, offsets_of, owners

IGNORED = -100  # the label that every framework's cross-entropy leaves out


@dataclass(frozen=True, slots=True)
class Layout:
    """How sequences are laid out; with the column names, the contract of a shard."""

    seq_len: int
    label_alignment: str
    """`aligned` or `shifted`."""
    pad_documents_to: int
    pad_id: int


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of consecutive sequences, as docs/format.md has them.

    Lists hold one entry a document, padding included (`entry_offsets`), or a turn (`turn_offsets`).
    """

    input_ids: Int32
    """(sequences, seq_len)"""
    labels: Int32
    """(sequences, seq_len)"""
    loss_mask: UInt8
    """(sequences, seq_len)"""
    loss_token_num: Int32
    """(sequences, seq_len)"""
    turn_num: Int32
    """(sequences,)"""
    turn_offsets: Int64
    """(sequences + 1,)"""
    turn_starts: Int32
    """(turns,)"""
    turn_messages: Int32
    """(turns,)"""
    entry_offsets: Int64
    """(sequences + 1,)"""
    seq_lengths: Int32
    """(entries,)"""
    document_lengths: Int32
    """(entries,)"""
    dialogue_ids: Int64
    """(entries,)"""


def padded_lengths(lengths: Int64, multiple: int) -> Int64:
    """Round document lengths up to a multiple.

    >>> padded_lengths(np.array([1, 8, 9]), 8).tolist()
    [8, 8, 16]
    """
    return -(-lengths // multiple) * multiple


def assemble(batch: TokenBatch, sequence_offsets: Int64, layout: Layout) -> Columns:
    """Lay documents out in sequences.

    batch: the documents in the order of their places. sequence_offsets: int64 (sequences + 1,),
    sequence s holds the documents `sequence_offsets[s]:sequence_offsets[s+1]`.
    """
    shape = (len(sequence_offsets) - 1, layout.seq_len)
    sequences = owners(sequence_offsets)
    padded = padded_lengths(batch.document_lengths, layout.pad_documents_to)
    ends = np.cumsum(padded)
    # Places are counted through all sequences: every sequence starts at a multiple of seq_len.
    before_sequence = offsets_of(padded)[sequence_offsets[:-1]]
    places = ends - padded - before_sequence[sequences] + sequences * layout.seq_len

    input_ids = np.full(shape, layout.pad_id, dtype=np.int32)
    labels = np.full(shape, IGNORED, dtype=np.int32)
    loss_mask = np.zeros(shape, dtype=np.uint8)
    loss_token_num = np.ones(shape, dtype=np.int32)

    input_ids.ravel()[expand_ranges(places, batch.document_lengths)] = batch.ids
    span_starts = batch.span_starts + places[batch.turn_documents[batch.span_turns]]
    span_lengths = batch.span_ends - batch.span_starts
    targets = expand_ranges(span_starts, span_lengths)
    shift = 1 if layout.label_alignment == "shifted" else 0
    labels.ravel()[targets - shift] = input_ids.ravel()[targets]
    loss_mask.ravel()[targets - shift] = 1
    loss_token_num.ravel()[targets - shift] = np.repeat(
        batch.loss_token_num[batch.span_turns], span_lengths
    )

    turn_sequences = sequences[batch.turn_documents]
    turn_num = np.bincount(turn_sequences, minlength=shape[0])
    turn_starts = span_starts[batch.span_offsets[:-1]] - shift - turn_sequences * layout.seq_len
    return Columns(
        input_ids=input_ids,
        labels=labels,
        loss_mask=loss_mask,
        loss_token_num=loss_token_num,
        turn_num=turn_num.astype(np.int32),
        turn_offsets=offsets_of(turn_num),
        turn_starts=turn_starts.astype(np.int32),
        turn_messages=batch.turn_messages,
        **_entries(batch, padded, sequence_offsets, layout.seq_len),
    )


def _entries(
    batch: TokenBatch, padded: Int64, sequence_offsets: Int64, seq_len: int
) -> dict[str, Any]:
    """Return the columns with one entry a document, and one for the padding where there is any."""
    used = np.diff(offsets_of(padded)[sequence_offsets])
    padding = seq_len - used
    has_padding = (padding > 0).astype(np.int64)
    padding_places = sequence_offsets[1:][padding > 0]

    def with_padding(values: Int64, padding_value: Int64 | int, dtype: type) -> Int32 | Int64:
        return np.insert(values, padding_places, padding_value).astype(dtype)

    return {
        "entry_offsets": offsets_of(np.diff(sequence_offsets) + has_padding),
        "seq_lengths": with_padding(padded, padding[padding > 0], np.int32),
        "document_lengths": with_padding(batch.document_lengths, 0, np.int32),
        "dialogue_ids": with_padding(batch.document_rows, -1, np.int64),
    }
