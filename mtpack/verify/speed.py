"""Measure time and memory of the loss on a device, and of the losses that trainers use today.

A forward and a backward pass, from hidden states and the output matrix to their gradients, with the
loss tokens of the shards:

    full logits            `torch.nn.functional.cross_entropy` on all logits, in float32
    mtpack                 `mtpack.loss.linear_turn_mean_loss`
    liger-kernel, cut-cross-entropy   their own losses, on CUDA, if installed

This is information, not a check. Only `mtpack` weights turns; the others are means over tokens.
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
from mtpack.running.processes import release_freed_memory
from mtpack.shards.dataset import Shards
from mtpack.torch_data import collate
from mtpack.verify.causal_model import ModelBatch

_REPEATS = 3
_STATUS, _PEAK_RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # Linux


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of the measured case."""

    tokens: int
    hidden: int
    vocabulary: int
    dtype: str


SIZES = {
    "cpu": Sizes(1_024, 256, 16_384, "float32"),  # takes a second
    "cuda": Sizes(8_192, 4_096, 151_936, "bfloat16"),  # Qwen3 8B
}


Inputs = tuple[Tensor, Tensor]
"""Hidden states (1, tokens, hidden) and an output matrix (vocabulary, hidden): leaf tensors."""
Way = Callable[[Tensor, Tensor, ModelBatch], Tensor]
"""A way to compute the loss of a step, from `Inputs` and collated columns with shifted labels."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """The time and the memory of one way."""

    name: str
    seconds: float | None
    """Of a forward and a backward pass, the best of several; None if the memory was not enough."""
    peak_bytes: int | None
    """In addition to inputs, parameters and their gradients; None if it can't be measured."""


@dataclass(frozen=True, slots=True)
class SpeedReport:
    """The measurements of all ways."""

    sizes: Sizes
    loss_share: float
    """The share of the tokens that are loss tokens."""
    ways: list[Measurement]

    def as_dict(self) -> dict[str, Any]:
        """Return the object that `verify --json` prints."""
        return asdict(self) | {"loss_share": round(self.loss_share, 6)}


def measure_losses(shards: Shards, device: str) -> SpeedReport:
    """Measure every way that the device supports, with the loss tokens of the first sequences."""
    sizes = SIZES[device]
    batch = make_batch(shards, sizes, device)
    inputs = make_inputs(batch, sizes, device)
    ways = {"full logits": full_logits_loss, "mtpack": mtpack_loss, **find_other_ways(device)}
    measured = [measure(name, way, inputs, batch) for name, way in ways.items()]
    return SpeedReport(sizes, float(batch["loss_mask"].double().mean()), measured)


def make_batch(shards: Shards, sizes: Sizes, device: str) -> ModelBatch:
    """Return columns with `sizes.tokens` tokens in one sequence, and random labels for loss tokens.

    They are those of the first sequences, which are repeated if there are too few.
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


def make_inputs(batch: ModelBatch, sizes: Sizes, device: str) -> Inputs:
    """Return random hidden states and a random output matrix, so that logits are about 1."""
    generator = torch.Generator(device).manual_seed(0)
    dtype = getattr(torch, sizes.dtype)
    shape = (*batch["labels"].shape, sizes.hidden)
    hidden = torch.randn(shape, generator=generator, device=device, dtype=dtype)
    weight = torch.randn(
        sizes.vocabulary, sizes.hidden, generator=generator, device=device, dtype=dtype
    )
    weight *= sizes.hidden**-0.5
    return hidden.requires_grad_(), weight.requires_grad_()


def full_logits_loss(hidden: Tensor, weight: Tensor, batch: ModelBatch) -> Tensor:
    """Return the mean over tokens from all logits, in float32 as in trainers."""
    logits = functional.linear(hidden, weight)
    return functional.cross_entropy(logits.flatten(0, 1).float(), batch["labels"].flatten())


def mtpack_loss(
    hidden: Tensor,
    weight: Tensor,
    batch: ModelBatch,
    normalization: Normalization = "turn_mean",
    kernel: Kernel = "auto",
) -> Tensor:
    """Return the mean over turns (or another mean) by `mtpack.loss.linear_turn_mean_loss`."""
    loss_sum, count = linear_turn_mean_loss(
        hidden,
        weight,
        batch,
        label_alignment="shifted",
        normalization=normalization,
        kernel=kernel,
    )
    return loss_sum / count


def find_other_ways(device: str) -> dict[str, Way]:
    """Return the losses of other libraries that are installed and support the device."""
    installed = {
        "liger-kernel": (liger, "liger_kernel"),
        "cut-cross-entropy": (cut_cross_entropy, "cut_cross_entropy"),
    }
    return {
        name: way
        for name, (way, package) in installed.items()
        if device == "cuda" and find_spec(package)
    }


def liger(hidden: Tensor, weight: Tensor, batch: ModelBatch) -> Tensor:
    """Return the mean over tokens by Liger Kernel's fused linear cross-entropy."""
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    loss: Tensor = liger_fused_linear_cross_entropy(
        hidden.flatten(0, 1), weight, batch["labels"].flatten()
    )
    return loss


def cut_cross_entropy(hidden: Tensor, weight: Tensor, batch: ModelBatch) -> Tensor:
    """Return the mean over tokens by cut-cross-entropy."""
    from cut_cross_entropy import linear_cross_entropy

    loss: Tensor = linear_cross_entropy(hidden, weight, batch["labels"])
    return loss


def measure(name: str, way: Way, inputs: Inputs, batch: ModelBatch) -> Measurement:
    """Measure a way: run it once for its memory, then several times for its best time.

    If there is not enough memory, the measurement has no figures.
    """
    try:
        _, peak = time_step(way, inputs, batch)
        seconds = min(time_step(way, inputs, batch)[0] for _ in range(_REPEATS))
    except torch.cuda.OutOfMemoryError:
        return Measurement(name, None, None)
    return Measurement(name, seconds, peak)


def time_step(way: Way, inputs: Inputs, batch: ModelBatch) -> tuple[float, int | None]:
    """Run a forward and a backward pass; return its seconds and its peak memory in bytes.

    The peak does not include inputs, parameters and their gradients. It is None if it can't be
    measured: on the CPU of other systems than Linux.
    """
    for tensor in inputs:
        tensor.grad = None
    gradients = sum(tensor.nbytes for tensor in inputs)
    if inputs[0].is_cuda:
        return _time_cuda_step(way, inputs, batch, gradients)
    before = _reset_peak_memory()
    started = time.perf_counter()
    way(*inputs, batch).backward()  # type: ignore[no-untyped-call]  # torch has no types
    seconds = time.perf_counter() - started
    peak = _read_peak_memory()
    return seconds, None if peak is None or before is None else max(0, peak - before - gradients)


def _time_cuda_step(
    way: Way, inputs: Inputs, batch: ModelBatch, gradients: int
) -> tuple[float, int]:
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


def _reset_peak_memory() -> int | None:
    """Reset the peak of resident memory to its current value; return that in bytes."""
    release_freed_memory()  # otherwise, reused memory would not be counted
    try:
        _PEAK_RESET.write_text("5")
    except OSError:
        return None
    return _read_peak_memory()


def _read_peak_memory() -> int | None:
    try:
        status = _STATUS.read_text()
    except OSError:
        return None
    kilobytes = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(kilobytes[0]) * 1024 if kilobytes else None
