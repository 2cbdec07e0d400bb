"""Check 4, isolation: the losses of a document do not depend on other documents or on padding.

    documents        replace the tokens of one document: the losses of other documents don't change
    padding_tokens   replace the tokens of padding, after documents and at the end: no loss changes
    padding_added    add such padding: no loss changes

All tokens that follow another token in their document are compared, not only loss tokens: a leak
from a neighbour shows most at the start of a document. For the first two, the model computes the
same sums, so the losses stay the same bit by bit, except where tokens decide the order of a sum
(experts, atomic additions on a GPU). Their tolerance allows only for that. Added padding changes
the sums.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from mtpack.packing.columns import IGNORED
from mtpack.shards.dataset import Row
from mtpack.token_batch import Bools, Int64, offsets_from_lengths
from mtpack.verify.causal_model import CausalModel
from mtpack.verify.check import Check
from mtpack.verify.padding import pad_documents, pad_sequence
from mtpack.verify.sampling import find_entries
from mtpack.verify.steps import (
    choose_rounding_tolerance,
    choose_tolerance,
    collate_rows,
    compute_token_losses,
)

_DOCUMENTS = 3  # changed per sequence, one at a time: the first, the middle, the last
PASSES = _DOCUMENTS + 3
"""The forward passes over a sequence: as it is, with each change, and twice with added padding."""
_PADDING_MULTIPLE = 8  # documents are padded to a multiple of it, and it is added at the end

_TokenLosses = NDArray[np.float64]


def check_isolation(model: CausalModel, rows: list[Row]) -> tuple[Check, dict[str, int]]:
    """Change documents and padding of some sequences, and compare the losses.

    Returns the check, whose values are the largest change of a compared loss, relative to the mean
    loss; and the number of `sequences`, of changed `documents`, and of compared `losses`, over all
    changes.
    """
    tolerances = {
        "documents": choose_rounding_tolerance(model.dtype),
        "padding_tokens": choose_rounding_tolerance(model.dtype),
        "padding_added": choose_tolerance(model, max(len(row["input_ids"]) for row in rows)),
    }
    worst: dict[str, float] = {}
    counts = {"sequences": len(rows), "documents": 0, "losses": 0}
    for row in rows:
        for name, before, after in _yield_compared_losses(model, row):
            change = float(np.abs(after - before).max() / np.abs(before).mean())
            worst[name] = float(np.maximum(worst.get(name, 0.0), change))  # keeps NaN
            counts["losses"] += len(before)
            counts["documents"] += name == "documents"
    parts = {
        name: Check.compare(worst[name], tolerance)
        if name in worst
        else Check.not_done(_explain_nothing_compared(rows))
        for name, tolerance in tolerances.items()
    }
    return Check.combine(parts), counts


def _explain_nothing_compared(rows: list[Row]) -> str:
    if any(choose_documents(row) for row in rows):
        return "the model's losses do not depend on the tokens"
    return "no sequence of the sample has two documents"


def _yield_compared_losses(
    model: CausalModel, row: Row
) -> Iterator[tuple[str, _TokenLosses, _TokenLosses]]:
    """Yield the name of each change, and the losses to compare, without and with the change.

    A changed document in which the model does not notice the change shows nothing.
    """
    predicted = find_predicting_positions(row)
    before = _compute_losses(model, row)
    for entry in choose_documents(row):
        positions = find_entries(row) == entry
        changed = replace_tokens(row, positions & find_document_tokens(row), model.vocabulary)
        after = _compute_losses(model, changed)
        kept = predicted & ~positions
        if kept.any() and not np.array_equal(before[predicted], after[predicted]):
            yield "documents", before[kept], after[kept]
    padded = pad_documents(row, _PADDING_MULTIPLE)
    padded = pad_sequence(padded, len(padded["input_ids"]) + _PADDING_MULTIPLE)
    refilled = replace_tokens(padded, ~find_document_tokens(padded), model.vocabulary)
    kept = find_predicting_positions(padded)
    added, other = (_compute_losses(model, one)[kept] for one in (padded, refilled))
    yield "padding_tokens", added, other
    yield "padding_added", before[predicted], added


def choose_documents(row: Row) -> list[int]:
    """Return indices of entries of `seq_lengths`; none if the sequence has only one document."""
    entries = np.flatnonzero(row["dialogue_ids"] >= 0)
    if len(entries) < 2:
        return []
    chosen = np.linspace(0, len(entries) - 1, min(_DOCUMENTS, len(entries))).astype(int)
    return [int(entry) for entry in entries[chosen]]


def find_document_tokens(row: Row) -> Bools:
    """Return whether each position holds a token of a document, bool (seq_len,)."""
    entries = find_entries(row)
    starts = offsets_from_lengths(row["seq_lengths"])[:-1]
    within: Int64 = np.arange(len(entries)) - starts[entries]
    is_token: Bools = within < row["document_lengths"][entries]
    return is_token


def find_predicting_positions(row: Row) -> Bools:
    """Return whether each position is followed by a token of its document, bool (seq_len,)."""
    is_token = find_document_tokens(row)
    followed = np.zeros_like(is_token)
    same_document = np.diff(find_entries(row)) == 0
    followed[:-1] = is_token[1:] & same_document
    return followed


def replace_tokens(row: Row, positions: Bools, vocabulary: int) -> Row:
    """Return a row with another token at each of some positions; labels stay as they are."""
    ids = row["input_ids"].copy()
    steps = np.random.default_rng(0).integers(1, vocabulary, size=int(positions.sum()))
    ids[positions] = (ids[positions] + steps) % vocabulary
    return {**row, "input_ids": ids}


def _compute_losses(model: CausalModel, row: Row) -> _TokenLosses:
    """Return the loss of predicting the next token at every position, (seq_len,)."""
    row = {**row, "labels": np.append(row["input_ids"][1:], IGNORED)}
    with torch.no_grad():
        losses = compute_token_losses(model, collate_rows([row], model), "shifted")[0]
    return losses.double().cpu().numpy()
