"""Windows: consecutive splits that are planned and shuffled together, and cut into shards.

    open      gets splits until the next one does not fit
    closed    is planned by a task, unless an earlier run has finished it
    planned   has shards, whose numbers follow those of the window before; tasks write them
    finished  has all its shards on the disk; its other files are removed

So neither memory nor the files in the work area grow with the input.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from mtpack.counts import Counts
from mtpack.options import PackOptions
from mtpack.running.earlier_work import EarlierWork, FinishedWindow
from mtpack.running.plan_task import PlannedWindow, PlanTask
from mtpack.running.shard_task import ShardTask, WrittenShard
from mtpack.running.split_record import SplitRecord
from mtpack.shards.arrow import sequences_per_batch, sequences_per_shard


class StaleWindowError(Exception):
    """An earlier run wrote the shards of a window from other splits, and removed those splits."""

    def __init__(self, number: int) -> None:
        """Name the window."""
        super().__init__(number)
        self.number = number


@dataclass(slots=True)
class _ClosedWindow:
    """A closed window whose shards are not all on the disk."""

    number: int
    sha256: str
    """Covers all that its shards depend on: also the splits of all windows before."""
    fast_paths: frozenset[str]
    """Those that produced some of what `sha256` covers."""
    splits: list[SplitRecord]
    plan_file: Path
    plan: PlannedWindow | None = None
    """None until it is planned."""
    finished: FinishedWindow | None = None
    """What it will be when all its shards are on the disk; None until it has shards."""
    unfinished: set[int] = field(default_factory=set)
    """The shards that are not on the disk."""


class Windows:
    """Turns the splits of a run, in their order, into the tasks that plan windows and write shards.

    There may be new tasks and taken shards after each split and each plan that is added.
    """

    def __init__(
        self,
        options: PackOptions,
        folder: Path,
        earlier: EarlierWork | None = None,
        run_sha256: str = "",
    ) -> None:
        """Begin without a window.

        folder: where plans and shards are written. earlier: what was done before this run.
        run_sha256: covers all that shards depend on except their splits.
        """
        self.counts = Counts()
        """`sequences`: the number planned so far; `sequences_lower_bound`: its lower bound."""
        self.taken: deque[WrittenShard] = deque()
        """Shards of planned windows that an earlier run has written."""
        self._options = options
        self._folder = folder
        self._earlier = earlier or EarlierWork()
        self._sha256 = run_sha256  # that of the last closed window
        self._fast_paths = frozenset[str]()  # those of the last closed window
        self._number = 0
        self._num_shards = 0
        self._splits: list[SplitRecord] = []
        self._tokens = 0  # of the splits in the open window
        self._closed: deque[_ClosedWindow] = deque()  # those that have no shards yet
        self._unfinished: dict[int, _ClosedWindow] = {}  # by each of their shards
        self._plan_tasks: deque[PlanTask] = deque()
        self._shard_tasks: deque[ShardTask] = deque()

    @property
    def has_tasks(self) -> bool:
        """Whether there are tasks that have not been taken."""
        return bool(self._plan_tasks or self._shard_tasks)

    def take_tasks(self) -> Iterator[PlanTask | ShardTask]:
        """Yield the tasks that can be run now: plans first, because shards wait for them."""
        while self.has_tasks:
            yield (self._plan_tasks or self._shard_tasks).popleft()

    def add(self, split: SplitRecord) -> None:
        """Add a split; if it does not fit in the open window, close that before.

        Raises StaleWindowError.
        """
        tokens = split.counts.tokens
        if self._tokens and tokens and self._tokens + tokens > self._options.window_tokens:
            self.close()
        self._splits.append(split)
        self._tokens += tokens

    def close(self) -> None:
        """Close the open window, unless it has no documents; raise StaleWindowError."""
        if not self._tokens:
            return
        splits, number = self._splits, self._number
        contents = [(split.first_row, split.content_sha256) for split in splits]
        text = json.dumps([self._sha256, contents])
        self._sha256 = hashlib.sha256(text.encode()).hexdigest()
        self._fast_paths = self._fast_paths.union(*(split.fast_paths for split in splits))
        plan_file = self._folder / f"plan-{number:05d}-{self._sha256}"
        window = _ClosedWindow(number, self._sha256, self._fast_paths, splits, plan_file)
        finished = self._earlier.windows.get(number)
        if finished is not None and finished.sha256 == window.sha256:
            bound = finished.sequences_lower_bound
            window.plan = PlannedWindow(number, finished.sequences, bound, {})
        else:
            self._plan_tasks.append(_make_plan_task(window))
        self._closed.append(window)
        self._number += 1
        self._splits, self._tokens = [], 0
        self._cut_into_shards()

    def add_plan(self, plan: PlannedWindow) -> None:
        """Add the result of a plan task. Shards are made in the order of the windows."""
        self._closed[plan.window - self._closed[0].number].plan = plan
        self._cut_into_shards()

    def _cut_into_shards(self) -> None:
        """Cut closed windows into shards, up to the first one that is not planned yet.

        The numbers and the sizes of shards depend on the windows before.
        """
        seq_len, shard_bytes = self._options.seq_len, self._options.shard_bytes
        batch_sequences = sequences_per_batch(seq_len, shard_bytes, self._options.compression)
        while self._closed and (plan := self._closed[0].plan) is not None:
            window = self._closed.popleft()
            self.counts += Counts(
                sequences=plan.sequences, sequences_lower_bound=plan.sequences_lower_bound
            )
            step = sequences_per_shard(self.counts.sequences, seq_len, shard_bytes, batch_sequences)
            firsts = range(0, plan.sequences, step)
            window.finished = FinishedWindow(
                number=window.number,
                sha256=window.sha256,
                sequences=plan.sequences,
                sequences_lower_bound=plan.sequences_lower_bound,
                first_shard=self._num_shards,
                num_shards=len(firsts),
                first_split=window.splits[0].key,
                last_split=window.splits[-1].key,
            )
            for number, first in enumerate(firsts, self._num_shards):
                num_sequences = min(step, plan.sequences - first)
                self._add_shard(
                    window,
                    ShardTask(number, self._folder, window.plan_file, first, num_sequences),
                )
            self._num_shards += len(firsts)

    def _add_shard(self, window: _ClosedWindow, task: ShardTask) -> None:
        """Add a shard; take the one that an earlier run has written, if there is one."""
        window.unfinished.add(task.number)
        self._unfinished[task.number] = window
        known = self._earlier.shards.get(task.number)
        if known is not None and known.window_sha256 == window.sha256:
            self.taken.append(WrittenShard(task.number, known.record, {}))
        else:
            self._shard_tasks.append(task)

    def describe_window(self, shard: int) -> tuple[str, frozenset[str]]:
        """Return the digest and the fast paths of the window of a shard that is not finished."""
        window = self._unfinished[shard]
        return window.sha256, window.fast_paths

    def finish_shard(self, number: int) -> FinishedWindow | None:
        """Note that a shard is on the disk; return its window if it was the last one of that."""
        window = self._unfinished[number]
        window.unfinished.remove(number)
        return None if window.unfinished else window.finished

    def describe_splits(self, window: FinishedWindow) -> list[dict[str, Any]]:
        """Return what `SplitRecord.as_dict` returns for the splits of a finished window."""
        return [split.as_dict() for split in self._unfinished[window.first_shard].splits]

    def forget(self, window: FinishedWindow) -> list[Path]:
        """Forget a finished window; return its files, its plan and its splits, to be removed."""
        for shard in range(window.first_shard, window.first_shard + window.num_shards):
            closed = self._unfinished.pop(shard)
        return [closed.plan_file, *chain(*(split.own_files for split in closed.splits))]


def _make_plan_task(window: _ClosedWindow) -> PlanTask:
    """Return the task that plans a window.

    Raises StaleWindowError if the documents of some split are in shards of an earlier run only.
    """
    splits = [split for split in window.splits if split.counts.documents]
    if any(split.file is None for split in window.splits):
        raise StaleWindowError(window.number)
    return PlanTask(
        window.number,
        window.plan_file,
        files=[str(split.file) for split in splits],
        first_rows=[split.first_row for split in splits],
    )
