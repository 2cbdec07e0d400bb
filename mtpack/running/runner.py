"""Run tasks in worker processes on this machine, and yield their results in order."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

from mtpack.errors import MtpackError
from mtpack.running.heartbeat import NO_TASK
from mtpack.running.pipeline import Pipeline, PipelineContents
from mtpack.running.pool import Pool
from mtpack.running.processes import may_fork
from mtpack.running.watchdog import (
    SECONDS_BETWEEN_CHECKS,
    ProcessLimits,
    Stall,
    UnitTimeout,
    compute_process_limits,
)
from mtpack.running.worker import Result, Task, TaskFunction, run_in_worker

# Unfinished tasks per worker: one that it is running, one in its queue, and one that is done but
# waits for an earlier one, so that a slow task does not stop the others at once.
_TASKS_AHEAD = 3

# A worker may be killed or stopped by mistake, or because another process used up the memory. So
# its task gets a second try.
_FAILURES_THAT_STOP_THE_RUN = 2
_LIKELY_CAUSE_OF_DEATH = "most likely because memory ran out; run again with fewer --workers"


@dataclass(slots=True)
class _Submitted:
    """A task and its result to come."""

    call: tuple[Any, ...]
    """(number, function, task)"""
    future: Future[Any]

    @property
    def number(self) -> int:
        """The number of the task."""
        return int(self.call[0])

    @property
    def is_done(self) -> bool:
        """Whether it has a result or an error of its own."""
        return self.future.done() and not isinstance(self.future.exception(), BrokenProcessPool)


class LocalRunner:
    """Runs tasks in worker processes and yields their results in order."""

    sends_rows = True

    def __init__(
        self,
        pipeline: Pipeline | PipelineContents,
        num_workers: int,
        limits: ProcessLimits | None = None,
    ) -> None:
        """Start no process yet.

        pipeline: that of this process. Forked workers share it; where a fork is not safe, workers
        make their own from its contents, as they do if this process has no pipeline itself.
        limits: by default, a process's share of this machine.
        """
        self._pipeline = pipeline
        self._num_workers = num_workers
        self._limits = limits or compute_process_limits(num_workers, pipeline.options)
        self._timeout = UnitTimeout(pipeline.options.unit_timeout or None)
        self.pool = self._new_pool(forked=may_fork())
        self._numbers = count(NO_TASK + 1)
        self._failures: Counter[int] = Counter()
        """By the number of the task; between tasks, those since the last result."""

    def _new_pool(self, *, forked: bool) -> Pool:
        return Pool(self._num_workers, self._pipeline, self._limits, self._timeout, forked=forked)

    def run(self, function: TaskFunction[Task, Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Call `function` on each task and yield the results in the order of the tasks.

        Raises the error of the first task that fails, in that order. Raises MtpackError if a worker
        exceeds its limits, or if two workers have died or made no progress in the same task, which
        `str(task)` names then.
        """
        for results in self.poll(function, tasks):
            yield from results

    def poll(
        self, function: TaskFunction[Task, Result], tasks: Iterable[Task]
    ) -> Iterator[list[Result]]:
        """As `run`, but yield at every check, ten times a second, also where no result is there.

        Each list holds one result or none.
        """
        tasks = iter(tasks)
        window: deque[_Submitted] = deque()
        failed: MtpackError | None = None
        there_are_more = True
        while window or there_are_more:
            while there_are_more and len(window) < self._num_workers * _TASKS_AHEAD:
                try:
                    call = next(self._numbers), function, next(tasks)
                except StopIteration:
                    there_are_more = False
                except MtpackError as error:  # raised after the results of earlier tasks
                    there_are_more, failed = False, error
                else:
                    window.append(_Submitted(call, self.pool.submit(run_in_worker, *call)))
            if window:
                yield self._check_first(window)
        if failed is not None:
            raise failed

    def _check_first(self, window: deque[_Submitted]) -> list[Any]:
        """Return the result of the first task if it comes now, or raise its error.

        The window gets shorter then.
        """
        first = window[0]
        wait([first.future], SECONDS_BETWEEN_CHECKS)
        if self.pool.is_broken:
            self._replace_pool(window, stall=None)
        stall = self.pool.check(first.number)
        if first.is_done:
            del self._failures[NO_TASK]
            return [window.popleft().future.result()]
        if stall is not None:
            self._replace_pool(window, stall)
        return []

    def _describe_deaths(self) -> dict[int, str]:
        """Return how workers died, by the number of the task that they were at."""
        deaths = self.pool.describe_deaths() or {NO_TASK: "a worker process died"}
        return {task: f"{how}, {_LIKELY_CAUSE_OF_DEATH}" for task, how in deaths.items()}

    def _replace_pool(self, window: deque[_Submitted], stall: Stall | None) -> None:
        """Start another pool for the tasks that one has left in which workers died or stopped.

        stall: the task that makes no progress; None if a worker has died.
        """
        self.pool.end()
        failures = self._describe_deaths() if stall is None else _describe_stall(stall, window)
        self._failures.update(failures.keys())
        for task, description in failures.items():
            if self._failures[task] >= _FAILURES_THAT_STOP_THE_RUN:
                raise MtpackError(description)
        self.pool = self._new_pool(forked=False)  # the executor's threads don't end at once
        for submitted in window:
            if not submitted.is_done:
                submitted.future = self.pool.submit(run_in_worker, *submitted.call)


def _describe_stall(stall: Stall, window: Iterable[_Submitted]) -> dict[int, str]:
    """Return the line that stops the run at the second stall, by the number of the task."""
    names = {submitted.number: str(submitted.call[2]) for submitted in window}
    what = stall.what or names.get(stall.task, "an earlier task")
    return {
        stall.task: f"{what} made no progress for {stall.seconds:,.3g} s in two worker processes; "
        "they were stopped, or wait for a file system or a library: repair that and run again, or "
        "choose a larger --unit-timeout"
    }


@contextmanager
def local_runner(
    pipeline: Pipeline | PipelineContents, num_workers: int, limits: ProcessLimits | None = None
) -> Iterator[LocalRunner]:
    """Provide a runner whose workers end with the `with` block."""
    runner = LocalRunner(pipeline, num_workers, limits)
    try:
        runner.pool.start()
        yield runner
    finally:
        runner.pool.end()
