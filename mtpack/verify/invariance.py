"""Check 3, invariance: how a global batch is divided makes no difference.

The same sequences, once each by itself as in check 2, and then

    micro-batches       in other sizes and orders
    data parallel       over processes that all-reduce gradients and counts (ranks.py)
    context parallel    each sequence sliced over ranks, documents padded to 2 * ranks

Everywhere the sums are added up first, and divided once, by the number of all turns.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from mtpack.context_parallel import places_on_rank
from mtpack.loss import turn_mean_loss
from mtpack.packing.label_alignment import to_shifted
from mtpack.shards.dataset import Row
from mtpack.verify.causal_model import CausalModel
from mtpack.verify.check import Check
from mtpack.verify.padding import with_padded_documents
from mtpack.verify.steps import (
    StepResult,
    accumulate,
    batch_of,
    difference,
    normalize,
    step_sums,
    token_losses,
    tolerance_of,
)

MICRO_BATCH_SIZES = (2, 3, 5)
CONTEXT_PARALLEL_RANKS = (2, 4)


def reference_step(model: CausalModel, rows: list[Row], label_alignment: str) -> StepResult:
    """Take a step with every sequence by itself, in order: what all divisions are held against."""
    return _step(model, [[row] for row in rows], label_alignment)


def compare_micro_batches(
    model: CausalModel, rows: list[Row], label_alignment: str, expected: StepResult
) -> Check:
    """Take the same step in micro-batches of several sizes, the rows in another order each."""
    outcomes = [
        _step(model, micro_batches(rows, size, seed=size), label_alignment)
        for size in MICRO_BATCH_SIZES
    ]
    return comparison(outcomes, expected, model.dtype, rows)


def compare_context_parallel(
    model: CausalModel, rows: list[Row], label_alignment: str, expected: StepResult
) -> Check:
    """Take the same step as context-parallel ranks do that hold slices of every sequence.

    The losses come from a whole forward pass, since the attention between ranks belongs to the
    trainer; what is a rank's own is its slice of them and of the columns, the sum and the count.
    """
    outcomes = [
        normalize(accumulate(model, _slices(model, rows, label_alignment, ranks)))
        for ranks in CONTEXT_PARALLEL_RANKS
    ]
    return comparison(outcomes, expected, model.dtype, rows)


def comparison(
    outcomes: list[StepResult], expected: StepResult, dtype: torch.dtype, rows: list[Row]
) -> Check:
    """Hold the outcomes of several divisions of the same rows against the expected one."""
    value = max(difference(outcome, expected, dtype) for outcome in outcomes)
    return Check(value, tolerance_of(dtype, sum(len(row["input_ids"]) for row in rows)))


def micro_batches(rows: list[Row], size: int, seed: int) -> list[list[Row]]:
    """Shuffle rows and cut them into micro-batches; the last one may be smaller."""
    shuffled = [rows[number] for number in np.random.default_rng(seed).permutation(len(rows))]
    return [shuffled[start : start + size] for start in range(0, len(rows), size)]


def _step(model: CausalModel, parts: list[list[Row]], label_alignment: str) -> StepResult:
    return normalize(step_sums(model, parts, label_alignment))


def _slices(
    model: CausalModel, rows: list[Row], label_alignment: str, ranks: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield for every sequence what its ranks add up to.

    Labels are shifted before anything is sliced: a rank may hold a token, but not the one behind.
    """
    for row in rows:
        row = with_padded_documents(to_shifted(row, label_alignment), 2 * ranks)
        batch = batch_of([row], model)
        losses = token_losses(model, batch, "shifted").flatten()
        columns = {name: batch[name].flatten() for name in ("loss_mask", "loss_token_num")}
        heads = batch["turn_heads"].flatten()
        loss_sum, turn_sum = torch.zeros_like(losses[0]), torch.zeros_like(batch["turn_num"][0])
        for rank in range(ranks):
            held = places_on_rank(batch["cu_seqlens"], ranks, rank)
            mask, token_num = (columns[name][held] for name in columns)
            loss, turns = slice_sums(losses[held], mask, token_num, heads[held])
            loss_sum = loss_sum + loss
            turn_sum += turns
        yield loss_sum, turn_sum


def slice_sums(
    losses: Tensor, loss_mask: Tensor, loss_token_num: Tensor, turn_heads: Tensor
) -> tuple[Tensor, Tensor]:
    """Return what one context-parallel rank returns: its sum, and the turns that start with it."""
    return turn_mean_loss(losses, loss_mask, loss_token_num, turn_heads.long())
