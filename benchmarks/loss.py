"""The loss from hidden states against cross-entropy on full logits: time and memory.

    python -m benchmarks.loss packed --device cuda

Measures the forward and backward pass of the output layer and the loss, in one run: full logits
with `torch.nn.functional.cross_entropy`; mtpack with turn mean and with token mean; and, if they
are installed and the device is CUDA, liger-kernel and cut-cross-entropy, called as their authors
recommend. All get the same hidden states, the same matrix and the same labels: those of the shards
(modulo the vocabulary), or of generated turns. Labels are -100 where nothing is trained.

Memory is the peak of a step minus the memory before it and minus the gradients that it returns, so
it does not include inputs, parameters and their gradients. It is allocated memory on CUDA, and
resident memory on the CPU (Linux).
"""

from __future__ import annotations

import subprocess
from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version

import click
import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from benchmarks.loss_ways import (
    Inputs,
    Way,
    find_other_ways,
    full_logits_loss,
    make_inputs,
    mtpack_loss,
    time_step,
)
from benchmarks.machine import describe_machine
from benchmarks.table import Line, show_table
from mtpack.loss import available_kernels
from mtpack.packing.columns import IGNORED
from mtpack.torch_data import PackedDataset, collate
from mtpack.verify.causal_model import ModelBatch

_WARM_UP = 3
_DTYPES = ("bfloat16", "float16", "float32")
_OTHERS = ("liger", "cut_cross_entropy")
_NAMES = {
    "full": "full logits, cross_entropy",
    "turn_mean": "mtpack, turn mean",
    "token_mean": "mtpack, token mean",
    "turn_mean_liger": "mtpack, turn mean, rows by liger",
    "liger": "liger, fused linear cross-entropy",
    "cut_cross_entropy": "cut-cross-entropy",
}
_LINES = (
    Line(_NAMES["full"], "full", "ms"),
    *(
        Line(_NAMES[way], way, "ms", "full", "full logits", "<= 0.6" if "turn" in way else "")
        for way in _NAMES
        if way != "full"
    ),
    *(Line(_NAMES["turn_mean"], "turn_mean", "ms", way, _NAMES[way], "<= 1") for way in _OTHERS),
    Line("turn weights", "turn_mean", "ms", "token_mean", "mtpack, token mean", "<= 1.01"),
    Line(f"memory: {_NAMES['full']}", "full.memory", "MiB"),
    *(
        Line(
            f"memory: {_NAMES[way]}",
            f"{way}.memory",
            "MiB",
            "full.memory",
            "full logits",
            "<= 0.25" if "turn" in way else "",
        )
        for way in _NAMES
        if way != "full"
    ),
    *(
        Line(f"gradient error: {_NAMES[way]}", f"{way}.difference", "")
        for way in ("token_mean", *_OTHERS)
    ),
)


@click.command()
@click.argument("path", required=False)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cuda", show_default=True)
@click.option("--vocabulary", default=151_936, show_default=True)
@click.option("--hidden", "hidden_size", default=4096, show_default=True)
@click.option("--tokens", default=8192, show_default=True, help="Rounded to whole sequences.")
@click.option("--dtype", type=click.Choice(_DTYPES), default="bfloat16", show_default=True)
@click.option("--loss-share", default=0.5, show_default=True, help="Without shards: of all tokens.")
@click.option("--rounds", default=20, show_default=True)
def main(
    path: str | None,
    device: str,
    vocabulary: int,
    hidden_size: int,
    tokens: int,
    dtype: str,
    loss_share: float,
    rounds: int,
) -> None:
    """Compare on the loss mask of the shards at PATH, or on generated turns."""
    if device == "cuda" and not torch.cuda.is_available():
        raise click.UsageError("no CUDA device here; use --device cpu with small sizes")
    batch = _read_batch(path, tokens) if path else generate_turns(tokens, loss_share)
    batch["labels"] = torch.where(batch["labels"] == IGNORED, IGNORED, batch["labels"] % vocabulary)
    batch = {name: column.to(device) for name, column in batch.items()}
    inputs = make_inputs(batch["labels"], hidden_size, vocabulary, getattr(torch, dtype))
    figures = measure_loss_ways(_choose_ways(device), inputs, batch, rounds)

    console = Console(width=200)
    console.print(f"{describe_machine()}\n{_describe_device(device)}", highlight=False)
    console.print(
        f"vocabulary {vocabulary:,}, hidden {hidden_size:,}, {batch['labels'].numel():,} tokens, "
        f"{dtype}, loss tokens {batch['loss_mask'].float().mean():.1%} "
        f"({path or 'generated'}), {rounds} rounds",
        highlight=False,
    )
    show_table(figures, console, [line for line in _LINES if line.against in (None, *figures)])


