"""Workers: the same results in any process, and a worker that dies does not stop the run."""

import errno
import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from mtpack.errors import InputError, MtpackError
from mtpack.option_arguments import options_from
from mtpack.running import runner as runner_module
from mtpack.running.pipeline import Pipeline, load_pipeline
from mtpack.running.runner import LocalRunner, local_runner
from mtpack.running.watchdog import ProcessLimits
from tests.conftest import ROOT, SAMPLE_DATA

NEVER = ProcessLimits(seconds=1e6)

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")


# Units of work. They are at module level, since a spawned worker imports them.


class Visit(NamedTuple):
    """A task that leaves a trace in a folder."""

    folder: Path
    number: int


def triple(pipeline: Pipeline, number: int) -> int:
    return 3 * number


def triple_late(pipeline: Pipeline, number: int) -> int:
    """Take longer for earlier tasks, so that later ones are done first."""
    total = sum(range(100_000 * (5 - number)))
    return 3 * number if total >= 0 else -1


def grow(pipeline: Pipeline, text: bytes) -> bytes:
    return text + b"!"


def process_id(pipeline: Pipeline, number: int) -> int:
    return os.getpid()


def refuse_some(pipeline: Pipeline, number: int) -> int:
    if number in (3, 5):
        raise InputError(f"row {number}")
    return number


def fail_unexpectedly(pipeline: Pipeline, number: int) -> int:
    return number // 0


def fail_with_an_error_that_cannot_be_pickled(pipeline: Pipeline, number: int) -> int:
    class LocalError(Exception):
        pass

    raise LocalError


# Task 5 is in flight each time, and counts no death.
KILLED_AT_FIRST = (1, 4)


def be_killed_at_first(pipeline: Pipeline, visit: Visit) -> int:
    pipeline.heartbeat.begin(f"rows.jsonl line {visit.number}: rendering")
    with open(visit.folder / str(visit.number), "ab") as traces:
        traces.write(b".")
    if os.path.getsize(visit.folder / str(visit.number)) == 1 and visit.number in KILLED_AT_FIRST:
        os.kill(os.getpid(), signal.SIGKILL)
    return visit.number


def always_be_killed_at_four(pipeline: Pipeline, visit: Visit) -> None:
    pipeline.heartbeat.begin(f"rows.jsonl line {visit.number}: rendering")
    with open(visit.folder / str(visit.number), "ab") as traces:
        traces.write(b".")
    if visit.number == 4:
        os.kill(os.getpid(), signal.SIGKILL)


def be_killed_while_sending_the_first_result(pipeline: Pipeline, visit: Visit) -> int:
    trace = visit.folder / "trace"
    if not trace.exists():
        trace.touch()
        results = sys._getframe(2).f_locals["result_queue"]._writer
        os.write(results.fileno(), b"\x3f\0\0\0 the first bytes of a gigabyte")
        os.kill(os.getpid(), signal.SIGKILL)
    return visit.number


