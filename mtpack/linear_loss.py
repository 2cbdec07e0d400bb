"""The weighted sum of token losses from hidden states and the output matrix (torch only).

The logits of a 150k vocabulary are by far the largest tensor of a training step. Here they exist
for trained rows alone, some at a time, and the gradients are taken while they do: a token's weight
is known before its loss, so the backward pass has nothing to do but scale. That is three matrix
products a trained row, as with full logits; losses that are weighed afterwards need the logits a
second time. (Gradients in the forward pass: efficient_cross_entropy by M. Malek, 2023, and Liger
Kernel, arXiv 2410.10989.)

It is one operator, opaque to torch.compile: only at run time is known how many rows are trained.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

IGNORED = -100
"""The label without a loss, as in `torch.nn.functional.cross_entropy`."""

_MIN_ROWS = 1024  # with fewer, a matrix product waits for memory
_SLICES = 4  # of the rows held at once; logits in full precision exist for one of them
_LIGER = (0, 6)  # the oldest liger-kernel that has been read

_logger = logging.getLogger("mtpack")


def weighted_linear_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    token_weights: Tensor,
    *,
    softcap: float | None,
    kernel: str,
    chunk_rows: int | None,
) -> Tensor:
    """Return the sum over rows of their weight times cross_entropy(hidden @ weight.T, label).

    hidden: (rows, hidden). weight: (vocabulary, hidden), of the same dtype but under autocast.
    labels: int64 (rows,). token_weights: float (rows,); rows with weight 0 or label IGNORED are
    left out. The sum has the dtype of token_weights.
    """
    device = hidden.device.type
    autocast = torch.is_autocast_enabled(device)
    loss_sum: Tensor = _weighted_linear_loss(
        hidden,
        weight,
        labels,
        token_weights,
        softcap,
        kernel,
        chunk_rows,
        torch.get_autocast_dtype(device) if autocast else hidden.dtype,
        hidden.requires_grad and torch.is_grad_enabled(),
        weight.requires_grad and torch.is_grad_enabled(),
    )[0]
    return loss_sum


def available_kernels() -> tuple[str, ...]:
    """Return what can make the losses of rows of logits here: `torch` always, perhaps `liger`.

    liger-kernel (0.6 and later, on CUDA) makes loss and gradient of a row in one pass, in place.
    Only that is used of it: its fused linear cross-entropy, given a weight per token, makes the
    logits twice, and did so with a wrong gradient before 0.8.2. cut-cross-entropy is not used: its
    release (25.1.1) adds gradients up in bfloat16, and it is fast by leaving small ones out.
    """
    if torch.cuda.is_available() and _liger_version() >= _LIGER:
        return ("torch", "liger")
    return ("torch",)


def _loss_and_gradients(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    token_weights: Tensor,
    softcap: float | None,
    kernel: str,
    chunk_rows: int | None,
    dtype: torch.dtype,
    hidden_needs_grad: bool,
    weight_needs_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sum and its gradients, computed in dtype; those not needed are empty.

    The gradient of the matrix is a sum over all rows, which a matrix product adds up in float32.
    Where it takes several products, their sum is held in float32 too, and rounded once: rounding
    each to bfloat16 biases training, as TRL found (trl/kernels/chunked_logprob.py).
    """
    cross_entropy = _KERNELS[_chosen(kernel, hidden)]
    matrix = weight.to(dtype)
    trained = ((token_weights != 0) & (labels != IGNORED)).nonzero()[:, 0]
    groups = _groups(trained, hidden.shape[1], chunk_rows)
    sum_dtype = weight.dtype if len(groups) == 1 else token_weights.dtype
    loss_sum = token_weights.new_zeros(())
    grad_hidden = hidden.new_zeros(hidden.shape if hidden_needs_grad else 0)
    grad_weight: Tensor | None = None
    with torch.autocast(hidden.device.type, enabled=False):
        for rows in groups:
            inputs, own_weights = hidden[rows].to(dtype), token_weights[rows, None]
            slopes = None  # of the losses, by the logits
            if hidden_needs_grad or weight_needs_grad:
                slopes = inputs.new_empty(len(rows), len(matrix))
            losses = cross_entropy(inputs, matrix, labels[rows], softcap, slopes)
            loss_sum += (losses[:, None] * own_weights).sum()
            if slopes is not None and hidden_needs_grad:
                gradient = _product(slopes, matrix, own_weights.dtype) * own_weights
                grad_hidden[rows] = gradient.to(hidden.dtype)
            if slopes is not None and weight_needs_grad:
                weighted = (inputs * own_weights).to(dtype)
                grad_weight = _plus_product(grad_weight, slopes.t(), weighted, sum_dtype)
    if grad_weight is None:
        grad_weight = weight.new_zeros(weight.shape if weight_needs_grad else 0)
    return loss_sum, grad_hidden, grad_weight.to(weight.dtype)


_weighted_linear_loss = torch.library.custom_op(
    "mtpack::weighted_linear_loss", _loss_and_gradients, mutates_args=()
)


