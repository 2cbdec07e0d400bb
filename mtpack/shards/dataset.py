"""`open_shards`: read the sequences of an output, or of single shards, without a copy."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, overload

from mtpack.errors import InputError, SetupError
from mtpack.packing.columns import Columns
from mtpack.shards.arrow import (
    ENTRY_COLUMNS,
    EXTRA_TYPES,
    TOKEN_COLUMNS,
    TURN_COLUMNS,
    ShardMetadata,
)
from mtpack.shards.contradictions import find_contradiction
from mtpack.shards.manifest import MANIFEST, Manifest, ShardRecord, read_manifest
from mtpack.shards.reading import open_shard
from mtpack.storage.cache import ChangedObjectError, fetch_shard, fetch_single_shard
from mtpack.storage.places import Place, join_place, list_sizes, to_place
from mtpack.storage.urls import resolve_name

Row = dict[str, Any]
"""One sequence: its columns by name, as read-only numpy arrays; `turn_num` as an int."""


@dataclass(frozen=True, slots=True)
class OpenShard:
    """One shard, mapped into memory."""

    path: Place
    file: Path
    """Where its content is: the path itself, or a copy of an object in the cache."""
    batches: Sequence[Columns]
    """Its record batches. Those of a compressed shard are decoded one at a time."""
    batch_ends: list[int]
    """The number of sequences up to the end of each of them."""

    @property
    def num_rows(self) -> int:
        """The number of its sequences."""
        return self.batch_ends[-1] if self.batch_ends else 0

    def map_again(self) -> Sequence[Columns]:
        """Return the record batches, mapped anew: pages that were read are freed with them.

        For who reads all shards once, so that memory does not grow with their size.
        """
        return _open(self.file, self.path)[1].batches


@dataclass
class StoredShard:
    """One shard of an output in a store: fetched into the cache when it is first used."""

    path: Place
    record: ShardRecord
    manifest: Manifest

    @property
    def num_rows(self) -> int:
        """The number of its sequences."""
        return self.record.rows

    @cached_property
    def opened(self) -> tuple[ShardMetadata, OpenShard]:
        """Its metadata, and the shard; raises InputError if it is not as its manifest says."""
        url = str(self.path)
        with wrap_fetch_errors(url):
            file = fetch_shard(url, self.record.bytes, self.record.sha256)
        metadata, shard = _open(file, url)
        _require_number(shard, self.record)
        _require_same_run(url, metadata, self.manifest)
        _require_agreement(shard, metadata)
        return metadata, shard

    @property
    def batches(self) -> Sequence[Columns]:
        """Its record batches."""
        return self.opened[1].batches

    def map_again(self) -> Sequence[Columns]:
        """Return the record batches, as that of `OpenShard` does."""
        return self.opened[1].map_again()

    @property
    def batch_ends(self) -> list[int]:
        """The number of sequences up to the end of each of them."""
        return self.opened[1].batch_ends


AnyShard = OpenShard | StoredShard


@contextmanager
def wrap_fetch_errors(url: Place) -> Iterator[None]:
    """Convert what fails when something is read from a store into an InputError."""
    if isinstance(url, Path):
        yield
        return
    try:
        yield
    except ChangedObjectError as error:
        raise InputError(
            f"{url}: its sha256 is {error.found}, which is not that in the manifest; restore the "
            "object from a copy, or pack the data again with --overwrite"
        ) from error
    except OSError as error:
        raise InputError(f"{url}: can't be read ({error.strerror})") from error


class Shards(Sequence[Row]):
    """The sequences of one or more shards.

    The arrays are read-only views of the mapped files: copy what you want to change.
    """

    def __init__(
        self, opened: Sequence[AnyShard], metadata: ShardMetadata, manifest: Manifest | None
    ) -> None:
        """Use opened shards; `open_shards` opens them."""
        self.opened = opened
        self.metadata = metadata
        self.manifest = manifest
        """The manifest of the output folder; None for single shards."""
        self._ends = list(accumulate(shard.num_rows for shard in opened))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

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
        shard = self.opened[number := bisect_right(self._ends, row)]
        row += shard.num_rows - self._ends[number]
        position = bisect_right(shard.batch_ends, row)
        batch = shard.batches[position]
        return row_of(batch, row - shard.batch_ends[position] + len(batch.turn_num))

    def batches(self) -> Iterator[Columns]:
        """Yield the record batches of all shards; the memory is that of one shard."""
        return (batch for shard in self.opened for batch in shard.map_again())

    def __iter__(self) -> Iterator[Row]:
        for batch in self.batches():
            for row in range(len(batch.turn_num)):
                yield row_of(batch, row)


def row_of(batch: Columns, row: int) -> Row:
    """Return one sequence of a record batch, with the columns that the batch has."""
    turns = slice(batch.turn_offsets[row], batch.turn_offsets[row + 1])
    entries = slice(batch.entry_offsets[row], batch.entry_offsets[row + 1])
    return {
        **{name: getattr(batch, name)[row] for name in TOKEN_COLUMNS},
        "turn_num": int(batch.turn_num[row]),
        **{name: getattr(batch, name)[turns] for name in _list_turn_columns(batch)},
        **{name: getattr(batch, name)[entries] for name in ENTRY_COLUMNS},
    }


def _list_turn_columns(batch: Columns) -> tuple[str, ...]:
    if batch.turn_bent is None and batch.turn_weights is None:
        return TURN_COLUMNS
    return (*TURN_COLUMNS, *[name for name in EXTRA_TYPES if getattr(batch, name) is not None])


def open_shards(path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> Shards:
    """Open an output, or one or more shards; URLs of a store too.

    A shard of an output in a store is fetched into the user's cache folder when it is first used,
    and its hash compared with the manifest. In a folder, each shard must have the size and the
    number of sequences that the manifest records, since a truncated stream may read as fewer
    sequences without an error. The metadata of a shard must agree with the manifest, and with the
    first record batch of the shard. Raises SetupError for a path that does not exist, InputError
    for shards that can't be used.
    """
    shards = map_shards(path)
    for shard in shards.opened:
        if isinstance(shard, OpenShard):
            _require_agreement(shard, shards.metadata)
    return shards


def _require_agreement(shard: OpenShard, metadata: ShardMetadata) -> None:
    for columns in shard.batches[:1]:
        if contradiction := find_contradiction(columns, metadata):
            raise InputError(
                f"{shard.path}: its metadata contradicts its columns: {contradiction}; "
                "pack the data again"
            )


def map_shards(path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> Shards:
    """Open what `open_shards` opens, without a look at the columns: `verify` checks them all."""
    paths = [path] if isinstance(path, str | os.PathLike) else list(path)
    places = [to_place(resolve_name(os.fspath(shard))) for shard in paths]
    if len(places) == 1 and is_output(places[0]):
        return _map_folder(places[0])
    opened, metadata = _map_all(places)
    return Shards(opened, metadata, None)


def is_output(place: Place) -> bool:
    """Return whether a path or a URL is that of an output, not of a shard."""
    return not place.endswith(".arrow") if isinstance(place, str) else place.is_dir()


def read_complete_manifest(folder: Place) -> Manifest:
    """Return the manifest of an output, whose shards are there and have its sizes.

    Raises SetupError for a folder without a manifest, InputError for a damaged one, and for a shard
    that is missing or has another size.
    """
    with wrap_fetch_errors(folder):
        sizes = list_sizes(folder)
    if MANIFEST not in sizes:
        raise SetupError(
            f"{folder}: no {MANIFEST}, so not a complete output; run mtpack pack -o {folder}"
        )
    manifest = read_manifest(folder)
    for record in manifest.report.shards:
        size = sizes.get(record.path)
        if size != record.bytes:
            found = "is missing" if size is None else f"has {size:,} bytes"
            file = join_place(folder, record.path)
            raise InputError(
                f"{file}: {found}; the manifest records {record.bytes:,} bytes; "
                "restore the file from a copy, or pack the data again with --overwrite"
            )
    return manifest


def _map_folder(folder: Place) -> Shards:
    folder = folder.rstrip("/") if isinstance(folder, str) else folder
    manifest = read_complete_manifest(folder)
    records = manifest.report.shards
    if isinstance(folder, str):
        stored = [StoredShard(join_place(folder, each.path), each, manifest) for each in records]
        return Shards(stored, stored[0].opened[0], manifest)
    opened, metadata = _map_all([folder / record.path for record in records])
    for shard, record in zip(opened, records, strict=True):
        _require_number(shard, record)
    _require_same_run(opened[0].path, metadata, manifest)
    return Shards(opened, metadata, manifest)


def _require_number(shard: OpenShard, record: ShardRecord) -> None:
    if shard.num_rows != record.rows:
        raise InputError(
            f"{shard.path}: holds {shard.num_rows:,} sequences; "
            f"the manifest records {record.rows:,}"
        )


def _require_same_run(path: Place, metadata: ShardMetadata, manifest: Manifest) -> None:
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


def _map_all(places: Sequence[Place]) -> tuple[list[OpenShard], ShardMetadata]:
    opened: list[OpenShard] = []
    known: ShardMetadata | None = None
    for place in places:
        metadata, shard = _open_single(place)
        if known is not None and metadata != known:
            raise InputError(f"{place}: not packed with the same options as {places[0]}")
        known = metadata
        opened.append(shard)
    if known is None:
        raise SetupError("no shard to open")
    return opened, known


def _open_single(place: Place) -> tuple[ShardMetadata, OpenShard]:
    if isinstance(place, Path):
        if place.is_dir():
            raise SetupError(f"{place}: a folder; name one output folder, or one or more shards")
        if not place.is_file():
            raise SetupError(f"{place}: no such shard or output folder")
        return _open(place, place)
    if is_output(place):
        raise SetupError(f"{place}: not a shard; name one output, or one or more shards")
    with wrap_fetch_errors(place):
        file = fetch_single_shard(place)
    return _open(file, place)


def _open(file: Path, place: Place) -> tuple[ShardMetadata, OpenShard]:
    """Open a shard in a file; messages name its place."""
    try:
        metadata, batches, rows = open_shard(file)
    except InputError as error:
        raise InputError(str(error).replace(str(file), str(place))) from error
    return metadata, OpenShard(place, file, batches, list(accumulate(rows)))
