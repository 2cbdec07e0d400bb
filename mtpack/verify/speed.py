"""What the loss takes on a device, forwards and backwards, beside what trainers use today.

From hidden states and the output matrix to their gradients, with the loss tokens of the shards:

    full logits            `torch.nn.functional.cross_entropy` on all logits, in float32
    mtpack                 `mtpack.loss.linear_turn_mean_loss`
    liger-kernel, cut-cross-entropy   theirs, where installed, on CUDA

For information: it is no check. Only `mtpack` weighs turns; the others take the mean over tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mtpack.loss import Kernel, Normalization, linear_turn_mean_loss
from mtpack.packing.columns import IGNORED
from mtpack.packing.label_alignment import to_shifted
from mtpack.running.forking import give_back_freed_memory
from mtpack.shards.dataset import Shards
from mtpack.torch_data import collate
from mtpack.verify.causal_model import Batch

_REPEATS = 3
_STATUS, _PEAK_RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # Linux


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of a case to measure."""

    tokens: int
    hidden: int
    vocabulary: int
    dtype: str


SIZES = {
    "cpu": Sizes(1_024, 256, 16_384, "float32"),  # a second
    "cuda": Sizes(8_192, 4_096, 151_936, "bfloat16"),  # Qwen3 8B
}


Inputs = tuple[Tensor, Tensor]
"""Hidden states (rows, seq_len, hidden) and an output matrix (vocabulary, hidden), leaves."""
Way = Callable[[Tensor, Tensor, Batch], Tensor]
"""The loss of a step, from `Inputs` and columns as `collate` gives them, labels shifted."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What one way took."""

    name: str
    seconds: float | None
    """The best of several, forwards and backwards; None where the memory did not do."""
    peak_bytes: int | None
    """Above inputs, parameters and their gradients; None where nothing tells."""


@dataclass(frozen=True, slots=True)
class SpeedReport:
    """What all ways took."""

    sizes: Sizes
    loss_share: float
    """Of the tokens, how many are trained."""
    ways: list[Measured]

    def as_dict(self) -> dict[str, Any]:
        """Return the object that `verify --json` prints."""
        return asdict(self) | {"loss_share": round(self.loss_share, 6)}


def measure_losses(shards: Shards, device: str) -> SpeedReport:
    """Measure every way that there is on a device, with the loss tokens of the first sequences."""
    sizes = SIZES[device]
    batch = make_batch(shards, sizes, device)
    inputs = make_inputs(batch, sizes, device)
    ways = {"full logits": full_logits, "mtpack": linear_loss, **other_ways(device)}
    measured = [measure(name, way, inputs, batch) for name, way in ways.items()]
    return SpeedReport(sizes, float(batch["loss_mask"].double().mean()), measured)


