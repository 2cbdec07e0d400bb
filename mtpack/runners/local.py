"""Run units of work on this machine, in this process or in worker processes."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from mtpack.errors import MtpackError
from mtpack.options import PackOptions
from mtpack.work import Pipeline, load_pipeline

Task = TypeVar("Task")
Result = TypeVar("Result")
Unit = Callable[[Pipeline, Task], Result]

# Tasks handed over before their turn, for each worker: enough that none waits for the reader.
_TASKS_AHEAD = 2

_pipeline: Pipeline  # of this worker process


class LocalRunner:
    """Runs units in order; worker processes start when the first task has a second behind it."""

    def __init__(self, pipeline: Pipeline) -> None:
        """Take the pipeline of this process; workers load their own from its options."""
        self._pipeline = pipeline
        self._pool: ProcessPoolExecutor | None = None
        self._others: set[BaseProcess] = set()  # processes that are none of ours

    def run(self, unit: Unit[Task, Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Yield the results of `tasks` in their order."""
        tasks = iter(tasks)
        first = list(itertools.islice(tasks, 2))
        num_workers = self._pipeline.options.num_workers
        if num_workers == 1 or (len(first) == 1 and self._pool is None):
            for task in itertools.chain(first, tasks):
                yield unit(self._pipeline, task)
            return
        yield from self._run_in_pool(unit, itertools.chain(first, tasks), num_workers)

    def _run_in_pool(
        self, unit: Unit[Task, Result], tasks: Iterator[Task], num_workers: int
    ) -> Iterator[Result]:
        if self._pool is None:
            self._others = set(multiprocessing.active_children())
            self._pool = ProcessPoolExecutor(
                num_workers,
                mp_context=multiprocessing.get_context("spawn"),  # threads are running: no fork
                initializer=_start_worker,
                initargs=(self._pipeline.options,),
            )
        waiting: deque[Future[Result]] = deque()
        failed: MtpackError | None = None
        try:
            while True:
                try:
                    task = next(tasks, None)
                except MtpackError as error:  # comes after whatever the tasks before it find
                    task, failed = None, error
                if task is None:
                    break
                with _interrupts_held():
                    waiting.append(self._pool.submit(_run_unit, unit, task))
                if len(waiting) >= num_workers * _TASKS_AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise MtpackError(
                "a worker process died, most likely for want of memory; "
                "run again with fewer --workers"
            ) from error
        if failed is not None:
            raise failed

    def close(self) -> None:
        """End the workers when all results have been taken."""
        if self._pool is not None:
            self._pool.shutdown()

    def abort(self) -> None:
        """End the workers at once, whatever they are at; what they write is in the work area."""
        if self._pool is not None:
            for process in set(multiprocessing.active_children()) - self._others:
                process.terminate()
            self._pool.shutdown(cancel_futures=True)


@contextmanager
def local_runner(pipeline: Pipeline) -> Iterator[LocalRunner]:
    """Run units with a pool that ends with the `with` block."""
    runner = LocalRunner(pipeline)
    try:
        yield runner
    except BaseException:
        runner.abort()
        raise
    runner.close()


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


def _start_worker(options: PackOptions) -> None:
    global _pipeline
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _pipeline = load_pipeline(options)


def _end_with_parent() -> None:
    """Wait for the end of the parent, which may be killed without a chance to end its workers."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_unit(unit: Callable[[Pipeline, Any], Result], task: Any) -> Result:
    return unit(_pipeline, task)
