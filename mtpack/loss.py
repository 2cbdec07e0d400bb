"""Loss functions for the columns of a shard, from token losses or hidden states (torch only).

Every function returns a sum and a count. The loss of a training step is the sum over all
micro-batches and data-parallel ranks, divided once by the sum of the counts. If anything were
divided earlier, a weight would depend on the micro-batch and the rank that a token is in.

| normalization | equal weight for | weight of a loss token in a turn of n loss tokens | count |
| --- | --- | --- | --- |
| `turn_mean` | every turn | 1 / n | turns |
| `token_mean` | every loss token | 1 | loss tokens |
| `dialogue_mean` | every document | 1 / loss tokens of its document | documents |
| `square_root` | neither: between turns and tokens | 1 / sqrt(n) | sum of sqrt(n) over turns |

Turns may have weights of their own (`turn_weight` of a batch). Each loss token then counts as many
times as its turn's weight says, whatever the mean: the weight above is multiplied by it, and the
count is the sum of these products over all loss tokens. So the turn mean is sum(w * mean loss of
the turn) / sum(w), and weights that are all equal change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from mtpack.linear_loss import IGNORED, available_kernels, weighted_linear_loss

__all__ = [
    "available_kernels",
    "dialogue_mean_loss",
    "linear_turn_mean_loss",
    "square_root_loss",
    "token_mean_loss",
    "turn_mean_loss",
]

Normalization = Literal["turn_mean", "token_mean", "dialogue_mean", "square_root"]
Kernel = Literal["auto", "torch", "liger"]
_Weigh = Callable[..., tuple[Tensor, Tensor]]
"""Returns the weight of every token (0 if it carries no loss) and the count, for a dtype."""


def turn_mean_loss(
    losses: Tensor,
    loss_mask: Tensor,
    loss_token_num: Tensor,
    turn_num: Tensor,
    turn_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the sum of the turns' mean losses, and the number of turns (int64).

    losses: token losses, float (..., seq_len). loss_mask, loss_token_num: as in the shard, of the
    same shape, aligned with the losses. turn_num: as in the shard, (...); if a rank holds a slice
    of the sequences, the number of turn heads in the slice. It is not used with turn_weight.

    As for all losses here: the sum is float32, or float64 for float64 losses. Losses where
    `loss_mask` is 0 are ignored, even NaN. turn_weight: float (..., seq_len), the weight of its
    turn at each loss token, as from `mtpack.torch_data.collate`; None: 1 for all. With it, the
    count is float64: the sum of the weights that the losses have in the sum.
    """
    weigh = partial(_weigh_by_turn, loss_mask, loss_token_num, turn_num)
    return _sum_by(weigh, losses, turn_weight)


