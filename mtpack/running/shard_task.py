"""The task that makes shards from token batches: assemble and write one shard, in any process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from mtpack.packing.columns import Columns, assemble
from mtpack.running.document_file import open_documents, read_documents
from mtpack.running.pipeline import Pipeline
from mtpack.running.plan_file import open_plan
from mtpack.running.stopwatch import Stopwatch
from mtpack.shards.arrow import sequences_per_batch, write_shard
from mtpack.shards.manifest import ShardRecord
from mtpack.token_batch import TokenBatch

# More splits than a window of the default size has. Each is a memory map; Linux allows 65,530.
_MAX_OPEN_FILES = 4096


@dataclass(frozen=True, slots=True)
class ShardTask:
    """The task of assembling and writing one shard."""

    number: int
    """The index of the shard in the output."""
    folder: Path
    """Where the shard is written, in the work area."""
    plan: Path
    """The plan file of its window."""
    first_sequence: int
    """The index of its first sequence in the plan."""
    num_sequences: int

    def __str__(self) -> str:
        return f"writing shard {self.number}"


@dataclass(frozen=True, slots=True)
class WrittenShard:
    """The result of a `ShardTask`: a shard in the work area."""

    number: int
    record: ShardRecord
    seconds: Mapping[str, float]
    """The time it took, by stage."""


def run_shard_task(pipeline: Pipeline, task: ShardTask) -> WrittenShard:
    """Run one `ShardTask` and return its result."""
    watch = Stopwatch()
    options, metadata = pipeline.options, pipeline.shard_metadata
    batch_sequences = sequences_per_batch(options.seq_len, options.shard_bytes, options.compression)
    name = f"shard-{task.number:05d}.arrow"
    size, sha256 = write_shard(
        task.folder / name,
        _assemble_batches(pipeline, task, batch_sequences, watch),
        metadata,
        ipc_format=options.ipc_format,
        compression=options.compression,
    )
    watch.lap("write")
    record = ShardRecord(name, task.num_sequences, size, sha256)
    return WrittenShard(task.number, record, watch.seconds)


def _assemble_batches(
    pipeline: Pipeline, task: ShardTask, batch_sequences: int, watch: Stopwatch
) -> Iterator[Columns]:
    """Yield the columns of the shard, one record batch at a time.

    A record batch fits in the processor's cache and in memory that is already in use. In a process
    that has just started, a shard of 73 MB takes a seventh of the time that all at once takes.
    """
    layout, heartbeat = pipeline.shard_metadata, pipeline.heartbeat
    open_file = lru_cache(_MAX_OPEN_FILES)(open_documents)
    plan = open_plan(task.plan)
    end = task.first_sequence + task.num_sequences

    def read(chosen: slice) -> TokenBatch:
        of_file, numbers = plan.document_files[chosen], plan.documents[chosen]
        files = [plan.files[file] for file in of_file.tolist()]
        batch = read_documents(zip(map(open_file, files), numbers.tolist(), strict=True))
        return replace(batch, document_rows=batch.document_rows + plan.first_rows[of_file])

    for first in range(task.first_sequence, end, batch_sequences):
        watch.lap("write")
        offsets = plan.sequence_offsets[first : min(first + batch_sequences, end) + 1]
        columns = assemble(read(slice(offsets[0], offsets[-1])), offsets - offsets[0], layout)
        watch.lap("assemble")
        yield columns
        heartbeat.end()
