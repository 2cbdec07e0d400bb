"""Worker processes under watch: those that die are replaced, and none outlives the run."""

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
from mtpack.running.forking import give_back_freed_memory, interrupts_held, start
from mtpack.running.heartbeat import SLOT_BYTES, Heartbeat
from mtpack.running.pipeline import Pipeline, load_pipeline
from mtpack.running.watchdog import ProcessLimits, Watch, resident_memory
from mtpack.running.worker import STOP, TaskResult, Unit, heartbeat_in, work

# A worker may be killed by mistake, or for the memory that another has taken: its work is tried
# once more.
_DEATHS_THAT_STOP_THE_RUN = 2

_NOBODY = 0
_MOST_LIKELY = "most likely for want of memory; run again with fewer --workers"


class Job:
    """A unit of work on its way: to a worker, and to its outcome."""

    def __init__(self, unit: Unit[Any, Any], task: Any) -> None:
        """Pickle it at once, so that a worker that comes free need not wait for that."""
        self.message = pickle.dumps((unit, task), pickle.HIGHEST_PROTOCOL)
        self.deaths = 0
        """Of workers that were at it."""
        self.outcome: TaskResult | None = None

    def end(self, outcome: TaskResult) -> None:
        """Keep what came of it, and no longer what it was."""
        self.outcome = outcome
        self.message = b""

    def result(self) -> Any:
        """Return what came of it, or raise the error that did."""
        if self.outcome is None:
            raise ValueError("it has not ended")
        if self.outcome.error is not None:
            raise self.outcome.error
        return self.outcome.result


@dataclass(frozen=True, slots=True)
class _Process:
    process: BaseProcess
    channel: socket


@dataclass(slots=True, eq=False)
class _Worker:
    """A place for a process: one starts with the first job, and another where it has died."""

    number: int
    heartbeat: Heartbeat
    running: _Process | None = None
    jobs: deque[Job] = field(default_factory=deque)
    """Handed over: the one that it is at, and perhaps one for when that is done."""


class Pool:
    """Workers that do one job after the other.

    Each has a channel of its own, which closes when it dies, and a job ahead, so that it need not
    wait while the parent reads the next.
    """

    def __init__(
        self, num_workers: int, pipeline: Pipeline, limits: ProcessLimits, *, forked: bool
    ) -> None:
        """Start nothing yet: workers start when there is work for them.

        forked: whether workers are copies of this process, which share all it has loaded.
        """
        self._context: Any = multiprocessing.get_context("fork" if forked else "spawn")
        self._load: Callable[[], Pipeline] = partial(load_pipeline, pipeline.options)
        if forked:
            self._load = lambda: pipeline
            give_back_freed_memory()
            limits = _beside_what_is_shared(limits)
        self._slots = self._context.RawArray(c_ubyte, num_workers * SLOT_BYTES)
        self._workers = [
            _Worker(number, heartbeat_in(self._slots, number)) for number in range(num_workers)
        ]
        self._idle = deque(self._workers)  # without a job; those without a process on the left
        self._busy: dict[_Worker, None] = {}  # with one job, the longest at it first
        self._selector = selectors.DefaultSelector()
        self._watch = Watch([worker.heartbeat for worker in self._workers], limits)

    def start(self) -> None:
        """Start all workers before there is work."""
        for worker in self._workers:
            self._start(worker)

    @property
    def can_accept(self) -> bool:
        """Whether a worker could take a job."""
        return bool(self._idle or self._busy)

    def give(self, job: Job) -> None:
        """Hand a job to a worker that has nothing to do, or will be done soon."""
        if self._idle:
            worker = self._idle.pop()
            self._busy[worker] = None
        else:
            worker = next(iter(self._busy))
            del self._busy[worker]
        worker.jobs.append(job)
        self._send(worker, job.message)

    def wait(self, seconds: float) -> None:
        """Wait for outcomes and put them into their jobs.

        Replaces workers that have died. Raises MtpackError where one takes too much, and where a
        job has ended two.
        """
        for key, _ in self._selector.select(seconds):
            self._listen(*key.data)
        verdict = self._watch.check()
        if verdict is not None:
            raise MtpackError(verdict)

    def close(self) -> None:
        """End the workers when they have done what they are at."""
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
        with suppress(ConnectionError):  # it has died, which shows when it is listened to
            send(running.channel, message)

    def _start(self, worker: _Worker) -> _Process:
        ours, theirs = socketpair()
        process = self._context.Process(
            target=work, args=(theirs, self._load, self._slots, worker.number), daemon=True
        )
        with interrupts_held():
            start(process)
            worker.running = _Process(process, ours)
        theirs.close()
        self._selector.register(ours, selectors.EVENT_READ, (worker, worker.running))
        return worker.running

    def _listen(self, worker: _Worker, running: _Process) -> None:
        try:
            message = receive(running.channel)
        except (ConnectionError, EOFError):
            self._replace(worker, running)
            return
        worker.jobs.popleft().end(pickle.loads(message))
        if worker.jobs:
            self._busy[worker] = None
        else:
            del self._busy[worker]
            self._idle.append(worker)

    def _replace(self, worker: _Worker, died: _Process) -> None:
        """Give the jobs of a worker that has died to a new one, if it had any."""
        self._reap(worker, died)
        what = worker.heartbeat.read().what
        worker.heartbeat.belongs_to(_NOBODY)
        if not worker.jobs:
            self._idle.remove(worker)
            self._idle.appendleft(worker)
            return
        worker.jobs[0].deaths += 1
        if worker.jobs[0].deaths >= _DEATHS_THAT_STOP_THE_RUN:
            how = _how_it_ended(died.process.exitcode or 0)
            told = f"{what} ended the worker process ({how})" if what else "a worker process died"
            raise MtpackError(f"{told}, {_MOST_LIKELY}")
        for job in worker.jobs:
            self._send(worker, job.message)

    def _reap(self, worker: _Worker, ended: _Process) -> None:
        ended.process.join()
        with suppress(KeyError):  # an interrupt came before it was registered
            self._selector.unregister(ended.channel)
        ended.channel.close()
        worker.running = None


def _beside_what_is_shared(limits: ProcessLimits) -> ProcessLimits:
    """Allow a copy of this process what it has from the start, which takes no memory."""
    if limits.memory is None:
        return limits
    return replace(limits, memory=limits.memory + resident_memory(os.getpid()))


def _how_it_ended(exitcode: int) -> str:
    return signal.Signals(-exitcode).name if exitcode < 0 else f"exit status {exitcode}"
