"""The laws of the list columns: documents fill the sequence, turns start at possible positions.

Each law relies on those before it: the running sums of `seq_lengths` are positions only if the sum
is `seq_len`.
"""

from __future__ import annotations

import numpy as np

from mtpack.token_batch import offsets_from_lengths
from mtpack.verify.batch import BatchViolation, ColumnBatch, Law


def _turn_num(batch: ColumnBatch) -> BatchViolation | None:
    stored, found = batch.columns.turn_num, np.diff(batch.columns.turn_offsets)
    return batch.find_wrong_sequence(
        stored != found,
        lambda row: f"turn_num is {stored[row]}; expected {found[row]}, the length of turn_starts",
    )


def _seq_lengths_positive(batch: ColumnBatch) -> BatchViolation | None:
    lengths = batch.columns.seq_lengths
    return batch.find_wrong_entry(
        lengths <= 0,
        lambda entry: f"an entry of seq_lengths is {lengths[entry]}; expected 1 or more",
    )


def _seq_lengths_sum(batch: ColumnBatch) -> BatchViolation | None:
    sums = np.diff(batch.entry_starts[batch.columns.entry_offsets])
    seq_len = batch.layout.seq_len
    return batch.find_wrong_sequence(
        sums != seq_len, lambda row: f"seq_lengths sum to {sums[row]}; expected {seq_len}"
    )


def _seq_lengths_multiple(batch: ColumnBatch) -> BatchViolation | None:
    lengths, multiple = batch.columns.seq_lengths, batch.layout.pad_documents_to
    return batch.find_wrong_entry(
        lengths % multiple != 0,
        lambda entry: (
            f"an entry of seq_lengths is {lengths[entry]}; expected a multiple of {multiple}"
        ),
    )


def _dialogue_ids(batch: ColumnBatch) -> BatchViolation | None:
    ids = batch.columns.dialogue_ids
    return batch.find_wrong_entry(
        ids < -1, lambda entry: f"dialogue_ids has {ids[entry]}; expected -1 (padding) or 0 or more"
    )


def _padding_last(batch: ColumnBatch) -> BatchViolation | None:
    return batch.find_wrong_entry(
        ~batch.is_document & ~batch.is_last,
        lambda entry: "a padding entry (dialogue_ids -1) is not the last of its sequence",
    )


def _has_document(batch: ColumnBatch) -> BatchViolation | None:
    documents = np.diff(
        offsets_from_lengths(batch.is_document.astype(np.int64))[batch.columns.entry_offsets]
    )
    return batch.find_wrong_sequence(
        documents == 0, lambda row: "the sequence has 0 documents; expected at least 1"
    )


def _document_lengths(batch: ColumnBatch) -> BatchViolation | None:
    lengths, available = batch.columns.document_lengths, batch.columns.seq_lengths
    wrong = np.where(batch.is_document, (lengths < 1) | (lengths > available), lengths != 0)

    def detail(entry: int) -> str:
        expected = (
            f"1 to {available[entry]}" if batch.is_document[entry] else "0, because it is padding"
        )
        return f"an entry of document_lengths is {lengths[entry]}; expected {expected}"

    return batch.find_wrong_entry(wrong, detail)


def _document_padding(batch: ColumnBatch) -> BatchViolation | None:
    padding = batch.columns.seq_lengths - batch.columns.document_lengths
    multiple = batch.layout.pad_documents_to
    return batch.find_wrong_entry(
        batch.is_document & (padding >= multiple),
        lambda entry: (
            f"{padding[entry]} tokens of padding after a document; expected fewer than {multiple}"
        ),
    )


def _turn_messages(batch: ColumnBatch) -> BatchViolation | None:
    messages = batch.columns.turn_messages
    return batch.find_wrong_turn(
        messages < 0,
        lambda turn: f"an entry of turn_messages is {messages[turn]}; expected 0 or more",
    )


def _turn_starts_range(batch: ColumnBatch) -> BatchViolation | None:
    starts, seq_len = batch.columns.turn_starts, batch.layout.seq_len
    return batch.find_wrong_turn(
        (starts < 0) | (starts >= seq_len),
        lambda turn: f"an entry of turn_starts is {starts[turn]}; expected 0 to {seq_len - 1}",
    )


def _turn_starts_ascend(batch: ColumnBatch) -> BatchViolation | None:
    # Starts are in their range, so from one sequence to the next, positions always ascend.
    starts = batch.columns.turn_starts
    wrong = np.diff(batch.turn_positions, prepend=-1) <= 0
    return batch.find_wrong_turn(
        wrong,
        lambda turn: f"turn_starts has {starts[turn]} after {starts[turn - 1]}; expected ascending",
    )


LIST_LAWS: dict[str, Law] = {
    "turn_num": _turn_num,
    "seq_lengths_positive": _seq_lengths_positive,
    "seq_lengths_sum": _seq_lengths_sum,
    "seq_lengths_multiple": _seq_lengths_multiple,
    "dialogue_ids": _dialogue_ids,
    "padding_last": _padding_last,
    "has_document": _has_document,
    "document_lengths": _document_lengths,
    "document_padding": _document_padding,
    "turn_messages": _turn_messages,
    "turn_starts_range": _turn_starts_range,
    "turn_starts_ascend": _turn_starts_ascend,
}
