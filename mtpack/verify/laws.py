"""The laws of a shard: first those of the lists of documents and turns, then those of the tokens.

Each law relies on those before it: the running sums of `seq_lengths` are positions only if the sum
is `seq_len`. Details have lengths and positions, never a token.
"""

from __future__ import annotations

import numpy as np

from mtpack.packing.columns import IGNORED
from mtpack.token_batch import WEIGHT_UNITS, Int64, expand_ranges, offsets_from_lengths, segment_ids
from mtpack.turn_weight import MAX_WEIGHT
from mtpack.verify.batch import BatchViolation, ColumnBatch, Law


def _turn_num(batch: ColumnBatch) -> BatchViolation | None:
    stored, found = batch.columns.turn_num, np.diff(batch.columns.turn_offsets)
    detail = "turn_num is {}; expected {}, the length of turn_starts"
    return batch.find(batch.locate_sequence, stored != found, detail, stored, found)


def _seq_lengths_positive(batch: ColumnBatch) -> BatchViolation | None:
    lengths = batch.columns.seq_lengths
    detail = "an entry of seq_lengths is {}; expected 1 or more"
    return batch.find(batch.locate_entry, lengths <= 0, detail, lengths)


def _seq_lengths_sum(batch: ColumnBatch) -> BatchViolation | None:
    sums = np.diff(batch.entry_starts[batch.columns.entry_offsets])
    seq_len = batch.layout.seq_len
    detail = f"seq_lengths sum to {{}}; expected {seq_len}"
    return batch.find(batch.locate_sequence, sums != seq_len, detail, sums)


def _seq_lengths_multiple(batch: ColumnBatch) -> BatchViolation | None:
    lengths, multiple = batch.columns.seq_lengths, batch.layout.pad_documents_to
    detail = f"an entry of seq_lengths is {{}}; expected a multiple of {multiple}"
    return batch.find(batch.locate_entry, lengths % multiple != 0, detail, lengths)


def _dialogue_ids(batch: ColumnBatch) -> BatchViolation | None:
    ids = batch.columns.dialogue_ids
    detail = "dialogue_ids has {}; expected -1 (padding) or 0 or more"
    return batch.find(batch.locate_entry, ids < -1, detail, ids)


def _padding_last(batch: ColumnBatch) -> BatchViolation | None:
    wrong = ~batch.is_document
    wrong[-1:] = False
    wrong[:-1] &= np.diff(segment_ids(batch.columns.entry_offsets)) == 0
    detail = "a padding entry (dialogue_ids -1) is not the last of its sequence"
    return batch.find(batch.locate_entry, wrong, detail)


def _has_document(batch: ColumnBatch) -> BatchViolation | None:
    documents = np.diff(
        offsets_from_lengths(batch.is_document.astype(np.int64))[batch.columns.entry_offsets]
    )
    detail = "the sequence has 0 documents; expected at least 1"
    return batch.find(batch.locate_sequence, documents == 0, detail)


def _document_lengths(batch: ColumnBatch) -> BatchViolation | None:
    lengths, available = batch.columns.document_lengths, batch.columns.seq_lengths
    wrong = np.where(batch.is_document, (lengths < 1) | (lengths > available), lengths != 0)
    detail = "an entry of document_lengths is {} of {}; expected 1 or more, or 0 in padding"
    return batch.find(batch.locate_entry, wrong, detail, lengths, available)


def _document_padding(batch: ColumnBatch) -> BatchViolation | None:
    padding = batch.columns.seq_lengths - batch.columns.document_lengths
    multiple = batch.layout.pad_documents_to
    detail = f"{{}} tokens of padding after a document; expected fewer than {multiple}"
    return batch.find(
        batch.locate_entry, batch.is_document & (padding >= multiple), detail, padding
    )


def _turn_messages(batch: ColumnBatch) -> BatchViolation | None:
    messages = batch.columns.turn_messages
    detail = "an entry of turn_messages is {}; expected 0 or more"
    return batch.find(batch.locate_turn, messages < 0, detail, messages)