def be_killed_at_the_start(load: Callable[[], Pipeline]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang(pipeline: Pipeline, visit: Visit) -> None:
    (visit.folder / str(os.getpid())).touch()
    signal.pause()


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return load_pipeline(options_from({"workers": 2}))


METHODS = ["spawned", pytest.param("forked", marks=linux_only)]


@contextmanager
def two_workers(pipeline: Pipeline, method: str) -> Iterator[LocalRunner]:
    """Start workers by this method, even if the test program has threads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner_module, "may_fork", lambda: method == "forked")
        with local_runner(pipeline, 2, NEVER) as runner:
            yield runner


@pytest.fixture(scope="module", params=METHODS)
def runner(request, pipeline) -> Iterator[LocalRunner]:
    with two_workers(pipeline, request.param) as runner:
        yield runner


# Results


def test_results_come_in_the_order_of_the_tasks(runner):
    assert list(runner.run(triple_late, range(6))) == [0, 3, 6, 9, 12, 15]


def test_one_pool_runs_several_units_in_turn(runner):
    assert list(runner.run(triple, range(40))) == [3 * number for number in range(40)]
    assert list(runner.run(grow, [b"one", b"two"])) == [b"one!", b"two!"]


def test_results_of_an_abandoned_run_are_not_mixed_into_the_next(runner):
    abandoned = runner.run(triple_late, range(6))
    assert next(abandoned) == 0
    assert list(runner.run(triple, range(100, 110))) == list(range(300, 330, 3))


def test_tasks_and_results_may_be_longer_than_a_pipe_holds(runner):
    """In both directions at the same time."""
    texts = [bytes([number]) * 3_000_000 for number in range(12)]
    assert all(got == text + b"!" for text, got in zip(texts, runner.run(grow, texts), strict=True))


def test_all_workers_get_tasks(runner):
    assert len(set(runner.run(process_id, range(200))) - {os.getpid()}) == 2


def test_a_single_task_of_a_single_worker_runs_in_another_process(pipeline):
    with local_runner(pipeline, 1) as runner:
        assert list(runner.run(process_id, [1])) != [os.getpid()]


def test_at_most_three_tasks_per_worker_are_read_ahead(runner):
    read = 0

    def tasks() -> Iterator[int]:
        nonlocal read
        for number in range(60):
            read += 1
            yield number

    for taken, _ in enumerate(runner.run(triple, tasks()), 1):
        assert read <= taken + 3 * 2
    assert read == 60


def test_a_worker_finds_modules_where_this_program_does(pipeline, tmp_path, monkeypatch):
    (tmp_path / "tasks_of_this_test.py").write_text("def double(pipeline, n): return 2 * n")
    monkeypatch.syspath_prepend(tmp_path)
    function = importlib.import_module("tasks_of_this_test").double
    with two_workers(pipeline, "spawned") as runner:
        assert list(runner.run(function, [1, 2])) == [2, 4]


# Errors


def test_the_first_error_in_the_order_of_the_tasks_is_raised(runner):
    results = runner.run(refuse_some, range(9))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(InputError, match="row 3"):
        next(results)


def test_an_error_of_the_reader_is_raised_after_the_results_of_earlier_tasks(runner):
    def tasks() -> Iterator[int]:
        yield from (1, 2)
        raise InputError("the file is damaged")

    results = runner.run(triple, tasks())
    assert [next(results), next(results)] == [3, 6]
    with pytest.raises(InputError, match="the file is damaged"):
        next(results)


def test_an_unexpected_error_has_the_traceback_of_the_worker(runner):
    with pytest.raises(ZeroDivisionError) as raised:
        list(runner.run(fail_unexpectedly, range(2)))
    assert "in fail_unexpectedly" in str(raised.value.__cause__)


def test_an_error_that_cannot_be_pickled_is_still_reported(runner):
    with pytest.raises(RuntimeError, match="LocalError") as raised:
        list(runner.run(fail_with_an_error_that_cannot_be_pickled, range(2)))
    assert "in fail_with_an_error_that_cannot_be_pickled" in str(raised.value.__cause__)


# Workers that die


def test_the_task_of_a_killed_worker_is_run_again(runner, tmp_path):
    visits = [Visit(tmp_path, number) for number in range(12)]
    assert list(runner.run(be_killed_at_first, visits)) == list(range(12))
    tries = [os.path.getsize(tmp_path / str(number)) for number in range(12)]
    assert all(tries[number] >= 2 for number in KILLED_AT_FIRST)


def test_a_worker_that_is_killed_while_idle_is_replaced(runner):
    before = set(runner.run(process_id, range(100)))
    for process in before:
        os.kill(process, signal.SIGKILL)
    assert list(runner.run(triple, range(100))) == [3 * number for number in range(100)]
    assert not before & set(runner.run(process_id, range(100)))


def test_a_worker_that_dies_while_it_sends_a_result_is_replaced(pipeline, tmp_path):
    with local_runner(pipeline, 2, NEVER) as runner:
        visits = [Visit(tmp_path, number) for number in range(12)]
        results = runner.run(be_killed_while_sending_the_first_result, visits)
        assert list(results) == list(range(12))


def test_a_run_ends_if_its_workers_die_before_their_first_task(pipeline, monkeypatch):
    monkeypatch.setattr("mtpack.running.pool.set_up_worker", be_killed_at_the_start)
    with (
        pytest.raises(MtpackError, match=r"^starting ended the worker process \(SIGKILL\)"),
        local_runner(pipeline, 2, NEVER) as runner,
    ):
        list(runner.run(triple, range(9)))


def test_a_system_that_can_start_no_process_is_reported_with_a_remedy(pipeline, monkeypatch):
    def refuse() -> int:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refuse)
    with (
        pytest.raises(MtpackError, match=r"\(Resource temporarily unavailable\); run with fewer"),
        local_runner(pipeline, 2),
    ):
        pass


@linux_only
def test_a_run_whose_workers_are_killed_writes_the_same_bytes(tmp_path):
    source = tmp_path / "rows.jsonl"
    source.write_bytes(next(SAMPLE_DATA.glob("*.jsonl")).read_bytes() * 20)
    command = [sys.executable, "-m", "mtpack", "pack", source, "--quiet", "--shard-size", "1MiB"]
    subprocess.run([*command, "-o", tmp_path / "one", "--workers", "1"], check=True)
    with subprocess.Popen([*command, "-o", tmp_path / "two", "--workers", "2"]) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while len(workers := children.read_text().split()) < 2:
            os.sched_yield()
        for worker in workers:
            os.kill(int(worker), signal.SIGKILL)
    assert process.returncode == 0
    one, two = [sorted((tmp_path / name).glob("*.arrow")) for name in ("one", "two")]
    assert [file.read_bytes() for file in one] == [file.read_bytes() for file in two]


@pytest.mark.parametrize("method", METHODS)
def test_a_task_in_which_two_workers_die_stops_the_run_and_is_named(pipeline, method, tmp_path):
    visits = [Visit(tmp_path, number) for number in range(12)]
    with pytest.raises(MtpackError) as stopped, two_workers(pipeline, method) as runner:
        list(runner.run(always_be_killed_at_four, visits))
    said = str(stopped.value)
    assert said.startswith("rows.jsonl line 4: rendering ended the worker process (SIGKILL)")
    assert "\n" not in said
    assert os.path.getsize(tmp_path / "4") == 2


@pytest.mark.parametrize("method", METHODS)
def test_no_worker_is_left_after_an_interrupted_run(pipeline, method, tmp_path):
    with pytest.raises(KeyboardInterrupt), two_workers(pipeline, method) as runner:
        next(runner.run(hang, tasks_until_they_hang(tmp_path)))
    workers = [int(file.name) for file in tmp_path.iterdir()]
    assert len(workers) == 2
    for worker in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)


def tasks_until_they_hang(folder: Path) -> Iterator[Visit]:
    yield Visit(folder, 0)
    yield Visit(folder, 1)
    while len(list(folder.iterdir())) < 2:
        os.sched_yield()
    raise KeyboardInterrupt


# Where workers are forked


IN_A_PROGRAM = """
import threading
from mtpack.option_arguments import options_from
from mtpack.running.pipeline import load_pipeline
from mtpack.running.runner import local_runner
from mtpack.running.processes import may_fork

def run_one(pipeline, task):  # a spawned worker could not find it
    return pipeline is not the_pipeline, pipeline.tokenizer is the_pipeline.tokenizer

the_pipeline = load_pipeline(options_from({"workers": 2}))
print(may_fork())
with local_runner(the_pipeline, 2) as runner:
    print(*set(runner.run(run_one, range(8))))
threading.Thread(target=threading.Event().wait, daemon=True).start()
print(may_fork())
"""


@linux_only
def test_workers_share_the_loaded_pipeline_unless_the_program_has_threads():
    done = subprocess.run(
        [sys.executable, "-c", IN_A_PROGRAM],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout == "True\n(True, True)\nFalse\n"
