"""Windows: consecutive splits that are planned and shuffled together, and cut into shards.

A window is planned as soon as its splits are tokenized, and then its lengths are released. So
neither memory nor the document files in the work area grow with the input.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mtpack.counts import Counts
from mtpack.options import PackOptions
from mtpack.packing.columns import pad_lengths
from mtpack.packing.plan import Plan, plan_sequences
from mtpack.running.shard_task import ShardTask
from mtpack.running.split_task import SplitRecord
from mtpack.running.stopwatch import Stopwatch
from mtpack.shards.arrow import sequences_per_batch, sequences_per_shard
from mtpack.token_batch import Int32, offsets_from_lengths, segment_ids


class Windows:
    """Turns the splits of a run, in their order, into shard tasks, one window at a time."""

    def __init__(self, options: PackOptions, folder: Path, watch: Stopwatch) -> None:
        """Begin without a window; folder: the work area, where shards are written."""
        self.counts = Counts()
        """`sequences`: the number planned so far; `sequences_lower_bound`: its lower bound."""
        self._options = options
        self._folder = folder
        self._watch = watch
        self._number = 0
        self._num_shards = 0
        self._splits: list[SplitRecord] = []
        self._tokens = 0  # of the splits in the open window
        self._files_by_last_shard: dict[int, list[Path]] = {}  # the last shard that needs them

    def add(self, split: SplitRecord) -> list[ShardTask]:
        """Add a split; if it does not fit in the open window, close that and return its tasks."""
        if not len(split.document_lengths):
            self._remove(split.file)
            return []
        tokens = int(split.document_lengths.sum())
        is_full = self._splits and self._tokens + tokens > self._options.window_tokens
        tasks = self.close() if is_full else []
        self._splits.append(split)
        self._tokens += tokens
        return tasks

    def close(self) -> list[ShardTask]:
        """Close the open window and return its shard tasks; none if it is empty."""
        options, splits = self._options, self._splits
        if not splits:
            return []
        self._watch.restart()
        lengths = np.concatenate([split.document_lengths for split in splits])
        padded = pad_lengths(lengths, options.pad_documents_to)
        seed = (options.seed, self._number)
        plan = plan_sequences(padded, options.seq_len, options.packing, seed)
        self.counts += Counts(sequences=plan.num_sequences, sequences_lower_bound=plan.lower_bound)
        tasks = self._cut_into_shards(plan)
        self._number += 1
        self._num_shards += len(tasks)
        self._files_by_last_shard[self._num_shards - 1] = [split.file for split in splits]
        self._splits, self._tokens = [], 0
        self._watch.lap("plan")
        return tasks

    def _cut_into_shards(self, plan: Plan) -> list[ShardTask]:
        seq_len, shard_bytes = self._options.seq_len, self._options.shard_bytes
        batch_sequences = sequences_per_batch(seq_len, shard_bytes, self._options.compression)
        step = sequences_per_shard(self.counts.sequences, seq_len, shard_bytes, batch_sequences)
        file_offsets = offsets_from_lengths(
            np.array([len(s.document_lengths) for s in self._splits])
        )
        document_files: Int32 = segment_ids(file_offsets).astype(np.int32)[plan.documents]
        documents = (plan.documents - file_offsets[document_files]).astype(np.int32)
        files = [str(split.file) for split in self._splits]
        first_rows = np.array([split.first_row for split in self._splits], dtype=np.int64)
        tasks = []
        for number, first in enumerate(range(0, plan.num_sequences, step), self._num_shards):
            offsets = plan.sequence_offsets[first : first + step + 1]
            chosen = slice(offsets[0], offsets[-1])
            tasks.append(
                ShardTask(
                    number=number,
                    folder=self._folder,
                    files=files,
                    first_rows=first_rows,
                    document_files=document_files[chosen],
                    documents=documents[chosen],
                    sequence_offsets=offsets - offsets[0],
                )
            )
        return tasks

    def _remove(self, file: Path) -> None:
        if file.parent == self._folder:  # otherwise it belongs to the token store
            file.unlink()

    def remove_unneeded_files(self, shard: int) -> None:
        """Remove the files of the window that ends with this shard; earlier shards are written."""
        for file in self._files_by_last_shard.pop(shard, ()):
            self._remove(file)
