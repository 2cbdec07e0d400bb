"""Check 2, equivalence: packed and merged gives what one sample per turn gives.

Computed twice with the same random model, loss and gradients:

    packed      whole sequences, attention within documents, the turn-mean loss from the columns
    reference   for every turn a sample of its own: its document up to its last token, alone, and
                the plain mean of that turn's token losses; then the mean over turns

The two agree to rounding if packing, masks, labels, counts and the division are right.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mtpack.assembling import IGNORED
from mtpack.loss import turn_mean_loss
from mtpack.shards import Row, Shards
from mtpack.turns import Bools, Int64
from mtpack.verifying.model import Transformer
from mtpack.verifying.sampling import Sample, document_ids, draw_sample, turns_of

MODEL_SEED = 0
_VOCABULARY = 256  # the model's; more tokens than these share ids, in both computations alike
_SMALL_PARAMETER = 1e-3  # of the whole gradient's norm


@dataclass(frozen=True, slots=True)
class Losses:
    """The same token losses under three means."""

    turn_mean: float
    token_mean: float
    dialogue_mean: float
    """Every dialogue weighs the same: the mean over dialogues of their tokens' mean."""


@dataclass(frozen=True, slots=True)
class EquivalenceReport:
    """What the comparison came to."""

    value: float
    """The largest relative difference, over the loss and the gradient of every parameter."""
    tolerance: float
    losses: Losses
    coverage: dict[str, int]

    @property
    def ok(self) -> bool:
        """Whether the two computations agree to rounding."""
        return self.value <= self.tolerance  # False for NaN


def check_equivalence(shards: Shards, device: str) -> EquivalenceReport:
    """Compare on a sample of shards whose structure has passed. device: `cpu` or `cuda`."""
    return compare(draw_sample(shards), shards.metadata.label_alignment, device)


def compare(sample: Sample, label_alignment: str, device: str) -> EquivalenceReport:
    """Compute loss and gradients both ways.

    float64 on the CPU, float32 on CUDA (without TF32).
    """
    dtype = torch.float32 if device == "cuda" else torch.float64
    rows = _compacted(sample.rows)
    vocabulary = 1 + max(int(row["input_ids"].max()) for row in rows)
    model = Transformer(max(2, vocabulary), MODEL_SEED).to(device, dtype)
    with _exact_and_repeatable():
        packed, losses = _packed(model, rows, label_alignment)
        reference = _reference(model, rows, label_alignment)
    tolerance = tolerance_of(dtype, sum(len(row["input_ids"]) for row in rows))
    return EquivalenceReport(_difference(packed, reference), tolerance, losses, sample.coverage)


def tolerance_of(dtype: torch.dtype, tokens: int) -> float:
    """Return the relative difference that rounding may cause.

    Both ways add up the same terms, in another order. Adding n terms with a relative error eps
    each is off by about eps * sqrt(n) of their size (the errors have no common direction), and
    n is about the number of tokens, for the gradient of a weight. Terms of both signs cancel, so
    the sum is smaller than they are: FACTOR allows for that and for the depth of the model. A wrong
    weight, mask or label changes the sum by far more than the ceilings.
    """
    ceiling = 1e-10 if dtype == torch.float64 else 1e-5
    factor = 64
    return min(ceiling, factor * torch.finfo(dtype).eps * float(np.sqrt(tokens)))


Gradients = list[Tensor]
_Result = tuple[Tensor, Gradients]


def _compacted(rows: list[Row]) -> list[Row]:
    """Number the sample's token ids from 0, in labels too, so that the model stays small."""
    known = np.unique(
        np.concatenate([row[name] for row in rows for name in ("input_ids", "labels")])
    )
    known = known[known != IGNORED]

    def compact(ids: Int64) -> Int64:
        return np.where(ids == IGNORED, IGNORED, np.searchsorted(known, ids) % _VOCABULARY)

    return [
        row | {"input_ids": compact(row["input_ids"]), "labels": compact(row["labels"])}
        for row in rows
    ]


