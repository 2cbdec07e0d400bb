"""Worker processes: each with its own pipeline, all under watch, none outliving the run."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from ctypes import Array, c_int, c_ubyte
from dataclasses import replace
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import Synchronized
from typing import Any, TypeVar

from mtpack.activity import SLOT_BYTES, Activity
from mtpack.errors import MtpackError
from mtpack.options import PackOptions
from mtpack.pipeline import Pipeline, load_pipeline
from mtpack.runners.watching import ProcessLimits, Watch, kill, out_of_memory

Task = TypeVar("Task")
Result = TypeVar("Result")
Unit = Callable[[Pipeline, Task], Result]

_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_TO_END = 1.0

_MOST_LIKELY = "most likely for want of memory; run again with fewer --workers"

_pipeline: Pipeline  # of this worker process


class Pool:
    """A process pool whose workers say what they are at."""

    def __init__(self, num_workers: int, options: PackOptions, limits: ProcessLimits) -> None:
        """Start nothing yet: workers start when there is work for them."""
        self._others = set(multiprocessing.active_children())  # processes that are none of ours
        self._workers: set[BaseProcess] = set()
        context = multiprocessing.get_context("spawn")  # threads are running: no fork
        slots = context.RawArray(c_ubyte, num_workers * SLOT_BYTES)
        self._activities = [Activity(_slot(slots, number)) for number in range(num_workers)]
        self._executor = ProcessPoolExecutor(
            num_workers,
            mp_context=context,
            initializer=_start_worker,
            initargs=(options, slots, context.Value(c_int, 0)),
        )
        self._watch = Watch(self._activities, limits, kill)
        self._watch.__enter__()

    def submit(self, unit: Unit[Task, Result], task: Task) -> Future[Result]:
        """Hand a task to the next worker that is free; raise MtpackError where one has ended."""
        try:
            with _interrupts_held():
                future = self._executor.submit(_run_in_worker, unit, task)
        except BrokenProcessPool as error:
            raise MtpackError(self._what_broke_it()) from error
        self._workers |= set(multiprocessing.active_children()) - self._others
        return future

    def result(self, future: Future[Result]) -> Result:
        """Wait for a result; raise MtpackError where a worker ended before its work.

        The executor notices such an end by itself, but not that of a worker that it started while
        it was waiting for the others.
        """
        try:
            while not wait([future], timeout=_SECONDS_BETWEEN_LOOKS).done:
                if any(worker.exitcode is not None for worker in self._workers):
                    raise BrokenProcessPool
            return future.result()
        except BrokenProcessPool as error:
            raise MtpackError(self._what_broke_it()) from error

    def _what_broke_it(self) -> str:
        """Return one line that says why a worker ended before its work."""
        if self._watch.verdict is not None:
            return self._watch.verdict
        culprit = self._ended_by_itself()
        if culprit is None:  # the executor may be about to learn how it ended
            for worker in self._workers:
                worker.join(_SECONDS_TO_END)
            culprit = self._ended_by_itself()
        for moment in map(Activity.look, self._activities):
            if culprit is not None and culprit.pid == moment.process and moment.what:
                how = _how_it_ended(culprit.exitcode or 0)
                return f"{moment.what} ended the worker process ({how}), {_MOST_LIKELY}"
        return f"a worker process died, {_MOST_LIKELY}"

    def _ended_by_itself(self) -> BaseProcess | None:
        by_others = (None, 0, -signal.SIGTERM)  # or not at all
        return next((worker for worker in self._workers if worker.exitcode not in by_others), None)

    def close(self) -> None:
        """End the workers when they have done their work."""
        self._executor.shutdown()
        self._watch.__exit__()

    def abort(self) -> None:
        """End the workers at once."""
        for process in set(multiprocessing.active_children()) - self._others:
            process.terminate()
        self._executor.shutdown(cancel_futures=True)
        self._watch.__exit__()


def _how_it_ended(exitcode: int) -> str:
    return signal.Signals(-exitcode).name if exitcode < 0 else f"exit status {exitcode}"


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Put off interrupts while a worker may be starting.

    One that fell into the start would leave half a worker behind: it waits for the other half, and
    the pool, when it ends, waits for it.
    """
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


def _slot(slots: Array[c_ubyte], number: int) -> memoryview:
    return memoryview(slots).cast("B")[number * SLOT_BYTES :][:SLOT_BYTES]


def _start_worker(options: PackOptions, slots: Array[c_ubyte], taken: Synchronized[int]) -> None:
    global _pipeline
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    with taken.get_lock():
        number = taken.value
        taken.value += 1
    activity = Activity(_slot(slots, number))
    activity.belongs_to(os.getpid())
    _pipeline = replace(load_pipeline(options), activity=activity)


def _end_with_parent() -> None:
    """Wait for the end of the parent, which may be killed without a chance to end its workers."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_in_worker(unit: Unit[Any, Result], task: Any) -> Result:
    return run_unit(_pipeline, unit, task)


def run_unit(pipeline: Pipeline, unit: Unit[Task, Result], task: Task) -> Result:
    """Run one unit; raise MtpackError where there is no memory for it."""
    try:
        return unit(pipeline, task)
    except MemoryError as error:
        what = pipeline.activity.look().what or "a unit of work"
        raise MtpackError(out_of_memory(what, "more memory than there is")) from error
    finally:
        pipeline.activity.end()
