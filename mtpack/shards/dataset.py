"""`open_shards`: read the sequences of an output, or of single shards, without a copy."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, overload

from mtpack.errors import InputError, SetupError
from mtpack.packing.columns import Columns
from mtpack.shards.arrow import ENTRY_COLUMNS, TOKEN_COLUMNS, TURN_COLUMNS, ShardMetadata
from mtpack.shards.contradictions import find_contradiction
from mtpack.shards.manifest import MANIFEST, Manifest, read_manifest
from mtpack.shards.reading import open_shard

Row = dict[str, Any]
"""One sequence: its columns by name, as read-only numpy arrays; `turn_num` as an int."""


@dataclass(frozen=True, slots=True)
class OpenShard:
    """One shard, mapped into memory."""

    path: Path
    batches: Sequence[Columns]
    """Its record batches. Those of a compressed shard are decoded one at a time."""
    batch_rows: list[int]
    """The number of sequences in each of them."""

    @property
    def num_rows(self) -> int:
        """The number of its sequences."""
        return sum(self.batch_rows)


class Shards(Sequence[Row]):
    """The sequences of one or more shards.

    The arrays are read-only views of the mapped files: copy what you want to change.
    """

    def __init__(
        self, opened: list[OpenShard], metadata: ShardMetadata, manifest: Manifest | None
    ) -> None:
        """Use opened shards; `open_shards` opens them."""
        self.opened = opened
        self.metadata = metadata
        self.manifest = manifest
        """The manifest of the output folder; None for single shards."""
        self._batches = [
            (shard.batches, number) for shard in opened for number in range(len(shard.batches))
        ]
        self._batch_ends = list(accumulate(rows for shard in opened for rows in shard.batch_rows))

    def __len__(self) -> int:
        return self._batch_ends[-1] if self._batch_ends else 0

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        row = index + len(self) if index < 0 else index
        if not 0 <= row < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        number = bisect_right(self._batch_ends, row)
        batches, position = self._batches[number]
        batch = batches[position]
        return row_of(batch, row - self._batch_ends[number] + len(batch.turn_num))

    def batches(self) -> Iterator[Columns]:
        """Yield the record batches of all shards."""
        return (batch for shard in self.opened for batch in shard.batches)

    def __iter__(self) -> Iterator[Row]:
        for batch in self.batches():
            for row in range(len(batch.turn_num)):
                yield row_of(batch, row)


def row_of(batch: Columns, row: int) -> Row:
    """Return one sequence of a record batch."""
    turns = slice(batch.turn_offsets[row], batch.turn_offsets[row + 1])
    entries = slice(batch.entry_offsets[row], batch.entry_offsets[row + 1])
    return {
        **{name: getattr(batch, name)[row] for name in TOKEN_COLUMNS},
        "turn_num": int(batch.turn_num[row]),
        **{name: getattr(batch, name)[turns] for name in TURN_COLUMNS},
        **{name: getattr(batch, name)[entries] for name in ENTRY_COLUMNS},
    }


def open_shards(path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> Shards:
    """Open an output folder, or one or more shards.

    In a folder, each shard must have the size and the number of sequences that the manifest
    records, since a truncated stream may read as fewer sequences without an error. The metadata of
    a shard must agree with the manifest, and with the first record batch of the shard. Raises
    SetupError for a path that does not exist, InputError for shards that can't be used.
    """
    shards = map_shards(path)
    for shard in shards.opened:
        for columns in shard.batches[:1]:
            if contradiction := find_contradiction(columns, shards.metadata):
                raise InputError(
                    f"{shard.path}: its metadata contradicts its columns: {contradiction}; "
                    "pack the data again"
                )
    return shards


def map_shards(path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> Shards:
    """Open what `open_shards` opens, without a look at the columns: `verify` checks them all."""
    paths = [path] if isinstance(path, str | os.PathLike) else list(path)
    if len(paths) == 1 and Path(paths[0]).is_dir():
        return _map_folder(Path(paths[0]))
    opened, metadata = _map_all([Path(shard) for shard in paths])
    return Shards(opened, metadata, None)


def read_complete_manifest(folder: Path) -> Manifest:
    """Return the manifest of an output folder, whose shards are there and have its sizes.

    Raises SetupError for a folder without a manifest, InputError for a damaged one, and for a shard
    that is missing or has another size.
    """
    if not (folder / MANIFEST).is_file():
        raise SetupError(
            f"{folder}: no {MANIFEST}, so not a complete output; run mtpack pack -o {folder}"
        )
    manifest = read_manifest(folder)
    for record in manifest.report.shards:
        file = folder / record.path
        size = file.stat().st_size if file.is_file() else None
        if size != record.bytes:
            found = "is missing" if size is None else f"has {size:,} bytes"
            raise InputError(
                f"{file}: {found}; the manifest records {record.bytes:,} bytes; "
                "restore the file from a copy, or pack the data again with --overwrite"
            )
    return manifest


def _map_folder(folder: Path) -> Shards:
    manifest = read_complete_manifest(folder)
    records = manifest.report.shards
    opened, metadata = _map_all([folder / record.path for record in records])
    for shard, record in zip(opened, records, strict=True):
        if shard.num_rows != record.rows:
            raise InputError(
                f"{shard.path}: holds {shard.num_rows:,} sequences; "
                f"the manifest records {record.rows:,}"
            )
    _require_same_run(opened[0].path, metadata, manifest)
    return Shards(opened, metadata, manifest)


def _require_same_run(path: Path, metadata: ShardMetadata, manifest: Manifest) -> None:
    """Raise InputError if the metadata of a shard is not that of the run in the manifest."""
    recorded = {
        **manifest.run.options,
        "tokenizer_sha256": manifest.run.tokenizer_sha256,
        "template_sha256": manifest.run.template_sha256,
    }
    for name, value in asdict(metadata).items():
        if name in recorded and recorded[name] != value:
            raise InputError(
                f"{path}: its {name} is {value}, but the manifest records {recorded[name]}; "
                "restore the file from a copy, or pack the data again with --overwrite"
            )


def _map_all(paths: list[Path]) -> tuple[list[OpenShard], ShardMetadata]:
    opened: list[OpenShard] = []
    known: ShardMetadata | None = None
    for path in paths:
        if path.is_dir():
            raise SetupError(f"{path}: a folder; name one output folder, or one or more shards")
        if not path.is_file():
            raise SetupError(f"{path}: no such shard or output folder")
        metadata, batches, rows = open_shard(path)
        if known is not None and metadata != known:
            raise InputError(f"{path}: not packed with the same options as {paths[0]}")
        known = metadata
        opened.append(OpenShard(path, batches, rows))
    if known is None:
        raise SetupError("no shard to open")
    return opened, known
