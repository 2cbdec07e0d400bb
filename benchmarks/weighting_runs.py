"""A tiny model trained on packed dialogues, and its loss on held-out turns, by their length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from mtpack.loss import linear_turn_mean_loss
from mtpack.shards.dataset import Row
from mtpack.token_batch import offsets_from_lengths
from mtpack.torch_data import PackedDataset, collate
from mtpack.verify.causal_model import flat_inputs
from mtpack.verify.model import Transformer

NORMALIZATIONS = ("token_mean", "turn_mean")
BINS = ("short", "middle", "long")
"""The shortest quarter of all turns, what lies between, and the longest quarter."""
GROUPS = (*BINS, "all_turns", "all_tokens")
"""What a held-out loss is the mean of: the turns of a bin, all turns, all loss tokens."""

MICRO_BATCHES = 4
"""Sequences of a training step, one at a time."""
_MOST_SEQUENCES = 512
_HELD_OUT = 0.2  # of the sequences
_EVALUATIONS = 15
_WARM_UP = 0.1  # of the steps


@dataclass(frozen=True)
class Run:
    """One training: what tells it from the others."""

    normalization: str
    learning_rate: float
    seed: int


@dataclass(frozen=True)
class Curve:
    """The held-out losses of a run."""

    run: Run
    steps: list[int]
    losses: dict[str, list[float]]
    """Of each of `GROUPS`, at each of the steps."""

    def best_step(self) -> int:
        """Return the place in `steps` with the lowest loss of the kind that the run trains."""
        own = {"token_mean": "all_tokens", "turn_mean": "all_turns"}[self.run.normalization]
        return int(np.argmin(self.losses[own]))


@dataclass(frozen=True)
class Sequences:
    """Packed sequences, their tokens numbered anew so that each occurs."""

    rows: list[Row]
    batches: list[dict[str, Tensor]]
    """Of one row each."""
    vocabulary: int
    turn_lengths: NDArray[np.int64]
    """Of all turns, in loss tokens."""


@dataclass(frozen=True)
class Split:
    """Which sequences are trained and which are held out, and which turns of these count."""

    trained: NDArray[np.int64]
    held_out: NDArray[np.int64]
    evaluated: list[NDArray[np.bool_]]
    """For each held-out sequence, the turns whose dialogue has no document among the trained."""


def read_sequences(path: str | Path) -> Sequences:
    """Read the first sequences, 512 at most: packing has shuffled them."""
    dataset = PackedDataset(path, label_alignment="aligned")
    rows = [dataset[row] for row in range(min(len(dataset), _MOST_SEQUENCES))]
    batches = [collate([row]) for row in rows]
    vocabulary = torch.unique(torch.stack([batch["input_ids"] for batch in batches]))
    for batch in batches:
        batch["input_ids"] = torch.searchsorted(vocabulary, batch["input_ids"])
        batch["labels"] = torch.where(batch["loss_mask"] == 1, batch["input_ids"], -100)
    lengths = np.concatenate([turn_lengths(row) for row in rows])
    return Sequences(rows, batches, len(vocabulary), lengths)


def turn_lengths(row: Row) -> NDArray[np.int64]:
    """Return how many loss tokens each turn of a sequence has."""
    return row["loss_token_num"][row["turn_starts"]].astype(np.int64)


def length_bins(lengths: NDArray[np.int64]) -> tuple[int, int]:
    """Return how long the longest short turn is, and the shortest long one: the quartiles.

    >>> length_bins(np.array([1, 2, 3, 4, 5, 6, 7, 8]))
    (2, 7)
    """
    ordered = np.sort(lengths)
    quarter = (len(ordered) - 1) // 4
    return int(ordered[quarter]), int(ordered[-1 - quarter])


def turn_means(losses: NDArray[Any], lengths: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the mean loss of each turn, of the losses of their tokens, one turn behind the other.

    >>> turn_means(np.array([1.0, 2.0, 6.0]), np.array([1, 2]))
    array([1., 4.])
    """
    return np.add.reduceat(losses, offsets_from_lengths(lengths)[:-1], dtype=np.float64) / lengths


def bin_masks(lengths: NDArray[np.int64], bins: tuple[int, int]) -> dict[str, NDArray[np.bool_]]:
    """Return which turns are in each of `BINS`."""
    longest_short, shortest_long = bins
    short = lengths <= longest_short
    long = (lengths >= shortest_long) & ~short
    return {"short": short, "middle": ~(short | long), "long": long}


