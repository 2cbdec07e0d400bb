"""Compute a training step as a trainer does (sums over micro-batches, one division); compare steps.

The data takes the same path as in training: sequences of the shards, `torch_data.collate`, a model,
and the losses of `mtpack.loss`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mtpack.loss import turn_mean_loss
from mtpack.packing.columns import IGNORED
from mtpack.shards.dataset import Row
from mtpack.torch_data import collate
from mtpack.verify.causal_model import CausalModel, ModelBatch
from mtpack.verify.check import Check
from mtpack.verify.padding import pad_sequence

_SMALL_PARAMETER = 1e-3  # of the whole gradient's norm
_CEILINGS = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2}


@dataclass(frozen=True, slots=True)
class StepSums:
    """The sums over micro-batches and ranks, before the division by the number of turns."""

    loss: Tensor
    turns: Tensor
    """The number of turns, int64; the sum of their weights, float64, if they have some."""
    gradients: list[Tensor]


@dataclass(frozen=True, slots=True)
class StepResult:
    """The loss of a step, and the gradient of every parameter."""

    loss: Tensor
    gradients: list[Tensor]


def collate_rows(rows: list[Row], model: CausalModel) -> ModelBatch:
    """Pad sequences to one length, collate them, and move the tensors to the model's device."""
    longest = max(len(row["input_ids"]) for row in rows)
    batch = collate([pad_sequence(row, longest) for row in rows])
    return {name: values.to(model.device) for name, values in batch.items()}


def compute_token_losses(model: CausalModel, batch: ModelBatch, label_alignment: str) -> Tensor:
    """Return the token losses, float (sequences, seq_len), each at the position of its label."""
    logits = model.logits(batch)
    if label_alignment == "aligned":  # the logits of a token are one position before its label
        logits = functional.pad(logits[:, :-1], (0, 0, 1, 0))
    labels = batch["labels"]
    wide = torch.promote_types(logits.dtype, torch.float32)
    losses = functional.cross_entropy(
        logits.flatten(0, 1).to(wide), labels.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return losses.view(labels.shape)


def sum_micro_batch(
    model: CausalModel, batch: ModelBatch, label_alignment: str
) -> tuple[Tensor, Tensor]:
    """Return the loss of a micro-batch as a sum, and its number of turns, or of their weights."""
    return turn_mean_loss(
        compute_token_losses(model, batch, label_alignment),
        batch["loss_mask"],
        batch["loss_token_num"],
        batch["turn_num"],
        batch.get("turn_weight"),
    )


def accumulate(model: CausalModel, parts: Iterable[tuple[Tensor, Tensor]]) -> StepSums:
    """Add up losses, numbers of turns, and the gradients of the losses.

    Sums are at least float32: in bfloat16, the contribution of a single turn would be lost.
    """
    wide = torch.promote_types(model.dtype, torch.float32)
    loss_sum = torch.zeros((), dtype=wide, device=model.device)
    turn_sum = torch.zeros((), dtype=torch.int64, device=model.device)
    gradients = [torch.zeros_like(parameter, dtype=wide) for parameter in model.parameters]
    for loss, turns in parts:
        found = torch.autograd.grad(loss, model.parameters, allow_unused=True)
        for gradient, more in zip(gradients, found, strict=True):
            if more is not None:
                gradient += more
        loss_sum += loss.detach()
        turn_sum = turn_sum + turns  # of floats, if turns have weights
    return StepSums(loss_sum, turn_sum, gradients)


def sum_step(model: CausalModel, parts: list[list[Row]], label_alignment: str) -> StepSums:
    """Add up the micro-batches of a step; `parts` has the sequences of each."""
    batches = (collate_rows(part, model) for part in parts)
    return accumulate(model, (sum_micro_batch(model, batch, label_alignment) for batch in batches))


def take_step(model: CausalModel, parts: Iterable[tuple[Tensor, Tensor]]) -> StepResult:
    """Add up the losses and the numbers of turns of a step, and divide once."""
    return normalize(accumulate(model, parts))


def normalize(sums: StepSums) -> StepResult:
    """Divide the sums once, by the number of all turns."""
    turns = sums.turns.to(sums.loss.dtype)
    return StepResult(sums.loss / turns, [gradient / turns for gradient in sums.gradients])


def compare_results(
    found: list[StepResult], reference: StepResult, model: CausalModel, rows: list[Row]
) -> Check:
    """Compare the results of several ways to compute the step of some sequences with a reference.

    The check is not done if the reference holds nothing to compare: no turn, or only zeros.
    """
    if not any(row["turn_num"] for row in rows):
        return Check.not_done("the sample has no turn")
    if not any(gradient.any() for gradient in reference.gradients):
        return Check.not_done("every gradient of the model is 0")
    values = [measure_difference(one, reference, model.dtype) for one in found]
    tokens = sum(len(row["input_ids"]) for row in rows)
    return Check.compare(float(np.max(values)), choose_tolerance(model, tokens))  # max keeps NaN


def measure_difference(found: StepResult, reference: StepResult, dtype: torch.dtype) -> float:
    """Return the largest relative difference of the loss and of each parameter's gradient.

    An exact gradient may be 0 (of queries and keys, if each position sees only itself). The
    computed one is then only rounding, so a norm counts as at least a small part of the norm of the
    whole gradient. In bfloat16, small gradients are mostly rounding; so the whole gradient is
    compared at once.
    """
    loss = abs(found.loss - reference.loss) / abs(reference.loss)
    norms = torch.stack([gradient.norm() for gradient in reference.gradients])
    pairs = zip(found.gradients, reference.gradients, strict=True)
    differences = torch.stack([(one - other).norm() for one, other in pairs])
    if dtype == torch.bfloat16:
        relative = (differences.norm() / norms.norm())[None]
    else:
        relative = differences / norms.clamp(min=_SMALL_PARAMETER * norms.norm())
    return float(torch.cat((relative, loss[None])).max())


def choose_tolerance(model: CausalModel, tokens: int) -> float:
    """Return the relative difference that rounding may cause.

    Both computations add the same terms in different orders. A sum of n terms with a relative error
    eps each has an error of about eps * sqrt(n) of their size, since the errors have no common
    direction. For the gradient of a weight, n is about the number of tokens. Terms of both signs
    cancel, so the sum is smaller than its terms: `factor` allows for that. The errors of layers
    add up in the same way; the ceilings are for two layers. A wrong weight, mask or label changes
    the sum by far more than the ceilings.
    """
    factor = 64 * torch.finfo(model.dtype).eps * math.sqrt(tokens)
    depth = math.sqrt(max(1.0, model.layers / 2))
    return min(factor * depth, _CEILINGS[model.dtype] * depth, _CEILINGS[torch.bfloat16])


def choose_rounding_tolerance(dtype: torch.dtype) -> float:
    """Return the change of a loss, relative to the mean loss, that rounding alone may cause."""
    return min(_CEILINGS[dtype], 16 * torch.finfo(dtype).eps)


@contextmanager
def set_exact_arithmetic(threads: int | None) -> Iterator[None]:
    """Turn TF32 off and set the number of threads, so that results are exact and repeatable.

    The last digits of a result depend on the number of threads. None: torch's current number.
    """
    precision, before = torch.get_float32_matmul_precision(), torch.get_num_threads()
    torch.set_float32_matmul_precision("highest")
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.set_num_threads(before)
