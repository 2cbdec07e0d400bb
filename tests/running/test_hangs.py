"""Workers that stop without dying: the unit is done once more, and no row is blamed for it."""

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from mtpack.errors import MtpackError
from mtpack.option_arguments import options_from
from mtpack.options import PackOptions
from mtpack.running.pipeline import Pipeline, load_pipeline
from mtpack.running.processes import WorkerContext, WorkerProcess
from mtpack.running.runner import LocalRunner, local_runner
from mtpack.running.watchdog import ProcessLimits, Stall, UnitTimeout, Watchdog
from tests.conftest import SAMPLE_DATA
from tests.running.test_pack import contents, pack

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells the CPU time of another process"
)

NEVER = ProcessLimits(seconds=1e6)
BRIEF = ProcessLimits(seconds=0.5)


class Visit(NamedTuple):
    """A task that leaves a trace in a folder, so that it can tell its first try."""

    folder: Path
    number: int

    def __str__(self) -> str:
        return f"visit {self.number}"

    def is_first_try_of_two(self) -> bool:
        """Leave a trace; return whether this is the first try of task 2."""
        with open(self.folder / str(self.number), "ab") as traces:
            traces.write(b".")
        return self.number == 2 and os.path.getsize(self.folder / str(self.number)) == 1


# Functions of tasks. They are at module level, since a spawned worker imports them.


def stop_in_a_step(pipeline: Pipeline, visit: Visit) -> int:
    pipeline.heartbeat.begin(f"rows.jsonl line {visit.number}: rendering")
    if visit.is_first_try_of_two():
        os.kill(os.getpid(), signal.SIGSTOP)
    return visit.number


def stop_between_steps(pipeline: Pipeline, visit: Visit) -> int:
    if visit.is_first_try_of_two():
        os.kill(os.getpid(), signal.SIGSTOP)
    return visit.number


def wait_for_a_lock(pipeline: Pipeline, visit: Visit) -> int:
    pipeline.heartbeat.begin(f"rows.jsonl line {visit.number}: rendering")
    if visit.is_first_try_of_two():
        lock = threading.Lock()
        with lock:
            lock.acquire()
    return visit.number


def poll_a_lock(pipeline: Pipeline, visit: Visit) -> int:
    """Wait as some libraries do: with a little CPU time, and without an end."""
    pipeline.heartbeat.begin(f"rows.jsonl line {visit.number}: rendering")
    never = threading.Event()
    if visit.is_first_try_of_two():
        while not never.wait(0.05):
            pass
    return visit.number


def compute_between_steps_for_ever(pipeline: Pipeline, visit: Visit) -> int:
    if visit.is_first_try_of_two():
        while True:
            pass
    return visit.number


def stop_before_the_result_is_sent(pipeline: Pipeline, visit: Visit) -> int:
    if visit.is_first_try_of_two():
        process = os.getpid()
        results = sys._getframe(2).f_locals["result_queue"]
        put = results.put

        def stop_and_put(result: object) -> None:
            os.kill(process, signal.SIGSTOP)
            put(result)

        results.put = stop_and_put
    return visit.number


def always_stop_at_two(pipeline: Pipeline, visit: Visit) -> int:
    if visit.number == 2:
        visit.is_first_try_of_two()
        os.kill(os.getpid(), signal.SIGSTOP)
    return visit.number


def always_stop_at_two_in_a_step(pipeline: Pipeline, visit: Visit) -> int:
    pipeline.heartbeat.begin(f"rows.jsonl line {visit.number}: rendering")
    return always_stop_at_two(pipeline, visit)


def compute_in_a_step(pipeline: Pipeline, visit: Visit) -> int:
    """Compute for two unit timeouts: a long dialogue, in which nothing reports progress."""
    pipeline.heartbeat.begin(f"rows.jsonl line {visit.number}: rendering")
    visit.is_first_try_of_two()
    while visit.number == 2 and sum(os.times()[:2]) < 2:
        pass
    return visit.number


def process_id(pipeline: Pipeline, visit: Visit) -> int:
    return os.getpid()


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return load_pipeline(options_from({"workers": 2, "unit_timeout": 1}))


def run(
    pipeline: Pipeline, function: Callable, folder: Path, workers: int = 2, limits=BRIEF
) -> list[int]:
    with local_runner(pipeline, workers, limits) as runner:
        return list(runner.run(function, [Visit(folder, number) for number in range(6)]))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    "function",
    [
        stop_in_a_step,
        stop_between_steps,
        wait_for_a_lock,
        poll_a_lock,
        compute_between_steps_for_ever,
        stop_before_the_result_is_sent,
    ],
)
def test_a_unit_without_progress_is_done_once_more(pipeline, function, workers, tmp_path):
    assert run(pipeline, function, tmp_path, workers) == list(range(6))
    assert os.path.getsize(tmp_path / "2") == 2


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (always_stop_at_two, "visit 2"),
        (always_stop_at_two_in_a_step, r"rows\.jsonl line 2: rendering"),
    ],
)
def test_a_unit_that_makes_no_progress_twice_stops_the_run_and_is_named(
    pipeline, function, name, tmp_path
):
    with pytest.raises(MtpackError) as stopped:
        run(pipeline, function, tmp_path)
    assert os.path.getsize(tmp_path / "2") == 2
    assert re.fullmatch(
        rf"{name} made no progress for \S+ s in two worker processes; they were stopped, or wait "
        r"for a file system or a library: .* a larger --unit-timeout",
        str(stopped.value),
    )
    assert stopped.value.exit_status == 1


