"""A worker process: does one unit of work after the other, until it is told to end."""

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
from mtpack.running.thread_limits import ONE_THREAD
from mtpack.running.watchdog import out_of_memory

Task = TypeVar("Task")
Result = TypeVar("Result")
Unit = Callable[[Pipeline, Task], Result]

STOP = b""

# A collection after every 700 new objects, the default, takes a tenth of the time in which a split
# is read and rendered (0.63 s of CPU time against 0.57), and finds next to nothing.
_OBJECTS_BETWEEN_COLLECTIONS = 20_000
_LARGEST_BLOCK_BYTES = 31 * 2**20  # glibc learns from blocks of less than 32 MiB
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What came of a unit of work: a result, or an error that is to be raised in its place."""

    result: Any = None
    error: Exception | None = None


def work(channel: socket, load: Callable[[], Pipeline], slots: Array[c_ubyte], number: int) -> None:
    """Take pickled (unit, task) from the parent and give it pickled outcomes, one for one."""
    _settle_in()
    heartbeat = heartbeat_in(slots, number)
    heartbeat.belongs_to(os.getpid())

    @cache
    def pipeline() -> Pipeline:
        loaded = replace(load(), heartbeat=heartbeat)
        gc.freeze()
        return loaded

    with suppress(ConnectionError, EOFError):  # the parent has ended
        while (message := receive(channel)) != STOP:
            send(channel, _do(pipeline, message))


def heartbeat_in(slots: Array[c_ubyte], number: int) -> Heartbeat:
    """Return the heartbeat of a worker, in memory that all processes see."""
    return Heartbeat(memoryview(slots).cast("B")[number * SLOT_BYTES :][:SLOT_BYTES])


def _settle_in() -> None:
    """Become a worker, whatever the process was before it was forked."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    _end_with_parent()
    os.environ.update(ONE_THREAD)
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    keep_freed_memory()


def _end_with_parent() -> None:
    """See to it that this process ends with its parent, which may be killed without warning."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    if sys.platform == "linux":  # even where foreign code holds the interpreter
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
        if os.getppid() != parent.pid:  # it has ended before
            os._exit(1)
        return

    def wait_for_its_end() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait_for_its_end, daemon=True).start()


def _do(pipeline: Callable[[], Pipeline], message: bytes) -> bytes:
    try:
        unit, task = pickle.loads(message)
        outcome = TaskResult(run_unit(pipeline(), unit, task))
    except Exception as error:  # raised in the parent when its turn comes
        outcome = TaskResult(error=_that_can_be_sent(error))
    return pickle.dumps(outcome, pickle.HIGHEST_PROTOCOL)


def _that_can_be_sent(error: Exception) -> Exception:
    if isinstance(error, MtpackError):
        return error
    where = "in a worker process:\n" + traceback.format_exc()
    try:
        error = pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}, which can't be pickled")
    error.add_note(where)
    return error


def keep_freed_memory() -> None:
    """Have the C library keep what is freed, so that units are done in the same memory.

    glibc keeps at most twice the largest block that was freed so far. Without this, each record
    batch gets fresh pages: 24,000 page faults for a shard of 73 MB, not 2,700; 0.21 s, not 0.17.
    """
    np.empty(_LARGEST_BLOCK_BYTES, dtype=np.uint8)  # freed at once, and never touched


def run_unit(pipeline: Pipeline, unit: Unit[Task, Result], task: Task) -> Result:
    """Run one unit; raise MtpackError where there is no memory for it."""
    try:
        return unit(pipeline, task)
    except MemoryError as error:
        what = pipeline.heartbeat.read().what or "a unit of work"
        raise MtpackError(out_of_memory(what, "more memory than there is")) from error
    finally:
        pipeline.heartbeat.end()
