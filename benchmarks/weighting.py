"""The effect of turn mean and of token mean on short and on long turns, in minutes on a CPU.

    python -m benchmarks.weighting

The same tiny transformer, from the same weights, is trained on the same packed sequences in the
same order with each loss. A fifth of the sequences is held out. The loss of their turns is measured
by length: the shortest quarter of all turns, the middle, the longest quarter. Each seed holds out
other sequences and starts from other weights. docs/experiments.md discusses the results.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from statistics import mean

import click
from rich import box
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import mtpack
from benchmarks.machine import describe_machine
from benchmarks.weighting_plot import draw_curves
from benchmarks.weighting_runs import (
    GROUPS,
    MICRO_BATCHES,
    NORMALIZATIONS,
    Curve,
    Run,
    Sequences,
    Split,
    compute_bin_masks,
    compute_length_bins,
    read_held_out_lengths,
    read_sequences,
    split_sequences,
    train,
)

_SAMPLE_DATA = Path(__file__).parents[1] / "sample_data"
_SEQ_LEN = 1024


@click.command()
@click.argument("packed", required=False, type=click.Path(exists=True))
@click.option("--steps", default=120, show_default=True, type=click.IntRange(1))
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1))
@click.option(
    "--learning-rate",
    "learning_rates",
    multiple=True,
    default=[0.01],
    show_default=True,
    help="May be given several times; the first one is plotted.",
)
@click.option("--workers", default=os.cpu_count(), show_default="all cores")
@click.option("--plot", type=click.Path(), help="Curves as .svg or .png (needs matplotlib).")
@click.option("--json", "json_path", type=click.Path(), help="Write all held-out losses here.")
def main(
    packed: str | None,
    steps: int,
    seeds: int,
    learning_rates: tuple[float, ...],
    workers: int,
    plot: str | None,
    json_path: str | None,
) -> None:
    """Compare on the shards at PACKED. Default: the sample data, packed to 1,024 tokens."""
    if plot and Path(plot).suffix not in (".svg", ".png"):
        raise click.UsageError(f"--plot {plot}: use a file name that ends in .svg or .png")
    if plot and find_spec("matplotlib") is None:
        raise click.UsageError("--plot needs matplotlib, which comes with mtpack[dev]")
    with tempfile.TemporaryDirectory() as folder:
        path = packed or _pack_sample_data(folder)
        sequences = read_sequences(path)
        splits = [split_sequences(sequences.rows, seed) for seed in range(seeds)]
        _require_enough_sequences(sequences, splits)
        console = Console(width=200)
        console.print(describe_machine(), highlight=False)
        console.print(_describe(sequences, splits, steps), highlight=False)
        runs = [Run(*run) for run in product(NORMALIZATIONS, learning_rates, range(seeds))]
        curves = train_all(path, runs, steps, workers)
    console.print(build_difference_table(curves))
    if json_path:
        Path(json_path).write_text(json.dumps([asdict(curve) for curve in curves], indent=1))
    if plot:
        first = [curve for curve in curves if curve.run.learning_rate == learning_rates[0]]
        draw_curves(first, compute_length_bins(sequences.turn_lengths), plot)


def train_all(path: str, runs: Sequence[Run], steps: int, workers: int) -> list[Curve]:
    """Train in processes of one thread each; the number of processes does not change results."""
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as executor:
        tasks = [executor.submit(_train_one, path, run, steps) for run in runs]
        return [task.result() for task in tqdm(tasks, unit="run")]


def _train_one(path: str, run: Run, steps: int) -> Curve:
    return train(read_sequences(path), run, steps)


def _pack_sample_data(folder: str) -> str:
    output = str(Path(folder) / "packed")
    mtpack.pack(str(_SAMPLE_DATA / "*.jsonl"), output=output, seq_len=_SEQ_LEN)
    return output


def _require_enough_sequences(sequences: Sequences, splits: Sequence[Split]) -> None:
    for split in splits:
        turns = _count_held_out_turns(sequences, split)
        if not len(split.trained) or 0 in turns.values():
            raise click.UsageError(
                "too few sequences to hold out turns of every length and to train on others; "
                "use more data or a smaller --seq-len"
            )


def _count_held_out_turns(sequences: Sequences, split: Split) -> dict[str, int]:
    """Return the number of evaluated turns of each bin."""
    bins = compute_length_bins(sequences.turn_lengths)
    masks = compute_bin_masks(read_held_out_lengths(sequences, split), bins)
    return {name: int(turns.sum()) for name, turns in masks.items()}


def _describe(sequences: Sequences, splits: Sequence[Split], steps: int) -> str:
    lengths = sequences.turn_lengths
    num_trained, num_held_out = len(splits[0].trained), len(splits[0].held_out)
    longest_short, shortest_long = compute_length_bins(lengths)
    short, long = lengths[lengths <= longest_short], lengths[lengths >= shortest_long]
    counts = [_count_held_out_turns(sequences, split) for split in splits]
    left_out = [sum(int((~turns).sum()) for turns in split.evaluated) for split in splits]
    return "\n".join(
        (
            f"{len(lengths):,} turns of {lengths.sum():,} loss tokens; short: up to "
            f"{longest_short} tokens, {short.sum() / lengths.sum():.0%} of the loss tokens; long: "
            f"{shortest_long} to {lengths.max()}, {long.sum() / lengths.sum():.0%}; "
            f"{sequences.vocabulary:,} different tokens",
            f"{num_trained} sequences trained, {num_held_out} held out; {steps} steps of "
            f"{MICRO_BATCHES}, {steps * MICRO_BATCHES / num_trained:.1f} epochs",
            f"turns held out, {'/'.join(counts[0])}, of each seed: "
            + ", ".join("/".join(map(str, count.values())) for count in counts)
            + "; not evaluated, because other turns of their dialogue are trained: "
            + ", ".join(map(str, left_out)),
        )
    )


def build_difference_table(curves: Sequence[Curve]) -> Table:
    """Return the held-out losses, means over the seeds, and the difference for each seed."""
    table = Table(box=box.MARKDOWN)
    titles = ("learning rate", "at", "held-out loss of", "token mean", "turn mean")
    for title in (*titles, "difference", "of each seed"):
        table.add_column(title, no_wrap=True)
    rates = dict.fromkeys(curve.run.learning_rate for curve in curves)
    for rate, step, group in product(rates, ("the end", "its best step"), GROUPS):
        token_mean, turn_mean = (
            [
                curve.losses[group][curve.find_best_step() if step == "its best step" else -1]
                for curve in curves
                if curve.run.learning_rate == rate and curve.run.normalization == normalization
            ]
            for normalization in NORMALIZATIONS
        )
        differences = [turn - token for token, turn in zip(token_mean, turn_mean, strict=True)]
        table.add_row(
            f"{rate:g}",
            step,
            group.replace("_", " "),
            f"{mean(token_mean):.3f}",
            f"{mean(turn_mean):.3f}",
            f"{mean(differences):+.3f}",
            " ".join(f"{difference:+.3f}" for difference in differences),
        )
    return table


if __name__ == "__main__":
    main()
