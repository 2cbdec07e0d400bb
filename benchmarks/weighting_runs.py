"""Training of a tiny model on packed dialogues, and its loss on held-out turns by length."""

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
from mtpack.verify.causal_model import flatten_inputs
from mtpack.verify.model import Transformer

NORMALIZATIONS = ("token_mean", "turn_mean")
BINS = ("short", "middle", "long")
"""The shortest quarter of all turns, the turns between, and the longest quarter."""
GROUPS = (*BINS, "all_turns", "all_tokens")
"""The sets over which a held-out loss is a mean: turns of a bin, all turns, all loss tokens."""

MICRO_BATCHES = 4
"""Micro-batches of a training step, of one sequence each."""
_MOST_SEQUENCES = 512
_HELD_OUT = 0.2  # of the sequences
_EVALUATIONS = 15
_WARM_UP = 0.1  # of the steps


@dataclass(frozen=True)
class Run:
    """The settings in which one training differs from the others."""

    normalization: str
    learning_rate: float
    seed: int


@dataclass(frozen=True)
class Curve:
    """The held-out losses of a run."""

    run: Run
    steps: list[int]
    losses: dict[str, list[float]]
    """The loss of each of `GROUPS` at each of the steps."""

    def find_best_step(self) -> int:
        """Return the index in `steps` with the lowest loss of the kind that the run trains."""
        own = {"token_mean": "all_tokens", "turn_mean": "all_turns"}[self.run.normalization]
        return int(np.argmin(self.losses[own]))


@dataclass(frozen=True)
class Sequences:
    """Packed sequences, with new token ids, without gaps, for the ids that occur."""

    rows: list[Row]
    batches: list[dict[str, Tensor]]
    """Batches of one sequence each."""
    vocabulary: int
    turn_lengths: NDArray[np.int64]
    """The lengths of all turns, in loss tokens."""


@dataclass(frozen=True)
class Split:
    """The sequences that are trained, those that are held out, and the turns to evaluate."""

    trained: NDArray[np.int64]
    held_out: NDArray[np.int64]
    evaluated: list[NDArray[np.bool_]]
    """For each held-out sequence, a mask of the turns whose dialogue is in no trained sequence."""


def read_sequences(path: str | Path) -> Sequences:
    """Read the first 512 sequences, or fewer; packing has shuffled them."""
    dataset = PackedDataset(path, label_alignment="aligned")
    rows = [dataset[row] for row in range(min(len(dataset), _MOST_SEQUENCES))]
    batches = [collate([row]) for row in rows]
    vocabulary = torch.unique(torch.stack([batch["input_ids"] for batch in batches]))
    for batch in batches:
        batch["input_ids"] = torch.searchsorted(vocabulary, batch["input_ids"])
        batch["labels"] = torch.where(batch["loss_mask"] == 1, batch["input_ids"], -100)
    lengths = np.concatenate([read_turn_lengths(row) for row in rows])
    return Sequences(rows, batches, len(vocabulary), lengths)


def read_turn_lengths(row: Row) -> NDArray[np.int64]:
    """Return the number of loss tokens of each turn of a sequence."""
    return row["loss_token_num"][row["turn_starts"]].astype(np.int64)


def compute_length_bins(lengths: NDArray[np.int64]) -> tuple[int, int]:
    """Return the quartiles of lengths: of the longest short turn and of the shortest long turn.

    >>> compute_length_bins(np.array([1, 2, 3, 4, 5, 6, 7, 8]))
    (2, 7)
    """
    ordered = np.sort(lengths)
    quarter = (len(ordered) - 1) // 4
    return int(ordered[quarter]), int(ordered[-1 - quarter])


