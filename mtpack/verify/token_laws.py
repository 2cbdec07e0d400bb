"""The laws of the token columns, for sequences whose lists are sound.

Each relies on those before it. What is told of a broken one is numbers, never a token.
"""

from __future__ import annotations

import numpy as np

from mtpack.packing.columns import IGNORED
from mtpack.token_batch import Int64, expand_ranges
from mtpack.verify.batch import Batch, Breach, Law


def _input_ids(batch: Batch) -> Breach | None:
    return batch.at_place(
        batch.columns.input_ids < 0, lambda place: "input_ids is below 0; expected a token id"
    )


def _loss_mask(batch: Batch) -> Breach | None:
    mask = batch.columns.loss_mask
    return batch.at_place(
        mask > 1, lambda place: f"loss_mask is {mask.ravel()[place]}; expected 0 or 1"
    )


def _padding_places(batch: Batch) -> Int64:
    columns = batch.columns
    starts = batch.entry_places[:-1] + columns.document_lengths
    return expand_ranges(starts, columns.seq_lengths - columns.document_lengths)


def _padding_ids(batch: Batch) -> Breach | None:
    places, pad_id = _padding_places(batch), batch.layout.pad_id
    return batch.at_one_of(
        places,
        batch.columns.input_ids.ravel()[places] != pad_id,
        lambda number: f"input_ids is not pad_id ({pad_id}) behind its document's own length",
    )


def _padding_loss(batch: Batch) -> Breach | None:
    places = _padding_places(batch)
    return batch.at_one_of(
        places,
        batch.columns.loss_mask.ravel()[places] != 0,
        lambda number: "loss_mask is 1 behind its document's own length; expected 0",
    )


def _first_token_loss(batch: Batch) -> Breach | None:
    places = batch.entry_places[:-1][batch.is_document]
    where = "on the first token"
    if batch.layout.label_alignment == "shifted":
        places = places + batch.columns.document_lengths[batch.is_document] - 1
        where = "at the last place"
    return batch.at_one_of(
        places,
        batch.columns.loss_mask.ravel()[places] != 0,
        lambda number: f"loss_mask is 1 {where} of its document; expected 0: nothing predicts it",
    )


def _labels_ignored(batch: Batch) -> Breach | None:
    return batch.at_place(
        batch.no_loss & (batch.columns.labels != IGNORED),
        lambda place: f"labels is not {IGNORED} where loss_mask is 0",
    )


def _labels_token(batch: Batch) -> Breach | None:
    shift = 1 if batch.layout.label_alignment == "shifted" else 0
    targets = batch.loss_places + shift
    wrong = (
        batch.columns.labels.ravel()[batch.loss_places] != batch.columns.input_ids.ravel()[targets]
    )
    return batch.at_one_of(
        batch.loss_places,
        wrong,
        lambda number: (
            "labels is not the token at position "
            f"{targets[number] % batch.layout.seq_len}, which is to be predicted here"
        ),
    )


def _loss_token_num_ignored(batch: Batch) -> Breach | None:
    numbers = batch.columns.loss_token_num
    return batch.at_place(
        batch.no_loss & (numbers != 1),
        lambda place: (
            f"loss_token_num is {numbers.ravel()[place]} where loss_mask is 0; expected 1"
        ),
    )


def _turn_starts_loss(batch: Batch) -> Breach | None:
    return batch.at_turn(
        batch.columns.loss_mask.ravel()[batch.head_places] == 0,
        lambda turn: "turn_starts points here, but loss_mask is 0; expected 1",
    )


def _turn_starts_first(batch: Batch) -> Breach | None:
    """Demand that no loss token comes before the first turn of its sequence."""
    seq_len = batch.layout.seq_len
    loss_rows, first = np.unique(batch.loss_places // seq_len, return_index=True)
    places = batch.loss_places[first]
    offsets = batch.columns.turn_offsets
    has_turn = offsets[loss_rows] < offsets[loss_rows + 1]
    heads = np.full(len(places), -1)
    heads[has_turn] = batch.head_places[offsets[loss_rows[has_turn]]]
    return batch.at_one_of(
        places,
        heads != places,
        lambda number: (
            "a loss token before any turn; expected the first turn start here, "
            + (f"not at {heads[number] % seq_len}" if has_turn[number] else "but there is none")
        ),
    )


def _turn_crosses(batch: Batch) -> Breach | None:
    """Demand that every loss token lies in the document that its turn starts in."""
    entries = batch.entries_at(batch.loss_places)
    return batch.at_one_of(
        batch.loss_places,
        entries != np.repeat(batch.head_entries, batch.turn_lengths),
        lambda number: "a loss token of a turn that starts in another document",
    )


def _document_turn(batch: Batch) -> Breach | None:
    turns = np.bincount(batch.head_entries, minlength=len(batch.is_document))
    return batch.at_entry(
        batch.is_document & (turns == 0),
        lambda entry: "the document has 0 turns; expected 1 at least",
    )


def _loss_token_num(batch: Batch) -> Breach | None:
    expected = np.repeat(batch.turn_lengths, batch.turn_lengths)
    found = batch.columns.loss_token_num.ravel()[batch.loss_places]
    return batch.at_one_of(
        batch.loss_places,
        found != expected,
        lambda number: (
            f"loss_token_num is {found[number]}; the turn has {expected[number]} loss tokens"
        ),
    )


def _document_end(batch: Batch) -> Breach | None:
    shift = 1 if batch.layout.label_alignment == "shifted" else 0
    ends = (batch.entry_places[:-1] + batch.columns.document_lengths)[batch.is_document]
    places = ends - 1 - shift
    return batch.at_one_of(
        places,
        batch.columns.loss_mask.ravel()[places] == 0,
        lambda number: "loss_mask is 0 on the document's last token; expected its last turn's end",
    )


def _turn_messages_ascend(batch: Batch) -> Breach | None:
    messages = batch.columns.turn_messages
    wrong = np.zeros(len(messages), np.bool_)
    wrong[1:] = (np.diff(batch.head_entries) == 0) & (np.diff(messages) <= 0)
    return batch.at_turn(
        wrong,
        lambda turn: (
            f"turn_messages has {messages[turn]} behind {messages[turn - 1]} in one document; "
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
