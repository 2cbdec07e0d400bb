"""Tasks for tests of the Ray runner. Workers import this module, so it needs little."""

import os
import signal
import threading
from pathlib import Path
from typing import NamedTuple

from mtpack.errors import InputError
from mtpack.running.pipeline import Pipeline


class Visit(NamedTuple):
    """A task that leaves a trace in a folder, so that it knows its first try."""

    folder: Path
    number: int

    def __str__(self) -> str:
        return f"visit {self.number}"

    def leave_trace(self) -> bool:
        """Leave a trace with the number of the Ray worker; return whether it is the first."""
        path = self.folder / str(self.number)
        with open(path, "a") as traces:
            traces.write(f"{os.getppid()}\n")
        return len(path.read_text().splitlines()) == 1

    def workers(self) -> list[int]:
        """Return the Ray workers that were at this task."""
        return list(map(int, (self.folder / str(self.number)).read_text().split()))


def triple(pipeline: Pipeline, number: int) -> int:
    return 3 * number


def refuse_some(pipeline: Pipeline, number: int) -> int:
    if number in (13, 15):
        raise InputError(f"row {number}")
    return number


def fail_unexpectedly(pipeline: Pipeline, number: int) -> float:
    return number / 0


def describe(pipeline: Pipeline, number: int) -> tuple[str, str, str | None]:
    return pipeline.tokenizer.sha256, pipeline.template.sha256, pipeline.options.tokenizer


def count_loads(pipeline: Pipeline, number: int) -> int:
    return id(pipeline)


def visit(pipeline: Pipeline, task: Visit) -> int:
    task.leave_trace()
    return task.number


def kill_the_ray_worker_at_four(pipeline: Pipeline, task: Visit) -> int:
    if task.leave_trace() and task.number == 4:
        os.kill(os.getppid(), signal.SIGKILL)
    return task.number


def always_kill_the_ray_worker_at_four(pipeline: Pipeline, task: Visit) -> int:
    task.leave_trace()
    if task.number == 4:
        os.kill(os.getppid(), signal.SIGKILL)
    return task.number


def stop_the_ray_worker_at_four(pipeline: Pipeline, task: Visit) -> int:
    if task.leave_trace() and task.number == 4:
        os.kill(os.getppid(), signal.SIGSTOP)
    return task.number


def always_stop_the_ray_worker_at_four(pipeline: Pipeline, task: Visit) -> int:
    task.leave_trace()
    if task.number == 4:
        os.kill(os.getppid(), signal.SIGSTOP)
    return task.number


def always_be_killed_at_four(pipeline: Pipeline, task: Visit) -> int:
    pipeline.heartbeat.begin(f"rows.jsonl line {task.number}: rendering")
    task.leave_trace()
    if task.number == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return task.number


def write_until_killed(pipeline: Pipeline, task: Visit) -> int:
    """Write to a file until this process is ended."""
    task.leave_trace()
    pause = threading.Event()
    while True:
        with open(task.folder / f"{task.number}-written", "a") as file:
            file.write(f"{os.getpid()}\n")
        pipeline.heartbeat.end()
        pause.wait(0.01)


def process_id(pipeline: Pipeline, number: int) -> int:
    return os.getpid()


def hang(pipeline: Pipeline, path: Path) -> None:
    path.write_text(f"{os.getpid()}\n")
    signal.pause()
