"""Token batches on disk, one file a split, mapped into memory when they are read."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pyarrow as pa

from mtpack.turns import TokenBatch


def save_batch(path: Path, batch: TokenBatch) -> None:
    """Write a batch: an Arrow file with one row, in which every array is one large list."""
    arrays = {
        field.name: pa.LargeListArray.from_arrays(
            pa.array([0, len(values)], pa.int64()), pa.array(values)
        )
        for field in fields(TokenBatch)
        for values in [getattr(batch, field.name)]
    }
    table = pa.table(arrays)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def open_batch(path: Path) -> TokenBatch:
    """Map a batch that this run has written; its arrays are read-only views of the file."""
    with pa.memory_map(str(path)) as source:
        batch = pa.ipc.open_file(source).get_batch(0)
    return TokenBatch(
        **{name: batch.column(name).flatten().to_numpy() for name in batch.schema.names}
    )