def _packed(model: Transformer, rows: list[Row], label_alignment: str) -> tuple[_Result, Losses]:
    """Sum over sequences as a trainer sums over micro-batches; divide once, by all turns."""
    device = model.output.weight.device
    loss_sum = torch.zeros((), dtype=model.output.weight.dtype, device=device)
    turn_sum = torch.zeros((), dtype=torch.int64, device=device)
    token_losses = []
    model.zero_grad()
    for row in rows:
        losses = _packed_losses(model, row, label_alignment)
        mask, numbers = (
            _tensor(row[name], device)[None] for name in ("loss_mask", "loss_token_num")
        )
        turn_num = torch.tensor([row["turn_num"]], device=device)
        loss, turns = turn_mean_loss(losses, mask, numbers, turn_num)
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types
        loss_sum += loss.detach()
        turn_sum += turns
        token_losses.append(losses.detach()[0].double().cpu().numpy())
    gradients = [gradient / turn_sum for gradient in _gradients(model)]
    loss_value = loss_sum / turn_sum
    return (loss_value, gradients), _losses(float(loss_value), token_losses, rows)


def _packed_losses(model: Transformer, row: Row, label_alignment: str) -> Tensor:
    """Return the token losses of a sequence, (1, seq_len), each where its label stands."""
    device = model.output.weight.device
    documents = packed_documents(row)
    starts = np.flatnonzero(np.diff(documents, prepend=-1))
    positions = np.arange(len(documents)) - starts[documents]
    labels = _tensor(row["labels"], device)[None]
    logits = model(
        _tensor(row["input_ids"], device)[None],
        _tensor(positions, device)[None],
        _tensor(documents, device),
    )
    if label_alignment == "aligned":  # the logits for a token stand one place before its label
        logits = functional.pad(logits[:, :-1], (0, 0, 1, 0))
        labels = labels.masked_fill(_tensor(positions, device) == 0, IGNORED)
    return functional.cross_entropy(
        logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none"
    )


def packed_documents(row: Row) -> Int64:
    """Return the document of each place: what attention in the packed sequence goes by."""
    return document_ids(row)


def _reference(model: Transformer, rows: list[Row], label_alignment: str) -> _Result:
    """Give every turn a forward pass of its own, without what stands before its document."""
    device = model.output.weight.device
    turns = [(row, turn) for row in rows for turn in turns_of(row, label_alignment)]
    loss_sum = torch.zeros((), dtype=model.output.weight.dtype, device=device)
    model.zero_grad()
    for row, turn in turns:
        sample = row["input_ids"][turn.document_start : int(turn.positions[-1]) + 1]
        targets = turn.positions - turn.document_start
        logits = model(
            _tensor(sample, device)[None],
            torch.arange(len(sample), device=device)[None],
            torch.zeros(len(sample), dtype=torch.int64, device=device),
        )[0, targets - 1]
        loss = functional.cross_entropy(logits, _tensor(sample[targets], device)) / len(turns)
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types
        loss_sum += loss.detach()
    return loss_sum, _gradients(model)


def _losses(turn_mean: float, token_losses: list[Any], rows: list[Row]) -> Losses:
    values, dialogues = [], []
    for losses, row in zip(token_losses, rows, strict=True):
        trained: Bools = row["loss_mask"] == 1
        values.append(losses[trained])
        dialogues.append(row["dialogue_ids"][document_ids(row)[trained]])
    all_values = np.concatenate(values)
    _, numbers = np.unique(np.concatenate(dialogues), return_inverse=True)
    means = np.bincount(numbers, weights=all_values) / np.bincount(numbers)
    return Losses(turn_mean, float(all_values.mean()), float(means.mean()))


def _difference(found: _Result, reference: _Result) -> float:
    """Return the largest relative difference of the loss and of any parameter's gradient.

    A gradient may be 0 in truth (of queries and keys where a place sees only itself), and then
    holds nothing but rounding, so no norm counts as less than a small part of the whole one.
    """
    loss = abs(found[0] - reference[0]) / abs(reference[0])
    norms = torch.stack([gradient.norm() for gradient in reference[1]])
    floor = _SMALL_PARAMETER * norms.norm()
    differences = torch.stack(
        [(one - other).norm() for one, other in zip(found[1], reference[1], strict=True)]
    )
    relative = differences / norms.clamp(min=floor)
    return float(torch.cat((relative, loss[None])).max())


def _gradients(model: Transformer) -> Gradients:
    return [
        torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for parameter in model.parameters()
    ]


def _tensor(values: Any, device: torch.device) -> Tensor:
    return torch.from_numpy(values.copy()).to(device).long()


@contextmanager
def _exact_and_repeatable() -> Iterator[None]:
    """Leave TF32 off, and use one thread.

    The passes are small: with threads they take longer on a busy machine (7 times, measured), and
    the last digits depend on how many there are.
    """
    precision, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    torch.set_float32_matmul_precision("highest")
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.set_num_threads(threads)
