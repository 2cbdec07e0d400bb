"""Check 2, equivalence: packed and merged gives what one sample per turn gives.

Computed twice with the same model, loss and gradients:

    packed      whole sequences, attention within documents, the turn-mean loss from the columns
    reference   for every turn a sample of its own: its document up to its last token, alone, and
                the plain mean of that turn's token losses; then the mean over turns

The two agree to rounding if packing, masks, labels, counts and the division are right. With the
built-in model the packed step is taken a second time, with the loss from hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from mtpack.loss import (
    dialogue_mean_loss,
    linear_turn_mean_loss,
    token_mean_loss,
    turn_mean_loss,
)
from mtpack.shards.dataset import Row
from mtpack.verify.causal_model import Batch, CausalModel, flat_inputs
from mtpack.verify.check import Check
from mtpack.verify.sampling import TurnTokens, turns_of
from mtpack.verify.steps import (
    StepResult,
    accumulate,
    batch_of,
    difference,
    normalize,
    token_losses,
    tolerance_of,
)


@dataclass(frozen=True, slots=True)
class Losses:
    """The same token losses under three means."""

    turn_mean: float
    token_mean: float
    dialogue_mean: float
    """Every document weighs the same, as in `mtpack.loss.dialogue_mean_loss`."""


def compare(model: CausalModel, rows: list[Row], label_alignment: str) -> tuple[Check, Losses]:
    """Compute loss and gradients of some sequences both ways."""
    reference = _one_sample_per_turn(model, rows, label_alignment)
    tolerance = tolerance_of(model.dtype, sum(len(row["input_ids"]) for row in rows))
    packed, losses = _packed(model, rows, label_alignment)
    parts = {"token_losses": Check(difference(packed, reference, model.dtype), tolerance)}
    if model.states is not None:
        batches = (batch_of([row], model) for row in rows)
        fused = normalize(
            accumulate(model, (hidden_sums(model, batch, label_alignment) for batch in batches))
        )
        parts["hidden_states"] = Check(difference(fused, reference, model.dtype), tolerance)
    return Check.of(parts), losses


def _packed(model: CausalModel, rows: list[Row], label_alignment: str) -> tuple[StepResult, Losses]:
    """Take a step of micro-batches of one sequence each, and the other means on the way."""
    counted: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in _MEANS}

    def micro_batches() -> Iterator[tuple[Tensor, Tensor]]:
        for row in rows:
            batch = batch_of([row], model)
            losses = token_losses(model, batch, label_alignment)
            for name, mean in _MEANS.items():
                loss, count = mean(losses, batch)
                if name == "turn_mean":
                    yield loss, count
                counted[name].append((loss.detach(), count))

    outcome = normalize(accumulate(model, micro_batches()))
    means = {
        name: float(sum(loss for loss, _ in parts) / sum(count for _, count in parts))
        for name, parts in counted.items()
    }
    return outcome, Losses(**means)


def hidden_sums(model: CausalModel, batch: Batch, label_alignment: str) -> tuple[Tensor, Tensor]:
    """Return loss and turns of a micro-batch from hidden states, by `linear_turn_mean_loss`."""
    assert model.states is not None
    assert model.output is not None
    states = model.states(*flat_inputs(batch)).view(*batch["labels"].shape, -1)
    return linear_turn_mean_loss(
        states,
        model.output,
        batch,
        label_alignment=label_alignment,  # type: ignore[arg-type]  # one of two, the shard says
    )


_MEANS: dict[str, Callable[[Tensor, Batch], tuple[Tensor, Tensor]]] = {
    "turn_mean": lambda losses, batch: turn_mean_loss(
        losses, batch["loss_mask"], batch["loss_token_num"], batch["turn_num"]
    ),
    "token_mean": lambda losses, batch: token_mean_loss(losses, batch["loss_mask"]),
    "dialogue_mean": lambda losses, batch: dialogue_mean_loss(
        losses, batch["loss_mask"], batch["position_ids"]
    ),
}


def _one_sample_per_turn(model: CausalModel, rows: list[Row], label_alignment: str) -> StepResult:
    turns = [(row, turn) for row in rows for turn in turns_of(row, label_alignment)]
    one = torch.ones((), dtype=torch.int64, device=model.device)
    return normalize(accumulate(model, ((turn_loss(model, row, turn), one) for row, turn in turns)))


def turn_loss(model: CausalModel, row: Row, turn: TurnTokens) -> Tensor:
    """Return the mean loss of a turn's tokens, from a pass without what is not its past."""
    stop = int(turn.positions[-1]) + 1
    ids = torch.from_numpy(row["input_ids"][turn.document_start : stop].copy())
    sample = ids.to(model.device).long()
    targets = torch.from_numpy(turn.positions - turn.document_start).to(model.device)
    logits = model.forward(
        sample, torch.arange(len(sample), device=model.device), torch.zeros_like(sample)
    )[targets - 1]
    wide = torch.promote_types(logits.dtype, torch.float32)
    return functional.cross_entropy(logits.to(wide), sample[targets])
