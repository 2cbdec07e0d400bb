"""Start worker processes: forked where that is safe, and never left half started."""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

from mtpack.errors import MtpackError

# A thread of Arrow's allocator, which stops it before a fork and forgets it in the child.
_HARMLESS_THREAD = "jemalloc_bg_thd"


def may_fork() -> bool:
    """Return whether this process can be forked safely: no other thread may hold a lock.

    A fork copies only the thread that calls it, so a lock that another thread holds would never be
    released in the copy. Call this before the work begins: the threads that Arrow starts for the
    work are safe in a fork. Always False on macOS, where system libraries have their own threads.
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


def start(process: BaseProcess) -> None:
    """Start a worker process; raise MtpackError if the system can't."""
    try:
        with warnings.catch_warnings():
            # Python 3.12 and later warn of any other thread; `may_fork` has checked them.
            warnings.simplefilter("ignore", DeprecationWarning)
            process.start()
    except OSError as error:
        raise MtpackError(
            f"a worker process can't be started ({error.strerror}); run with fewer --workers"
        ) from error


@contextmanager
def defer_interrupts() -> Iterator[None]:
    """Defer interrupts to the end of the block, so that no process is left half started."""
    if threading.current_thread() is not threading.main_thread():  # no signal arrives here
        yield
        return
    received: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, frame: received.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    # The new process inherits this mask, so Ctrl-C does not reach it before it is set up either.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for deferred in received:
            signal.raise_signal(deferred)
