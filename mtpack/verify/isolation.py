"""Check 4, isolation: another document's tokens change nothing, and neither does padding.

    documents        other tokens in one document: the losses of all other documents stay
    padding_tokens   other tokens in padding behind every document and at the end: all losses stay
    padding_added    such padding, or none: all losses stay

The losses are those of every token that follows another in its document, trained or not: what
leaks from a neighbour shows most at the start of a document. For the first two the model computes
the same sums, and they stay to the bit, but where the tokens decide the order of the sums (experts,
atomic additions on a GPU): the tolerance allows for that alone. More places make other sums.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mtpack.packing.columns import IGNORED
from mtpack.shards.dataset import Row
from mtpack.token_batch import Bools, Int64, offsets_from_lengths
from mtpack.verify.causal_model import CausalModel
from mtpack.verify.check import Check
from mtpack.verify.padding import lengthened, with_padded_documents
from mtpack.verify.sampling import document_ids
from mtpack.verify.steps import batch_of, rounding_of, token_losses, tolerance_of

_DOCUMENTS = 3  # of a sequence are changed, one at a time: the first, one inside, the last
_PADDING = 8  # documents are padded to a multiple of it, and the sequence by as many places

_Losses = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class IsolationReport:
    """What the check came to, and how much it looked at."""

    check: Check
    """Its values are the largest change of a loss that had to stay, relative to the mean loss."""
    counts: dict[str, int]
    """`sequences`, `documents` that were changed one at a time, and the `losses` that had to stay,
    counted for each change."""


def check_isolation(model: CausalModel, rows: list[Row]) -> IsolationReport:
    """Change documents and padding of some sequences."""
    lengths = [len(row["input_ids"]) for row in rows]
    tolerances = {
        "documents": rounding_of(model.dtype),
        "padding_tokens": rounding_of(model.dtype),
        "padding_added": tolerance_of(model.dtype, max(lengths)),
    }
    worst: dict[str, float] = {}
    counts = {"sequences": len(rows), "documents": 0, "losses": 0}
    for row in rows:
        for name, before, after in _kept_losses(model, row):
            change = float(np.abs(after - before).max(initial=0) / np.abs(before).mean())
            worst[name] = float(np.maximum(worst.get(name, 0.0), change))  # NaN stays
            counts["losses"] += len(before)
            counts["documents"] += name == "documents"
    parts = {name: Check(value, tolerances[name]) for name, value in worst.items()}
    return IsolationReport(Check.of(parts), counts)


def _kept_losses(model: CausalModel, row: Row) -> Iterator[tuple[str, _Losses, _Losses]]:
    """Yield for every change the losses that have to stay, without it and with it."""
    predicted = predicted_places(row)
    before = _losses(model, row)
    for entry in documents_to_change(row):
        places = document_ids(row) == entry
        changed = with_other_tokens(row, places & token_places(row), model.vocabulary)
        kept = predicted & ~places
        yield "documents", before[kept], _losses(model, changed)[kept]
    padded = with_padded_documents(row, _PADDING)
    padded = lengthened(padded, len(padded["input_ids"]) + _PADDING)
    refilled = with_other_tokens(padded, ~token_places(padded), model.vocabulary)
    kept = predicted_places(padded)
    added, other = (_losses(model, one)[kept] for one in (padded, refilled))
    yield "padding_tokens", added, other
    yield "padding_added", before[predicted], added


def documents_to_change(row: Row) -> list[int]:
    """Choose entries of `seq_lengths`; none where a document has no neighbour."""
    entries = np.flatnonzero(row["dialogue_ids"] >= 0)
    if len(entries) < 2:
        return []
    chosen = np.linspace(0, len(entries) - 1, min(_DOCUMENTS, len(entries))).astype(int)
    return [int(entry) for entry in entries[chosen]]


def token_places(row: Row) -> Bools:
    """Return which places hold a token of a document, and not padding."""
    entries = document_ids(row)
    starts = offsets_from_lengths(row["seq_lengths"])[:-1]
    within: Int64 = np.arange(len(entries)) - starts[entries]
    is_token: Bools = within < row["document_lengths"][entries]
    return is_token


def predicted_places(row: Row) -> Bools:
    """Return which places are followed by a token of the same document."""
    is_token = token_places(row)
    followed = np.zeros_like(is_token)
    same_document = np.diff(document_ids(row)) == 0
    followed[:-1] = is_token[1:] & same_document
    return followed


def with_other_tokens(row: Row, places: Bools, vocabulary: int) -> Row:
    """Replace the tokens at some places, each by another one; labels stay."""
    ids = row["input_ids"].copy()
    steps = np.random.default_rng(0).integers(1, vocabulary, size=int(places.sum()))
    ids[places] = (ids[places] + steps) % vocabulary
    return {**row, "input_ids": ids}


def _losses(model: CausalModel, row: Row) -> _Losses:
    """Return the loss of predicting the next token at every place."""
    row = {**row, "labels": np.append(row["input_ids"][1:], IGNORED)}
    with torch.no_grad():
        losses = token_losses(model, batch_of([row], model), "shifted")[0]
    return losses.double().cpu().numpy()
