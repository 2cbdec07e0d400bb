"""Watch worker processes: none may hang, and none may use up the memory.

A step (a row that foreign code renders or tokenizes) has limits on its CPU time and its memory.
They depend on the machine, so they never reject a row. A process that exceeds one stops the run,
with one line that names its step.

A worker may also stop without using anything: it was stopped (SIGSTOP), it waits for a dead network
mount, or a library is in a deadlock. That is no fault of a row. The watchdog finds the unit (the
task) that makes no progress, and the runner does it again in another process.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from mtpack.errors import MtpackError
from mtpack.options import PackOptions, flag
from mtpack.running.heartbeat import NO_TASK
from mtpack.running.processes import WorkerProcess
from mtpack.running.usage import read_cpu_seconds, read_free_memory, read_resident_memory

SECONDS_BETWEEN_CHECKS = 0.1
_SHARE_OF_MEMORY = 0.9

# Of the time between two checks, no more than this counts. The rest is time in which this process
# did not run (it was stopped, too), or did something else.
_LONGEST_WAIT = 1.0
_LEAST_UNIT_TIMEOUT = 60.0
_TIMES_THE_LONGEST_UNIT = 10
# A worker that uses a smaller share of the time only waits: it tries a lock again and again.
_LEAST_CPU_SHARE = 0.02


@dataclass(frozen=True, slots=True)
class ProcessLimits:
    """The CPU time and the memory that a process may use."""

    seconds: float = 60.0
    """For a typical row, which takes a few milliseconds. Longer rows may take longer."""
    memory: int | None = None
    """Resident bytes, without mapped files; None if they can't be measured."""
    render_seconds: float = 10.0
    """For a single render; a row takes several."""
    render_memory: int = 2**29
    """Resident bytes beyond what the process held before a render."""


def compute_process_limits(num_processes: int, options: PackOptions) -> ProcessLimits:
    """Return the limits of each of `num_processes` that share the memory that is free now."""
    free = read_free_memory()
    return ProcessLimits(
        memory=None if free is None else int(free * _SHARE_OF_MEMORY / num_processes),
        render_seconds=options.render_seconds,
        render_memory=options.render_bytes,
    )


@dataclass(slots=True)
class UnitTimeout:
    """The time that a unit may go without progress."""

    chosen: float | None = None
    """Seconds, if the user has chosen them."""
    longest: float = 0.0
    """Seconds of the longest unit so far."""

    @property
    def seconds(self) -> float:
        """The time: by default, it follows from the units so far, and is at least a minute."""
        if self.chosen is not None:
            return self.chosen
        return max(_LEAST_UNIT_TIMEOUT, _TIMES_THE_LONGEST_UNIT * self.longest)


@dataclass(frozen=True, slots=True)
class Stall:
    """A unit that makes no progress."""

    task: int
    """Its number; `NO_TASK` if a worker does not start."""
    what: str
    """The step, as in `Heartbeat.what`; empty between steps."""
    seconds: float
    """How long it has made no progress."""


class _Render(NamedTuple):
    """A single render, when it was seen for the first time."""

    number: int
    """That of the heartbeat."""
    seconds: float
    """That the process had used."""
    memory: int
    """That it held."""


@dataclass(slots=True)
class _Watched:
    """What was seen of a worker, in seconds of the time that it was watched."""

    task: int
    changes: int
    """Those of its heartbeat: more changes are progress."""
    unit_seconds: float = 0.0
    step_seconds: float = 0.0
    still_seconds: float = 0.0
    """Since the last progress."""
    start_cpu: float | None = None
    """Its CPU time when the step was seen for the first time."""
    progress_cpu: float = 0.0
    """Its CPU time at the last progress."""
    render: _Render | None = None
    """The render that it was at when it was seen last, if any."""