@_weighted_linear_loss.register_fake
def _shapes(
    hidden: Tensor, weight: Tensor, labels: Tensor, token_weights: Tensor, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    hidden_needs_grad, weight_needs_grad = options[-2:]
    return (
        token_weights.new_empty(()),
        hidden.new_empty(hidden.shape if hidden_needs_grad else 0),
        weight.new_empty(weight.shape if weight_needs_grad else 0),
    )


def _keep_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[1:])
    ctx.needed = inputs[-2:]


def _scale_gradients(ctx: Any, grad_sum: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(
            "the loss from hidden states has no second derivative: backward without "
            "create_graph=True, or take the loss from token losses"
        )
    gradients = [
        gradient * grad_sum if needed else None
        for gradient, needed in zip(ctx.saved_tensors, ctx.needed, strict=True)
    ]
    return (*gradients, *[None] * 8)


_weighted_linear_loss.register_autograd(_scale_gradients, setup_context=_keep_gradients)


def _groups(rows: Tensor, hidden_size: int, chunk_rows: int | None) -> Sequence[Tensor]:
    """Divide rows into those whose slopes are held at once.

    Of as many rows as a hidden state is long, slopes and logits take as much memory as the gradient
    of the matrix in float32. Of more rows, that gradient itself is held, to add to it; so the
    slopes are kept to a quarter of it. Either way the memory depends on the matrix alone.
    """
    if not len(rows):
        return ()
    if chunk_rows is None:
        chunk_rows = len(rows) if len(rows) <= hidden_size else hidden_size // 4
        chunk_rows = max(chunk_rows, _MIN_ROWS)
    return torch.split(rows, chunk_rows)


def _torch_cross_entropy(
    inputs: Tensor, matrix: Tensor, labels: Tensor, softcap: float | None, slopes: Tensor | None
) -> Tensor:
    """Return the losses of rows, in float32 at least, and write their slopes."""
    dtype = torch.promote_types(inputs.dtype, torch.float32)
    losses = inputs.new_empty(len(inputs), dtype=dtype)
    size = -(-len(inputs) // _SLICES)
    for start in range(0, len(inputs), size):
        part = slice(start, start + size)
        logits = _product(inputs[part], matrix.t(), dtype)
        if softcap is not None:
            logits = (logits / softcap).tanh_()
            bend = 1 - logits.square()
            logits *= softcap
        logits = torch.log_softmax(logits, dim=-1)  # from here on, logarithms of probabilities
        target = labels[part, None]
        own = logits.gather(1, target)
        losses[part] = -own[:, 0]
        if slopes is not None:
            torch.exp(logits, out=slopes[part])
            # In full precision: bfloat16 does not tell a probability near 1 from 1.
            slopes[part].scatter_(1, target, own.expm1().to(slopes.dtype))
            if softcap is not None:
                slopes[part] *= bend
    return losses


def _liger_cross_entropy(
    inputs: Tensor, matrix: Tensor, labels: Tensor, softcap: float | None, slopes: Tensor | None
) -> Tensor:
    """Do the same by liger-kernel, which writes the slopes in the place of the logits."""
    logits = torch.mm(inputs, matrix.t(), out=slopes)
    losses: Tensor = import_module("liger_kernel.ops.cross_entropy").cross_entropy_forward(
        logits.detach().requires_grad_(slopes is not None),
        labels,
        weight=None,
        ignore_index=IGNORED,
        lse_square_scale=0.0,
        label_smoothing=0.0,
        reduction="none",
        softcap=softcap,
        return_z_loss=False,
    )[0]
    return losses


_KERNELS = {"torch": _torch_cross_entropy, "liger": _liger_cross_entropy}


def _product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """Return left @ right in dtype, not rounded before where the device can do so."""
    if _can_widen(left, dtype):
        return torch.mm(left, right, out_dtype=dtype)
    return (left @ right).to(dtype)


def _plus_product(total: Tensor | None, left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """Return total + left @ right, in the place of total, or the product alone in dtype."""
    if total is None:
        return _product(left, right, dtype)
    if _can_widen(left, dtype):
        return torch.addmm(total, left, right, out_dtype=dtype, out=total)
    return total.addmm_(left.to(dtype), right.to(dtype))


def _can_widen(values: Tensor, dtype: torch.dtype) -> bool:
    """Whether a matrix product of half precision can give what it adds up in float32."""
    return (
        values.is_cuda
        and (values.element_size(), dtype) == (2, torch.float32)
        and torch.__version__ >= "2.8"
        and torch.cuda.get_device_capability(values.device) >= (8, 0)
    )


def _chosen(kernel: str, hidden: Tensor) -> str:
    available = available_kernels() if hidden.is_cuda else ("torch",)
    chosen = available[-1] if kernel == "auto" else kernel
    if chosen not in available:
        raise RuntimeError(f"kernel {kernel!r} is not available here; {', '.join(available)} is")
    _tell(chosen)
    return chosen


@cache
def _tell(kernel: str) -> None:
    """Say once what makes the losses."""
    _logger.info("losses from hidden states are made by the kernel %r", kernel)


@cache
def _liger_version() -> tuple[int, ...]:
    """Return major and minor version; (0, 0) where it is not installed."""
    try:
        return tuple(int(part) for part in version("liger-kernel").split(".")[:2])
    except PackageNotFoundError:
        return (0, 0)