def test_a_step_may_compute_for_longer_than_the_unit_timeout(pipeline, tmp_path):
    assert run(pipeline, compute_in_a_step, tmp_path, limits=NEVER) == list(range(6))
    assert os.path.getsize(tmp_path / "2") == 1


def test_workers_that_are_stopped_while_they_wait_for_tasks_are_replaced(pipeline, tmp_path):
    """One of them holds the lock of the queue, so no other worker gets a task."""
    visits = [Visit(tmp_path, number) for number in range(40)]
    with local_runner(pipeline, 2, NEVER) as runner:
        before = set(runner.run(process_id, visits))
        for process in before:
            os.kill(process, signal.SIGSTOP)
        assert not before & set(runner.run(process_id, visits))


def test_a_stopped_worker_does_not_delay_the_end_of_the_run(pipeline, tmp_path):
    with local_runner(pipeline, 2, NEVER) as runner:
        for process in set(runner.run(process_id, [Visit(tmp_path, n) for n in range(40)])):
            os.kill(process, signal.SIGSTOP)


def test_a_worker_that_stops_while_it_starts_is_replaced(pipeline, tmp_path, monkeypatch):
    def stop_at_the_start(load: Callable[[], Pipeline]) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    with monkeypatch.context() as patch:
        patch.setattr("mtpack.running.pool.set_up_worker", stop_at_the_start)
        runner = LocalRunner(pipeline, 2, NEVER)
        runner.pool.start()
    try:
        visits = [Visit(tmp_path, number) for number in range(6)]
        assert list(runner.run(stop_between_steps, visits)) == list(range(6))
    finally:
        runner.pool.end()


# The time


def test_the_timeout_follows_from_the_units_so_far_and_is_never_under_a_minute():
    timeout = UnitTimeout()
    assert timeout.seconds == 60
    timeout.longest = 5.0
    assert timeout.seconds == 60
    timeout.longest = 20.0
    assert timeout.seconds == 200
    assert UnitTimeout(chosen=1, longest=20.0).seconds == 1


def watch(watchdog: Watchdog, worker: WorkerProcess, seconds: float) -> Stall | None:
    """Check a worker as if so many seconds had passed since the last check."""
    watchdog._last_check = time.monotonic() - seconds
    return watchdog.check([worker], awaited=7)


@pytest.fixture
def worker() -> WorkerProcess:
    """Return a worker at task 7, between steps."""
    worker = WorkerContext(forked=True).Process()
    worker.heartbeat.end()
    worker.heartbeat.task = 7
    return worker


def test_the_watchdog_learns_how_long_units_take(worker):
    timeout = UnitTimeout()
    watchdog = Watchdog(NEVER, timeout)
    for _ in range(11):
        watch(watchdog, worker, 0.9)
        worker.heartbeat.end()  # progress
    worker.heartbeat.task = 8
    watch(watchdog, worker, 0.9)
    assert timeout.longest == pytest.approx(0.9 * 11, rel=0.01)
    assert timeout.seconds == pytest.approx(99, rel=0.01)


def test_time_in_which_the_main_process_was_stopped_too_does_not_count(worker):
    """As after Ctrl-Z: of the time since the last check, one second counts."""
    watchdog = Watchdog(NEVER, UnitTimeout(chosen=2))
    stalls = [watch(watchdog, worker, 3600) for _ in range(4)]
    assert stalls == [None, None, None, Stall(task=7, what="", seconds=3.0)]


def test_the_unit_timeout_is_no_part_of_what_counts_as_the_same_run():
    default, chosen = PackOptions(), PackOptions(unit_timeout=7)
    assert default.output_options() == chosen.output_options()
    assert default.split_options() == chosen.split_options()


# A whole run


@pytest.fixture
def stopped_worker(monkeypatch) -> list[int]:
    """Stop a worker of the next run as soon as it has been started."""
    stopped: list[int] = []
    start = WorkerProcess.start

    def start_and_stop(worker: WorkerProcess) -> None:
        start(worker)
        if not stopped:
            stopped.append(worker.pid or 0)
            os.kill(worker.pid or 0, signal.SIGSTOP)

    monkeypatch.setattr(WorkerProcess, "start", start_and_stop)
    return stopped


def test_a_run_whose_worker_is_stopped_writes_the_same_bytes(tmp_path, stopped_worker):
    files = sorted(SAMPLE_DATA.glob("*.jsonl"))[:1]
    pack(tmp_path / "stopped", files, unit_timeout=1)
    assert stopped_worker
    pack(tmp_path / "undisturbed", files)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "undisturbed")