def _turn_starts_range(batch: ColumnBatch) -> BatchViolation | None:
    starts, seq_len = batch.columns.turn_starts, batch.layout.seq_len
    detail = f"an entry of turn_starts is {{}}; expected 0 to {seq_len - 1}"
    return batch.find(batch.locate_turn, (starts < 0) | (starts >= seq_len), detail, starts)


def _turn_starts_ascend(batch: ColumnBatch) -> BatchViolation | None:
    # Starts are in their range, so from one sequence to the next, positions always ascend.
    starts = batch.columns.turn_starts
    wrong = np.diff(batch.turn_positions, prepend=-1) <= 0
    detail = "turn_starts has {} after {}; expected ascending"
    return batch.find(batch.locate_turn, wrong, detail, starts, np.roll(starts, 1))


def _input_ids(batch: ColumnBatch) -> BatchViolation | None:
    detail = "input_ids is below 0; expected a token id"
    return batch.find(batch.locate_position, batch.columns.input_ids < 0, detail)


def _loss_mask(batch: ColumnBatch) -> BatchViolation | None:
    mask = batch.columns.loss_mask
    return batch.find(batch.locate_position, mask > 1, "loss_mask is {}; expected 0 or 1", mask)


def _find_padding(batch: ColumnBatch) -> Int64:
    columns = batch.columns
    starts = batch.entry_starts[:-1] + columns.document_lengths
    return expand_ranges(starts, columns.seq_lengths - columns.document_lengths)


def _padding_ids(batch: ColumnBatch) -> BatchViolation | None:
    positions, pad_id = _find_padding(batch), batch.layout.pad_id
    return batch.find_among(
        positions,
        batch.columns.input_ids.ravel()[positions] != pad_id,
        f"input_ids is not pad_id ({pad_id}) in padding",
    )


def _padding_loss(batch: ColumnBatch) -> BatchViolation | None:
    positions = _find_padding(batch)
    return batch.find_among(
        positions,
        batch.columns.loss_mask.ravel()[positions] != 0,
        "loss_mask is 1 in padding; expected 0",
    )


def _first_token_loss(batch: ColumnBatch) -> BatchViolation | None:
    positions = batch.entry_starts[:-1][batch.is_document]
    where = "on the first token of its document; expected 0: no token predicts it"
    if batch.layout.label_alignment == "shifted":
        positions = positions + batch.columns.document_lengths[batch.is_document] - 1
        where = "at the last position of its document; expected 0: no token follows"
    return batch.find_among(
        positions,
        batch.columns.loss_mask.ravel()[positions] != 0,
        f"loss_mask is 1 {where}",
    )


def _labels_ignored(batch: ColumnBatch) -> BatchViolation | None:
    return batch.find(
        batch.locate_position,
        batch.has_no_loss & (batch.columns.labels != IGNORED),
        f"labels is not {IGNORED} where loss_mask is 0",
    )


def _labels_token(batch: ColumnBatch) -> BatchViolation | None:
    shift, where = (1, "next") if batch.layout.label_alignment == "shifted" else (0, "same")
    labels = batch.columns.labels.ravel()[batch.loss_positions]
    return batch.find_among(
        batch.loss_positions,
        labels != batch.columns.input_ids.ravel()[batch.loss_positions + shift],
        f"labels is wrong; expected the token at the {where} position",
    )


def _loss_token_num_ignored(batch: ColumnBatch) -> BatchViolation | None:
    numbers = batch.columns.loss_token_num
    return batch.find(
        batch.locate_position,
        batch.has_no_loss & (numbers != 1),
        "loss_token_num is {} where loss_mask is 0; expected 1",
        numbers,
    )


def _turn_starts_loss(batch: ColumnBatch) -> BatchViolation | None:
    return batch.find(
        batch.locate_turn,
        batch.columns.loss_mask.ravel()[batch.turn_positions] == 0,
        "turn_starts points here, but loss_mask is 0; expected 1",
    )