def compute_turn_means(losses: NDArray[Any], lengths: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the mean loss of each turn, from the token losses of consecutive turns.

    >>> compute_turn_means(np.array([1.0, 2.0, 6.0]), np.array([1, 2]))
    array([1., 4.])
    """
    return np.add.reduceat(losses, offsets_from_lengths(lengths)[:-1], dtype=np.float64) / lengths


def compute_bin_masks(
    lengths: NDArray[np.int64], bins: tuple[int, int]
) -> dict[str, NDArray[np.bool_]]:
    """Return for each of `BINS` a mask of its turns."""
    longest_short, shortest_long = bins
    short = lengths <= longest_short
    long = (lengths >= shortest_long) & ~short
    return {"short": short, "middle": ~(short | long), "long": long}


def compute_group_means(
    means: NDArray[np.float64], lengths: NDArray[np.int64], bins: tuple[int, int]
) -> dict[str, float]:
    """Return the loss of each of `GROUPS`, from the mean losses of turns and their lengths."""
    return {
        **{
            name: float(means[turns].mean())
            for name, turns in compute_bin_masks(lengths, bins).items()
        },
        "all_turns": float(means.mean()),
        "all_tokens": float(np.average(means, weights=lengths)),
    }


def split_sequences(rows: Sequence[Row], seed: int) -> Split:
    """Hold out a fifth of the sequences, drawn with the seed."""
    order = np.random.default_rng(seed).permutation(len(rows))
    held_out, trained = np.split(order, [max(1, round(_HELD_OUT * len(rows)))])
    seen = [dialogue for row in trained for dialogue in rows[row]["dialogue_ids"].tolist()]
    evaluated = [~np.isin(find_dialogues_of_turns(rows[row]), seen) for row in held_out]
    return Split(trained, held_out, evaluated)


def read_held_out_lengths(sequences: Sequences, split: Split) -> NDArray[np.int64]:
    """Return the lengths of the turns that are evaluated."""
    pairs = zip(split.held_out, split.evaluated, strict=True)
    return np.concatenate([read_turn_lengths(sequences.rows[row])[turns] for row, turns in pairs])


def find_dialogues_of_turns(row: Row) -> NDArray[np.int64]:
    """Return the dialogue id of each turn of a sequence."""
    entries = np.searchsorted(np.cumsum(row["seq_lengths"]), row["turn_starts"], side="right")
    return row["dialogue_ids"][entries]


def train(sequences: Sequences, run: Run, steps: int) -> Curve:
    """Train from random weights; all runs of a seed have the same batches and first weights."""
    torch.set_num_threads(1)  # so that sums have one order on every machine
    split = split_sequences(sequences.rows, run.seed)
    model = Transformer(sequences.vocabulary, run.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=run.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _compute_rate_factor(step, steps)
    )
    batches = _draw_micro_batches(sequences, split, run.seed)
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


def compute_last_states(model: Transformer, batch: dict[str, Tensor]) -> Tensor:
    """Return the inputs of the output matrix, float (1, seq_len, width)."""
    return model.states(*flatten_inputs(batch))[None]


def take_step(model: Transformer, batches: list[dict[str, Tensor]], run: Run) -> None:
    """Compute the gradients of a step: of a sum over its micro-batches, divided once."""
    count = torch.tensor(0)
    for batch in batches:
        loss_sum, micro_count = linear_turn_mean_loss(
            compute_last_states(model, batch),
            model.output.weight,
            batch,
            normalization=run.normalization,
        )
        loss_sum.backward()
        count += micro_count
    for parameter in model.parameters():
        parameter.grad /= count


def _compute_rate_factor(step: int, steps: int) -> float:
    """Return the factor of the learning rate: rising in the first tenth, then falling to 0."""
    warm_up = max(1, round(_WARM_UP * steps))
    return min((step + 1) / warm_up, (steps - step) / max(1, steps - warm_up))


def _draw_micro_batches(
    sequences: Sequences, split: Split, seed: int
) -> Iterator[dict[str, Tensor]]:
    """Yield the trained sequences endlessly, in another order in each epoch."""
    random = np.random.default_rng([seed, 1])
    while True:
        for row in random.permutation(split.trained):
            yield sequences.batches[row]


@torch.no_grad()
def _evaluate(model: Transformer, sequences: Sequences, split: Split) -> dict[str, float]:
    means = []
    for row, evaluated in zip(split.held_out, split.evaluated, strict=True):
        batch = sequences.batches[row]
        positions = batch["loss_mask"][0].nonzero()[:, 0]
        logits = model.output(compute_last_states(model, batch)[0, positions - 1])
        losses = cross_entropy(logits, batch["labels"][0, positions], reduction="none")
        means.append(
            compute_turn_means(losses.numpy(), read_turn_lengths(sequences.rows[row]))[evaluated]
        )
    lengths = read_held_out_lengths(sequences, split)
    return compute_group_means(
        np.concatenate(means), lengths, compute_length_bins(sequences.turn_lengths)
    )
