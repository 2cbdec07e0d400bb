"""How worker processes start: forked where that is safe, with nothing left half started."""

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

# It belongs to Arrow's allocator, which stops it before a fork and lets it go in the child.
_HARMLESS_THREAD = "jemalloc_bg_thd"


def may_fork() -> bool:
    """Return whether a copy of this process, with the thread alone that makes it, would be sound.

    A lock that another thread holds at that moment would never be released in the copy. To be
    asked before the work begins: the threads that Arrow starts for it know of forks. On macOS
    system libraries have threads of their own.
    """
    if sys.platform != "linux":
        return False
    try:
        threads = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]
    except OSError:  # one has just ended
        return False
    return sum(name != _HARMLESS_THREAD for name in threads) == 1


def give_back_freed_memory() -> None:
    """Return to the system what loading has used and freed, so that no fork has to map it.

    With the tokenizer of Qwen3 that is half of 250 MB, and a fork takes 4 ms where it took 10.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of the GNU C library
    if trim is not None:
        trim(0)


def start(process: BaseProcess) -> None:
    """Start a worker process; raise MtpackError where the system has no room for it."""
    try:
        with warnings.catch_warnings():
            # Python 3.12 and later warn of any other thread; may_fork knows which there are.
            warnings.simplefilter("ignore", DeprecationWarning)
            process.start()
    except OSError as error:
        raise MtpackError(
            f"a worker process can't be started ({error.strerror}); run with fewer --workers"
        ) from error


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Put off interrupts while a worker is starting: it would be left behind half started."""
    if threading.current_thread() is not threading.main_thread():  # none arrive elsewhere
        yield
        return
    came: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, frame: came.append(number))
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
        for late in came:
            signal.raise_signal(late)
