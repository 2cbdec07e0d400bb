"""The ways to compute the loss that `benchmarks.loss` compares, and the measurement of a step.

A step is a forward and a backward pass, from hidden states and the output matrix to their
gradients. Only mtpack weights turns; the others are means over tokens.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mtpack.loss import Kernel, Normalization, linear_turn_mean_loss
from mtpack.verify.causal_model import ModelBatch

_STATUS, _PEAK_RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # Linux


Inputs = tuple[Tensor, Tensor]
"""Hidden states (1, tokens, hidden) and an output matrix (vocabulary, hidden): leaf tensors."""
Way = Callable[[Tensor, Tensor, ModelBatch], Tensor]
"""A way to compute the loss of a step, from `Inputs` and collated columns with shifted labels."""


def make_inputs(labels: Tensor, hidden_size: int, vocabulary: int, dtype: torch.dtype) -> Inputs:
    """Return random hidden states and a random output matrix, so that logits are about 1."""
    device = labels.device
    generator = torch.Generator(device).manual_seed(0)
    shape = (*labels.shape, hidden_size)
    hidden = torch.randn(shape, generator=generator, device=device, dtype=dtype)
    weight = torch.randn(vocabulary, hidden_size, generator=generator, device=device, dtype=dtype)
    weight *= hidden_size**-0.5
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
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # in the GNU C library only
    if trim is not None:
        trim(0)  # otherwise, reused memory would not be counted
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
