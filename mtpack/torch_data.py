"""Shards as a torch dataset, and batches of its sequences as tensors.

dataset = PackedDataset("packed")
loader = DataLoader(dataset, batch_size=4, shuffle=True, num_workers=2, collate_fn=collate)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import index as as_index
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from mtpack.errors import InputError, SetupError
from mtpack.packing.label_alignment import ALIGNMENTS, convert
from mtpack.shards.dataset import Row, open_shards
from mtpack.storage.urls import is_url, resolve_name
from mtpack.token_batch import Int64, offsets_from_lengths
from mtpack.turn_weight import MAX_WEIGHT

_DTYPES: dict[str, Any] = {
    "input_ids": np.int64,
    "labels": np.int64,
    "loss_mask": np.uint8,
    "loss_token_num": np.int32,
}


class PackedDataset(Dataset[Row]):
    """The sequences of an output folder, or of one or more shards, with random access.

    A sequence is a dict of read-only numpy arrays; `turn_num` is an int (docs/format.md). The
    arrays are views of the mapped files. Nothing is copied before a batch is built, except labels
    that are converted to the other alignment, and compressed shards, which are decoded when opened.

    Worker processes of a DataLoader may be forked or spawned: only the path is pickled, and a
    worker opens the files again.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        label_alignment: str | None = None,
    ) -> None:
        """Open what `mtpack.open_shards` opens.

        label_alignment: of the returned sequences: `aligned` (Hugging Face) or `shifted`
        (Megatron-LM); shards with the other one are converted. None: the one of the shards.
        Raises SetupError for a missing path or an unknown alignment, InputError for shards that
        can't be used.
        """
        if label_alignment not in (None, *ALIGNMENTS):
            raise SetupError(
                f"label_alignment: {label_alignment!r} is unknown; use one of "
                f"{', '.join(ALIGNMENTS)}, or None for the one of the shards"
            )
        self._shards = open_shards(path)
        paths = [path] if isinstance(path, str | os.PathLike) else path
        names = [resolve_name(os.fspath(shard)) for shard in paths]
        self._paths = [name if is_url(name) else os.path.abspath(name) for name in names]
        packed = self._shards.metadata
        self.metadata = replace(packed, label_alignment=label_alignment or packed.label_alignment)
        """The metadata of the shards, with the alignment of the returned sequences."""

    @property
    def label_alignment(self) -> str:
        """The alignment of the returned sequences: `aligned` or `shifted`."""
        return self.metadata.label_alignment

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, index: int) -> Row:
        row = self._shards[as_index(index)]
        if self.metadata == self._shards.metadata:
            return row
        try:
            converted = convert(row, self.label_alignment)
        except InputError as error:
            raise InputError(f"{self._paths[0]}: sequence {index}: {error}") from error
        for column in converted.values():
            column.flags.writeable = False
        return {**row, **converted}

    def __reduce__(self) -> tuple[Callable[..., PackedDataset], tuple[Any, ...]]:
        return type(self)._reopen, (self._paths, self.label_alignment, self._contents)

    @classmethod
    def _reopen(cls, paths: list[str], label_alignment: str, contents: Any) -> PackedDataset:
        """Open the same sequences again.

        Raises InputError if they have changed: a worker would mix two outputs without notice.
        """
        dataset = cls(paths, label_alignment=label_alignment)
        if dataset._contents != contents:
            raise InputError(f"{paths[0]}: packed again since it was opened; open it again")
        return dataset

    @property
    def _contents(self) -> Any:
        """Values that identify these sequences, as far as possible without reading them."""
        shards = self._shards
        records = None if shards.manifest is None else shards.manifest.report.shards
        return shards.metadata, [shard.num_rows for shard in shards.opened], records


