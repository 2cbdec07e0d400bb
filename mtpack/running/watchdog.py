"""Watch processes that run foreign code: none may hang, and none may use up the memory.

These limits depend on the machine, so they never reject a row. A process that exceeds one stops the
run, with one line that names its step.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mtpack.errors import MtpackError
from mtpack.running.processes import WorkerProcess

SECONDS_BETWEEN_CHECKS = 0.1
_SHARE_OF_MEMORY = 0.9


@dataclass(frozen=True, slots=True)
class ProcessLimits:
    """The time and the memory that a process may use."""

    seconds: float = 60.0
    """For a typical row, which takes a few milliseconds. Longer rows may take longer."""
    memory: int | None = None
    """Resident bytes, without mapped files; None if they can't be measured."""


def compute_process_limits(num_processes: int) -> ProcessLimits:
    """Return the limits of each of `num_processes` that share the memory that is free now."""
    free = _read_free_memory()
    memory = None if free is None else int(free * _SHARE_OF_MEMORY / num_processes)
    return ProcessLimits(memory=memory)


class Watchdog:
    """Reads the heartbeats of processes and reports one that exceeds its limits."""

    def __init__(self, limits: ProcessLimits) -> None:
        """limits: those of each process."""
        self._limits = limits
        # When each (process id, changes of its heartbeat) of the last check was first seen.
        self._seen: dict[tuple[int, int], float] = {}
        self._last_check = time.monotonic()

    def check(self, workers: Iterable[WorkerProcess]) -> None:
        """Raise MtpackError if a process must be stopped.

        Call it often: it checks at most ten times a second.
        """
        now = time.monotonic()
        if now - self._last_check < SECONDS_BETWEEN_CHECKS:
            return
        self._last_check = now
        seen, self._seen = self._seen, {}
        for worker in workers:
            step = worker.pid or 0, worker.heartbeat.changes
            self._seen[step] = seen.get(step, now)
            if worker.heartbeat.what:
                self._check_step(worker, now - self._seen[step])

    def _check_step(self, worker: WorkerProcess, seconds: float) -> None:
        what = worker.heartbeat.what
        allowed = self._limits.seconds * worker.heartbeat.effort
        if seconds > allowed:
            raise MtpackError(
                f"{what} takes longer than {allowed:,.3g} s; "
                "use another chat template or tokenizer, or remove the row"
            )
        memory = self._limits.memory
        if memory is not None and read_resident_memory(worker.pid or 0) > memory:
            limit = f"more than {memory / 2**30:,.1f} GiB of memory"
            raise MtpackError(describe_out_of_memory(what, limit))


def describe_out_of_memory(what: str, how_much: str) -> str:
    """Return the line for the user that says which step needs too much memory."""
    return (
        f"{what} needs {how_much}; use another chat template, remove the row, "
        "or run with fewer --workers"
    )


def read_resident_memory(process: int) -> int:
    """Return the resident bytes of a process without mapped files; 0 if they can't be measured."""
    try:
        pages = Path(f"/proc/{process}/statm").read_text().split()
    except OSError:  # the process has ended, or the system has no /proc
        return 0
    return (int(pages[1]) - int(pages[2])) * os.sysconf("SC_PAGE_SIZE")


def _read_free_memory() -> int | None:
    """Return the free bytes of this machine or container; None if they can't be measured."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    for file in ("memory.max", "memory/memory.limit_in_bytes"):  # cgroups, version 2 and 1
        try:
            free.append(int((Path("/sys/fs/cgroup") / file).read_text()))
        except (OSError, ValueError):  # no such file, or no limit in it
            continue
    return min(free, default=None)
