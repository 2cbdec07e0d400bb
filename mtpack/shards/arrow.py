"""The format of a shard, and how one is written.

The format is docs/format.md: Arrow IPC, fixed-size lists, no nullable columns, and the options that
a reader needs in the schema's metadata. `reading.py` reads it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mtpack.errors import InputError
from mtpack.packing.columns import Columns, Layout
from mtpack.shards.atomic_file import atomic_file

FORMAT_VERSION = 1
EXTRA_COLUMNS_VERSION = 2
"""The format version of a shard with columns that others do not have."""
METADATA_KEY = b"mtpack"
TOKEN_COLUMNS = ("input_ids", "labels", "loss_mask", "loss_token_num")
TURN_COLUMNS = ("turn_starts", "turn_messages")
ENTRY_COLUMNS = ("seq_lengths", "document_lengths", "dialogue_ids")
_TOKEN_TYPES = {name: pa.uint8() if name == "loss_mask" else pa.int32() for name in TOKEN_COLUMNS}
EXTRA_TYPES = {"turn_bent": pa.uint8(), "turn_weights": pa.float32()}
"""Columns with an entry for each turn."""
BYTES_PER_TOKEN: int = sum(kind.bit_width // 8 for kind in _TOKEN_TYPES.values())
# Of a record batch without compression: few batches, each small enough to decode.
BATCH_BYTES = 4 * 2**20
_SMALL_SHARD_BYTES = 8 * 2**20
_SHARDS_TO_SHARE = 64


@dataclass(frozen=True, slots=True)
class ShardMetadata(Layout):
    """The metadata of a shard: how its sequences are laid out, and what they were made with."""

    tokenizer_sha256: str
    template_sha256: str

    @property
    def format_version(self) -> int:
        """The format version of the shard."""
        return EXTRA_COLUMNS_VERSION if self.extra_columns else FORMAT_VERSION

    @property
    def turn_columns(self) -> tuple[str, ...]:
        """The columns with an entry for each turn."""
        return (*TURN_COLUMNS, *self.extra_columns)

    @property
    def list_types(self) -> dict[str, pa.DataType]:
        """The type of the entries of each list column."""
        return {
            **dict.fromkeys((*TURN_COLUMNS, *ENTRY_COLUMNS), pa.int32()),
            "dialogue_ids": pa.int64(),
            **{name: EXTRA_TYPES[name] for name in self.extra_columns},
        }

    def as_json(self) -> str:
        """Return the metadata as canonical JSON: the same values give the same text."""
        values = {"format_version": self.format_version, **asdict(self)}
        if not self.extra_columns:
            del values["extra_columns"]
        return json.dumps(values, sort_keys=True)


def shard_schema(metadata: ShardMetadata) -> pa.Schema:
    """Return the Arrow schema of a shard."""
    seq_len = metadata.seq_len
    columns = [
        *((name, pa.list_(_TOKEN_TYPES[name], seq_len)) for name in TOKEN_COLUMNS),
        ("turn_num", pa.int32()),
        *((name, pa.list_(kind)) for name, kind in metadata.list_types.items()),
    ]
    return pa.schema(
        [pa.field(name, kind, nullable=False) for name, kind in columns],
        metadata={METADATA_KEY: metadata.as_json().encode()},
    )


def max_sequences_per_shard(seq_len: int, shard_bytes: int) -> int:
    """Return how many sequences fit in a shard of `shard_bytes`; at least one."""
    return max(1, shard_bytes // (seq_len * BYTES_PER_TOKEN))


def sequences_per_batch(seq_len: int, shard_bytes: int, compression: str) -> int:
    """Return how many sequences make a record batch: 1 to 256.

    A compressed batch holds at most 4, since reading one sequence decodes the whole batch.
    """
    most = 256 if compression == "none" else 4
    fitting = BATCH_BYTES // (seq_len * BYTES_PER_TOKEN)
    return max(1, min(most, fitting, max_sequences_per_shard(seq_len, shard_bytes)))


def sequences_per_shard(
    num_sequences: int, seq_len: int, shard_bytes: int, batch_sequences: int
) -> int:
    """Return how many sequences make a shard: whole record batches, at least one.

    num_sequences: the number planned in the run so far. A shard holds a 64th of them, so that many
    cores soon have work; at least 8 MiB, so that there are few files; and at most `shard_bytes`.
    """
    share = num_sequences * seq_len * BYTES_PER_TOKEN // _SHARDS_TO_SHARE
    sequences = max_sequences_per_shard(seq_len, min(max(share, _SMALL_SHARD_BYTES), shard_bytes))
    return max(1, sequences // batch_sequences) * batch_sequences


def write_shard(
    path: Path,
    batches: Iterable[Columns],
    metadata: ShardMetadata,
    *,
    ipc_format: str,
    compression: str,
) -> tuple[int, str]:
    """Write one shard, with a record batch for each of `batches`.

    Returns its size in bytes and its sha256. The file gets its name when it is complete.
    """
    schema = shard_schema(metadata)
    options = pa.ipc.IpcWriteOptions(compression=None if compression == "none" else compression)
    new_writer = pa.ipc.new_stream if ipc_format == "stream" else pa.ipc.new_file
    with atomic_file(path) as file:
        hashing = _HashingFile(file)
        # Arrow passes its buffers without a copy; hashing takes most of the time.
        with new_writer(pa.PythonFile(hashing, "w"), schema, options=options) as writer:
            for columns in batches:
                writer.write_batch(_make_record_batch(columns, schema))
        size = file.tell()
    return size, hashing.digest.hexdigest()


class _HashingFile:
    """A file-like object that writes to a file and hashes what it writes."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.closed = False

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return int(self._file.write(data))

    def flush(self) -> None:
        self._file.flush()

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        """Leave the file open: the function that opened it closes it."""


def _make_record_batch(columns: Columns, schema: pa.Schema) -> pa.RecordBatch:
    seq_len = columns.input_ids.shape[1]
    arrays: list[pa.Array] = []
    for name in schema.names:
        values = getattr(columns, name)
        if name in TOKEN_COLUMNS:
            array = pa.FixedSizeListArray.from_arrays(_as_array(values.ravel()), seq_len)
        elif name == "turn_num":
            array = _as_array(values)
        else:
            offsets = columns.entry_offsets if name in ENTRY_COLUMNS else columns.turn_offsets
            starts = _as_array(offsets.astype(np.int32))
            array = pa.ListArray.from_arrays(starts, _as_array(values))
        arrays.append(array)
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _as_array(values: NDArray[Any]) -> pa.Array:
    """Wrap an array without a copy. `pa.array` would import pandas, if installed, in 0.2 s."""
    kind = pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])


def require_format_version(path: str | Path, version: object, known: Sequence[int]) -> None:
    """Raise InputError if a shard or a manifest has none of the known format versions."""
    if type(version) is not int or version not in known:
        raise InputError(
            f"{path}: format version {version}; this mtpack reads version "
            f"{' and '.join(map(str, known))}"
        )
