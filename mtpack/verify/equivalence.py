"""Check 2, equivalence: packed, merged sequences give the same as one sample per turn.

Loss and gradients are computed twice with the same model:

    packed      whole sequences, attention within documents, the turn-mean loss from the columns
    reference   one sample per turn: only its document, up to the turn's last token, and the plain
                mean of the turn's token losses; then the mean over turns, by their weights

Both agree, except for rounding, if packing, masks, labels, counts and the division are right. With
the built-in model the packed step is also computed with the loss from hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import isfinite

import numpy as np
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
from mtpack.verify.causal_model import CausalModel, ModelBatch, flatten_inputs
from mtpack.verify.check import Check
from mtpack.verify.model import Transformer
from mtpack.verify.sampling import TurnTokens, find_turns
from mtpack.verify.steps import (
    StepResult,
    collate_rows,
    compare_results,
    compute_token_losses,
    take_step,
)

Losses = dict[str, float | None]
"""The loss of the same tokens by the name of its mean; None if it is not a finite number."""


def check_equivalence(
    model: CausalModel, rows: list[Row], label_alignment: str
) -> tuple[Check, Losses]:
    """Compute loss and gradients of some sequences both ways, and compare them.

    Returns the check, and the packed losses under the three means.
    """
    reference = _compute_reference(model, rows, label_alignment)
    packed, losses = _compute_packed(model, rows, label_alignment)
    parts = {"token_losses": compare_results([packed], reference, model, rows)}
    module = model.module
    if isinstance(module, Transformer):
        batches = (collate_rows([row], model) for row in rows)
        fused = take_step(
            model, (sum_from_hidden_states(module, batch, label_alignment) for batch in batches)
        )
        parts["hidden_states"] = compare_results([fused], reference, model, rows)
    return Check.combine(parts), losses


def _compute_packed(
    model: CausalModel, rows: list[Row], label_alignment: str
) -> tuple[StepResult, Losses]:
    """Compute a step with one sequence per micro-batch, and the loss under all means."""
    counted: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in _MEANS}

    def micro_batches() -> Iterator[tuple[Tensor, Tensor]]:
        for row in rows:
            batch = collate_rows([row], model)
            losses = compute_token_losses(model, batch, label_alignment)
            for name, mean in _MEANS.items():
                loss, count = mean(losses, batch)
                if name == "turn_mean":
                    yield loss, count
                counted[name].append((loss.detach(), count))

    result = take_step(model, micro_batches())
    means = {
        name: float(sum(loss for loss, _ in parts) / sum(count for _, count in parts))
        for name, parts in counted.items()
    }
    return result, {name: mean if isfinite(mean) else None for name, mean in means.items()}


def sum_from_hidden_states(
    module: Transformer, batch: ModelBatch, label_alignment: str
) -> tuple[Tensor, Tensor]:
    """Return a micro-batch's loss and its turns as sums, by `linear_turn_mean_loss`."""
    states = module.states(*flatten_inputs(batch)).view(*batch["labels"].shape, -1)
    return linear_turn_mean_loss(
        states,
        module.output.weight,
        batch,
        label_alignment=label_alignment,  # type: ignore[arg-type]  # one of the two literals: the shard has been checked
    )


_MEANS: dict[str, Callable[[Tensor, ModelBatch], tuple[Tensor, Tensor]]] = {
    "turn_mean": lambda losses, batch: turn_mean_loss(
        losses,
        batch["loss_mask"],
        batch["loss_token_num"],
        batch["turn_num"],
        batch.get("turn_weight"),
    ),
    "token_mean": lambda losses, batch: token_mean_loss(
        losses, batch["loss_mask"], batch.get("turn_weight")
    ),
    "dialogue_mean": lambda losses, batch: dialogue_mean_loss(
        losses, batch["loss_mask"], batch["position_ids"], batch.get("turn_weight")
    ),
}


def _compute_reference(model: CausalModel, rows: list[Row], label_alignment: str) -> StepResult:
    def sum_turns() -> Iterator[tuple[Tensor, Tensor]]:
        for row in rows:
            turns = find_turns(row, label_alignment)
            weights = np.ones(len(turns), np.int64)
            if "turn_weights" in row:
                weights = row["turn_weights"].astype(np.float64)
            for turn, count in zip(turns, torch.from_numpy(weights).to(model.device), strict=True):
                yield compute_turn_loss(model, row, turn) * count, count

    return take_step(model, sum_turns())


def compute_turn_loss(model: CausalModel, row: Row, turn: TurnTokens) -> Tensor:
    """Return the mean loss of a turn's tokens, from a pass over its document up to its end."""
    ids = torch.from_numpy(row["input_ids"][turn.document_start : turn.stop].copy())
    sample = ids.to(model.device).long()
    targets = torch.from_numpy(turn.positions - turn.document_start).to(model.device)
    logits = model.forward(
        sample, torch.arange(len(sample), device=model.device), torch.zeros_like(sample)
    )[targets - 1]
    wide = torch.promote_types(logits.dtype, torch.float32)
    return functional.cross_entropy(logits.to(wide), sample[targets])