def collate(rows: Sequence[Row]) -> dict[str, Tensor]:
    """Build a batch from sequences of `PackedDataset`, with one copy.

    Returns `input_ids`, `labels`, `position_ids`: int64 (sequences, seq_len); positions start at 0
    in every document, and padding is a document of its own. `loss_mask`: uint8, `loss_token_num`:
    int32, `turn_heads`: uint8, 1 on the first loss token of each turn, all (sequences, seq_len).
    `turn_num`: int64 (sequences,). If the sequences have `turn_weights`: `turn_weight`: float32
    (sequences, seq_len), at each loss token the weight of its turn, 0 elsewhere; `weight_sum`:
    float64 (sequences,), the sum of the weights of its turns. For variable length flash
    attention: `cu_seqlens`: int32 (documents + 1,), the start of each document in the flattened
    batch, and the end of the batch; `max_seqlen`: int32 (), the length of the longest document.
    Flash attention takes it as a Python int, so leave it on the CPU.

    Raises InputError for no sequences, for different lengths, for sequences of which only some have
    weights, and for sequences whose documents or turns do not match their other columns.
    """
    if not rows:
        raise InputError("no sequences to build a batch from")
    seq_lens = {len(row["input_ids"]) for row in rows}
    if len(seq_lens) > 1:
        raise InputError(
            f"sequences of {' and '.join(map(str, sorted(seq_lens)))} tokens in one batch; "
            "pack all data with the same --seq-len"
        )
    (seq_len,) = seq_lens
    batch: dict[str, NDArray[Any]] = {
        name: np.empty((len(rows), seq_len), dtype) for name, dtype in _DTYPES.items()
    }
    for name, values in batch.items():
        for number, row in enumerate(rows):
            values[number] = row[name]
    batch |= _build_document_columns(rows, seq_len) | _build_turn_columns(rows, seq_len)
    if any("turn_weights" in row for row in rows):
        batch |= _build_weight_columns(rows, batch["loss_mask"], batch["turn_heads"])
    return {name: torch.from_numpy(values) for name, values in batch.items()}


def _build_document_columns(rows: Sequence[Row], seq_len: int) -> dict[str, NDArray[Any]]:
    lengths: Int64 = np.concatenate([row["seq_lengths"] for row in rows], dtype=np.int64)
    offsets = offsets_from_lengths(lengths)
    row_ends = np.cumsum([len(row["seq_lengths"]) for row in rows])
    whole = np.array_equal(offsets[row_ends], np.arange(1, len(rows) + 1) * seq_len)
    if not whole or lengths.min() < 1:
        raise InputError(
            f"damaged: documents that do not add up to {seq_len} tokens; run mtpack verify"
        )
    starts_in_rows = np.repeat(offsets[:-1] % seq_len, lengths).reshape(len(rows), seq_len)
    return {
        "position_ids": np.arange(seq_len) - starts_in_rows,
        "cu_seqlens": offsets.astype(np.int32),
        "max_seqlen": np.array(lengths.max(), dtype=np.int32),
    }


def _build_turn_columns(rows: Sequence[Row], seq_len: int) -> dict[str, NDArray[Any]]:
    turn_num = np.array([row["turn_num"] for row in rows], dtype=np.int64)
    starts = np.concatenate([row["turn_starts"] for row in rows])
    num_starts = [len(row["turn_starts"]) for row in rows]
    positions = starts + np.repeat(np.arange(len(rows)) * seq_len, num_starts)
    inside = (starts >= 0) & (starts < seq_len)
    if not (
        np.array_equal(num_starts, turn_num) and inside.all() and (np.diff(positions) > 0).all()
    ):
        raise InputError("damaged: turns that do not add up to turn_num; run mtpack verify")
    turn_heads = np.zeros(len(rows) * seq_len, dtype=np.uint8)
    turn_heads[positions] = 1
    return {"turn_num": turn_num, "turn_heads": turn_heads.reshape(len(rows), seq_len)}


def _build_weight_columns(
    rows: Sequence[Row], loss_mask: NDArray[Any], turn_heads: NDArray[Any]
) -> dict[str, NDArray[Any]]:
    if not all("turn_weights" in row for row in rows):
        raise InputError(
            "some sequences of a batch have turn_weights and others have not; "
            "pack all data with --turn-weights"
        )
    weights = np.concatenate([row["turn_weights"] for row in rows], dtype=np.float32)
    if [len(row["turn_weights"]) for row in rows] != [row["turn_num"] for row in rows]:
        raise InputError("damaged: turn_weights that do not match turn_num; run mtpack verify")
    if not ((weights > 0) & (weights <= MAX_WEIGHT)).all():
        raise InputError("damaged: turn_weights that are no weights; run mtpack verify")
    turn_weight = np.zeros(loss_mask.shape, dtype=np.float32)
    turns = np.cumsum(turn_heads.ravel(), dtype=np.int64)[np.flatnonzero(loss_mask)] - 1
    if len(turns) and turns[0] < 0:
        raise InputError("damaged: a loss token before the first turn; run mtpack verify")
    turn_weight.ravel()[np.flatnonzero(loss_mask)] = weights[turns]
    weight_sum = [np.sum(row["turn_weights"], dtype=np.float64) for row in rows]
    return {"turn_weight": turn_weight, "weight_sum": np.array(weight_sum, dtype=np.float64)}
