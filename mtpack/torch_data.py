"""Shards as a dataset of torch, and rows of it as a batch of tensors.

dataset = PackedDataset("packed")
loader = DataLoader(dataset, batch_size=4, shuffle=True, num_workers=2, collate_fn=collate)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import index as as_index
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from mtpack.errors import InputError, SetupError
from mtpack.packing.label_alignment import ALIGNMENTS, convert
from mtpack.shards.dataset import Row, open_shards
from mtpack.token_batch import Int64, offsets_from_lengths

_DTYPES: dict[str, Any] = {
    "input_ids": np.int64,
    "labels": np.int64,
    "loss_mask": np.uint8,
    "loss_token_num": np.int32,
}


class PackedDataset(Dataset[Row]):
    """The sequences of an output folder, or of one or more shards, with random access.

    A row is a dict of read-only numpy arrays, `turn_num` an int (docs/format.md). They are views of
    the mapped files, and nothing is copied before a batch is built, except where labels are
    converted to the other alignment, and in compressed shards, which are decoded when opened.

    Worker processes of a DataLoader may be forked or spawned: what is pickled is the path, and the
    files are opened again.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        label_alignment: str | None = None,
    ) -> None:
        """Open what `mtpack.open_shards` opens.

        label_alignment: `aligned` (Hugging Face) or `shifted` (Megatron-LM): rows are given so,
        converted where the shards have the other; None: as they are packed.
        Raises SetupError for a path that is not there or an alignment that there is not, InputError
        for shards that can't be used.
        """
        if label_alignment not in (None, *ALIGNMENTS):
            raise SetupError(
                f"label_alignment: there is no {label_alignment!r}; name one of "
                f"{', '.join(ALIGNMENTS)}, or None for the one of the shards"
            )
        self._shards = open_shards(path)
        paths = [path] if isinstance(path, str | os.PathLike) else path
        self._paths = [Path(shard).absolute() for shard in paths]
        packed = self._shards.metadata
        self.metadata = replace(packed, label_alignment=label_alignment or packed.label_alignment)
        """What the shards say of themselves, with the alignment of the rows that are given."""

    @property
    def label_alignment(self) -> str:
        """Of the rows that are given: `aligned` or `shifted`."""
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
            raise InputError(f"{self._paths[0]}: row {index}: {error}") from error
        for column in converted.values():
            column.flags.writeable = False
        return {**row, **converted}

    def __reduce__(self) -> tuple[Callable[..., PackedDataset], tuple[Any, ...]]:
        return type(self)._reopened, (self._paths, self.label_alignment, self._contents)

    @classmethod
    def _reopened(cls, paths: list[Path], label_alignment: str, contents: Any) -> PackedDataset:
        """Open the same sequences; a worker that reads others would mix two outputs in silence."""
        dataset = cls(paths, label_alignment=label_alignment)
        if dataset._contents != contents:
            raise InputError(f"{paths[0]}: packed anew since it was opened; open it again")
        return dataset

    @property
    def _contents(self) -> Any:
        """What tells these sequences from others, as far as can be told without reading them."""
        shards = self._shards
        records = None if shards.manifest is None else shards.manifest.report.shards
        return shards.metadata, [shard.num_rows for shard in shards.opened], records


def collate(rows: Sequence[Row]) -> dict[str, Tensor]:
    """Build a batch of rows, in one copy.

    Returns `input_ids`, `labels`, `position_ids`: int64 (rows, seq_len), the latter from 0 in
    every document, and padding is a document of its own. `loss_mask`: uint8, `loss_token_num`:
    int32, `turn_heads`: uint8, 1 on the first loss token of each turn, all (rows, seq_len).
    `turn_num`: int64 (rows,). `cu_seqlens`: int32 (documents + 1,), where documents start in the
    flattened batch, and its end; `max_seqlen`: int32 (), the longest document: both for variable
    length flash attention, which takes the latter as a Python int, so leave it on the CPU.

    Raises InputError for no rows, for rows of different lengths, and for rows whose documents or
    turns do not add up.
    """
    if not rows:
        raise InputError("no rows to make a batch of")
    seq_lens = {len(row["input_ids"]) for row in rows}
    if len(seq_lens) > 1:
        raise InputError(
            f"rows of {' and '.join(map(str, sorted(seq_lens)))} tokens in one batch; "
            "pack all data with the same --seq-len"
        )
    (seq_len,) = seq_lens
    batch: dict[str, NDArray[Any]] = {
        name: np.empty((len(rows), seq_len), dtype) for name, dtype in _DTYPES.items()
    }
    for name, values in batch.items():
        for number, row in enumerate(rows):
            values[number] = row[name]
    batch |= _documents(rows, seq_len) | _turns(rows, seq_len)
    return {name: torch.from_numpy(values) for name, values in batch.items()}


def _documents(rows: Sequence[Row], seq_len: int) -> dict[str, NDArray[Any]]:
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


def _turns(rows: Sequence[Row], seq_len: int) -> dict[str, NDArray[Any]]:
    turn_num = np.array([row["turn_num"] for row in rows], dtype=np.int64)
    starts = np.concatenate([row["turn_starts"] for row in rows])
    num_starts = [len(row["turn_starts"]) for row in rows]
    places = starts + np.repeat(np.arange(len(rows)) * seq_len, num_starts)
    inside = (starts >= 0) & (starts < seq_len)
    if not (np.array_equal(num_starts, turn_num) and inside.all() and (np.diff(places) > 0).all()):
        raise InputError("damaged: turns that do not add up to turn_num; run mtpack verify")
    turn_heads = np.zeros(len(rows) * seq_len, dtype=np.uint8)
    turn_heads[places] = 1
    return {"turn_num": turn_num, "turn_heads": turn_heads.reshape(len(rows), seq_len)}
