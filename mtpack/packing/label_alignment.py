"""Label alignment: labels at their own tokens (`aligned`) or one token earlier (`shifted`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpack.errors import InputError
from mtpack.packing.columns import WITHOUT_LOSS

ALIGNMENTS = ("aligned", "shifted")


def to_shifted(row: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return the columns of one sequence with `shifted` labels.

    source: the alignment that `row` has. Raises what `convert` raises.
    """
    return {**row, **(convert(row, "shifted") if source != "shifted" else {})}


def convert(row: Mapping[str, Any], target: str) -> dict[str, NDArray[Any]]:
    """Return the columns of one sequence that change with the alignment, converted to `target`.

    row: the columns of one sequence, by name, in the other alignment. Returns new arrays for
    `labels`, `loss_mask`, `loss_token_num` (seq_len,) and `turn_starts` (turns,). Loss stays inside
    its document, because the first token of a document never carries loss. Raises InputError if it
    does.
    """
    ends = np.cumsum(row["seq_lengths"], dtype=np.int64)
    shifting = target == "shifted"
    edges = ends - row["seq_lengths"] if shifting else ends - 1
    if row["loss_mask"].take(edges, mode="clip").any():
        raise InputError("damaged: a loss token that no token of its document predicts")
    columns: dict[str, NDArray[Any]] = {}
    for name, without_loss in WITHOUT_LOSS.items():
        columns[name] = np.empty_like(row[name])
        if shifting:
            columns[name][:-1], columns[name][-1] = row[name][1:], without_loss
        else:
            columns[name][1:], columns[name][0] = row[name][:-1], without_loss
    columns["turn_starts"] = row["turn_starts"] + np.int32(-1 if shifting else 1)
    return columns
