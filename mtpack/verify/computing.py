"""Run the numeric checks (2 to 4), one after the other, on seeded samples of the shards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mtpack.errors import SetupError
from mtpack.packing.columns import IGNORED
from mtpack.shards.dataset import Row, Shards
from mtpack.token_batch import Int64
from mtpack.torch_data import PackedDataset
from mtpack.verify.causal_model import DTYPES, CausalModel, load_model, make_built_in_model
from mtpack.verify.check import Check, ReportProgress
from mtpack.verify.equivalence import Losses, check_equivalence
from mtpack.verify.invariance import (
    CONTEXT_PARALLEL_RANKS,
    MICRO_BATCH_SIZES,
    compare_context_parallel,
    compare_micro_batches,
    compare_results,
    reference_step,
)
from mtpack.verify.isolation import check_isolation
from mtpack.verify.ranks import RanksFailed, choose_ranks, run_data_parallel_step
from mtpack.verify.sampling import (
    BUDGET,
    PassCost,
    count_coverage,
    draw_neighbours,
    draw_sample,
    draw_short_rows,
    estimate_pass_cost,
    make_pass_cost,
)
from mtpack.verify.steps import set_exact_arithmetic

_VOCABULARY = 256  # of the built-in model; other token ids are mapped to these, always alike
_DIVIDED_ROWS = 5  # micro-batches of 2, 2 and 1, or of 3 and 2
_NEIGHBOUR_ROWS = 3
_SECONDS_PER_PASS = 0.15
_SMALL_MODEL = 3e7


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
    remarks: list[str]
    """What could not be checked on this machine, one line each."""


def run_numeric_checks(
    paths: list[str],
    shards: Shards,
    device: str,
    dtype: str,
    model_path: str | None,
    report_progress: ReportProgress,
) -> NumericReport:
    """Run checks 2 to 4 on shards that passed the structure check.

    dtype: a key of `DTYPES`, or `auto`: float64 on the CPU; float32 on CUDA and for a user's model.
    Raises SetupError for a model that can't be used.
    """
    dataset = PackedDataset(paths[0] if len(paths) == 1 else paths)
    if dtype == "auto":
        dtype = "float64" if device == "cpu" and model_path is None else "float32"
    if model_path is None:
        samples, vocabulary = compact_ids(_draw_samples(dataset, estimate_pass_cost))
        model = make_built_in_model(vocabulary, device, DTYPES[dtype])
    else:
        model = load_model(model_path, device, DTYPES[dtype])
        samples = _draw_samples(dataset, make_pass_cost(model))
        _refuse_unknown_ids(samples, model, model_path)
    remarks: list[str] = []
    covered: dict[str, dict[str, Any]] = {
        name: count_coverage(samples[name], shards) for name in ("equivalence", "invariance")
    }
    covered["invariance"] |= {
        "micro_batch_sizes": list(MICRO_BATCH_SIZES),
        "context_parallel_ranks": list(CONTEXT_PARALLEL_RANKS),
    }
    with set_exact_arithmetic(threads=choose_num_threads(model)):
        checks, losses, covered["isolation"] = _run_checks(
            samples, dataset.label_alignment, model, report_progress
        )
        report_progress("invariance over processes")
        try:
            ranks = _compare_ranks(
                samples["invariance"], dataset.label_alignment, device, DTYPES[dtype]
            )
        except RanksFailed as failure:
            remarks.append(f"data-parallel ranks could not be run on this machine: {failure}")
        else:
            divisions = {**checks["invariance"].parts, "data_parallel": ranks}
            checks["invariance"] = Check.of(divisions)
            number, backend = choose_ranks(device)
            covered["invariance"] |= {"data_parallel_ranks": number, "backend": backend}
    return NumericReport(
        checks, losses, covered, model.name, model.separates_documents_by, dtype, remarks
    )


def choose_num_threads(model: CausalModel) -> int | None:
    """Return 1 for a small model, or None for torch's default number of threads.

    Threads make a small model slower on a busy machine: a model of a million weights took 40 times
    as long for 64 tokens with two threads (measured).
    """
    weights = sum(parameter.numel() for parameter in model.parameters)
    return 1 if weights < _SMALL_MODEL else None


def _run_checks(
    samples: dict[str, list[Row]],
    label_alignment: str,
    model: CausalModel,
    report_progress: ReportProgress,
) -> tuple[dict[str, Check], Losses, dict[str, int]]:
    report_progress("equivalence")
    equivalence, losses = check_equivalence(model, samples["equivalence"], label_alignment)
    report_progress("invariance")
    rows = samples["invariance"]
    expected = reference_step(model, rows, label_alignment)
    divisions = {
        "micro_batches": compare_micro_batches(model, rows, label_alignment, expected),
        "context_parallel": compare_context_parallel(model, rows, label_alignment, expected),
    }
    report_progress("isolation")
    isolation = check_isolation(model, samples["isolation"])
    checks = {
        "equivalence": equivalence,
        "invariance": Check.of(divisions),
        "isolation": isolation.check,
    }
    return checks, losses, isolation.counts


def _compare_ranks(rows: list[Row], label_alignment: str, device: str, dtype: torch.dtype) -> Check:
    """Compare the ranks with one process, always with the built-in model."""
    samples, vocabulary = compact_ids({"rows": rows})
    expected = reference_step(
        make_built_in_model(vocabulary, device, dtype), samples["rows"], label_alignment
    ).on("cpu")
    results = run_data_parallel_step(samples["rows"], label_alignment, vocabulary, device, dtype)
    return compare_results(results, expected, dtype, samples["rows"])


def _draw_samples(dataset: PackedDataset, cost: PassCost) -> dict[str, list[Row]]:
    return {
        "equivalence": draw_sample(dataset, BUDGET, cost),
        "invariance": draw_short_rows(dataset, _DIVIDED_ROWS, _SECONDS_PER_PASS, cost),
        "isolation": draw_neighbours(dataset, _NEIGHBOUR_ROWS, _SECONDS_PER_PASS, cost),
    }


def compact_ids(samples: dict[str, list[Row]]) -> tuple[dict[str, list[Row]], int]:
    """Renumber the token ids of the samples from 0, and return the samples and the vocabulary size.

    So the built-in model stays small. Ids beyond its vocabulary are mapped into it (modulo).
    """
    rows = [row for sample in samples.values() for row in sample]
    known = np.unique(
        np.concatenate([row[name] for row in rows for name in ("input_ids", "labels")])
    )
    known = known[known != IGNORED]

    def compact(ids: Int64) -> Int64:
        return np.where(ids == IGNORED, IGNORED, np.searchsorted(known, ids) % _VOCABULARY)

    numbered = {
        name: [
            {**row, "input_ids": compact(row["input_ids"]), "labels": compact(row["labels"])}
            for row in sample
        ]
        for name, sample in samples.items()
    }
    return numbered, max(2, min(len(known), _VOCABULARY))


def _refuse_unknown_ids(samples: dict[str, list[Row]], model: CausalModel, model_path: str) -> None:
    largest = max(int(row["input_ids"].max()) for sample in samples.values() for row in sample)
    if largest >= model.vocabulary:
        raise SetupError(
            f"--model {model_path}: it has {model.vocabulary:,} token ids, but the shards contain "
            f"id {largest}; use the model whose tokenizer the shards were packed with"
        )
