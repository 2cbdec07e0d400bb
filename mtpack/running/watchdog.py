"""Watch processes that run foreign code: none may hang, and none may use up the memory.

These limits depend on the machine, so they never reject a row. A process that exceeds one stops the
run, with one line that names its step.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mtpack.errors import MtpackError
from mtpack.running.heartbeat import Heartbeat, Snapshot

SECONDS_BETWEEN_CHECKS = 0.1
_SECONDS_TO_REACT = 2.0
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

    def __init__(self, heartbeats: Sequence[Heartbeat], limits: ProcessLimits) -> None:
        """Watch the processes that write these heartbeats."""
        self._heartbeats = heartbeats
        self._limits = limits
        # The last snapshot, and when its step was first seen.
        self._seen: dict[Heartbeat, tuple[Snapshot, float]] = {}
        self._last_check = time.monotonic()

    def check(self) -> str | None:
        """Return one line that says why a process must be stopped, or None.

        Call it often: it checks at most ten times a second.
        """
        now = time.monotonic()
        if now - self._last_check < SECONDS_BETWEEN_CHECKS:
            return None
        self._last_check = now
        for heartbeat in self._heartbeats:
            snapshot = heartbeat.read()
            before, begun = self._seen.get(heartbeat, (snapshot, now))
            if (before.process, before.changes) != (snapshot.process, snapshot.changes):
                begun = now
            self._seen[heartbeat] = (snapshot, begun)
            verdict = self._judge(snapshot, now - begun)
            if verdict is not None:
                return verdict
        return None

    def _judge(self, snapshot: Snapshot, seconds: float) -> str | None:
        if not snapshot.what:
            return None
        allowed = self._limits.seconds * snapshot.effort
        if seconds > allowed:
            return (
                f"{snapshot.what} takes longer than {allowed:,.3g} s; "
                "remove the row, or use another chat template or tokenizer"
            )
        memory = self._limits.memory
        if memory is not None and read_resident_memory(snapshot.process) > memory:
            limit = f"more than {memory / 2**30:,.1f} GiB of memory"
            return describe_out_of_memory(snapshot.what, limit)
        return None


@contextmanager
def watch_main_thread(heartbeat: Heartbeat, limits: ProcessLimits) -> Iterator[None]:
    """Watch the main thread of this process during the block; raise MtpackError to stop it.

    If foreign code can't be interrupted, the process exits. If it also blocks other threads, it
    blocks the watchdog too: only in a worker process can it be ended then.
    """
    verdict: str | None = None
    finished = threading.Event()

    def watch() -> None:
        nonlocal verdict
        watchdog = Watchdog([heartbeat], limits)
        while not finished.wait(SECONDS_BETWEEN_CHECKS):
            verdict = watchdog.check()
            if verdict is not None:
                _interrupt(verdict, finished)
                return

    def stop(number: int, frame: object) -> None:
        raise _StoppedError

    thread = threading.Thread(target=watch, daemon=True)
    before = signal.signal(signal.SIGALRM, stop)
    try:
        thread.start()
        try:
            yield
        finally:
            finished.set()
            thread.join()
    except _StoppedError:
        raise MtpackError(verdict) from None
    finally:
        signal.signal(signal.SIGALRM, before)


class _StoppedError(BaseException):
    """Stops the main thread. Not an Exception, since foreign code may catch those."""


def _interrupt(verdict: str, finished: threading.Event) -> None:
    """Interrupt the main thread; exit the process if that does not end the block."""
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)
    if not finished.wait(_SECONDS_TO_REACT):
        sys.stderr.write(f"mtpack: {verdict}\n")
        sys.stderr.flush()
        os._exit(1)


def describe_out_of_memory(what: str, how_much: str) -> str:
    """Return the line for the user that says which step needs too much memory."""
    return (
        f"{what} needs {how_much}; remove the row, use another chat template, "
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
