"""A pool of watched worker processes: one that dies is replaced, and none outlives the run."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import selectors
import signal
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from ctypes import c_ubyte
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.process import BaseProcess
from socket import socket, socketpair
from typing import Any

from mtpack.errors import MtpackError
from mtpack.running.channel import receive, send
from mtpack.running.forking import defer_interrupts, release_freed_memory, start
from mtpack.running.heartbeat import SLOT_BYTES, Heartbeat
from mtpack.running.pipeline import Pipeline, load_pipeline
from mtpack.running.watchdog import ProcessLimits, Watchdog, read_resident_memory
from mtpack.running.worker import STOP, TaskFunction, TaskResult, open_heartbeat, work

# A worker may be killed by mistake, or because another process used up the memory. So its task gets
# a second try.
_DEATHS_THAT_STOP_THE_RUN = 2

_NO_PROCESS = 0
_LIKELY_CAUSE = "most likely because memory ran out; run again with fewer --workers"


class Job:
    """A task that is submitted to a worker, with its result when it is done."""

    def __init__(self, function: TaskFunction[Any, Any], task: Any) -> None:
        """Pickle function and task now, so that no free worker has to wait for that later."""
        self.message = pickle.dumps((function, task), pickle.HIGHEST_PROTOCOL)
        self.deaths = 0
        """How many workers have died while they ran it."""
        self.task_result: TaskResult | None = None
        """None until the task is done."""

    def complete(self, task_result: TaskResult) -> None:
        """Keep the result, and release the pickled task."""
        self.task_result = task_result
        self.message = b""

    def result(self) -> Any:
        """Return the result of the task, or raise its error; ValueError if it is not done."""
        if self.task_result is None:
            raise ValueError("the task is not done")
        if self.task_result.error is not None:
            raise self.task_result.error
        return self.task_result.result


@dataclass(frozen=True, slots=True)
class _Process:
    process: BaseProcess
    channel: socket


@dataclass(slots=True, eq=False)
class _Worker:
    """A slot for a process: it starts with the first job, and is replaced if it dies."""

    number: int
    heartbeat: Heartbeat
    running: _Process | None = None
    jobs: deque[Job] = field(default_factory=deque)
    """Submitted to it: the job that it is running, and at most one that comes next."""


class Pool:
    """Worker processes that run one job after the other.

    Each has its own channel, which closes when it dies. Each can queue one job, so that it need not
    wait while the parent reads the next.
    """

    def __init__(
        self, num_workers: int, pipeline: Pipeline, limits: ProcessLimits, *, forked: bool
    ) -> None:
        """Start no process yet: a worker starts with its first job.

        forked: whether workers are forks of this process, which share all that it has loaded.
        """
        self._context: Any = multiprocessing.get_context("fork" if forked else "spawn")
        self._load: Callable[[], Pipeline] = partial(load_pipeline, pipeline.options)
        if forked:
            self._load = lambda: pipeline
            release_freed_memory()
            limits = _add_shared_memory(limits)
        self._slots = self._context.RawArray(c_ubyte, num_workers * SLOT_BYTES)
        self._workers = [
            _Worker(number, open_heartbeat(self._slots, number)) for number in range(num_workers)
        ]
        # Workers without a job; those without a process are on the left.
        self._idle = deque(self._workers)
        # Workers with one job, in the order in which they began it.
        self._busy: dict[_Worker, None] = {}
        self._selector = selectors.DefaultSelector()
        self._watchdog = Watchdog([worker.heartbeat for worker in self._workers], limits)

    def start(self) -> None:
        """Start all workers, before their first jobs."""
        for worker in self._workers:
            self._start(worker)

    @property
    def can_accept(self) -> bool:
        """Whether a worker can take another job."""
        return bool(self._idle or self._busy)

    def submit(self, job: Job) -> None:
        """Send a job to an idle worker, or queue it at the one that has run its job the longest."""
        if self._idle:
            worker = self._idle.pop()
            self._busy[worker] = None
        else:
            worker = next(iter(self._busy))
            del self._busy[worker]
        worker.jobs.append(job)
        self._send(worker, job.message)

    def wait(self, seconds: float) -> None:
        """Wait for results, up to `seconds`, and put them into their jobs.

        Replaces workers that have died. Raises MtpackError if a worker exceeds its limits, or if
        two workers have died in the same job.
        """
        for key, _ in self._selector.select(seconds):
            self._receive(*key.data)
        verdict = self._watchdog.check()
        if verdict is not None:
            raise MtpackError(verdict)

    def close(self) -> None:
        """End the workers after they have finished their jobs."""
        for worker in self._workers:
            if worker.running is not None:
                self._send(worker, STOP)
        self._wait_for_their_end()

    def abort(self) -> None:
        """End the workers at once."""
        for worker in self._workers:
            if worker.running is not None:
                worker.running.process.kill()
        self._wait_for_their_end()

    def _wait_for_their_end(self) -> None:
        for worker in self._workers:
            if worker.running is not None:
                self._reap(worker, worker.running)
        self._selector.close()

    def _send(self, worker: _Worker, message: bytes) -> None:
        running = worker.running or self._start(worker)
        with suppress(ConnectionError):  # it has died, which `_receive` will notice
            send(running.channel, message)

    def _start(self, worker: _Worker) -> _Process:
        ours, theirs = socketpair()
        process = self._context.Process(
            target=work, args=(theirs, self._load, self._slots, worker.number), daemon=True
        )
        with defer_interrupts():
            start(process)
            worker.running = _Process(process, ours)
        theirs.close()
        self._selector.register(ours, selectors.EVENT_READ, (worker, worker.running))
        return worker.running

    def _receive(self, worker: _Worker, running: _Process) -> None:
        try:
            message = receive(running.channel)
        except (ConnectionError, EOFError):
            self._replace(worker, running)
            return
        worker.jobs.popleft().complete(pickle.loads(message))
        if worker.jobs:
            self._busy[worker] = None
        else:
            del self._busy[worker]
            self._idle.append(worker)

    def _replace(self, worker: _Worker, died: _Process) -> None:
        """Start a new process for the jobs of one that has died, if it had any."""
        self._reap(worker, died)
        what = worker.heartbeat.read().what
        worker.heartbeat.set_process(_NO_PROCESS)
        if not worker.jobs:
            self._idle.remove(worker)
            self._idle.appendleft(worker)
            return
        worker.jobs[0].deaths += 1
        if worker.jobs[0].deaths >= _DEATHS_THAT_STOP_THE_RUN:
            how = _describe_exit(died.process.exitcode or 0)
            event = f"{what} ended the worker process ({how})" if what else "a worker process died"
            raise MtpackError(f"{event}, {_LIKELY_CAUSE}")
        for job in worker.jobs:
            self._send(worker, job.message)

    def _reap(self, worker: _Worker, ended: _Process) -> None:
        ended.process.join()
        with suppress(KeyError):  # interrupted before it was registered
            self._selector.unregister(ended.channel)
        ended.channel.close()
        worker.running = None


def _add_shared_memory(limits: ProcessLimits) -> ProcessLimits:
    """Add the memory that a fork shares with this process to its limit: it takes no new memory."""
    if limits.memory is None:
        return limits
    return replace(limits, memory=limits.memory + read_resident_memory(os.getpid()))


def _describe_exit(exitcode: int) -> str:
    return signal.Signals(-exitcode).name if exitcode < 0 else f"exit status {exitcode}"
