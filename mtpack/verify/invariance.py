"""Check 3, invariance: the division of a global batch does not change the step.

The same sequences are computed one at a time, as in check 2, and then divided:

    micro-batches       in other sizes and orders
    data parallel       over processes that all-reduce gradients and counts (ranks.py)
    context parallel    each sequence sliced over ranks, documents padded to 2 * ranks

Each time, all sums are added up first, and divided once by the number of all turns.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from mtpack.context_parallel import find_positions_on_rank
from mtpack.loss import turn_mean_loss
from mtpack.packing.label_alignment import to_shifted
from mtpack.shards.dataset import Row
from mtpack.verify.causal_model import CausalModel
from mtpack.verify.check import Check
from mtpack.verify.padding import pad_documents
from mtpack.verify.steps import (
    StepResult,
    accumulate,
    choose_tolerance,
    collate_rows,
    compute_token_losses,
    measure_difference,
    normalize,
    sum_step,
)

MICRO_BATCH_SIZES = (2, 3, 5)
CONTEXT_PARALLEL_RANKS = (2, 4)


def reference_step(model: CausalModel, rows: list[Row], label_alignment: str) -> StepResult:
    """Compute a step with one sequence per micro-batch: the reference for all divisions."""
    return _take_step(model, [[row] for row in rows], label_alignment)


def compare_micro_batches(
    model: CausalModel, rows: list[Row], label_alignment: str, expected: StepResult
) -> Check:
    """Compute the same step with micro-batches of several sizes, each time in another order."""
    results = [
        _take_step(model, make_micro_batches(rows, size, seed=size), label_alignment)
        for size in MICRO_BATCH_SIZES
    ]
    return compare_results(results, expected, model.dtype, rows)


def compare_context_parallel(
    model: CausalModel, rows: list[Row], label_alignment: str, expected: StepResult
) -> Check:
    """Compute the same step as context-parallel ranks, which hold slices of every sequence.

    The losses come from a forward pass over the whole sequence, because attention between ranks is
    part of the trainer. Each rank has its slice of losses and columns, its sum and its count.
    """
    results = [
        normalize(accumulate(model, _sum_over_ranks(model, rows, label_alignment, ranks)))
        for ranks in CONTEXT_PARALLEL_RANKS
    ]
    return compare_results(results, expected, model.dtype, rows)


def compare_results(
    results: list[StepResult], expected: StepResult, dtype: torch.dtype, rows: list[Row]
) -> Check:
    """Compare the results of several divisions of the same sequences with the expected one."""
    value = max(measure_difference(result, expected, dtype) for result in results)
    return Check(value, choose_tolerance(dtype, sum(len(row["input_ids"]) for row in rows)))


def make_micro_batches(rows: list[Row], size: int, seed: int) -> list[list[Row]]:
    """Shuffle sequences and divide them into micro-batches; the last one may be smaller."""
    shuffled = [rows[number] for number in np.random.default_rng(seed).permutation(len(rows))]
    return [shuffled[start : start + size] for start in range(0, len(rows), size)]


def _take_step(model: CausalModel, parts: list[list[Row]], label_alignment: str) -> StepResult:
    return normalize(sum_step(model, parts, label_alignment))


def _sum_over_ranks(
    model: CausalModel, rows: list[Row], label_alignment: str, ranks: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield for every sequence the loss and the turns, summed over its ranks.

    Labels are shifted before slicing: a rank may have a token, but not the next one.
    """
    for row in rows:
        row = pad_documents(to_shifted(row, label_alignment), 2 * ranks)
        batch = collate_rows([row], model)
        losses = compute_token_losses(model, batch, "shifted").flatten()
        columns = {name: batch[name].flatten() for name in ("loss_mask", "loss_token_num")}
        turn_heads = batch["turn_heads"].flatten()
        loss_sum, turn_sum = torch.zeros_like(losses[0]), torch.zeros_like(batch["turn_num"][0])
        for rank in range(ranks):
            own = find_positions_on_rank(batch["cu_seqlens"], ranks, rank)
            mask, token_num = (columns[name][own] for name in columns)
            loss, turns = sum_slice(losses[own], mask, token_num, turn_heads[own])
            loss_sum = loss_sum + loss
            turn_sum += turns
        yield loss_sum, turn_sum


def sum_slice(
    losses: Tensor, loss_mask: Tensor, loss_token_num: Tensor, turn_heads: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the loss sum of a context-parallel rank, and the number of turns that start in it."""
    return turn_mean_loss(losses, loss_mask, loss_token_num, turn_heads.long())
