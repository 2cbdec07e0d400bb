"""Check 3 over data-parallel ranks: real processes, each with its rows, and an all-reduce.

Processes of their own, started afresh, so that nothing is shared but what `torch.distributed`
carries: NCCL where every rank has a GPU, gloo elsewhere.
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
from mtpack.running.forking import interrupts_held
from mtpack.shards.dataset import Row
from mtpack.verify.causal_model import built_in_model
from mtpack.verify.invariance import micro_batches
from mtpack.verify.steps import (
    StepResult,
    StepSums,
    exact_and_repeatable,
    normalize,
    step_sums,
)

_MICRO_BATCH_SIZE = 2
_PATIENCE = 120.0  # seconds for start, work and all-reduce; they take a few


class RanksFailed(Exception):
    """The processes could not be started or did not finish; the message says why, in one line."""


@dataclass(frozen=True, slots=True)
class RankTask:
    """What a rank is told; it builds the model itself, from the same seed as all others."""

    rank: int
    ranks: int
    rows: list[Row]
    label_alignment: str
    vocabulary: int
    device: str
    dtype: torch.dtype
    backend: str
    folder: str
    """Where the ranks find each other and leave their outcomes."""


def ranks_on(device: str) -> tuple[int, str]:
    """Return how many ranks to start, and the backend they talk through."""
    gpus = torch.cuda.device_count() if device == "cuda" else 0
    if gpus >= 2 and distributed.is_nccl_available():
        return min(gpus, 8), "nccl"
    return 2, "gloo"


def rank_shares(rows: list[Row], ranks: int) -> list[list[Row]]:
    """Deal rows out: the first rank gets as many as all others together, so they are uneven."""
    first = -(-len(rows) // 2)
    others = rows[first:]
    return [rows[:first], *(others[number :: ranks - 1] for number in range(ranks - 1))]


def data_parallel_outcomes(
    rows: list[Row], label_alignment: str, vocabulary: int, device: str, dtype: torch.dtype
) -> list[StepResult]:
    """Start the ranks, and return what each of them holds at the end; raise RanksFailed."""
    if not distributed.is_available():
        raise RanksFailed("this torch is built without torch.distributed")
    ranks, backend = ranks_on(device)
    with tempfile.TemporaryDirectory(prefix="mtpack-ranks-") as folder:
        tasks = [
            RankTask(
                rank, ranks, share, label_alignment, vocabulary, device, dtype, backend, folder
            )
            for rank, share in enumerate(rank_shares(rows, ranks))
        ]
        _run(tasks)
        return [_read(Path(folder, f"outcome-{rank}.pt")) for rank in range(ranks)]


def rank_step(task: RankTask) -> StepResult:
    """Take the step as one of the ranks: sums of its own rows, all-reduced, divided once."""
    device = task.device
    if device == "cuda":
        device = f"cuda:{task.rank % torch.cuda.device_count()}"
        torch.cuda.set_device(device)
    model = built_in_model(task.vocabulary, device, task.dtype)
    parts = micro_batches(task.rows, _MICRO_BATCH_SIZE, seed=0)
    sums = step_sums(model, parts, task.label_alignment)
    distributed.init_process_group(
        task.backend,
        init_method=Path(task.folder, "meeting").absolute().as_uri(),
        rank=task.rank,
        world_size=task.ranks,
        timeout=timedelta(seconds=_PATIENCE),
    )
    outcome = normalize(_all_reduced(sums, "cpu" if task.backend == "gloo" else device))
    distributed.destroy_process_group()
    return outcome


def _all_reduced(sums: StepSums, device: str) -> StepSums:
    reduced = [values.to(device, copy=True) for values in (sums.loss, sums.turns, *sums.gradients)]
    for values in reduced:
        distributed.all_reduce(values)
    return StepSums(reduced[0], reduced[1], reduced[2:])


def _run(tasks: list[RankTask]) -> None:
    """Run all ranks to their end; where one fails, end the others, which would wait for it."""
    context = get_context("spawn")
    running: dict[int, tuple[RankTask, BaseProcess]] = {}
    patient_until = time.monotonic() + _PATIENCE
    try:
        for task in tasks:
            process: BaseProcess = context.Process(
                target=_rank, args=(task, rank_step), daemon=True
            )
            with interrupts_held():
                process.start()
            running[process.sentinel] = task, process
        while running:
            ended = wait(list(running), max(0.0, patient_until - time.monotonic()))
            if not ended:
                raise RanksFailed(f"they took longer than {_PATIENCE:.0f} seconds")
            for sentinel in ended:
                task, process = running.pop(cast(int, sentinel))
                process.join()
                if process.exitcode:
                    raise RanksFailed(_reason(task, process.exitcode))
    except OSError as error:
        raise RanksFailed(f"a process can't be started: {error.strerror or error}") from error
    finally:
        for _, process in running.values():
            process.kill()
            process.join()


def _reason(task: RankTask, exit_code: int) -> str:
    told = Path(task.folder, f"reason-{task.rank}")
    if told.is_file():
        return told.read_text(encoding="utf-8")
    return f"process {task.rank} ended with status {exit_code}"


def _rank(task: RankTask, step: Callable[[RankTask], StepResult]) -> None:
    """Run in a process of its own: leave the outcome behind, or the reason why there is none."""
    if sys.platform in ("linux", "darwin"):  # a host name may lead nowhere; all are on one machine
        loopback = "lo" if sys.platform == "linux" else "lo0"
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", loopback)
    try:
        with exact_and_repeatable(threads=1):
            outcome = step(task)
    except (RuntimeError, OSError, ValueError) as error:  # of torch.distributed, above all
        Path(task.folder, f"reason-{task.rank}").write_text(first_line(error), encoding="utf-8")
        sys.exit(1)
    outcome = outcome.on("cpu")
    saved = {"loss": outcome.loss, "gradients": outcome.gradients}
    torch.save(saved, Path(task.folder, f"outcome-{task.rank}.pt"))


def _read(path: Path) -> StepResult:
    saved = torch.load(path, weights_only=True)
    return StepResult(saved["loss"], saved["gradients"])