class Watchdog:
    """Reads the heartbeats of processes and reports one that exceeds its limits."""

    def __init__(self, limits: ProcessLimits, timeout: UnitTimeout | None = None) -> None:
        """limits: those of each process; timeout: that of their units, which learns from them."""
        self._limits = limits
        self._timeout = timeout or UnitTimeout()
        self._watched: dict[int, _Watched] = {}
        self._last_check = time.monotonic()
        self._waiting = NO_TASK, 0.0
        """The awaited task, and how long no worker has been at any."""

    def check(self, workers: Iterable[WorkerProcess], awaited: int) -> Stall | None:
        """Return a unit that makes no progress, if any; raise MtpackError for an exceeded limit.

        awaited: the number of the task whose result the run waits for. Call it often: it checks at
        most ten times a second.
        """
        now = time.monotonic()
        if now - self._last_check < SECONDS_BETWEEN_CHECKS:
            return None
        seconds = min(now - self._last_check, _LONGEST_WAIT)
        self._last_check = now
        none_works = True
        for worker in workers:
            watched = self._watch(worker, seconds)
            what = worker.heartbeat.what
            if what:
                self._check_step(worker, what, watched)
            if watched.task == NO_TASK and not what:
                continue
            none_works = False
            if watched.still_seconds > self._timeout.seconds:
                return Stall(watched.task, what, watched.still_seconds)
        return self._find_lost(awaited, seconds if none_works else None)

    def _watch(self, worker: WorkerProcess, seconds: float) -> _Watched:
        """Update and return what was seen of a worker; seconds: since the last check."""
        process, heartbeat = worker.pid or 0, worker.heartbeat
        task, changes = heartbeat.task, heartbeat.changes
        watched = self._watched.get(process)
        unit_seconds = 0.0
        if watched is not None:
            watched.unit_seconds += seconds
            if (watched.task, watched.changes) == (task, changes):
                watched.step_seconds += seconds
                watched.still_seconds += seconds
                return watched
            if watched.task == task:
                unit_seconds = watched.unit_seconds
            elif watched.task != NO_TASK:
                self._timeout.longest = max(self._timeout.longest, watched.unit_seconds)
        watched = self._watched[process] = _Watched(task, changes, unit_seconds)
        return watched

    def _check_step(self, worker: WorkerProcess, what: str, watched: _Watched) -> None:
        """Raise MtpackError if a step exceeds its limits; count its use of the CPU as progress."""
        allowed = self._limits.seconds * worker.heartbeat.effort
        cpu = read_cpu_seconds(worker.pid or 0)
        if cpu is None and sys.platform == "linux":  # it has ended
            return
        if cpu is None:  # such as on macOS: then all of the time counts against the step
            used, limit = watched.step_seconds, f"longer than {allowed:,.3g} s"
            watched.still_seconds = 0.0
        else:
            if watched.start_cpu is None:
                watched.start_cpu = watched.progress_cpu = cpu
            used, limit = cpu - watched.start_cpu, f"more than {allowed:,.3g} s of CPU time"
            if cpu - watched.progress_cpu >= _LEAST_CPU_SHARE * self._timeout.seconds:
                watched.progress_cpu, watched.still_seconds = cpu, 0.0
        if used > allowed:
            raise MtpackError(
                f"{what} takes {limit}; use another chat template or tokenizer, or remove the row"
            )
        memory, resident = self._limits.memory, read_resident_memory(worker.pid or 0)
        self._check_render(worker, what, watched, used, resident)
        if memory is not None and resident > memory:
            limit = f"more than {memory / 2**30:,.1f} GiB of memory"
            raise MtpackError(describe_out_of_memory(what, limit))

    def _check_render(
        self, worker: WorkerProcess, what: str, watched: _Watched, seconds: float, memory: int
    ) -> None:
        """Raise MtpackError if a single render exceeds its limits.

        seconds: those that the step has used; memory: what the process holds, in bytes.
        """
        number = worker.heartbeat.renders
        if number % 2 == 0 or watched.render is None or watched.render.number != number:
            watched.render = _Render(number, seconds, memory)
            return
        limits, how_much, option = self._limits, "", ""
        if seconds - watched.render.seconds > limits.render_seconds:
            how_much, option = (
                f"takes more than {limits.render_seconds:,.3g} s of CPU time",
                "render_seconds",
            )
        if memory - watched.render.memory > limits.render_memory:
            size = f"{limits.render_memory / 2**20:,.4g} MiB"
            how_much, option = f"needs more than {size} of memory", "render_memory"
        if how_much:
            raise MtpackError(
                f"{what} {how_much} in one render; use another chat template, remove the row, or "
                f"allow more with {flag(option)}"
            )

    def _find_lost(self, awaited: int, seconds: float | None) -> Stall | None:
        """Return the awaited task if no worker has been at any task for too long.

        A worker may be stopped before it has begun a task, or before it has sent the result. It may
        then hold a lock of the queue, so the others get no task either. seconds: since the last
        check, or None if a worker is at a task.
        """
        last, waited = self._waiting
        waited = 0.0 if seconds is None or awaited != last else waited + seconds
        self._waiting = awaited, waited
        return Stall(awaited, "", waited) if waited > self._timeout.seconds else None


def describe_out_of_memory(what: str, how_much: str) -> str:
    """Return the line for the user that says which step needs too much memory."""
    return (
        f"{what} needs {how_much}; use another chat template, remove the row, "
        "or run with fewer --workers"
    )