def measure_loss_ways(
    ways: Mapping[str, Way], inputs: Inputs, batch: ModelBatch, rounds: int
) -> dict[str, list[float]]:
    """Return milliseconds and MiB of every way in every round, and errors of gradients."""
    figures = defaultdict(list)
    for name in ("token_mean", *(way for way in _OTHERS if way in ways)):  # all are token means
        figures[f"{name}.difference"] = [_measure_error(ways[name], ways["full"], inputs, batch)]
    for round_number in range(-_WARM_UP, rounds):
        for name, way in ways.items():
            seconds, peak_bytes = time_step(way, inputs, batch)
            if round_number >= 0:
                figures[name].append(1000 * seconds)
                if peak_bytes is not None:
                    figures[f"{name}.memory"].append(peak_bytes / 2**20)
    return figures


def _measure_error(way: Way, reference: Way, inputs: Inputs, batch: ModelBatch) -> float:
    """Return the error of a way's gradients, relative to the norm of the reference's."""
    expected = torch.autograd.grad(reference(*inputs, batch), inputs)
    found = torch.autograd.grad(way(*inputs, batch), inputs)
    return max(
        float((a - b).float().norm() / b.float().norm())
        for a, b in zip(found, expected, strict=True)
    )


def _choose_ways(device: str) -> dict[str, Way]:
    ways: dict[str, Way] = {
        "full": full_logits_loss,
        "turn_mean": partial(mtpack_loss, normalization="turn_mean", kernel="torch"),
        "token_mean": partial(mtpack_loss, normalization="token_mean", kernel="torch"),
    }
    if device == "cuda" and "liger" in available_kernels():
        ways["turn_mean_liger"] = partial(mtpack_loss, normalization="turn_mean", kernel="liger")
    others = {"liger-kernel": "liger", "cut-cross-entropy": "cut_cross_entropy"}
    return ways | {others[name]: way for name, way in find_other_ways(device).items()}


def _read_batch(path: str, tokens: int) -> dict[str, Tensor]:
    dataset = PackedDataset(path, label_alignment="shifted")
    rows = min(len(dataset), max(1, tokens // dataset.metadata.seq_len))
    return collate([dataset[row] for row in range(rows)])


def generate_turns(tokens: int, loss_share: float, seed: int = 0) -> dict[str, Tensor]:
    """Return the columns of one row: turns of 1 to 400 tokens, each after some prompt tokens.

    The number of prompt tokens is chosen so that about `loss_share` of all tokens is trained.
    """
    random = np.random.default_rng(seed)
    columns = {
        "labels": np.full(tokens, IGNORED),
        "loss_mask": np.zeros(tokens, np.uint8),
        "loss_token_num": np.ones(tokens, np.int32),
    }
    turns = end = 0
    while True:
        length = int(random.integers(1, 401))
        start = end + round(length * (1 - loss_share) / loss_share)
        end = min(start + length, tokens)
        if start >= end:
            break
        columns["labels"][start:end] = random.integers(2**31, size=end - start)
        columns["loss_mask"][start:end] = 1
        columns["loss_token_num"][start:end] = end - start
        turns += 1
    batch = {name: torch.from_numpy(values)[None] for name, values in columns.items()}
    return {**batch, "turn_num": torch.tensor([turns])}


def _describe_device(device: str) -> str:
    libraries = ", ".join(
        f"{library} {_find_version(library) or 'not installed'}"
        for library in ("torch", "liger-kernel", "cut-cross-entropy", "triton")
    )
    if device == "cpu":
        return f"CPU, {torch.get_num_threads()} threads; {libraries}"
    properties = torch.cuda.get_device_properties(0)
    return (
        f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, driver {_find_driver()}, "
        f"CUDA {torch.version.cuda}; {libraries}"
    )


def _find_driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.splitlines()[0].strip()


def _find_version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
