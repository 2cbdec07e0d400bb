"""What runs in a worker process: its setup, and one task after the other."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar, cast

import numpy as np

from mtpack.errors import MtpackError
from mtpack.running.heartbeat import NO_TASK, Heartbeat
from mtpack.running.pipeline import Pipeline
from mtpack.running.processes import WorkerProcess
from mtpack.running.thread_limits import SINGLE_THREAD_ENV
from mtpack.running.watchdog import describe_out_of_memory

Task = TypeVar("Task")
Result = TypeVar("Result")
TaskFunction = Callable[[Pipeline, Task], Result]
"""A function that runs a task."""

# By default, the garbage collector runs after every 700 new objects. That takes a tenth of the time
# to read and render a split (0.63 s of CPU time instead of 0.57), and it finds almost nothing.
_OBJECTS_BETWEEN_COLLECTIONS = 20_000
_LARGEST_BLOCK_BYTES = 31 * 2**20  # glibc adapts to freed blocks of less than 32 MiB
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


@dataclass
class _Worker:
    """What this process keeps from one task to the next."""

    load: Callable[[], Pipeline]
    heartbeat: Heartbeat

    @cached_property
    def pipeline(self) -> Pipeline:
        """Loaded by the first task, so that its errors are those of a task."""
        self.heartbeat.begin("loading the tokenizer and the chat template in a worker process")
        loaded = replace(self.load(), heartbeat=self.heartbeat)
        self.heartbeat.end()
        loaded.template.meter.count = self.heartbeat
        gc.freeze()
        return loaded


_worker: _Worker


def set_up_worker(load: Callable[[], Pipeline]) -> None:
    """Set signal handlers, environment and memory for a worker; a fork inherits the parent's."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the workers
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as it is after `nohup`
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    end_with_parent()
    os.environ.update(SINGLE_THREAD_ENV)
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    _keep_freed_memory()
    heartbeat = cast(WorkerProcess, multiprocessing.current_process()).heartbeat
    heartbeat.end()  # of the start; see `WorkerContext.Process`
    _worker = _Worker(load, heartbeat)


def end_with_parent() -> None:
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


def _keep_freed_memory() -> None:
    """Make the C library keep freed memory, so that all tasks use the same memory.

    glibc keeps at most twice the largest block that was freed so far. Without this, each record
    batch gets new pages: a shard of 73 MB causes 24,000 page faults instead of 2,700 and takes
    0.21 s instead of 0.17.
    """
    np.empty(_LARGEST_BLOCK_BYTES, dtype=np.uint8)  # freed at once, and never written to


def run_in_worker(number: int, function: TaskFunction[Task, Result], task: Task) -> Result:
    """Run the task of this number in this worker process.

    Raises the error of the task, MtpackError if memory runs out, and RuntimeError for an error that
    can't be pickled.
    """
    _worker.heartbeat.task = number
    try:
        return function(_worker.pipeline, task)
    except MemoryError as error:
        what = _worker.heartbeat.what or "a task"
        raise MtpackError(describe_out_of_memory(what, "more memory than is available")) from error
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            raise RuntimeError(f"{type(error).__name__}, which can't be pickled") from error
        raise
    finally:
        _worker.heartbeat.end()
        _worker.heartbeat.task = NO_TASK
