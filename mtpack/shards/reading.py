"""Read the record batches of a shard that may come from anywhere.

All that a reader relies on is checked. A batch that is not compressed is mapped from the file and
takes no memory. One that is compressed is decoded when it is used, and only if it is not larger
than a batch of such sequences can be: what it claims to need is compared before memory is taken.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa

from mtpack.errors import InputError
from mtpack.options import LONGEST_COMPRESSED
from mtpack.packing.columns import Columns
from mtpack.packing.label_alignment import ALIGNMENTS
from mtpack.shards.arrow import (
    BATCH_BYTES,
    BYTES_PER_TOKEN,
    ENTRY_COLUMNS,
    EXTRA_COLUMNS_VERSION,
    EXTRA_TYPES,
    FORMAT_VERSION,
    METADATA_KEY,
    TOKEN_COLUMNS,
    ShardMetadata,
    require_format_version,
    shard_schema,
)
from mtpack.shards.ipc_messages import count_decoded_bytes, read_messages
from mtpack.token_batch import Int32, Int64


def open_shard(path: Path) -> tuple[ShardMetadata, Sequence[Columns], list[int]]:
    """Map one shard into memory, and check it enough to be read safely.

    Returns its metadata, its record batches and the number of sequences of each. Reads both IPC
    formats and all compressions. Raises InputError for a damaged shard.
    """
    try:
        with pa.memory_map(str(path)) as source:
            messages = read_messages(source)
            metadata = _read_metadata(path, pa.ipc.read_schema(next(messages)))
            batches: Sequence[Columns] = _Batches(path, metadata, found := list(messages))
        if not any(map(count_decoded_bytes, found)):
            batches = list(batches)
        rows = [len(columns.turn_num) for columns in batches]
    except (OSError, pa.ArrowException, UnicodeDecodeError, StopIteration) as error:
        raise _unreadable(path, error) from error
    return metadata, batches, rows


def _unreadable(path: Path, error: Exception) -> InputError:
    detail = str(error).split("\n")[0] or "it has no schema"
    return InputError(f"{path}: not a shard that can be read ({detail})")


class _Batches(Sequence[Columns]):
    """The record batches of a shard. Each is decoded when it is used; the last one is kept."""

    def __init__(self, path: Path, metadata: ShardMetadata, messages: list[Any]) -> None:
        self._path = path
        self._metadata = metadata
        self._schema = shard_schema(metadata)
        self._limit = _most_decoded_bytes(metadata)
        self._messages = messages
        self._last: tuple[int, Columns] | None = None

    def __len__(self) -> int:
        return len(self._messages)

    @overload
    def __getitem__(self, index: int) -> Columns: ...
    @overload
    def __getitem__(self, index: slice) -> list[Columns]: ...
    def __getitem__(self, index: int | slice) -> Columns | list[Columns]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        last = self._last
        if last is None or last[0] != index:
            last = self._last = index, self._decode(self._messages[index])
        return last[1]

    def _decode(self, message: Any) -> Columns:
        """Decode and check one record batch; raise InputError."""
        try:
            size = count_decoded_bytes(message)
            if size > self._limit:
                raise InputError(
                    f"{self._path}: a record batch claims to decode to {size:,} bytes; "
                    f"with this seq_len, at most {self._limit:,} are read"
                )
            batch = pa.ipc.read_record_batch(message, self._schema)
            batch.validate()
            # Offsets out of bounds would crash a reader.
            for name in ("turn_num", *self._metadata.list_types):
                batch.column(name).validate(full=True)
            if any(map(_num_nulls, batch.columns)):
                raise InputError(f"{self._path}: damaged: it contains nulls")
            return _make_columns(self._path, batch, self._metadata)
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            raise _unreadable(self._path, error) from error


def _most_decoded_bytes(metadata: ShardMetadata) -> int:
    """Return the most bytes that a compressed batch may need, by the rule of the writer.

    A batch has `BATCH_BYTES` of token columns, or one sequence if that has more. At most, each of
    its tokens is a document and a turn.
    """
    tokens = max(BATCH_BYTES // BYTES_PER_TOKEN, min(metadata.seq_len, LONGEST_COMPRESSED))
    list_bytes = sum(kind.bit_width // 8 for kind in metadata.list_types.values())
    return int(tokens * (BYTES_PER_TOKEN + list_bytes) + 2**16)


def _num_nulls(array: pa.Array) -> int:
    inside = 0 if pa.types.is_integer(array.type) else array.flatten().null_count
    return int(array.null_count + inside)


def _read_metadata(path: Path, schema: pa.Schema) -> ShardMetadata:
    """Return the metadata of a shard; raise InputError if it or the columns are not as documented.

    The text has to be the one that mtpack writes, so that no key is there twice.
    """
    stored = (schema.metadata or {}).get(METADATA_KEY)
    if stored is None:
        raise InputError(f"{path}: an Arrow file, but not one that mtpack wrote")
    try:
        fields = json.loads(stored)
        known = FORMAT_VERSION, EXTRA_COLUMNS_VERSION
        require_format_version(path, fields.pop("format_version"), known)
        fields["extra_columns"] = tuple(fields.get("extra_columns", ()))
        metadata = ShardMetadata(**fields)
        is_valid = _is_valid(fields) and metadata.as_json().encode() == stored
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: its mtpack metadata is damaged") from error
    if not is_valid:
        raise InputError(f"{path}: its mtpack metadata is damaged")
    if not schema.equals(shard_schema(metadata)):
        raise InputError(f"{path}: does not have the columns of an mtpack shard")
    return metadata


def _is_valid(fields: dict[str, Any]) -> bool:
    extra = list(fields["extra_columns"])
    lowest = {"seq_len": 2, "pad_documents_to": 1, "pad_id": 0}
    return (
        all(
            type(fields[name]) is int and low <= fields[name] < 2**31
            for name, low in lowest.items()
        )
        and all(isinstance(fields[name], str) for name in ("tokenizer_sha256", "template_sha256"))
        and fields["label_alignment"] in ALIGNMENTS
        and extra == [name for name in EXTRA_TYPES if name in extra]
        and fields["seq_len"] % fields["pad_documents_to"] == 0
    )


def _make_columns(path: Path, batch: pa.RecordBatch, metadata: ShardMetadata) -> Columns:
    """Return the columns of a record batch: views of its memory.

    Raises InputError if lists that belong together have different lengths.
    """
    lists: dict[str, Any] = {name: _list_of(batch.column(name)) for name in metadata.list_types}
    turn_offsets = lists["turn_starts"][1]
    entry_offsets = lists["seq_lengths"][1]
    for names, offsets in (
        (metadata.turn_columns, turn_offsets),
        (ENTRY_COLUMNS, entry_offsets),
    ):
        for name in names:
            if not np.array_equal(lists[name][1], offsets):
                raise InputError(
                    f"{path}: damaged: {name} and {names[0]} have lists of different lengths"
                )
    return Columns(
        **{name: _matrix_of(batch.column(name)) for name in TOKEN_COLUMNS},
        turn_num=batch.column("turn_num").to_numpy(),
        turn_offsets=turn_offsets,
        entry_offsets=entry_offsets,
        **{name: values for name, (values, _) in lists.items()},
    )


def _matrix_of(column: pa.FixedSizeListArray) -> Any:
    # `flatten` respects the offset of a slice; `values` does not
    return column.flatten().to_numpy().reshape(len(column), column.type.list_size)


def _list_of(column: pa.ListArray) -> tuple[Int32 | Int64, Int64]:
    offsets = column.offsets.to_numpy().astype(np.int64)
    return column.flatten().to_numpy(), offsets - offsets[0]
