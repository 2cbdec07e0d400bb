"""Check 4, isolation: another document's tokens change nothing, and neither does padding.

    documents        other tokens in one document: the losses of all other documents stay
    padding_added    padding behind every document and at the end: all losses stay
    padding_tokens   other tokens in that padding: all losses stay

They stay to the bit where the device computes the same way whatever the tokens are; to rounding
where more places make it add up in another order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mtpack.shards import Row
from mtpack.turns import Bools, Int64, offsets_of
from mtpack.verifying.causal_model import CausalModel
from mtpack.verifying.check import Check
from mtpack.verifying.sampling import document_ids
from mtpack.verifying.slices import lengthened, with_padded_documents
from mtpack.verifying.steps import batch_of, token_losses, tolerance_of

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


def check_isolation(model: CausalModel, rows: list[Row], label_alignment: str) -> IsolationReport:
    """Change documents and padding of some sequences."""
    tolerance = tolerance_of(model.dtype, max(len(row["input_ids"]) for row in rows))
    worst: dict[str, float] = {}
    counts = {"sequences": len(rows), "documents": 0, "losses": 0}
    for row in rows:
        for name, before, after in _kept_losses(model, row, label_alignment):
            change = float(np.abs(after - before).max(initial=0) / np.abs(before).mean())
            worst[name] = float(np.maximum(worst.get(name, 0.0), change))  # NaN stays
            counts["losses"] += len(before)
            counts["documents"] += name == "documents"
    parts = {name: Check(value, tolerance) for name, value in worst.items()}
    return IsolationReport(Check.of(parts), counts)


def _kept_losses(
    model: CausalModel, row: Row, label_alignment: str
) -> Iterator[tuple[str, _Losses, _Losses]]:
    """Yield for every change the losses that have to stay, without it and with it."""
    trained = row["loss_mask"] == 1
    before = _losses(model, row, label_alignment)
    for entry in documents_to_change(row):
        places = document_ids(row) == entry
        changed = with_other_tokens(row, places & token_places(row), model.vocabulary)
        kept = trained & ~places
        if kept.any():
            yield "documents", before[kept], _losses(model, changed, label_alignment)[kept]
    padded = lengthened(with_padded_documents(row, _PADDING), _padded_length(row))
    refilled = with_other_tokens(padded, ~token_places(padded), model.vocabulary)
    kept = padded["loss_mask"] == 1
    added, other = (_losses(model, one, label_alignment)[kept] for one in (padded, refilled))
    yield "padding_added", before[trained], added
    yield "padding_tokens", added, other


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
    starts = offsets_of(row["seq_lengths"])[:-1]
    within: Int64 = np.arange(len(entries)) - starts[entries]
    is_token: Bools = within < row["document_lengths"][entries]
    return is_token


def with_other_tokens(row: Row, places: Bools, vocabulary: int) -> Row:
    """Replace the tokens at some places, each by another one; labels stay."""
    ids = row["input_ids"].copy()
    steps = np.random.default_rng(0).integers(1, vocabulary, size=int(places.sum()))
    ids[places] = (ids[places] + steps) % vocabulary
    return {**row, "input_ids": ids}


def _padded_length(row: Row) -> int:
    return int((-(-row["seq_lengths"] // _PADDING) * _PADDING).sum()) + _PADDING


def _losses(model: CausalModel, row: Row, label_alignment: str) -> _Losses:
    with torch.no_grad():
        losses = token_losses(model, batch_of([row], model), label_alignment)[0]
    return losses.double().cpu().numpy()
