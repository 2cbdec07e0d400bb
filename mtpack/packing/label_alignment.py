"""Label alignment: labels at their own tokens (`aligned`) or at the tokens before (`shifted`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpack.errors import InputError
from mtpack.packing.columns import IGNORED

ALIGNMENTS = ("aligned", "shifted")
_WITHOUT_LOSS = {"labels": IGNORED, "loss_mask": 0, "loss_token_num": 1}


def to_shifted(row: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return one sequence with `shifted` labels; source: its present alignment.

    Raises what `convert` raises.
    """
    return {**row, **(convert(row, "shifted") if source != "shifted" else {})}


def convert(row: Mapping[str, Any], target: str) -> dict[str, NDArray[Any]]:
    """Return the columns of one sequence that differ under the other alignment.

    row: the columns of a shard, by name. target: the alignment to convert to; the row has the other
    one. Returns new arrays for `labels`, `loss_mask`, `loss_token_num` (seq_len,) and `turn_starts`
    (turns,). Loss stays inside its document, because the first token of a document never carries
    loss. Raises InputError where it does.
    """
    ends = np.cumsum(row["seq_lengths"], dtype=np.int64)
    shifting = target == "shifted"
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
