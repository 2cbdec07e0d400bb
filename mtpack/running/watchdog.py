"""Watch over processes that run foreign code: none may hang, none may eat the machine's memory.

What is too much here depends on the machine, so it never decides about a row: it stops the run,
with one line that says what the process was at.
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

SECONDS_BETWEEN_LOOKS = 0.1
_SECONDS_TO_REACT = 2.0
_SHARE_OF_MEMORY = 0.9


@dataclass(frozen=True, slots=True)
class ProcessLimits:
    """What a process may take."""

    seconds: float = 60.0
    """For a usual row, which takes a few milliseconds; longer rows have longer."""
    memory: int | None = None
    """Resident bytes, without mapped files; None where they can't be told."""


def process_limits(num_processes: int) -> ProcessLimits:
    """Return the limits for processes that share what memory is free now."""
    free = _free_memory()
    memory = None if free is None else int(free * _SHARE_OF_MEMORY / num_processes)
    return ProcessLimits(memory=memory)


class Watch:
    """Looks at what processes are at, and tells when one takes too much."""

    def __init__(self, activities: Sequence[Heartbeat], limits: ProcessLimits) -> None:
        """Watch over the processes that write these activities."""
        self._activities = activities
        self._limits = limits
        self._seen: dict[
            Heartbeat, tuple[Snapshot, float]
        ] = {}  # a change, and when it was first seen
        self._looked = time.monotonic()

    def check(self) -> str | None:
        """Return one line that says why a process has to be stopped, or None.

        It is for calling often: it looks ten times a second.
        """
        now = time.monotonic()
        if now - self._looked < SECONDS_BETWEEN_LOOKS:
            return None
        self._looked = now
        for heartbeat in self._activities:
            moment = heartbeat.read()
            before, begun = self._seen.get(heartbeat, (moment, now))
            if (before.process, before.changes) != (moment.process, moment.changes):
                begun = now
            self._seen[heartbeat] = (moment, begun)
            verdict = self._judge(moment, now - begun)
            if verdict is not None:
                return verdict
        return None

    def _judge(self, moment: Snapshot, seconds: float) -> str | None:
        if not moment.what:
            return None
        allowed = self._limits.seconds * moment.effort
        if seconds > allowed:
            return (
                f"{moment.what} takes longer than {allowed:,.3g} s; "
                "remove the row, or use another chat template or tokenizer"
            )
        memory = self._limits.memory
        if memory is not None and resident_memory(moment.process) > memory:
            return out_of_memory(moment.what, f"more than {memory / 2**30:,.1f} GiB of memory")
        return None


@contextmanager
def watched_here(heartbeat: Heartbeat, limits: ProcessLimits) -> Iterator[None]:
    """Watch over what the main thread of this process does; raise MtpackError to stop it.

    Foreign code that can't be interrupted ends with the process. Foreign code that also keeps
    other threads from running keeps the watch from running as well: only in a worker process can
    that be ended.
    """

    verdict: str | None = None
    over = threading.Event()

    def watch_over() -> None:
        nonlocal verdict
        watch = Watch([heartbeat], limits)
        while not over.wait(SECONDS_BETWEEN_LOOKS):
            verdict = watch.check()
            if verdict is not None:
                _interrupt(verdict, over)
                return

    def stop(number: int, frame: object) -> None:
        raise _StoppedError

    thread = threading.Thread(target=watch_over, daemon=True)
    before = signal.signal(signal.SIGALRM, stop)
    try:
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
    except _StoppedError:
        raise MtpackError(verdict) from None
    finally:
        signal.signal(signal.SIGALRM, before)


class _StoppedError(BaseException):
    """Not an Exception, since foreign code may make us catch those."""


def _interrupt(verdict: str, over: threading.Event) -> None:
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)
    if not over.wait(_SECONDS_TO_REACT):
        sys.stderr.write(f"mtpack: {verdict}\n")
        sys.stderr.flush()
        os._exit(1)


def out_of_memory(what: str, how_much: str) -> str:
    """Return the line that says what needed too much memory."""
    return (
        f"{what} needs {how_much}; remove the row, use another chat template, "
        "or run with fewer --workers"
    )


def resident_memory(process: int) -> int:
    """Return the bytes of its own that a process has in memory; 0 where that can't be told."""
    try:
        pages = Path(f"/proc/{process}/statm").read_text().split()
    except OSError:  # it has ended, or the system has no /proc
        return 0
    return (int(pages[1]) - int(pages[2])) * os.sysconf("SC_PAGE_SIZE")


def _free_memory() -> int | None:
    """Return the bytes that this machine, or this container, has for us."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    for file in ("memory.max", "memory/memory.limit_in_bytes"):  # cgroups, version 2 and 1
        try:
            free.append(int((Path("/sys/fs/cgroup") / file).read_text()))
        except (OSError, ValueError):  # there is none, or it sets no limit
            continue
    return min(free, default=None)
