"""Check 3 over data-parallel ranks: processes, each with its own sequences, and an all-reduce.

The processes are spawned, so they share only what `torch.distributed` transfers: over NCCL if there
are two GPUs or more, else over gloo.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import cast

import torch
from torch import distributed

from mtpack.errors import first_line
from mtpack.running.processes import defer_interrupts
from mtpack.shards.dataset import Row
from mtpack.verify.causal_model import make_built_in_model
from mtpack.verify.invariance import make_micro_batches
from mtpack.verify.steps import (
    StepResult,
    StepSums,
    normalize,
    set_exact_arithmetic,
    sum_step,
)

_MICRO_BATCH_SIZE = 2
_TIMEOUT = 120.0  # seconds for start, computation and all-reduce; usually a few


class RanksFailed(Exception):
    """The processes could not start or did not finish; the message is the reason, in one line."""


@dataclass(frozen=True, slots=True)
class RankTask:
    """The input of a rank; each rank builds the model itself, from the same seed."""

    rank: int
    ranks: int
    rows: list[Row]
    label_alignment: str
    vocabulary: int
    device: str
    dtype: torch.dtype
    backend: str
    folder: str
    """A folder for the rendezvous of the ranks and for their results."""


def choose_ranks(device: str) -> tuple[int, str]:
    """Return the number of ranks to start, and the backend of torch.distributed."""
    gpus = torch.cuda.device_count() if device == "cuda" else 0
    if gpus >= 2 and distributed.is_nccl_available():
        return min(gpus, 8), "nccl"
    return 2, "gloo"


def divide_rows(rows: list[Row], ranks: int) -> list[list[Row]]:
    """Divide sequences over ranks unevenly: the first rank gets half of them."""
    first = -(-len(rows) // 2)
    others = rows[first:]
    return [rows[:first], *(others[number :: ranks - 1] for number in range(ranks - 1))]


def run_data_parallel_step(
    rows: list[Row], label_alignment: str, vocabulary: int, device: str, dtype: torch.dtype
) -> list[StepResult]:
    """Run the ranks, and return the result of each; raise RanksFailed if that is not possible."""
    if not distributed.is_available():
        raise RanksFailed("this torch is built without torch.distributed")
    ranks, backend = choose_ranks(device)
    with tempfile.TemporaryDirectory(prefix="mtpack-ranks-") as folder:
        tasks = [
            RankTask(
                rank, ranks, share, label_alignment, vocabulary, device, dtype, backend, folder
            )
            for rank, share in enumerate(divide_rows(rows, ranks))
        ]
        _run_ranks(tasks)
        return [_read_result(Path(folder, f"result-{rank}.pt")) for rank in range(ranks)]


def take_rank_step(task: RankTask) -> StepResult:
    """Compute the step as one of the ranks: sum its own sequences, all-reduce, divide once."""
    device = task.device
    if device == "cuda":
        device = f"cuda:{task.rank % torch.cuda.device_count()}"
        torch.cuda.set_device(device)
    model = make_built_in_model(task.vocabulary, device, task.dtype)
    parts = make_micro_batches(task.rows, _MICRO_BATCH_SIZE, seed=0)
    sums = sum_step(model, parts, task.label_alignment)
    distributed.init_process_group(
        task.backend,
        init_method=Path(task.folder, "rendezvous").absolute().as_uri(),
        rank=task.rank,
        world_size=task.ranks,
        timeout=timedelta(seconds=_TIMEOUT),
    )
    result = normalize(_all_reduce(sums, "cpu" if task.backend == "gloo" else device))
    distributed.destroy_process_group()
    return result


def _all_reduce(sums: StepSums, device: str) -> StepSums:
    reduced = [values.to(device, copy=True) for values in (sums.loss, sums.turns, *sums.gradients)]
    for values in reduced:
        distributed.all_reduce(values)
    return StepSums(reduced[0], reduced[1], reduced[2:])


def _run_ranks(tasks: list[RankTask]) -> None:
    """Run all ranks until they end; if one fails, kill the others, which would wait for it."""
    context = get_context("spawn")
    running: dict[int, tuple[RankTask, BaseProcess]] = {}
    deadline = time.monotonic() + _TIMEOUT
    try:
        for task in tasks:
            process: BaseProcess = context.Process(
                target=_run_rank, args=(task, take_rank_step), daemon=True
            )
            with defer_interrupts():
                process.start()
            running[process.sentinel] = task, process
        while running:
            ended = wait(list(running), max(0.0, deadline - time.monotonic()))
            if not ended:
                raise RanksFailed(f"the processes took longer than {_TIMEOUT:.0f} seconds")
            for sentinel in ended:
                task, process = running.pop(cast(int, sentinel))
                process.join()
                if process.exitcode:
                    raise RanksFailed(_read_failure(task, process.exitcode))
    except OSError as error:
        raise RanksFailed(f"a process can't be started: {error.strerror or error}") from error
    finally:
        for _, process in running.values():
            process.kill()
            process.join()


def _read_failure(task: RankTask, exit_code: int) -> str:
    file = Path(task.folder, f"failure-{task.rank}")
    if file.is_file():
        return file.read_text(encoding="utf-8")
    return f"process {task.rank} ended with status {exit_code}"


def _run_rank(task: RankTask, step: Callable[[RankTask], StepResult]) -> None:
    """Run one rank, in its own process: save its result, or the reason of its failure."""
    if sys.platform in ("linux", "darwin"):  # one machine, whose host name may not resolve
        loopback = "lo" if sys.platform == "linux" else "lo0"
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", loopback)
    try:
        with set_exact_arithmetic(threads=1):
            result = step(task)
    except (RuntimeError, OSError, ValueError) as error:  # mostly of torch.distributed
        Path(task.folder, f"failure-{task.rank}").write_text(first_line(error), encoding="utf-8")
        sys.exit(1)
    result = result.on("cpu")
    saved = {"loss": result.loss, "gradients": result.gradients}
    torch.save(saved, Path(task.folder, f"result-{task.rank}.pt"))


def _read_result(path: Path) -> StepResult:
    saved = torch.load(path, weights_only=True)
    return StepResult(saved["loss"], saved["gradients"])
