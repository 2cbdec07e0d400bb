"""What a worker process of Ray does: groups of tasks, in a child process under the local watch.

The child is kept for the next groups of the same run, with all that it has loaded and learned. It
ends when another run begins, when no group came for a while, and with the worker.
"""

from __future__ import annotations

import os
import pickle
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from threading import RLock, Timer
from typing import Any

from mtpack.errors import MtpackError
from mtpack.running.pipeline import PipelineContents
from mtpack.running.runner import LocalRunner
from mtpack.running.thread_limits import SINGLE_THREAD_ENV
from mtpack.running.watchdog import compute_process_limits
from mtpack.running.worker import TaskFunction

_SECONDS_IDLE = 15.0


@dataclass(frozen=True, slots=True)
class GroupCall:
    """A group of consecutive tasks, as the main process sends it."""

    run: str
    """Identifies the run."""
    function: TaskFunction[Any, Any]
    tasks: list[Any]
    seconds_between_reports: float


@dataclass(slots=True)
class GroupReport:
    """What a worker process of Ray sends back: a sign of life, also where nothing is done yet."""

    results: list[Any] = field(default_factory=list)
    """Those since the last report, in the order of the tasks."""
    seconds: list[float] = field(default_factory=list)
    """The time that each of them took."""
    error: Exception | None = None
    """That of the task after them."""
    traceback: str = ""
    """Where an error arose that is none of mtpack's."""


@dataclass(slots=True)
class _Kept:
    """The runner that this process keeps."""

    run: str
    runner: LocalRunner
    timer: Timer | None = None
    """It ends the runner unless another group comes; None while a group is at work."""


_kept: _Kept | None = None
_lock = RLock()


def run_group(contents: bytes, call: bytes) -> Iterator[bytes]:
    """Run a `GroupCall` and yield `GroupReport`s, both pickled; stop at the first error.

    contents: the pickled `PipelineContents` of the run.
    """
    group: GroupCall = pickle.loads(call)
    with _borrow_runner(group.run, contents) as runner:
        report, reported = GroupReport(), time.monotonic()
        last = reported
        try:
            for results in runner.poll(group.function, group.tasks):
                now = time.monotonic()
                if results:
                    report.results += results
                    report.seconds.append(now - last)
                    last = now
                if now - reported >= group.seconds_between_reports:
                    yield pickle.dumps(report)
                    report, reported = GroupReport(), now
        except Exception as error:
            report.error = error
            if not isinstance(error, MtpackError):
                report.traceback = traceback.format_exc()
            _end_kept()  # what exceeds a limit is still running
        except BaseException:  # the run was cancelled: its end waits until nothing is written
            _end_kept()
            raise
        yield pickle.dumps(report)


@contextmanager
def _borrow_runner(run: str, contents: bytes) -> Iterator[LocalRunner]:
    """Provide the runner of a run; afterwards it waits for the next group."""
    global _kept
    with _lock:
        if _kept is None or _kept.run != run:
            _end_kept()
            _kept = _Kept(run, _make_runner(contents))
        kept = _kept
        if kept.timer is not None:
            kept.timer.cancel()
            kept.timer = None
    try:
        yield kept.runner
    finally:
        with _lock:
            kept.timer = Timer(_SECONDS_IDLE, _end_idle)
            kept.timer.daemon = True
            kept.timer.start()


def _make_runner(contents: bytes) -> LocalRunner:
    os.environ.update(SINGLE_THREAD_ENV)
    pipeline: PipelineContents = pickle.loads(contents)
    num_cores = replace(pipeline.options, workers=0).num_workers
    return LocalRunner(pipeline, 1, compute_process_limits(num_cores, pipeline.options))


def _end_kept() -> None:
    global _kept
    with _lock:
        if _kept is not None:
            _kept.runner.pool.end()
            _kept = None


def _end_idle() -> None:
    with _lock:
        if _kept is not None and _kept.timer is not None:
            _end_kept()
