"""Run the numeric checks (2 to 4), one after the other, on a seeded sample of the shards."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from mtpack.errors import MtpackError, SetupError
from mtpack.shards.dataset import Row, Shards
from mtpack.torch_data import PackedDataset
from mtpack.verify.causal_model import (
    CausalModel,
    fold_ids,
    load_model,
    make_built_in_model,
)
from mtpack.verify.check import Check, ReportProgress
from mtpack.verify.equivalence import Losses, check_equivalence, compute_turn_loss
from mtpack.verify.invariance import (
    CONTEXT_PARALLEL_RANKS,
    MICRO_BATCH_SIZES,
    compare_context_parallel,
    compare_micro_batches,
    reference_step,
)
from mtpack.verify.isolation import PASSES, check_isolation
from mtpack.verify.ranks import choose_ranks, compare_ranks
from mtpack.verify.sampling import LEAST, USUAL, count_coverage, draw_sample, find_turns
from mtpack.verify.steps import set_exact_arithmetic


@dataclass(frozen=True, slots=True)
class NumericReport:
    """The results of the numeric checks."""

    checks: dict[str, Check]
    losses: Losses
    covered: dict[str, dict[str, Any]]
    """By check: what it covered, and of how much."""
    model: str
    separates_documents_by: str
    dtype: str


def run_numeric_checks(
    paths: list[str],
    shards: Shards,
    device: str,
    dtype: str,
    model_path: str | None,
    report_progress: ReportProgress,
) -> NumericReport:
    """Run checks 2 to 4 on shards that passed the structure check.

    dtype: its name in torch, or `auto`: float64 on the CPU; float32 on CUDA and for a user's model.
    Raises SetupError for a model that can't be used, MtpackError if the device has too little
    memory.
    """
    dataset = PackedDataset(paths[0] if len(paths) == 1 else paths)
    if dtype == "auto":
        dtype = "float64" if device == "cpu" and model_path is None else "float32"
    try:
        if model_path is None:
            model = make_built_in_model(device, getattr(torch, dtype))
            rows = fold_ids(draw_sample(dataset, USUAL))
        else:
            model = load_model(model_path, device, getattr(torch, dtype))
            rows = draw_sample(dataset, USUAL if model.is_small else LEAST)
            _refuse_unknown_ids(rows, model, model_path)
        # Threads make a small model slower on a busy machine: one of a million weights took 40
        # times as long for 64 tokens with two threads (measured).
        with set_exact_arithmetic(threads=1 if model.is_small else None):
            checks, losses, isolated = _run_checks(
                model, rows, dataset.label_alignment, report_progress
            )
    except torch.cuda.OutOfMemoryError as error:
        raise MtpackError(
            f"{device} does not have enough memory for the numeric checks; "
            "try --dtype bfloat16, a smaller --model, or --device cpu"
        ) from error
    sample = count_coverage(rows, shards)
    ranks, backend = choose_ranks(device)
    divided: dict[str, Any] = {
        "micro_batch_sizes": list(MICRO_BATCH_SIZES),
        "context_parallel_ranks": list(CONTEXT_PARALLEL_RANKS),
        "data_parallel_ranks": ranks,
        "backend": backend,
    }
    covered = {"equivalence": sample, "invariance": divided | sample, "isolation": isolated}
    return NumericReport(checks, losses, covered, model.name, model.separates_documents_by, dtype)


def _run_checks(
    model: CausalModel, rows: list[Row], label_alignment: str, report_progress: ReportProgress
) -> tuple[dict[str, Check], Losses, dict[str, int]]:
    seconds = estimate_seconds(model, rows, label_alignment)
    report_progress("equivalence", seconds["equivalence"])
    equivalence, losses = check_equivalence(model, rows, label_alignment)
    report_progress("invariance", seconds["invariance"])
    expected = reference_step(model, rows, label_alignment)
    divisions = {
        "micro_batches": compare_micro_batches(model, rows, label_alignment, expected),
        "context_parallel": compare_context_parallel(model, rows, label_alignment, expected),
        "data_parallel": compare_ranks(rows, label_alignment, model.device.type, model.dtype),
    }
    report_progress("isolation", seconds["isolation"])
    isolation, isolated = check_isolation(model, rows)
    checks = {
        "equivalence": equivalence,
        "invariance": Check.combine(divisions),
        "isolation": isolation,
    }
    return checks, losses, isolated


def estimate_seconds(model: CausalModel, rows: list[Row], label_alignment: str) -> dict[str, float]:
    """Estimate the time of each check from the tokens that it reads, and a timed pass over a turn.

    A forward pass counts a third of a forward and a backward pass.
    """
    turns = [(row, turn) for row in rows for turn in find_turns(row, label_alignment)]
    prefixes = [turn.stop - turn.document_start for _, turn in turns]
    timed = []
    for _ in range(2):  # the first pass may also load and allocate
        started = time.perf_counter()
        loss = compute_turn_loss(model, *turns[0])
        torch.autograd.grad(loss, model.parameters, allow_unused=True)
        loss.detach().item()  # wait for the device
        timed.append(time.perf_counter() - started)
    seconds = min(timed) / prefixes[0]
    packed = sum(len(row["input_ids"]) for row in rows)
    divisions = 1 + len(MICRO_BATCH_SIZES) + len(CONTEXT_PARALLEL_RANKS)
    return {
        "equivalence": seconds * (packed + sum(prefixes)),
        "invariance": seconds * packed * divisions,
        "isolation": seconds * packed * PASSES / 3,
    }


def _refuse_unknown_ids(rows: list[Row], model: CausalModel, model_path: str) -> None:
    largest = max(int(row["input_ids"].max()) for row in rows)
    if largest >= model.vocabulary:
        raise SetupError(
            f"--model {model_path}: it has {model.vocabulary:,} token ids, but the shards contain "
            f"id {largest}; use the model whose tokenizer the shards were packed with"
        )