def _turn_starts_first(batch: ColumnBatch) -> BatchViolation | None:
    """Check that no loss token comes before the first turn of its sequence."""
    loss_rows, first = np.unique(batch.loss_positions // batch.layout.seq_len, return_index=True)
    positions = batch.loss_positions[first]
    offsets = batch.columns.turn_offsets
    has_turn = offsets[loss_rows] < offsets[loss_rows + 1]
    starts = np.full(len(positions), -1)
    starts[has_turn] = batch.turn_positions[offsets[loss_rows[has_turn]]]
    detail = "a loss token before any turn; expected the start of the first turn here"
    return batch.find_among(positions, starts != positions, detail)


def _turn_crosses(batch: ColumnBatch) -> BatchViolation | None:
    """Check that every loss token is in the document in which its turn starts."""
    entries = batch.find_entries_at(batch.loss_positions)
    return batch.find_among(
        batch.loss_positions,
        entries != np.repeat(batch.turn_entries, batch.turn_lengths),
        "a loss token of a turn that starts in another document",
    )


def _document_turn(batch: ColumnBatch) -> BatchViolation | None:
    turns = np.bincount(batch.turn_entries, minlength=len(batch.is_document))
    detail = "the document has 0 turns; expected at least 1"
    return batch.find(batch.locate_entry, batch.is_document & (turns == 0), detail)


def _loss_token_num(batch: ColumnBatch) -> BatchViolation | None:
    expected = np.repeat(batch.turn_lengths, batch.turn_lengths)
    found = batch.columns.loss_token_num.ravel()[batch.loss_positions]
    detail = "loss_token_num is {}; the turn has {} loss tokens"
    return batch.find_among(batch.loss_positions, found != expected, detail, found, expected)


def _document_end(batch: ColumnBatch) -> BatchViolation | None:
    shift = 1 if batch.layout.label_alignment == "shifted" else 0
    ends = (batch.entry_starts[:-1] + batch.columns.document_lengths)[batch.is_document]
    positions = ends - 1 - shift
    return batch.find_among(
        positions,
        batch.columns.loss_mask.ravel()[positions] == 0,
        "loss_mask is 0 on the last token of the document; expected the end of its last turn",
    )


def _turn_messages_ascend(batch: ColumnBatch) -> BatchViolation | None:
    messages = batch.columns.turn_messages
    wrong = np.zeros(len(messages), np.bool_)
    wrong[1:] = (np.diff(batch.turn_entries) == 0) & (np.diff(messages) <= 0)
    detail = "turn_messages has {} after {} in one document; expected ascending"
    return batch.find(batch.locate_turn, wrong, detail, messages, np.roll(messages, 1))


def _turn_bent(batch: ColumnBatch) -> BatchViolation | None:
    bent = batch.columns.turn_bent
    if bent is None:
        return None
    detail = "an entry of turn_bent is {}; expected 0 or 1"
    return batch.find(batch.locate_turn, bent > 1, detail, bent)


def _turn_weights(batch: ColumnBatch) -> BatchViolation | None:
    weights = batch.columns.turn_weights
    if weights is None:
        return None
    is_weight = (weights > 0) & (weights <= MAX_WEIGHT)  # false for NaN
    units = np.where(is_weight, weights, 1) * np.float32(WEIGHT_UNITS)
    detail = f"an entry of turn_weights is {{}}; expected above 0, at most {MAX_WEIGHT:,}, and a "
    detail += f"multiple of 1/{WEIGHT_UNITS}"
    return batch.find(batch.locate_turn, ~is_weight | (units % 1 != 0), detail, weights)


LAWS: dict[str, Law] = {
    # Documents fill the sequence, and turns start at possible positions.
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
    # Tokens, labels and counts, for sequences whose lists are sound.
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
    "turn_bent": _turn_bent,
    "turn_weights": _turn_weights,
}
"""All laws by name, in the order of checking."""
