"""How worker processes start: forked where that is safe, otherwise spawned."""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import spawn
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext, ForkProcess, SpawnProcess
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import RawValue
from pathlib import Path
from typing import Any

from mtpack.running.heartbeat import Heartbeat

# A thread of Arrow's allocator, which stops it before a fork and forgets it in the child.
_HARMLESS_THREAD = "jemalloc_bg_thd"
_SECONDS_TO_END = 5.0


def may_fork() -> bool:
    """Return whether this process can be forked safely: no other thread may hold a lock.

    A fork copies only the thread that calls it, so a lock that another thread holds would never be
    released in the copy. Always False on macOS, where system libraries have their own threads.
    """
    if sys.platform != "linux":
        return False
    try:
        threads = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]
    except OSError:  # a thread has just ended
        return False
    return sum(name != _HARMLESS_THREAD for name in threads) == 1


def release_freed_memory() -> None:
    """Return the memory that loading has freed to the system, so that a fork need not map it.

    With the tokenizer of Qwen3 this is half of 250 MB, and a fork takes 4 ms instead of 10.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # in the GNU C library only
    if trim is not None:
        trim(0)


@contextmanager
def defer_interrupts() -> Iterator[None]:
    """Defer interrupts to the end of the block, so that no process is left half started."""
    # A new process inherits this mask, so Ctrl-C does not reach it before it is set up either.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    received: list[int] = []
    handlers = {}
    if threading.current_thread() is threading.main_thread():  # no handler runs in another
        handlers = {
            number: signal.signal(number, lambda number, frame: received.append(number))
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            if signal.getsignal(number) not in (signal.SIG_IGN, None)  # None: not set by Python
        }
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for deferred in received:
            signal.raise_signal(deferred)


class WorkerProcess(BaseProcess):
    """A process of a pool."""

    heartbeat: Heartbeat
    """In memory that the process shares with its parent."""
    was_ended = False
    """Whether the pool has ended it; otherwise it has died."""

    def is_alive(self) -> bool:
        """Return whether it may still do something; an ended one may only wait for a device."""
        return not self.was_ended and super().is_alive()

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end; if it was ended, not longer than a moment.

        A process that waits for a device, such as a dead mount, ends when the device answers.
        """
        super().join(_SECONDS_TO_END if self.was_ended and timeout is None else timeout)

    @property
    def has_ended(self) -> bool:
        """Whether it has died or was ended."""
        return bool(wait([self.sentinel], 0))  # known earlier than its exit code

    def terminate(self) -> None:
        """End this process at once, unless it has died. The executor calls this too."""
        if not self.has_ended:
            self.was_ended = True
            self.kill()


class _ForkedWorker(WorkerProcess, ForkProcess):
    pass


class _SpawnedWorker(WorkerProcess, SpawnProcess):
    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Any:
        with leave_out_main():
            return SpawnProcess._Popen(process_obj)


class WorkerContext(BaseContext):
    """The context of a `ProcessPoolExecutor`, which keeps the processes that the executor makes."""

    def __init__(self, *, forked: bool) -> None:
        """forked: whether workers are forks of this process, which share all that it has loaded."""
        self._name = "fork" if forked else "spawn"
        self.workers: list[WorkerProcess] = []

    def Process(self, **arguments: Any) -> WorkerProcess:
        """Return a process that is not started yet."""
        worker = (_ForkedWorker if self._name == "fork" else _SpawnedWorker)(**arguments)
        worker.heartbeat = RawValue(Heartbeat)
        worker.heartbeat.begin("starting")
        self.workers.append(worker)
        return worker


_preparing = threading.Lock()


@contextmanager
def leave_out_main() -> Iterator[None]:
    """Keep processes that this thread spawns from importing the caller's `__main__`.

    Otherwise a script without `if __name__ == "__main__":` would run again in each of them.
    """
    this_thread = threading.get_ident()
    with _preparing:
        original = spawn.get_preparation_data

        def get_preparation_data(name: str) -> dict[str, Any]:
            data = original(name)
            if threading.get_ident() == this_thread:
                data = {key: data[key] for key in data if not key.startswith("init_main")}
            return data

        spawn.get_preparation_data = get_preparation_data
        try:
            yield
        finally:
            spawn.get_preparation_data = original