def token_mean_loss(
    losses: Tensor, loss_mask: Tensor, turn_weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the sum of the token losses, and the number of loss tokens (int64).

    This is the usual mean of cross-entropy: the frameworks' default and
    `torch.nn.functional.cross_entropy(reduction="mean")`; xtuner calls it `token`.

    losses: float (..., seq_len). loss_mask: as in the shard, of the same shape. turn_weight: as in
    `turn_mean_loss`.
    """
    return _sum_by(partial(_weigh_by_token, loss_mask), losses, turn_weight)


def dialogue_mean_loss(
    losses: Tensor,
    loss_mask: Tensor,
    position_ids: Tensor,
    turn_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the sum of the documents' mean losses, and the number of documents (int64).

    xtuner calls it `sample`; LongAlign uses these weights for packed dialogues (arXiv 2401.18058).
    A dialogue in several documents counts once for each. Documents without a loss token do not
    count.

    losses: float (..., seq_len). loss_mask: as in the shard, of the same shape. position_ids: of
    the same shape, 0 at the first token of a document; every sequence starts a document. The
    sequences must be whole: a slice of a sequence does not show the lengths of its documents.
    turn_weight: as in `turn_mean_loss`.
    """
    return _sum_by(partial(_weigh_by_document, loss_mask, position_ids), losses, turn_weight)


def square_root_loss(
    losses: Tensor,
    loss_mask: Tensor,
    loss_token_num: Tensor,
    turn_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the sum of sqrt(n) times the mean loss of each turn, and the sum of sqrt(n).

    n is the number of loss tokens of a turn, so the weight of a turn is sqrt(n). This is the square
    averaging of InternVL 2.5 (arXiv 2412.05271), `square` in xtuner, for turns instead of samples.
    The count has the dtype of the sum.

    losses: float (..., seq_len). loss_mask, loss_token_num: as in the shard, of the same shape.
    turn_weight: as in `turn_mean_loss`.
    """
    return _sum_by(partial(_weigh_by_square_root, loss_mask, loss_token_num), losses, turn_weight)


def linear_turn_mean_loss(
    hidden: Tensor,
    weight: Tensor,
    batch: Mapping[str, Tensor],
    *,
    label_alignment: Literal["aligned", "shifted"] = "aligned",
    normalization: Normalization = "turn_mean",
    softcap: float | None = None,
    kernel: Kernel = "auto",
    chunk_rows: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the sum and the count of a normalization, from hidden states and the output matrix.

    Logits and their gradients are computed for loss tokens only, some rows at a time. So memory
    does not grow with the tokens: in addition to the gradients, at most 1.25 times the matrix in
    float32 for bfloat16 and 4,096 columns or more; twice that for float32, autocast or a softcap.
    The sum can be differentiated once. It depends on hidden and weight even if nothing is trained,
    so no rank waits for a gradient. Works with torch.compile(fullgraph=True) and torch.autocast.

    hidden: (..., seq_len, hidden), the input of the output matrix. weight: (vocabulary, hidden),
    the whole matrix, of the same dtype except under autocast: bfloat16 (sums in float32), float32,
    float64; float16 too, but a loss scaler's factor is applied after the gradients are rounded.
    batch: columns as from `mtpack.torch_data.collate`, (..., seq_len): `labels`, `loss_mask`, and
    those of the normalization: `loss_token_num` and `turn_num`, or `position_ids`; `turn_weight`,
    if the turns have weights. A label of -100 has no loss. label_alignment: of these columns;
    `aligned`: the state before a label predicts it (the first label of a row is not predicted);
    `shifted`: the state at the same position does. softcap: logits become softcap * tanh(logits
    / softcap), as in Gemma 2. For a bias, add a column to weight and ones to hidden. kernel:
    computes losses from logits: `torch`; `liger`, in one pass, with logits and losses rounded
    to hidden's dtype; `auto`: the last of `available_kernels()`, logged once (`mtpack`).
    chunk_rows: rows of logits at a time; None: auto.

    Raises ValueError for wrong shapes, dtypes or names.
    """
    labels = batch["labels"]
    _check_arguments(hidden, weight, labels, label_alignment, normalization, kernel, chunk_rows)
    token_weights, count = _weigh_batch(batch, normalization, _sum_dtype(hidden))
    if label_alignment == "aligned":
        labels = pad(labels[..., 1:], (0, 1), value=IGNORED)
        token_weights = pad(token_weights[..., 1:], (0, 1))
    loss_sum = weighted_linear_loss(
        hidden.reshape(-1, hidden.shape[-1]),
        weight,
        labels.reshape(-1).long(),
        token_weights.reshape(-1),
        softcap=softcap,
        kernel=kernel,
        chunk_rows=chunk_rows,
    )
    return loss_sum, count


def _check_arguments(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    label_alignment: str,
    normalization: str,
    kernel: str,
    chunk_rows: int | None,
) -> None:
    for name, value, known in (
        ("label_alignment", label_alignment, ("aligned", "shifted")),
        ("normalization", normalization, tuple(_NORMALIZATIONS)),
        ("kernel", kernel, ("auto", "torch", "liger")),
    ):
        if value not in known:
            raise ValueError(f"{name}: {value!r} is unknown; use one of {', '.join(known)}")
    if chunk_rows is not None and chunk_rows < 1:
        raise ValueError(f"chunk_rows: {chunk_rows}; use at least 1, or None")
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[-1]:
        raise ValueError(
            f"weight: {tuple(weight.shape)} for hidden states of size {hidden.shape[-1]}; expected "
            "(vocabulary, hidden): gather a matrix that is sharded over ranks"
        )
    if labels.shape != hidden.shape[:-1]:
        raise ValueError(
            f"labels: {tuple(labels.shape)} for hidden states {tuple(hidden.shape)}; "
            "expected one label for each state"
        )
    if hidden.dtype != weight.dtype and not torch.is_autocast_enabled(hidden.device.type):
        raise ValueError(
            f"hidden is {hidden.dtype}, weight {weight.dtype}; cast one, or use torch.autocast"
        )


def _weigh_batch(
    batch: Mapping[str, Tensor], normalization: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the weight of every token of a batch, and the count."""
    weigh, columns = _NORMALIZATIONS[normalization]
    weigh = partial(weigh, *(batch[column] for column in columns))
    return _weigh_tokens(weigh, dtype, batch.get("turn_weight"))


def _sum_dtype(values: Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)


def _sum_by(weigh: _Weigh, losses: Tensor, turn_weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the sum of weighted losses, and the count."""
    weights, count = _weigh_tokens(weigh, _sum_dtype(losses), turn_weight)
    return torch.where(weights != 0, losses.to(weights.dtype) * weights, 0).sum(), count


def _weigh_tokens(
    weigh: _Weigh, dtype: torch.dtype, turn_weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the weight of every token, of this dtype, and the count."""
    if turn_weight is None:
        return weigh(dtype=dtype)
    # The count is exact to float64, so that it does not depend on how a step is divided.
    wide = dtype if turn_weight.device.type == "mps" else torch.float64
    weights = weigh(dtype=wide)[0] * turn_weight.to(wide)
    return weights.to(dtype), weights.sum()


def _weigh_by_turn(
    loss_mask: Tensor, loss_token_num: Tensor, turn_num: Tensor, *, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    weights = torch.where(loss_mask != 0, 1 / loss_token_num.to(dtype), 0)
    return weights, turn_num.sum(dtype=torch.int64)


def _weigh_by_token(loss_mask: Tensor, *, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    trained = loss_mask != 0
    return trained.to(dtype), trained.sum(dtype=torch.int64)


def _weigh_by_document(
    loss_mask: Tensor, position_ids: Tensor, *, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    trained = loss_mask != 0
    starts = position_ids == 0
    starts[..., 0] = True
    documents = starts.flatten().cumsum(0) - 1
    # There are at most as many documents as tokens. So the shape does not depend on values.
    lengths = documents.new_zeros(documents.shape).index_add(0, documents, trained.flatten().long())
    own_length = lengths[documents].view_as(trained)
    return torch.where(trained, 1 / own_length.to(dtype), 0), (lengths > 0).sum(dtype=torch.int64)


def _weigh_by_square_root(
    loss_mask: Tensor, loss_token_num: Tensor, *, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    weights = torch.where(loss_mask != 0, loss_token_num.to(dtype).rsqrt(), 0)
    return weights, weights.sum()


_NORMALIZATIONS: dict[str, tuple[_Weigh, tuple[str, ...]]] = {
    "turn_mean": (_weigh_by_turn, ("loss_mask", "loss_token_num", "turn_num")),
    "token_mean": (_weigh_by_token, ("loss_mask",)),
    "dialogue_mean": (_weigh_by_document, ("loss_mask", "position_ids")),
    "square_root": (_weigh_by_square_root, ("loss_mask", "loss_token_num")),
}
"""By the name of the normalization: the function that computes weights, and its columns."""
