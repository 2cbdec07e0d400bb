"""Windows: consecutive splits that are planned and shuffled together, and cut into shards.

A window is planned as soon as its splits are tokenized, and then its lengths are released. So
neither memory nor the document files in the work area grow with the input.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mtpack.counts import Counts
from mtpack.options import PackOptions
from mtpack.packing.columns import pad_lengths
from mtpack.packing.plan import Plan, plan_sequences
from mtpack.running.earlier_work import EarlierWork, FinishedWindow
from mtpack.running.shard_task import ShardTask, WrittenShard
from mtpack.running.split_record import SplitRecord
from mtpack.running.stopwatch import Stopwatch
from mtpack.shards.arrow import sequences_per_batch, sequences_per_shard
from mtpack.token_batch import Int32, offsets_from_lengths, segment_ids


class StaleWindowError(Exception):
    """An earlier run wrote the shards of a window from other splits, and removed those splits."""

    def __init__(self, number: int) -> None:
        """Name the window."""
        super().__init__(number)
        self.number = number


@dataclass(slots=True)
class _OpenWindow:
    """A window whose shards are not all on the disk."""

    finished: FinishedWindow
    """What it will be then."""
    splits: list[SplitRecord]
    shards: set[int]
    """Those that are missing."""


class Windows:
    """Turns the splits of a run, in their order, into shard tasks, one window at a time."""

    def __init__(
        self,
        options: PackOptions,
        folder: Path,
        watch: Stopwatch,
        earlier: EarlierWork | None = None,
        run_sha256: str = "",
    ) -> None:
        """Begin without a window.

        folder: where shards are written. earlier: what was done before this run. run_sha256: covers
        all that shards depend on except their splits.
        """
        self.counts = Counts()
        """`sequences`: the number planned so far; `sequences_lower_bound`: its lower bound."""
        self.taken: list[WrittenShard] = []
        """Shards of closed windows that an earlier run has written."""
        self._options = options
        self._folder = folder
        self._watch = watch
        self._earlier = earlier or EarlierWork()
        self._run_sha256 = run_sha256
        self._number = 0
        self._num_shards = 0
        self._splits: list[SplitRecord] = []
        self._tokens = 0  # of the splits in the open window
        self._unfinished: dict[int, _OpenWindow] = {}  # by each of their shards

    def add(self, split: SplitRecord) -> list[ShardTask]:
        """Add a split; if it does not fit in the open window, close that and return its tasks.

        Raises StaleWindowError.
        """
        tokens = int(split.document_lengths.sum())
        is_full = self._tokens and self._tokens + tokens > self._options.window_tokens
        tasks = self.close() if is_full and tokens else []
        self._splits.append(split)
        self._tokens += tokens
        return tasks

    def close(self) -> list[ShardTask]:
        """Close the open window and return its shard tasks; none if it is empty.

        Raises StaleWindowError.
        """
        splits, number, first_shard = self._splits, self._number, self._num_shards
        if not self._tokens:
            return []
        self._watch.restart()
        sha256 = self._compute_sha256()
        finished = self._earlier.windows.get(number)
        if finished is None or finished.sha256 != sha256:
            if any(split.file is None for split in splits):
                raise StaleWindowError(number)
            tasks, finished = self._plan(sha256)
        else:
            tasks = []
            self._count(finished)
        shards = set(range(first_shard, first_shard + finished.num_shards))
        window = _OpenWindow(finished, splits, shards)
        self._unfinished.update(dict.fromkeys(shards, window))
        self._take_shards(shards - {task.number for task in tasks})
        self._number, self._num_shards = number + 1, first_shard + len(shards)
        self._splits, self._tokens = [], 0
        self._watch.lap("plan")
        return tasks

    def _compute_sha256(self) -> str:
        """Return the digest of all that the shards of the open window depend on."""
        before = self._number, self._num_shards, self.counts.sequences
        splits = [(split.first_row, split.content_sha256) for split in self._splits]
        text = json.dumps([self._run_sha256, *before, splits])
        return hashlib.sha256(text.encode()).hexdigest()

    def _plan(self, sha256: str) -> tuple[list[ShardTask], FinishedWindow]:
        """Plan the open window; return its missing shards, and what it will be when finished."""
        options = self._options
        splits = [split for split in self._splits if len(split.document_lengths)]
        lengths = np.concatenate([split.document_lengths for split in splits])
        padded = pad_lengths(lengths, options.pad_documents_to)
        seed = (options.seed, self._number)
        plan = plan_sequences(padded, options.seq_len, options.packing, seed)
        finished = FinishedWindow(
            number=self._number,
            sha256=sha256,
            sequences=plan.num_sequences,
            sequences_lower_bound=plan.lower_bound,
            first_shard=self._num_shards,
            num_shards=0,
            first_split=self._splits[0].key,
            last_split=self._splits[-1].key,
        )
        self._count(finished)
        tasks = self._cut_into_shards(plan, splits)
        missing = [
            task
            for task in tasks
            if (known := self._earlier.shards.get(task.number)) is None
            or known.window_sha256 != sha256
        ]
        return missing, replace(finished, num_shards=len(tasks))

    def _count(self, window: FinishedWindow) -> None:
        self.counts += Counts(
            sequences=window.sequences, sequences_lower_bound=window.sequences_lower_bound
        )

    def _take_shards(self, numbers: set[int]) -> None:
        for number in sorted(numbers):
            record = self._earlier.shards[number].record
            self.taken.append(WrittenShard(number, record, {}))

    def describe_window(self, shard: int) -> tuple[str, frozenset[str]]:
        """Return the digest and the fast paths of the window of a shard that is not finished."""
        window = self._unfinished[shard]
        fast_paths = frozenset[str]().union(*(split.fast_paths for split in window.splits))
        return window.finished.sha256, fast_paths

    def finish_shard(self, number: int) -> FinishedWindow | None:
        """Note that a shard is on the disk; return its window if it was the last one of that."""
        window = self._unfinished[number]
        window.shards.remove(number)
        return None if window.shards else window.finished

    def describe_splits(self, window: FinishedWindow) -> list[dict[str, Any]]:
        """Return what `SplitRecord.as_dict` returns for the splits of a finished window."""
        return [split.as_dict() for split in self._unfinished[window.first_shard].splits]

    def remove_files(self, window: FinishedWindow) -> None:
        """Remove the files of the splits of a finished window, and forget it."""
        for shard in range(window.first_shard, window.first_shard + window.num_shards):
            splits = self._unfinished.pop(shard).splits
        for split in splits:
            for file in split.own_files:
                file.unlink(missing_ok=True)

    def _cut_into_shards(self, plan: Plan, splits: list[SplitRecord]) -> list[ShardTask]:
        seq_len, shard_bytes = self._options.seq_len, self._options.shard_bytes
        batch_sequences = sequences_per_batch(seq_len, shard_bytes, self._options.compression)
        step = sequences_per_shard(self.counts.sequences, seq_len, shard_bytes, batch_sequences)
        file_offsets = offsets_from_lengths(
            np.array([len(split.document_lengths) for split in splits])
        )
        document_files: Int32 = segment_ids(file_offsets).astype(np.int32)[plan.documents]
        documents = (plan.documents - file_offsets[document_files]).astype(np.int32)
        files = [str(split.file) for split in splits]
        first_rows = np.array([split.first_row for split in splits], dtype=np.int64)
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
