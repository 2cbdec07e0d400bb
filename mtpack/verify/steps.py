"""A training step as a trainer takes it: sums over micro-batches, one division; and comparing two.

Everything goes the way that a user's data goes: rows of the shards, `torch_data.collate`, a model,
and the losses of `mtpack.loss`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from mtpack.loss import turn_mean_loss
from mtpack.packing.columns import IGNORED
from mtpack.shards.dataset import Row
from mtpack.torch_data import collate
from mtpack.verify.causal_model import Batch, CausalModel

_SMALL_PARAMETER = 1e-3  # of the whole gradient's norm
_CEILINGS = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2}


@dataclass(frozen=True, slots=True)
class StepSums:
    """What micro-batches and ranks add up: nothing in it is divided yet."""

    loss: Tensor
    turns: Tensor
    gradients: list[Tensor]


@dataclass(frozen=True, slots=True)
class StepResult:
    """The loss of a step, and the gradient of every parameter."""

    loss: Tensor
    gradients: list[Tensor]

    def on(self, device: str) -> StepResult:
        """Return it on another device."""
        return StepResult(self.loss.to(device), [one.to(device) for one in self.gradients])


def batch_of(rows: list[Row], model: CausalModel) -> Batch:
    """Collate rows, and move all that the loss takes to the model's device."""
    return {name: values.to(model.device) for name, values in collate(rows).items()}


def token_losses(model: CausalModel, batch: Batch, label_alignment: str) -> Tensor:
    """Return the token losses, (rows, seq_len), each where its label stands."""
    logits = model.logits(batch)
    if label_alignment == "aligned":  # the logits for a token stand one place before its label
        logits = functional.pad(logits[:, :-1], (0, 0, 1, 0))
    labels = batch["labels"]
    wide = torch.promote_types(logits.dtype, torch.float32)
    losses = functional.cross_entropy(
        logits.flatten(0, 1).to(wide), labels.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return losses.view(labels.shape)


def micro_batch_sums(
    model: CausalModel, batch: Batch, label_alignment: str
) -> tuple[Tensor, Tensor]:
    """Return the loss of a micro-batch and its number of turns, both as sums."""
    return turn_mean_loss(
        token_losses(model, batch, label_alignment),
        batch["loss_mask"],
        batch["loss_token_num"],
        batch["turn_num"],
    )


def accumulate(model: CausalModel, parts: Iterable[tuple[Tensor, Tensor]]) -> StepSums:
    """Add up losses, numbers of turns, and the gradients of the losses.

    In float32 at least: bfloat16 would lose what a single turn adds.
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
        turn_sum += turns
    return StepSums(loss_sum, turn_sum, gradients)


def step_sums(model: CausalModel, parts: list[list[Row]], label_alignment: str) -> StepSums:
    """Add up the micro-batches of a step, each given as its rows."""
    batches = (batch_of(part, model) for part in parts)
    return accumulate(model, (micro_batch_sums(model, batch, label_alignment) for batch in batches))


def normalize(sums: StepSums) -> StepResult:
    """Divide once, by all turns."""
    return StepResult(
        sums.loss / sums.turns, [gradient / sums.turns for gradient in sums.gradients]
    )


def difference(found: StepResult, reference: StepResult, dtype: torch.dtype) -> float:
    """Return the largest relative difference of the loss and of the gradients.

    Of every parameter's gradient by itself. A gradient may be 0 in truth (of queries and keys where
    a place sees only itself), and then holds nothing but rounding, so no norm counts as less than
    a small part of the whole one. bfloat16 rounds so coarsely that small gradients hold little
    else; there it is the difference of the whole gradient.
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


def tolerance_of(dtype: torch.dtype, tokens: int) -> float:
    """Return the relative difference that rounding may cause.

    Both ways add up the same terms, in another order. Adding n terms with a relative error eps
    each is off by about eps * sqrt(n) of their size (the errors have no common direction), and
    n is about the number of tokens, for the gradient of a weight. Terms of both signs cancel, so
    the sum is smaller than they are: FACTOR allows for that and for the depth of the model. A wrong
    weight, mask or label changes the sum by far more than the ceilings.
    """
    factor = 64
    return min(_CEILINGS[dtype], factor * torch.finfo(dtype).eps * math.sqrt(tokens))


def rounding_of(dtype: torch.dtype) -> float:
    """Return the relative difference of a loss, of the mean loss, that rounding alone may cause."""
    return min(_CEILINGS[dtype], 16 * torch.finfo(dtype).eps)


@contextmanager
def exact_and_repeatable(threads: int | None) -> Iterator[None]:
    """Leave TF32 off, and use that many threads, on which the last digits depend."""
    precision, before = torch.get_float32_matmul_precision(), torch.get_num_threads()
    torch.set_float32_matmul_precision("highest")
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.set_num_threads(before)
