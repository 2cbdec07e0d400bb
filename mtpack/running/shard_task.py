"""The unit of work from the token batches on: assemble and write one shard, in any process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from mtpack.packing.columns import Columns, Layout, assemble
from mtpack.running.document_file import open_documents, read_documents
from mtpack.running.pipeline import Pipeline
from mtpack.running.stopwatch import Stopwatch
from mtpack.shards.arrow import rows_per_batch, write_shard
from mtpack.shards.manifest import ShardRecord
from mtpack.token_batch import Int32, Int64, TokenBatch

# More splits than a window of the default size has. Each is a mapping; Linux grants 65,530.
_MOST_FILES_OPEN = 4096


@dataclass(frozen=True, slots=True)
class ShardTask:
    """Assemble and write one shard."""

    number: int
    folder: Path
    files: list[str]
    """Of splits, of which each may give documents."""
    first_rows: Int64
    """(files,): the index of each split's first row."""
    document_files: Int32
    """(documents,): the file of each document, in the order in which they are placed."""
    documents: Int32
    """(documents,): the number of each document in its file."""
    sequence_offsets: Int64
    """(sequences + 1,)"""


@dataclass(frozen=True, slots=True)
class WrittenShard:
    """A shard in the work area, and the seconds that it took."""

    number: int
    record: ShardRecord
    seconds: Mapping[str, float]


def write_one_shard(pipeline: Pipeline, task: ShardTask) -> WrittenShard:
    """Run one `ShardTask`."""
    watch = Stopwatch()
    options, metadata = pipeline.options, pipeline.shard_metadata
    batch_rows = rows_per_batch(options.seq_len, options.shard_bytes, options.compression)
    name = f"shard-{task.number:05d}.arrow"
    size, sha256 = write_shard(
        task.folder / name,
        _assembled(task, metadata.layout, batch_rows, watch),
        metadata,
        ipc_format=options.ipc_format,
        compression=options.compression,
    )
    watch.lap("write")
    record = ShardRecord(name, len(task.sequence_offsets) - 1, size, sha256)
    return WrittenShard(task.number, record, watch.seconds)


def _assembled(
    task: ShardTask, layout: Layout, batch_rows: int, watch: Stopwatch
) -> Iterator[Columns]:
    """Yield the columns of one record batch after the other.

    So little at a time stays in the processor's cache and in memory that is in use already: for a
    shard of 73 MB, a seventh of the time of all at once in a process that has just started.
    """
    open_file = lru_cache(_MOST_FILES_OPEN)(open_documents)

    def read(chosen: slice) -> TokenBatch:
        of_file, numbers = task.document_files[chosen], task.documents[chosen]
        files = [task.files[file] for file in of_file.tolist()]
        batch = read_documents(zip(map(open_file, files), numbers.tolist(), strict=True))
        return replace(batch, document_rows=batch.document_rows + task.first_rows[of_file])

    for first in range(0, len(task.sequence_offsets) - 1, batch_rows):
        watch.lap("write")
        offsets = task.sequence_offsets[first : first + batch_rows + 1]
        columns = assemble(read(slice(offsets[0], offsets[-1])), offsets - offsets[0], layout)
        watch.lap("assemble")
        yield columns