def make_batch(shards: Shards, sizes: Sizes, device: str) -> Batch:
    """Return columns with so many tokens in one row, and random labels where some are trained.

    The first sequences, and where there are too few of them, those again.
    """
    rows = [
        to_shifted(shards[number % len(shards)], shards.metadata.label_alignment)
        for number in range(-(-sizes.tokens // shards.metadata.seq_len))
    ]
    collated = collate(rows)
    batch = {
        name: collated[name].flatten()[None, : sizes.tokens].to(device)
        for name in ("loss_mask", "loss_token_num", "turn_heads")
    }
    generator = torch.Generator(device).manual_seed(0)
    labels = torch.randint(
        sizes.vocabulary, batch["loss_mask"].shape, generator=generator, device=device
    )
    return {
        **batch,
        "labels": labels.masked_fill(batch["loss_mask"] == 0, IGNORED),
        "turn_num": batch["turn_heads"].sum(dim=1),
    }


def make_inputs(batch: Batch, sizes: Sizes, device: str) -> Inputs:
    """Return random hidden states and a random output matrix, with logits of about 1."""
    generator = torch.Generator(device).manual_seed(0)
    dtype = getattr(torch, sizes.dtype)
    shape = (*batch["labels"].shape, sizes.hidden)
    hidden = torch.randn(shape, generator=generator, device=device, dtype=dtype)
    weight = torch.randn(
        sizes.vocabulary, sizes.hidden, generator=generator, device=device, dtype=dtype
    )
    weight *= sizes.hidden**-0.5
    return hidden.requires_grad_(), weight.requires_grad_()


def full_logits(hidden: Tensor, weight: Tensor, batch: Batch) -> Tensor:
    """Return the mean over tokens from all logits, in float32 as trainers make them."""
    logits = functional.linear(hidden, weight)
    return functional.cross_entropy(logits.flatten(0, 1).float(), batch["labels"].flatten())


def linear_loss(
    hidden: Tensor,
    weight: Tensor,
    batch: Batch,
    normalization: Normalization = "turn_mean",
    kernel: Kernel = "auto",
) -> Tensor:
    """Return the mean over turns, or another, from `mtpack.loss.linear_turn_mean_loss`."""
    loss_sum, count = linear_turn_mean_loss(
        hidden,
        weight,
        batch,
        label_alignment="shifted",
        normalization=normalization,
        kernel=kernel,
    )
    return loss_sum / count


def other_ways(device: str) -> dict[str, Way]:
    """Return the libraries that are installed and can be called on a device; means over tokens."""
    installed = {
        "liger-kernel": (liger, "liger_kernel"),
        "cut-cross-entropy": (cut_cross_entropy, "cut_cross_entropy"),
    }
    return {
        name: way
        for name, (way, package) in installed.items()
        if device == "cuda" and find_spec(package)
    }


def liger(hidden: Tensor, weight: Tensor, batch: Batch) -> Tensor:
    """Return the mean over tokens by Liger Kernel's fused linear cross-entropy."""
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    loss: Tensor = liger_fused_linear_cross_entropy(
        hidden.flatten(0, 1), weight, batch["labels"].flatten()
    )
    return loss


def cut_cross_entropy(hidden: Tensor, weight: Tensor, batch: Batch) -> Tensor:
    """Return the mean over tokens by cut-cross-entropy."""
    from cut_cross_entropy import linear_cross_entropy

    loss: Tensor = linear_cross_entropy(hidden, weight, batch["labels"])
    return loss


def measure(name: str, way: Way, inputs: Inputs, batch: Batch) -> Measured:
    """Run a way forwards and backwards: once for its memory, then for its time, the best of some.

    One for which there is not enough memory has no figures.
    """
    try:
        _, peak = step(way, inputs, batch)
        seconds = min(step(way, inputs, batch)[0] for _ in range(_REPEATS))
    except torch.cuda.OutOfMemoryError:
        return Measured(name, None, None)
    return Measured(name, seconds, peak)


def step(way: Way, inputs: Inputs, batch: Batch) -> tuple[float, int | None]:
    """Run a forward and a backward pass; return its seconds, and its peak of memory in bytes.

    Beside what is there before it and the gradients that it leaves: so above inputs, parameters and
    their gradients. None where nothing tells: on the CPU, anywhere but on Linux.
    """
    for tensor in inputs:
        tensor.grad = None
    gradients = sum(tensor.nbytes for tensor in inputs)
    if inputs[0].is_cuda:
        return _cuda_step(way, inputs, batch, gradients)
    before = _start_counting()
    started = time.perf_counter()
    way(*inputs, batch).backward()  # type: ignore[no-untyped-call]  # torch has no types
    seconds = time.perf_counter() - started
    peak = _most_resident()
    return seconds, None if peak is None or before is None else max(0, peak - before - gradients)


def _cuda_step(way: Way, inputs: Inputs, batch: Batch, gradients: int) -> tuple[float, int]:
    events: Any = torch.cuda.Event  # it has no types
    start, end = (events(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    start.record()
    way(*inputs, batch).backward()  # type: ignore[no-untyped-call]  # torch has no types
    end.record()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before - gradients
    return float(start.elapsed_time(end)) / 1000, peak


def _start_counting() -> int | None:
    """Make what is resident now the peak so far; return it, in bytes."""
    give_back_freed_memory()  # or what is used again would not show
    try:
        _PEAK_RESET.write_text("5")
    except OSError:
        return None
    return _most_resident()


def _most_resident() -> int | None:
    try:
        status = _STATUS.read_text()
    except OSError:
        return None
    kilobytes = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(kilobytes[0]) * 1024 if kilobytes else None
