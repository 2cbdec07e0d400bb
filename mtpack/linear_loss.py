"""The weighted sum of token losses from hidden states and the output matrix (torch only).

The logits of a 150k vocabulary are by far the largest tensor of a training step. Here they are
computed for the rows of loss tokens only, some at a time, and the forward pass computes their
gradients right away. This is possible because the weight of a token is known before its loss; the
backward pass only scales. It takes three matrix products per row, as full logits do. Losses that
get their weights later need the logits a second time. (Gradients in the forward pass:
efficient_cross_entropy by M. Malek, 2023, and Liger Kernel, arXiv 2410.10989.)

It is one operator, opaque to torch.compile: the number of these rows is known only at run time.
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
_SLICES = 4  # of a chunk of rows; logits in full precision exist for one slice at a time
_LIGER = (0, 6)  # the oldest liger-kernel whose source was reviewed

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
    """Return the sum over rows of token weight * cross_entropy(hidden @ weight.T, label).

    hidden: (rows, hidden). weight: (vocabulary, hidden), of the same dtype except under autocast.
    labels: int64 (rows,). token_weights: float (rows,); rows with weight 0 or label IGNORED are
    skipped. The sum has the dtype of token_weights.
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
    """Return the kernels that can compute losses from logits here: `torch`, and perhaps `liger`.

    liger-kernel (0.6 and later, on CUDA) computes loss and gradient of a row in one pass, in place.
    Nothing else of it is used: with a weight per token, its fused linear cross-entropy computes the
    logits twice, and its gradient was wrong before 0.8.2. cut-cross-entropy is not used: its
    release (25.1.1) sums gradients in bfloat16, and it is fast because it skips small gradients.
    """
    if torch.cuda.is_available() and _read_liger_version() >= _LIGER:
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
    """Return the sum and its gradients, computed in dtype. Gradients not needed are empty.

    The gradient of the matrix is a sum over all rows, which one matrix product computes in float32.
    If several products are needed, their sum is kept in float32 too, and rounded once: rounding
    each to bfloat16 biases training, as TRL found (trl/kernels/chunked_logprob.py).
    """
    cross_entropy = _KERNELS[_choose_kernel(kernel, hidden)]
    matrix = weight.to(dtype)
    trained = ((token_weights != 0) & (labels != IGNORED)).nonzero()[:, 0]
    chunks = _split_rows(trained, hidden.shape[1], chunk_rows)
    sum_dtype = weight.dtype if len(chunks) == 1 else token_weights.dtype
    loss_sum = token_weights.new_zeros(())
    grad_hidden = hidden.new_zeros(hidden.shape if hidden_needs_grad else 0)
    grad_weight: Tensor | None = None
    with torch.autocast(hidden.device.type, enabled=False):
        for rows in chunks:
            inputs, own_weights = hidden[rows].to(dtype), token_weights[rows, None]
            grad_logits = None  # of the sum of the losses, without token weights
            if hidden_needs_grad or weight_needs_grad:
                grad_logits = inputs.new_empty(len(rows), len(matrix))
            losses = cross_entropy(inputs, matrix, labels[rows], softcap, grad_logits)
            loss_sum += (losses[:, None] * own_weights).sum()
            if grad_logits is not None and hidden_needs_grad:
                gradient = _multiply(grad_logits, matrix, own_weights.dtype) * own_weights
                grad_hidden[rows] = gradient.to(hidden.dtype)
            if grad_logits is not None and weight_needs_grad:
                weighted = (inputs * own_weights).to(dtype)
                grad_weight = _add_product(grad_weight, grad_logits.t(), weighted, sum_dtype)
    if grad_weight is None:
        grad_weight = weight.new_zeros(weight.shape if weight_needs_grad else 0)
    return loss_sum, grad_hidden, grad_weight.to(weight.dtype)


_weighted_linear_loss = torch.library.custom_op(
    "mtpack::weighted_linear_loss", _loss_and_gradients, mutates_args=()
)


@_weighted_linear_loss.register_fake
def _infer_shapes(
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
            "the loss from hidden states has no second derivative: call backward without "
            "create_graph=True, or compute the loss from token losses"
        )
    gradients = [
        gradient * grad_sum if needed else None
        for gradient, needed in zip(ctx.saved_tensors, ctx.needed, strict=True)
    ]
    return (*gradients, *[None] * 8)