def group_means(
    means: NDArray[np.float64], lengths: NDArray[np.int64], bins: tuple[int, int]
) -> dict[str, float]:
    """Return the loss of each of `GROUPS`, from the mean losses of turns and their lengths."""
    return {
        **{name: float(means[turns].mean()) for name, turns in bin_masks(lengths, bins).items()},
        "all_turns": float(means.mean()),
        "all_tokens": float(np.average(means, weights=lengths)),
    }


def split_sequences(rows: Sequence[Row], seed: int) -> Split:
    """Hold out a fifth of the sequences, drawn by the seed."""
    order = np.random.default_rng(seed).permutation(len(rows))
    held_out, trained = np.split(order, [max(1, round(_HELD_OUT * len(rows)))])
    seen = [dialogue for row in trained for dialogue in rows[row]["dialogue_ids"].tolist()]
    evaluated = [~np.isin(dialogues_of_turns(rows[row]), seen) for row in held_out]
    return Split(trained, held_out, evaluated)


def held_out_lengths(sequences: Sequences, split: Split) -> NDArray[np.int64]:
    """Return the lengths of the turns that are evaluated."""
    pairs = zip(split.held_out, split.evaluated, strict=True)
    return np.concatenate([turn_lengths(sequences.rows[row])[turns] for row, turns in pairs])


def dialogues_of_turns(row: Row) -> NDArray[np.int64]:
    """Return for each turn of a sequence which dialogue it is of."""
    entries = np.searchsorted(np.cumsum(row["seq_lengths"]), row["turn_starts"], side="right")
    return row["dialogue_ids"][entries]


def train(sequences: Sequences, run: Run, steps: int) -> Curve:
    """Train from random weights; all runs of a seed see the same batches from the same weights."""
    torch.set_num_threads(1)  # sums have one order, whatever the machine has to do
    split = split_sequences(sequences.rows, run.seed)
    model = Transformer(sequences.vocabulary, run.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=run.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    batches = _micro_batches(sequences, split, run.seed)
    evaluated_at = np.unique(np.linspace(0, steps, _EVALUATIONS + 1).round().astype(int)).tolist()
    losses: dict[str, list[float]] = {name: [] for name in GROUPS}
    for step in range(steps + 1):
        if step in evaluated_at:
            for name, loss in _evaluate(model, sequences, split).items():
                losses[name].append(loss)
        if step < steps:
            take_step(model, [next(batches) for _ in range(MICRO_BATCHES)], run)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    return Curve(run, evaluated_at, losses)


def last_states(model: Transformer, batch: dict[str, Tensor]) -> Tensor:
    """Return what the output matrix is applied to, float (1, seq_len, width)."""
    return model.states(*flat_inputs(batch))[None]


def take_step(model: Transformer, batches: list[dict[str, Tensor]], run: Run) -> None:
    """Leave the gradients of a step: of a sum over its micro-batches, divided once."""
    count = torch.tensor(0)
    for batch in batches:
        loss_sum, micro_count = linear_turn_mean_loss(
            last_states(model, batch), model.output.weight, batch, normalization=run.normalization
        )
        loss_sum.backward()
        count += micro_count
    for parameter in model.parameters():
        parameter.grad /= count


def _rate(step: int, steps: int) -> float:
    """Return the factor of the learning rate: up over the first tenth, then down to 0."""
    warm_up = max(1, round(_WARM_UP * steps))
    return min((step + 1) / warm_up, (steps - step) / max(1, steps - warm_up))


def _micro_batches(sequences: Sequences, split: Split, seed: int) -> Iterator[dict[str, Tensor]]:
    """Give the trained sequences, again and again, each time in another order."""
    random = np.random.default_rng([seed, 1])
    while True:
        for row in random.permutation(split.trained):
            yield sequences.batches[row]


@torch.no_grad()
def _evaluate(model: Transformer, sequences: Sequences, split: Split) -> dict[str, float]:
    means = []
    for row, evaluated in zip(split.held_out, split.evaluated, strict=True):
        batch = sequences.batches[row]
        places = batch["loss_mask"][0].nonzero()[:, 0]
        logits = model.output(last_states(model, batch)[0, places - 1])
        losses = cross_entropy(logits, batch["labels"][0, places], reduction="none")
        means.append(turn_means(losses.numpy(), turn_lengths(sequences.rows[row]))[evaluated])
    lengths = held_out_lengths(sequences, split)
    return group_means(np.concatenate(means), lengths, length_bins(sequences.turn_lengths))
