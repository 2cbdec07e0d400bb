"""The numeric checks, one after the other, on seeded samples of the shards."""

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
from mtpack.verify.causal_model import DTYPES, CausalModel, built_in_model, loaded_model
from mtpack.verify.check import Check, Tell
from mtpack.verify.equivalence import Losses, compare
from mtpack.verify.invariance import (
    CONTEXT_PARALLEL_RANKS,
    MICRO_BATCH_SIZES,
    compare_context_parallel,
    compare_micro_batches,
    comparison,
    reference_step,
)
from mtpack.verify.isolation import check_isolation
from mtpack.verify.ranks import RanksFailed, data_parallel_outcomes, ranks_on
from mtpack.verify.sampling import (
    BUDGET,
    PassCost,
    coverage_of,
    draw_neighbours,
    draw_sample,
    draw_short_rows,
    model_pass_cost,
    pass_cost,
)
from mtpack.verify.steps import exact_and_repeatable

_VOCABULARY = 256  # the built-in model's; more tokens than these share ids, everywhere alike
_DIVIDED_ROWS = 5  # for 3 micro-batches of 2, 2 and 1, and 2 of 3 and 2
_NEIGHBOUR_ROWS = 3
_SECONDS_PER_PASS = 0.15
_SMALL_MODEL = 3e7


@dataclass(frozen=True, slots=True)
class NumericReport:
    """What the numeric checks came to."""

    checks: dict[str, Check]
    losses: Losses
    covered: dict[str, dict[str, Any]]
    """By check, what it took, and of how much."""
    model: str
    keeps_apart_by: str
    dtype: str
    remarks: list[str]
    """What could not be checked here, a line each."""


def check_numbers(
    paths: list[str],
    shards: Shards,
    device: str,
    dtype: str,
    model_path: str | None,
    tell: Tell,
) -> NumericReport:
    """Make checks 2 to 4 on shards whose structure has passed.

    dtype: a key of `DTYPES`, or `auto`: float64 on the CPU and float32 on CUDA or for a user's own
    model. Raises SetupError for a model that can't be used.
    """
    dataset = PackedDataset(paths[0] if len(paths) == 1 else paths)
    if dtype == "auto":
        dtype = "float64" if device == "cpu" and model_path is None else "float32"
    if model_path is None:
        samples, vocabulary = compacted(_samples(dataset, pass_cost))
        model = built_in_model(vocabulary, device, DTYPES[dtype])
    else:
        model = loaded_model(model_path, device, DTYPES[dtype])
        samples = _samples(dataset, model_pass_cost(model))
        _refuse_unknown_ids(samples, model, model_path)
    remarks: list[str] = []
    covered: dict[str, dict[str, Any]] = {
        name: coverage_of(samples[name], shards) for name in ("equivalence", "invariance")
    }
    covered["invariance"] |= {
        "micro_batch_sizes": list(MICRO_BATCH_SIZES),
        "context_parallel_ranks": list(CONTEXT_PARALLEL_RANKS),
    }
    with exact_and_repeatable(threads=threads_for(model)):
        checks, losses, covered["isolation"] = _check_samples(
            samples, dataset.label_alignment, model, tell
        )
        tell("invariance over processes")
        try:
            ranks = _compare_ranks(
                samples["invariance"], dataset.label_alignment, device, DTYPES[dtype]
            )
        except RanksFailed as failure:
            remarks.append(f"data-parallel ranks could not be tried on this machine: {failure}")
        else:
            divisions = {**checks["invariance"].parts, "data_parallel": ranks}
            checks["invariance"] = Check.of(divisions)
            number, backend = ranks_on(device)
            covered["invariance"] |= {"data_parallel_ranks": number, "backend": backend}
    return NumericReport(checks, losses, covered, model.name, model.keeps_apart_by, dtype, remarks)


def threads_for(model: CausalModel) -> int | None:
    """Return 1 for a small model, which threads make slower on a busy machine; None: torch's own.

    A model of a million weights took 40 times as long for 64 tokens with two threads, measured.
    """
    weights = sum(parameter.numel() for parameter in model.parameters)
    return 1 if weights < _SMALL_MODEL else None


def _check_samples(
    samples: dict[str, list[Row]], label_alignment: str, model: CausalModel, tell: Tell
) -> tuple[dict[str, Check], Losses, dict[str, int]]:
    tell("equivalence")
    equivalence, losses = compare(model, samples["equivalence"], label_alignment)
    tell("invariance")
    rows = samples["invariance"]
    expected = reference_step(model, rows, label_alignment)
    divisions = {
        "micro_batches": compare_micro_batches(model, rows, label_alignment, expected),
        "context_parallel": compare_context_parallel(model, rows, label_alignment, expected),
    }
    tell("isolation")
    isolation = check_isolation(model, samples["isolation"])
    checks = {
        "equivalence": equivalence,
        "invariance": Check.of(divisions),
        "isolation": isolation.check,
    }
    return checks, losses, isolation.counts


def _compare_ranks(rows: list[Row], label_alignment: str, device: str, dtype: torch.dtype) -> Check:
    """Hold the ranks against one process; with the built-in model, whatever the user's is."""
    samples, vocabulary = compacted({"rows": rows})
    expected = reference_step(
        built_in_model(vocabulary, device, dtype), samples["rows"], label_alignment
    ).on("cpu")
    outcomes = data_parallel_outcomes(samples["rows"], label_alignment, vocabulary, device, dtype)
    return comparison(outcomes, expected, dtype, samples["rows"])


def _samples(dataset: PackedDataset, cost: PassCost) -> dict[str, list[Row]]:
    return {
        "equivalence": draw_sample(dataset, BUDGET, cost),
        "invariance": draw_short_rows(dataset, _DIVIDED_ROWS, _SECONDS_PER_PASS, cost),
        "isolation": draw_neighbours(dataset, _NEIGHBOUR_ROWS, _SECONDS_PER_PASS, cost),
    }


def compacted(samples: dict[str, list[Row]]) -> tuple[dict[str, list[Row]], int]:
    """Number the samples' token ids from 0, in labels too, and return how many there are.

    So the built-in model stays small; ids beyond its vocabulary are shared.
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
            f"--model {model_path}: it knows {model.vocabulary:,} token ids, and the shards hold "
            f"{largest}; name the model whose tokenizer they were packed with"
        )
