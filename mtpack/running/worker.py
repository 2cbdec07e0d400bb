"""A worker process: it runs one task after the other, until the parent sends `STOP`."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from ctypes import Array, c_ubyte
from dataclasses import dataclass, replace
from functools import cache
from socket import socket
from typing import Any, TypeVar

import numpy as np

from mtpack.errors import MtpackError
from mtpack.running.channel import receive, send
from mtpack.running.heartbeat import SLOT_BYTES, Heartbeat
from mtpack.running.pipeline import Pipeline
from mtpack.running.thread_limits import SINGLE_THREAD_ENV
from mtpack.running.watchdog import describe_out_of_memory

Task = TypeVar("Task")
Result = TypeVar("Result")
TaskFunction = Callable[[Pipeline, Task], Result]
"""A function that runs a task."""

STOP = b""
"""The message that ends a worker."""

# By default, the garbage collector runs after every 700 new objects. That takes a tenth of the time
# to read and render a split (0.63 s of CPU time instead of 0.57), and it finds almost nothing.
_OBJECTS_BETWEEN_COLLECTIONS = 20_000
_LARGEST_BLOCK_BYTES = 31 * 2**20  # glibc adapts to freed blocks of less than 32 MiB
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


@dataclass(frozen=True, slots=True)
class TaskResult:
    """The result of a task, or the error that it raised."""

    result: Any = None
    error: Exception | None = None


def work(channel: socket, load: Callable[[], Pipeline], slots: Array[c_ubyte], number: int) -> None:
    """Receive pickled (function, task) from the parent and send a pickled `TaskResult` for each.

    slots, number: the heartbeats of all workers, and the index of this worker.
    """
    _set_up_process()
    heartbeat = open_heartbeat(slots, number)
    heartbeat.set_process(os.getpid())

    @cache
    def pipeline() -> Pipeline:
        loaded = replace(load(), heartbeat=heartbeat)
        gc.freeze()
        return loaded

    with suppress(ConnectionError, EOFError):  # the parent has ended
        while (message := receive(channel)) != STOP:
            send(channel, _run_message(pipeline, message))


def open_heartbeat(slots: Array[c_ubyte], number: int) -> Heartbeat:
    """Return the heartbeat of a worker, in memory that all processes share."""
    return Heartbeat(memoryview(slots).cast("B")[number * SLOT_BYTES :][:SLOT_BYTES])


def _set_up_process() -> None:
    """Set signal handlers, environment and memory for a worker; a fork inherits the parent's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    _end_with_parent()
    os.environ.update(SINGLE_THREAD_ENV)
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    keep_freed_memory()


def _end_with_parent() -> None:
    """Make this process end when its parent ends, even if the parent is killed."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    if sys.platform == "linux":  # works even while foreign code holds the interpreter
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
        if os.getppid() != parent.pid:  # the parent ended before that call
            os._exit(1)
        return

    def wait_for_its_end() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait_for_its_end, daemon=True).start()


def _run_message(pipeline: Callable[[], Pipeline], message: bytes) -> bytes:
    """Run a pickled (function, task) and return the pickled `TaskResult`."""
    try:
        function, task = pickle.loads(message)
        task_result = TaskResult(run_function(pipeline(), function, task))
    except Exception as error:  # the parent raises it, after the results of earlier tasks
        task_result = TaskResult(error=_make_picklable(error))
    return pickle.dumps(task_result, pickle.HIGHEST_PROTOCOL)


def _make_picklable(error: Exception) -> Exception:
    """Return an error that can be pickled, with the traceback as a note."""
    if isinstance(error, MtpackError):
        return error
    note = "in a worker process:\n" + traceback.format_exc()
    try:
        error = pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}, which can't be pickled")
    error.add_note(note)
    return error


def keep_freed_memory() -> None:
    """Make the C library keep freed memory, so that all tasks use the same memory.

    glibc keeps at most twice the largest block that was freed so far. Without this, each record
    batch gets new pages: a shard of 73 MB causes 24,000 page faults instead of 2,700 and takes
    0.21 s instead of 0.17.
    """
    np.empty(_LARGEST_BLOCK_BYTES, dtype=np.uint8)  # freed at once, and never written to


def run_function(pipeline: Pipeline, function: TaskFunction[Task, Result], task: Task) -> Result:
    """Call the function that runs a task; raise MtpackError if memory runs out."""
    try:
        return function(pipeline, task)
    except MemoryError as error:
        what = pipeline.heartbeat.read().what or "a task"
        raise MtpackError(describe_out_of_memory(what, "more memory than is available")) from error
    finally:
        pipeline.heartbeat.end()
