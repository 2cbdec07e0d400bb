"""Run tasks on this machine, in this process or in worker processes."""

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
    SECONDS_BETWEEN_CHECKS,
    ProcessLimits,
    compute_process_limits,
    watch_main_thread,
)
from mtpack.running.worker import TaskFunction, keep_freed_memory, run_function

Task = TypeVar("Task")
Result = TypeVar("Result")

# Unfinished tasks per worker: one that it is running, one in its queue, and one that is done but
# waits for an earlier one, so that a slow task does not stop the others at once.
_TASKS_AHEAD = 3


class LocalRunner:
    """Runs tasks and yields their results in order. Workers start when there is a second task."""

    def __init__(self, pipeline: Pipeline, limits: ProcessLimits | None = None) -> None:
        """Start no process yet.

        pipeline: that of this process. Forked workers share it; where a fork is not safe, workers
        load their own from its options. limits: by default, a process's share of this machine.
        """
        self._pipeline = pipeline
        self._limits = limits
        self._may_fork = may_fork()
        self._pool: Pool | None = None

    def start(self) -> None:
        """Start the workers before the first task, if the options ask for more than one."""
        num_workers = self._pipeline.options.num_workers
        if num_workers > 1:
            self._pool = self._new_pool(num_workers)
            self._pool.start()

    def _new_pool(self, num_workers: int) -> Pool:
        limits = self._limits or compute_process_limits(num_workers)
        return Pool(num_workers, self._pipeline, limits, forked=self._may_fork)

    def run(self, function: TaskFunction[Task, Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Call `function` on each task and yield the results in the order of the tasks.

        Raises the error of the first task that fails, in that order.
        """
        tasks = iter(tasks)
        first = list(itertools.islice(tasks, 2))
        num_workers = self._pipeline.options.num_workers
        if num_workers == 1 or (len(first) == 1 and self._pool is None):
            for task in itertools.chain(first, tasks):
                yield self._run_here(function, task)
            return
        if self._pool is None:
            self._pool = self._new_pool(num_workers)
        yield from _run_in_pool(self._pool, function, itertools.chain(first, tasks), num_workers)

    def _run_here(self, function: TaskFunction[Task, Result], task: Task) -> Result:
        if threading.current_thread() is not threading.main_thread():  # signals can't interrupt it
            return run_function(self._pipeline, function, task)
        keep_freed_memory()
        heartbeat = self._pipeline.heartbeat
        heartbeat.set_process(os.getpid())
        with watch_main_thread(heartbeat, self._limits or compute_process_limits(1)):
            return run_function(self._pipeline, function, task)

    def close(self) -> None:
        """End the workers after all results have been taken."""
        if self._pool is not None:
            self._pool.close()

    def abort(self) -> None:
        """End the workers at once, even in a task: what they write is in the work area only."""
        if self._pool is not None:
            self._pool.abort()


def _run_in_pool(
    pool: Pool, function: TaskFunction[Task, Result], tasks: Iterator[Task], num_workers: int
) -> Iterator[Result]:
    jobs: deque[Job] = deque()  # in the order of the tasks; the first is the next to be yielded
    ready: deque[Job] = deque()  # those of them that no worker has yet
    failed: MtpackError | None = None
    there_are_more = True
    while jobs or there_are_more:
        while ready and pool.can_accept:
            pool.submit(ready.popleft())
        if jobs and jobs[0].task_result is not None:
            yield jobs.popleft().result()
        elif there_are_more and len(jobs) < num_workers * _TASKS_AHEAD:
            try:
                task = next(tasks, None)
            except MtpackError as error:  # raised after the results of earlier tasks
                task, failed = None, error
            if task is None:
                there_are_more = False
            else:
                jobs.append(Job(function, task))
                ready.append(jobs[-1])
            pool.wait(0)
        else:
            pool.wait(SECONDS_BETWEEN_CHECKS)
    if failed is not None:
        raise failed


@contextmanager
def local_runner(pipeline: Pipeline, limits: ProcessLimits | None = None) -> Iterator[LocalRunner]:
    """Provide a runner whose workers end with the `with` block."""
    runner = LocalRunner(pipeline, limits)
    try:
        yield runner
        runner.close()
    except BaseException:
        runner.abort()
        raise
