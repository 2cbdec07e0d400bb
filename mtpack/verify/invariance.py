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
    collate_rows,
    compare_results,
    compute_token_losses,
    normalize,
    sum_step,
    take_step,
)

MICRO_BATCH_SIZES = (2, 3, 5)
CONTEXT_PARALLEL_RANKS = (2, 4)


def reference_step(model: CausalModel, rows: list[Row], label_alignment: str) -> StepResult:
    """Compute a step with one sequence per micro-batch: the reference for all divisions."""
    return normalize(sum_step(model, [[row] for row in rows], label_alignment))


def compare_micro_batches(
    model: CausalModel, rows: list[Row], label_alignment: str, expected: StepResult
) -> Check:
    """Compute the same step with micro-batches of several sizes, each time in another order."""
    results = [
        normalize(sum_step(model, make_micro_batches(rows, size, seed=size), label_alignment))
        for size in MICRO_BATCH_SIZES
    ]
    return compare_results(results, expected, model, rows)


def compare_context_parallel(
    model: CausalModel, rows: list[Row], label_alignment: str, expected: StepResult
) -> Check:
    """Compute the same step as context-parallel ranks, which hold slices of every sequence.

    The losses come from a forward pass over the whole sequence, because attention between ranks is
    part of the trainer. Each rank has its slice of losses and columns, its sum and its count.
    """
    results = [
        take_step(model, _sum_over_ranks(model, rows, label_alignment, ranks))
        for ranks in CONTEXT_PARALLEL_RANKS
    ]
    return compare_results(results, expected, model, rows)


def make_micro_batches(rows: list[Row], size: int, seed: int) -> list[list[Row]]:
    """Shuffle sequences and divide them into micro-batches; the last one may be smaller."""
    shuffled = [rows[number] for number in np.random.default_rng(seed).permutation(len(rows))]
    return [shuffled[start : start + size] for start in range(0, len(rows), size)]


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
        names = ("loss_mask", "loss_token_num", "turn_heads", "turn_weight")
        columns = [batch[name].flatten() for name in names if name in batch]
        loss_sum, turn_sum = torch.zeros_like(losses[0]), torch.zeros_like(batch["turn_num"][0])
        for rank in range(ranks):
            own = find_positions_on_rank(batch["cu_seqlens"], ranks, rank)
            loss, turns = turn_mean_loss(losses[own], *(column[own] for column in columns))
            loss_sum = loss_sum + loss
            turn_sum = turn_sum + turns  # of floats, if turns have weights
        yield loss_sum, turn_sum
