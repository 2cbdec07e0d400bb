"""The watchdog: a process that hangs or uses up the memory stops the run, which names the step."""

import hashlib
import os
import signal
from collections.abc import Callable
from ctypes import sizeof
from pathlib import Path

import pytest

from mtpack.errors import MtpackError
from mtpack.option_arguments import options_from
from mtpack.options import PackOptions
from mtpack.running.heartbeat import NO_TASK, Heartbeat
from mtpack.running.pipeline import Pipeline, load_pipeline
from mtpack.running.runner import local_runner
from mtpack.running.watchdog import ProcessLimits, compute_process_limits

NEVER = ProcessLimits(seconds=1e6)
SOON = ProcessLimits(seconds=0.5)

# Functions of tasks that report a step at line `task` of a file, and then misbehave.


def begin_row(pipeline: Pipeline, task: int) -> None:
    pipeline.heartbeat.begin(f"rows.jsonl line {task}: rendering")


def hang_in_foreign_code(pipeline: Pipeline, task: int) -> None:
    """Hold the interpreter, so that no thread and no handler of this process runs."""
    begin_row(pipeline, task)
    nested: tuple = ()
    for _ in range(60):
        nested = (nested, nested)
    hash(nested)


def hang_in_python(pipeline: Pipeline, task: int) -> None:
    begin_row(pipeline, task)
    while True:
        pass


def hang_outside_of_python(pipeline: Pipeline, task: int) -> None:
    """Hang as a tokenizer may: other threads run, but this one can't be interrupted."""
    begin_row(pipeline, task)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)


def use_up_memory(pipeline: Pipeline, task: int) -> None:
    begin_row(pipeline, task)
    blocks = [b"x" * 2**20 for _ in range(600)]
    while blocks:
        pass


def run_out_of_memory(pipeline: Pipeline, task: int) -> None:
    begin_row(pipeline, task)
    raise MemoryError


def be_killed(pipeline: Pipeline, task: int) -> None:
    begin_row(pipeline, task)
    os.kill(os.getpid(), signal.SIGKILL)


def be_killed_between_rows(pipeline: Pipeline, task: int) -> None:
    begin_row(pipeline, task)
    pipeline.heartbeat.end()
    os.kill(os.getpid(), signal.SIGKILL)


def stop(
    function: Callable, limits: ProcessLimits, workers: int, tasks: tuple = (7, 7), **options
) -> str:
    """Run tasks by a function that must stop the run, and return the error message."""
    pipeline = load_pipeline(options_from(options))
    with (
        pytest.raises(MtpackError) as stopped,
        local_runner(pipeline, workers, limits) as runner,
    ):
        list(runner.run(function, tasks))
    assert stopped.value.exit_status == 1
    assert "\n" not in str(stopped.value)
    return str(stopped.value)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("function", [hang_in_foreign_code, hang_in_python, hang_outside_of_python])
def test_a_task_that_hangs_stops_the_run(function, workers):
    said = stop(function, SOON, workers)
    line = "rows.jsonl line 7: rendering takes more than 0.5 s of CPU time; use another chat"
    assert said.startswith(line)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc to measure memory")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_task_that_uses_up_memory_stops_the_run(workers):
    said = stop(use_up_memory, ProcessLimits(seconds=1e6, memory=2**28), workers)
    assert said.startswith("rows.jsonl line 7: rendering needs more than")
    assert "GiB of memory; use another chat template" in said


@pytest.mark.parametrize("workers", [1, 2])
def test_a_task_that_runs_out_of_memory_stops_the_run(workers):
    said = stop(run_out_of_memory, NEVER, workers)
    assert said.startswith("rows.jsonl line 7: rendering needs more memory than is available")


def test_a_killed_worker_stops_the_run_and_its_row_is_named():
    said = stop(be_killed, NEVER, workers=2)
    assert said.startswith("rows.jsonl line 7: rendering ended the worker process (SIGKILL)")
    assert "because memory ran out; run again with fewer --workers" in said


def test_a_worker_killed_between_rows_stops_the_run():
    said = stop(be_killed_between_rows, NEVER, workers=2)
    assert said.startswith("work between rows ended the worker process (SIGKILL)")


def test_a_heartbeat_is_read_from_the_memory_that_another_writes():
    memory = bytearray(sizeof(Heartbeat))
    writer, reader = Heartbeat.from_buffer(memory), Heartbeat.from_buffer(memory)
    assert (reader.task, reader.changes, reader.what) == (NO_TASK, 0, "")
    writer.task = 7
    writer.begin("rows \udcff.jsonl line 1: " + "x" * len(memory), effort=2.5)
    assert (reader.task, reader.changes, reader.effort) == (7, 1, 2.5)
    assert reader.what.startswith("rows \\udcff.jsonl line 1: xxx")
    writer.end()
    assert (reader.changes, reader.what) == (2, "")


def test_processes_share_the_free_memory():
    alone, among_four = (compute_process_limits(number, PackOptions()).memory for number in (1, 4))
    if alone is None or among_four is None:
        pytest.skip("this system does not report its free memory")
    assert 3 < alone / among_four < 5