_weighted_linear_loss.register_autograd(_scale_gradients, setup_context=_keep_gradients)


def _split_rows(rows: Tensor, hidden_size: int, chunk_rows: int | None) -> Sequence[Tensor]:
    """Split rows into chunks; the gradients of logits exist for one chunk at a time.

    For up to `hidden_size` rows, one chunk: logits and their gradients take at most as much memory
    as the gradient of the matrix in float32. For more rows, that gradient is in memory as well, as
    the running sum; so logits and their gradients get a quarter of its size. In both cases the
    memory depends on the matrix only.
    """
    if not len(rows):
        return ()
    if chunk_rows is None:
        chunk_rows = len(rows) if len(rows) <= hidden_size else hidden_size // 4
        chunk_rows = max(chunk_rows, _MIN_ROWS)
    return torch.split(rows, chunk_rows)


def _torch_cross_entropy(
    inputs: Tensor,
    matrix: Tensor,
    labels: Tensor,
    softcap: float | None,
    grad_logits: Tensor | None,
) -> Tensor:
    """Return the losses of rows, in float32 at least, and write the gradients of their logits."""
    dtype = torch.promote_types(inputs.dtype, torch.float32)
    losses = inputs.new_empty(len(inputs), dtype=dtype)
    size = -(-len(inputs) // _SLICES)
    for start in range(0, len(inputs), size):
        part = slice(start, start + size)
        logits = _multiply(inputs[part], matrix.t(), dtype)
        if softcap is not None:
            logits = (logits / softcap).tanh_()
            grad_cap = 1 - logits.square()
            logits *= softcap
        logits = torch.log_softmax(logits, dim=-1)  # from here on, log probabilities
        target = labels[part, None]
        own = logits.gather(1, target)
        losses[part] = -own[:, 0]
        if grad_logits is not None:
            torch.exp(logits, out=grad_logits[part])
            # In full precision: in bfloat16, a probability near 1 is equal to 1.
            grad_logits[part].scatter_(1, target, own.expm1().to(grad_logits.dtype))
            if softcap is not None:
                grad_logits[part] *= grad_cap
    return losses


def _liger_cross_entropy(
    inputs: Tensor,
    matrix: Tensor,
    labels: Tensor,
    softcap: float | None,
    grad_logits: Tensor | None,
) -> Tensor:
    """Do the same with liger-kernel, which overwrites the logits with their gradients."""
    logits = torch.mm(inputs, matrix.t(), out=grad_logits)
    losses: Tensor = import_module("liger_kernel.ops.cross_entropy").cross_entropy_forward(
        logits.detach().requires_grad_(grad_logits is not None),
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


def _multiply(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """Return left @ right in dtype, without an earlier rounding if the device supports that."""
    if _can_widen(left, dtype):
        return torch.mm(left, right, out_dtype=dtype)
    return (left @ right).to(dtype)


def _add_product(total: Tensor | None, left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """Add left @ right to total in place and return it; without total, return the product."""
    if total is None:
        return _multiply(left, right, dtype)
    if _can_widen(left, dtype):
        return torch.addmm(total, left, right, out_dtype=dtype, out=total)
    return total.addmm_(left.to(dtype), right.to(dtype))


def _can_widen(values: Tensor, dtype: torch.dtype) -> bool:
    """Return whether a matrix product of half precision can return its float32 sums."""
    return (
        values.is_cuda
        and (values.element_size(), dtype) == (2, torch.float32)
        and torch.__version__ >= "2.8"
        and torch.cuda.get_device_capability(values.device) >= (8, 0)
    )


def _choose_kernel(kernel: str, hidden: Tensor) -> str:
    available = available_kernels() if hidden.is_cuda else ("torch",)
    chosen = available[-1] if kernel == "auto" else kernel
    if chosen not in available:
        raise RuntimeError(
            f"kernel {kernel!r} is not available here; available: {', '.join(available)}"
        )
    _log_kernel(chosen)
    return chosen


@cache
def _log_kernel(kernel: str) -> None:
    """Log the kernel in use, once."""
    _logger.info("losses from hidden states are computed by the kernel %r", kernel)


@cache
def _read_liger_version() -> tuple[int, ...]:
    """Return major and minor version; (0, 0) if it is not installed."""
    try:
        return tuple(int(part) for part in version("liger-kernel").split(".")[:2])
    except PackageNotFoundError:
        return (0, 0)
