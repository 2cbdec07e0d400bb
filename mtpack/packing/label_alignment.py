"""Labels at the token that they are, or at the one before, which predicts it: one to the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpack.errors import InputError
from mtpack.packing.columns import IGNORED

ALIGNMENTS = ("aligned", "shifted")
_WITHOUT_LOSS = {"labels": IGNORED, "loss_mask": 0, "loss_token_num": 1}


def shifted(row: Mapping[str, Any], label_alignment: str) -> dict[str, Any]:
    """Return one sequence with `shifted` labels; label_alignment: what it has. As `realigned`."""
    return {**row, **(realigned(row, "shifted") if label_alignment != "shifted" else {})}


def realigned(row: Mapping[str, Any], label_alignment: str) -> dict[str, NDArray[Any]]:
    """Return the columns of one sequence that differ under the other alignment.

    row: the columns of a shard, by name, in the alignment that is not `label_alignment`. Returns
    new arrays for `labels`, `loss_mask`, `loss_token_num` (seq_len,) and `turn_starts` (turns,).
    Loss stays inside its document: the first token of none carries any, since nothing predicts it.
    Raises InputError where that does not hold.
    """
    ends = np.cumsum(row["seq_lengths"], dtype=np.int64)
    shifting = label_alignment == "shifted"
    edges = ends - row["seq_lengths"] if shifting else ends - 1
    if row["loss_mask"].take(edges, mode="clip").any():
        raise InputError("damaged: it has loss where no token of the document predicts one")
    columns: dict[str, NDArray[Any]] = {}
    for name, without_loss in _WITHOUT_LOSS.items():
        columns[name] = np.empty_like(row[name])
        if shifting:
            columns[name][:-1], columns[name][-1] = row[name][1:], without_loss
        else:
            columns[name][1:], columns[name][0] = row[name][:-1], without_loss
    columns["turn_starts"] = row["turn_starts"] + np.int32(-1 if shifting else 1)
    return columns
