"""The laws of the token columns, for sequences whose list columns are sound.

Each law relies on those before it. Details have lengths and positions, never a token.
"""

from __future__ import annotations

import numpy as np

from mtpack.packing.columns import IGNORED
from mtpack.token_batch import Int64, expand_ranges
from mtpack.verify.batch import BatchViolation, ColumnBatch, Law


def _input_ids(batch: ColumnBatch) -> BatchViolation | None:
    return batch.find_wrong_position(
        batch.columns.input_ids < 0, lambda position: "input_ids is below 0; expected a token id"
    )


def _loss_mask(batch: ColumnBatch) -> BatchViolation | None:
    mask = batch.columns.loss_mask
    return batch.find_wrong_position(
        mask > 1, lambda position: f"loss_mask is {mask.ravel()[position]}; expected 0 or 1"
    )


def _find_padding(batch: ColumnBatch) -> Int64:
    columns = batch.columns
    starts = batch.entry_starts[:-1] + columns.document_lengths
    return expand_ranges(starts, columns.seq_lengths - columns.document_lengths)


def _padding_ids(batch: ColumnBatch) -> BatchViolation | None:
    positions, pad_id = _find_padding(batch), batch.layout.pad_id
    return batch.find_wrong_among(
        positions,
        batch.columns.input_ids.ravel()[positions] != pad_id,
        lambda index: f"input_ids is not pad_id ({pad_id}) in padding",
    )


def _padding_loss(batch: ColumnBatch) -> BatchViolation | None:
    positions = _find_padding(batch)
    return batch.find_wrong_among(
        positions,
        batch.columns.loss_mask.ravel()[positions] != 0,
        lambda index: "loss_mask is 1 in padding; expected 0",
    )


def _first_token_loss(batch: ColumnBatch) -> BatchViolation | None:
    positions = batch.entry_starts[:-1][batch.is_document]
    where = "on the first token of its document; expected 0: no token predicts it"
    if batch.layout.label_alignment == "shifted":
        positions = positions + batch.columns.document_lengths[batch.is_document] - 1
        where = "at the last position of its document; expected 0: no token follows"
    return batch.find_wrong_among(
        positions,
        batch.columns.loss_mask.ravel()[positions] != 0,
        lambda index: f"loss_mask is 1 {where}",
    )


def _labels_ignored(batch: ColumnBatch) -> BatchViolation | None:
    return batch.find_wrong_position(
        batch.has_no_loss & (batch.columns.labels != IGNORED),
        lambda position: f"labels is not {IGNORED} where loss_mask is 0",
    )


def _labels_token(batch: ColumnBatch) -> BatchViolation | None:
    shift = 1 if batch.layout.label_alignment == "shifted" else 0
    targets = batch.loss_positions + shift
    wrong = (
        batch.columns.labels.ravel()[batch.loss_positions]
        != batch.columns.input_ids.ravel()[targets]
    )
    return batch.find_wrong_among(
        batch.loss_positions,
        wrong,
        lambda index: (
            "labels is wrong; expected the token at position "
            f"{targets[index] % batch.layout.seq_len}"
        ),
    )


def _loss_token_num_ignored(batch: ColumnBatch) -> BatchViolation | None:
    numbers = batch.columns.loss_token_num
    return batch.find_wrong_position(
        batch.has_no_loss & (numbers != 1),
        lambda position: (
            f"loss_token_num is {numbers.ravel()[position]} where loss_mask is 0; expected 1"
        ),
    )


def _turn_starts_loss(batch: ColumnBatch) -> BatchViolation | None:
    return batch.find_wrong_turn(
        batch.columns.loss_mask.ravel()[batch.turn_positions] == 0,
        lambda turn: "turn_starts points here, but loss_mask is 0; expected 1",
    )


def _turn_starts_first(batch: ColumnBatch) -> BatchViolation | None:
    """Check that no loss token comes before the first turn of its sequence."""
    seq_len = batch.layout.seq_len
    loss_rows, first = np.unique(batch.loss_positions // seq_len, return_index=True)
    positions = batch.loss_positions[first]
    offsets = batch.columns.turn_offsets
    has_turn = offsets[loss_rows] < offsets[loss_rows + 1]
    starts = np.full(len(positions), -1)
    starts[has_turn] = batch.turn_positions[offsets[loss_rows[has_turn]]]
    return batch.find_wrong_among(
        positions,
        starts != positions,
        lambda index: (
            "a loss token before any turn; expected the start of the first turn here, "
            + (f"not at {starts[index] % seq_len}" if has_turn[index] else "but there is none")
        ),
    )


def _turn_crosses(batch: ColumnBatch) -> BatchViolation | None:
    """Check that every loss token is in the document in which its turn starts."""
    entries = batch.find_entries_at(batch.loss_positions)
    return batch.find_wrong_among(
        batch.loss_positions,
        entries != np.repeat(batch.turn_entries, batch.turn_lengths),
        lambda index: "a loss token of a turn that starts in another document",
    )


def _document_turn(batch: ColumnBatch) -> BatchViolation | None:
    turns = np.bincount(batch.turn_entries, minlength=len(batch.is_document))
    return batch.find_wrong_entry(
        batch.is_document & (turns == 0),
        lambda entry: "the document has 0 turns; expected at least 1",
    )


def _loss_token_num(batch: ColumnBatch) -> BatchViolation | None:
    expected = np.repeat(batch.turn_lengths, batch.turn_lengths)
    found = batch.columns.loss_token_num.ravel()[batch.loss_positions]
    return batch.find_wrong_among(
        batch.loss_positions,
        found != expected,
        lambda index: (
            f"loss_token_num is {found[index]}; the turn has {expected[index]} loss tokens"
        ),
    )


def _document_end(batch: ColumnBatch) -> BatchViolation | None:
    shift = 1 if batch.layout.label_alignment == "shifted" else 0
    ends = (batch.entry_starts[:-1] + batch.columns.document_lengths)[batch.is_document]
    positions = ends - 1 - shift
    return batch.find_wrong_among(
        positions,
        batch.columns.loss_mask.ravel()[positions] == 0,
        lambda index: (
            "loss_mask is 0 on the last token of the document; expected the end of its last turn"
        ),
    )


def _turn_messages_ascend(batch: ColumnBatch) -> BatchViolation | None:
    messages = batch.columns.turn_messages
    wrong = np.zeros(len(messages), np.bool_)
    wrong[1:] = (np.diff(batch.turn_entries) == 0) & (np.diff(messages) <= 0)
    return batch.find_wrong_turn(
        wrong,
        lambda turn: (
            f"turn_messages has {messages[turn]} after {messages[turn - 1]} in one document; "
            "expected ascending"
        ),
    )


TOKEN_LAWS: dict[str, Law] = {
    "input_ids": _input_ids,
    "loss_mask": _loss_mask,
    "padding_ids": _padding_ids,
    "padding_loss": _padding_loss,
    "first_token_loss": _first_token_loss,
    "labels_ignored": _labels_ignored,
    "labels_token": _labels_token,
    "loss_token_num_ignored": _loss_token_num_ignored,
    "turn_starts_loss": _turn_starts_loss,
    "turn_starts_first": _turn_starts_first,
    "turn_crosses": _turn_crosses,
    "document_turn": _document_turn,
    "loss_token_num": _loss_token_num,
    "document_end": _document_end,
    "turn_messages_ascend": _turn_messages_ascend,
}
