"""Weights of turns in Megatron-LM, which counts in integers: weights are counted in 1/1024.

Megatron adds up the counts of a global batch as int32 (megatron/core/pipeline_parallel/schedules.py
and megatron/core/distributed/finalize_model_grads.py). More would become negative without an error,
so what the heaviest global batch can hold is checked before training.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from megatron.core import num_microbatches_calculator

from mtpack.errors import SetupError
from mtpack.shards.dataset import Shards
from mtpack.token_batch import WEIGHT_UNITS, Int64

MOST_UNITS = 2**31 - 1
"""The largest count that Megatron adds up without overflow."""


def has_weights(shards: Any) -> bool:
    """Return whether a `PackedDataset` or `Shards` has weights of turns."""
    return "turn_weights" in shards.metadata.extra_columns


def require_countable(path: str, shards: Shards, global_batch_size: int) -> None:
    """Raise SetupError if the weights of a global batch may not fit into Megatron's count.

    That is judged by the heaviest sequences, which a shuffle may bring together.
    """
    units = _list_units(shards)
    repeats = -(-global_batch_size // len(units))
    heaviest = repeats * int(np.sort(units)[-global_batch_size:].sum())
    if heaviest > MOST_UNITS:
        raise SetupError(
            f"{path}: the {global_batch_size:,} sequences of a global batch may have a weight of "
            f"{heaviest / WEIGHT_UNITS:,.0f}; Megatron counts up to {MOST_UNITS // WEIGHT_UNITS:,} "
            "(int32, in 1/1024). Choose a smaller --global-batch-size, or pack with smaller "
            "weights: only their ratios matter"
        )


def _list_units(shards: Shards) -> Int64:
    """Return the sum of the weights of each sequence in 1/1024, (sequences,)."""
    sums: list[Int64] = []
    for batch in shards.batches():
        assert batch.turn_weights is not None
        units = np.concatenate([[0], (batch.turn_weights * WEIGHT_UNITS).astype(np.int64)])
        sums.append(np.diff(np.cumsum(units)[batch.turn_offsets]))
    return np.concatenate(sums)


def find_global_batch_size() -> int:
    """Return the number of sequences of the largest global batch; 1 outside of Megatron's loop."""
    calculator = num_microbatches_calculator._GLOBAL_NUM_MICROBATCHES_CALCULATOR
    if calculator is None:
        return 1
    # While the batch size is ramped up, the current one is smaller than the last.
    largest = getattr(calculator, "global_batch_size", None)
    return int(largest or calculator.get_current_global_batch_size())


def require_one_kind(datasets: Iterable[Any]) -> None:
    """Raise SetupError if some sets of a blend have weights and others have not.

    A count in 1/1024 and a count of turns would be added up. datasets: those that Megatron built,
    or None.
    """
    for dataset in datasets:
        paths = {has_weights(part.dataset): part.dataset_path for part in _list_parts(dataset)}
        if len(paths) > 1:
            raise SetupError(
                f"{paths[False]}: without weights of turns, but {paths[True]} has some; "
                "pack all data of a blend with --turn-weights"
            )


def _list_parts(dataset: Any) -> Iterator[Any]:
    if dataset is None:
        return
    if hasattr(dataset, "datasets"):  # a BlendedDataset
        for part in dataset.datasets:
            yield from _list_parts(part)
        return
    yield dataset
