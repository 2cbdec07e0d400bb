"""Run units of work on this machine, in this process or in worker processes."""

from __future__ import annotations

import itertools
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from mtpack.errors import MtpackError
from mtpack.running.forking import may_fork
from mtpack.running.pipeline import Pipeline
from mtpack.running.pool import Job, Pool
from mtpack.running.watchdog import (
    SECONDS_BETWEEN_LOOKS,
    ProcessLimits,
    process_limits,
    watched_here,
)
from mtpack.running.worker import Unit, keep_freed_memory, run_unit

Task = TypeVar("Task")
Result = TypeVar("Result")

# Tasks on their way, for each worker: one that it is at, one that it has ahead, and one that is
# done before its turn, so that a slow task does not stop the others at once.
_TASKS_AHEAD = 3


class LocalRunner:
    """Runs units in order; worker processes start when the first task has a second behind it."""

    def __init__(self, pipeline: Pipeline, limits: ProcessLimits | None = None) -> None:
        """Take the pipeline of this process.

        Forked workers share it; where a fork is not safe, workers load their own from its options.
        limits: what a process may take; by default, its share of this machine.
        """
        self._pipeline = pipeline
        self._limits = limits
        self._may_fork = may_fork()
        self._pool: Pool | None = None

    def start(self) -> None:
        """Start the workers that are going to be needed, if there are to be several."""
        num_workers = self._pipeline.options.num_workers
        if num_workers > 1:
            self._pool = self._new_pool(num_workers)
            self._pool.start()

    def _new_pool(self, num_workers: int) -> Pool:
        limits = self._limits or process_limits(num_workers)
        return Pool(num_workers, self._pipeline, limits, forked=self._may_fork)

    def run(self, unit: Unit[Task, Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Yield the results of `tasks` in their order."""
        tasks = iter(tasks)
        first = list(itertools.islice(tasks, 2))
        num_workers = self._pipeline.options.num_workers
        if num_workers == 1 or (len(first) == 1 and self._pool is None):
            for task in itertools.chain(first, tasks):
                yield self._run_here(unit, task)
            return
        if self._pool is None:
            self._pool = self._new_pool(num_workers)
        yield from _run_in_pool(self._pool, unit, itertools.chain(first, tasks), num_workers)

    def _run_here(self, unit: Unit[Task, Result], task: Task) -> Result:
        if threading.current_thread() is not threading.main_thread():  # it can't be interrupted
            return run_unit(self._pipeline, unit, task)
        keep_freed_memory()
        heartbeat = self._pipeline.heartbeat
        heartbeat.belongs_to(os.getpid())
        with watched_here(heartbeat, self._limits or process_limits(1)):
            return run_unit(self._pipeline, unit, task)

    def close(self) -> None:
        """End the workers when all results have been taken."""
        if self._pool is not None:
            self._pool.close()

    def abort(self) -> None:
        """End the workers at once, whatever they are at; what they write is in the work area."""
        if self._pool is not None:
            self._pool.abort()


def _run_in_pool(
    pool: Pool, unit: Unit[Task, Result], tasks: Iterator[Task], num_workers: int
) -> Iterator[Result]:
    jobs: deque[Job] = deque()  # in the order of the tasks, from the next to be yielded
    ready: deque[Job] = deque()  # those among them that no worker has yet
    failed: MtpackError | None = None
    there_are_more = True
    while jobs or there_are_more:
        while ready and pool.can_accept:
            pool.give(ready.popleft())
        if jobs and jobs[0].outcome is not None:
            yield jobs.popleft().result()
        elif there_are_more and len(jobs) < num_workers * _TASKS_AHEAD:
            try:
                task = next(tasks, None)
            except MtpackError as error:  # comes after whatever the tasks before it find
                task, failed = None, error
            if task is None:
                there_are_more = False
            else:
                jobs.append(Job(unit, task))
                ready.append(jobs[-1])
            pool.wait(0)
        else:
            pool.wait(SECONDS_BETWEEN_LOOKS)
    if failed is not None:
        raise failed


@contextmanager
def local_runner(pipeline: Pipeline, limits: ProcessLimits | None = None) -> Iterator[LocalRunner]:
    """Run units with a pool that ends with the `with` block."""
    runner = LocalRunner(pipeline, limits)
    try:
        yield runner
        runner.close()
    except BaseException:
        runner.abort()
        raise
