"""Check 3 over data-parallel ranks: processes, each with its own sequences, and an all-reduce.

The processes are spawned, so they share only what `torch.distributed` transfers: over NCCL if there
are two GPUs or more, else over gloo.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, spawn

from mtpack.running.processes import leave_out_main
from mtpack.shards.dataset import Row
from mtpack.verify.causal_model import fold_ids, make_built_in_model
from mtpack.verify.check import Check
from mtpack.verify.invariance import make_micro_batches, reference_step
from mtpack.verify.steps import (
    StepResult,
    StepSums,
    compare_results,
    normalize,
    set_exact_arithmetic,
    sum_step,
)

_MICRO_BATCH_SIZE = 2
_TIMEOUT = timedelta(minutes=2)  # to wait for another rank; usually a few seconds


@dataclass(frozen=True, slots=True)
class RankTask:
    """The input of all ranks; each rank builds the model itself, from the same seed."""

    ranks: int
    backend: str
    rows: list[Row]
    label_alignment: str
    device: str
    dtype: torch.dtype
    folder: Path
    """A folder for the rendezvous of the ranks and for their results."""

    def result_path(self, rank: int) -> Path:
        """Return where a rank saves its loss and its gradients."""
        return self.folder / f"result-{rank}.pt"


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


def compare_ranks(rows: list[Row], label_alignment: str, device: str, dtype: torch.dtype) -> Check:
    """Compare the step of the ranks with that of one process, with the built-in model."""
    if not distributed.is_available():
        return Check.not_done("this torch is built without torch.distributed")
    ranks, backend = choose_ranks(device)
    rows = fold_ids(rows)
    with tempfile.TemporaryDirectory(prefix="mtpack-ranks-") as folder:
        task = RankTask(
            ranks, backend, rows, label_alignment, device, dtype, Path(folder).absolute()
        )
        try:
            with leave_out_main():
                started = spawn(  # type: ignore[no-untyped-call]  # torch has no types
                    _run_rank, (task, take_rank_step), ranks, join=False, daemon=True
                )
            while not started.join():
                pass
        except (OSError, ProcessRaisedException, ProcessExitedException) as error:
            cause = str(error).strip().splitlines()[-1]  # after a traceback
            return Check.not_done(f"its processes can't be run: {cause}")
        results = [
            StepResult(*torch.load(task.result_path(rank), map_location=device, weights_only=True))
            for rank in range(ranks)
        ]
    model = make_built_in_model(device, dtype)
    expected = reference_step(model, rows, label_alignment)
    return compare_results(results, expected, model, rows)


def take_rank_step(rank: int, task: RankTask) -> StepResult:
    """Compute the step as one of the ranks: sum its own sequences, all-reduce, divide once."""
    device = task.device
    if device == "cuda":
        device = f"cuda:{rank % torch.cuda.device_count()}"
        torch.cuda.set_device(device)
    model = make_built_in_model(device, task.dtype)
    own_rows = divide_rows(task.rows, task.ranks)[rank]
    parts = make_micro_batches(own_rows, _MICRO_BATCH_SIZE, seed=0)
    sums = sum_step(model, parts, task.label_alignment)
    distributed.init_process_group(
        task.backend,
        init_method=Path(task.folder, "rendezvous").as_uri(),
        rank=rank,
        world_size=task.ranks,
        timeout=_TIMEOUT,
    )
    result = normalize(_all_reduce(sums, "cpu" if task.backend == "gloo" else device))
    distributed.destroy_process_group()
    return result


def _all_reduce(sums: StepSums, device: str) -> StepSums:
    reduced = [values.to(device, copy=True) for values in (sums.loss, sums.turns, *sums.gradients)]
    for values in reduced:
        distributed.all_reduce(values)
    return StepSums(reduced[0], reduced[1], reduced[2:])


def _run_rank(rank: int, task: RankTask, step: Callable[[int, RankTask], StepResult]) -> None:
    """Run one rank, in its own process, and save its result."""
    if sys.platform in ("linux", "darwin"):  # one machine, whose host name may not resolve
        loopback = "lo" if sys.platform == "linux" else "lo0"
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", loopback)
    with set_exact_arithmetic(threads=1):
        result = step(rank, task)
    torch.save((result.loss, result.gradients), task.result_path(rank))
