"""Executors: what runs the tasks of a run. Nothing else knows which one it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from mtpack.errors import SetupError
from mtpack.running.pipeline import Pipeline
from mtpack.running.runner import local_runner
from mtpack.running.worker import Result, Task, TaskFunction


class Runner(Protocol):
    """Runs tasks somewhere."""

    sends_rows: bool
    """Whether rows may be part of a task; otherwise the worker reads them."""

    def run(self, function: TaskFunction[Task, Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Call `function` with a pipeline and each task; yield the results in their order.

        `tasks` is read little by little, as results are taken. Raises the error of the first task
        that fails, in that order, and MtpackError if a task can't be done.
        """
        ...


@contextmanager
def open_runner(
    pipeline: Pipeline, num_workers: int, area: Path, inputs: Iterable[str] = ()
) -> Iterator[Runner]:
    """Provide the runner that `--executor` names; all that it runs ends with the block.

    num_workers: the number of processes on this machine. area: the work area of the run. inputs:
    the files to read. Raises SetupError if it can't be used.
    """
    if pipeline.options.executor == "local":
        with local_runner(pipeline, num_workers) as local:
            yield local
        return
    try:
        from mtpack.running.ray_runner import ray_runner
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "ray":
            raise
        raise SetupError(
            "--executor ray needs Ray; install the extra: pip install 'mtpack[ray]'"
        ) from None
    with ray_runner(pipeline, num_workers, area, inputs) as distributed:
        yield distributed
