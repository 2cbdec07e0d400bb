"""Worker processes: a `ProcessPoolExecutor`, with heartbeats and an end at once.

The executor breaks when a worker dies. The pool then says who died, and another pool takes over.
"""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import current_process
from typing import Any

from mtpack.errors import MtpackError, SetupError
from mtpack.running.pipeline import Pipeline, PipelineContents
from mtpack.running.processes import (
    WorkerContext,
    WorkerProcess,
    defer_interrupts,
    release_freed_memory,
)
from mtpack.running.usage import read_resident_memory
from mtpack.running.watchdog import ProcessLimits, Stall, UnitTimeout, Watchdog
from mtpack.running.worker import set_up_worker


class Pool:
    """Worker processes that run submitted calls, until one of them dies."""

    def __init__(
        self,
        num_workers: int,
        pipeline: Pipeline | PipelineContents,
        limits: ProcessLimits,
        timeout: UnitTimeout,
        *,
        forked: bool,
    ) -> None:
        """Start no process yet; raise SetupError if this process can't start any.

        forked: whether workers are forks of this process, which share its pipeline; otherwise they
        are spawned and make their own from its contents.
        """
        if current_process().daemon:
            raise SetupError(
                "worker processes can't be started from a daemonic process, such as one of "
                "multiprocessing.Pool; call mtpack.pack from another process"
            )
        if forked:
            release_freed_memory()
            limits = _add_shared_memory(limits)
        load = _choose_loader(pipeline, forked=forked)
        self._watchdog = Watchdog(limits, timeout)
        self._context = WorkerContext(forked=forked)
        self._executor = ProcessPoolExecutor(
            num_workers, self._context, initializer=set_up_worker, initargs=(load,)
        )
        self._results: Any = self._executor._result_queue

    def start(self) -> None:
        """Start workers now: all of them if they are forked, otherwise the first."""
        with warnings.catch_warnings():
            # Python 3.12 and later warn of any other thread; `may_fork` has checked them.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.submit(os.getpid)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Call a function in a worker; raise MtpackError if no process can be started."""
        try:
            with defer_interrupts():
                return self._executor.submit(function, *arguments)
        except BrokenProcessPool as error:
            future: Future[Any] = Future()
            future.set_exception(error)
            return future
        except OSError as error:
            raise MtpackError(
                f"a worker process can't be started ({error.strerror}); run with fewer --workers"
            ) from error

    @property
    def is_broken(self) -> bool:
        """Whether a worker has died.

        The executor does not always notice this: it may wait for the rest of a result.
        """
        return any(worker.has_ended for worker in self._started_workers())

    def check(self, awaited: int) -> Stall | None:
        """Return a unit that makes no progress; raise MtpackError if a worker exceeds its limits.

        It takes no time if called often. awaited: see `Watchdog.check`.
        """
        return self._watchdog.check(self._started_workers(), awaited)

    def end(self) -> None:
        """End the workers at once, even in a call. An idle worker would end by itself, unless it
        is stopped.
        """
        for worker in self._started_workers():
            worker.terminate()
        self._results._writer.close()  # otherwise the executor might wait for the rest of a result
        self._executor.shutdown()
        for worker in self._started_workers():
            worker.join()

    def describe_deaths(self) -> dict[int, str]:
        """Return how workers died before `end`, by the number of the task that they were at."""
        died = [worker for worker in self._started_workers() if not worker.was_ended]
        return {worker.heartbeat.task: _describe_death(worker) for worker in died}

    def _started_workers(self) -> list[WorkerProcess]:
        return [worker for worker in self._context.workers if worker.pid is not None]


def _choose_loader(
    pipeline: Pipeline | PipelineContents, *, forked: bool
) -> Callable[[], Pipeline]:
    """Return the function that gives a worker its pipeline."""
    if isinstance(pipeline, PipelineContents):
        return pipeline.load
    return (lambda: pipeline) if forked else pipeline.contents.load


def _add_shared_memory(limits: ProcessLimits) -> ProcessLimits:
    """Add the memory that a fork shares with this process to its limit: it takes no new memory."""
    if limits.memory is None:
        return limits
    return replace(limits, memory=limits.memory + read_resident_memory(os.getpid()))


def _describe_death(worker: WorkerProcess) -> str:
    what = worker.heartbeat.what or "work between rows"
    status = worker.exitcode or 0
    how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    return f"{what} ended the worker process ({how})"
