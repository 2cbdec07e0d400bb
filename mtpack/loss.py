"""The losses that the columns are for, from token losses or from hidden states (torch only).

Every function returns a sum and a count. The loss of a training step is the sum over all
micro-batches and data-parallel ranks, divided once by the sum of the counts. Dividing anything
earlier would weigh tokens, turns or dialogues by where they happened to land.

| normalization | what weighs the same | a loss token of a turn of n weighs | count |
| --- | --- | --- | --- |
| `turn_mean` | every turn | 1 / n | turns |
| `token_mean` | every loss token | 1 | loss tokens |
| `dialogue_mean` | every document | 1 / loss tokens of its document | documents |
| `square_root` | none of them: between turns and tokens | 1 / sqrt(n) | sum of sqrt(n) over turns |
"""

from __future__ import annotations

from torch import Tensor, dtype, float32, int64, promote_types, where


def turn_mean_loss(
    losses: Tensor, loss_mask: Tensor, loss_token_num: Tensor, turn_num: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the sum of the turns' mean losses, and how many turns that were (int64).

    losses: token losses, float (..., seq_len). loss_mask, loss_token_num: as in the shard, of the
    same shape, aligned with the losses. turn_num: as in the shard, (...); where a rank holds a
    slice of the sequences, the turn heads in it. The sum is float32, or float64 for such losses;
    what stands where `loss_mask` is 0 has no part in it, be it NaN. So for all losses here.
    """
    weights, count = _turn_mean(loss_mask, loss_token_num, turn_num, dtype=_sum_dtype(losses))
    return _weighted_sum(losses, weights), count


def token_mean_loss(losses: Tensor, loss_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of the token losses, and how many loss tokens that were (int64).

    The usual mean of cross-entropy, `torch.nn.functional.cross_entropy(reduction="mean")` and the
    frameworks' default; xtuner calls it `token`. losses: float (..., seq_len). loss_mask: as in
    the shard, of the same shape.
    """
    weights, count = _token_mean(loss_mask, dtype=_sum_dtype(losses))
    return _weighted_sum(losses, weights), count


def dialogue_mean_loss(
    losses: Tensor, loss_mask: Tensor, position_ids: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the sum of the documents' mean losses, and how many documents that were (int64).

    xtuner calls it `sample`; LongAlign weighs packed dialogues so (arXiv 2401.18058). A dialogue
    in several documents counts once for each; documents without a loss token do not count.

    losses: float (..., seq_len). loss_mask: as in the shard, of the same shape. position_ids: of
    the same shape, 0 where a document starts; every row starts one. The rows must be whole: a rank
    that holds slices of sequences does not see how long its documents are.
    """
    weights, count = _dialogue_mean(loss_mask, position_ids, dtype=_sum_dtype(losses))
    return _weighted_sum(losses, weights), count


def square_root_loss(
    losses: Tensor, loss_mask: Tensor, loss_token_num: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the sum of the turns' mean losses times the roots of their lengths, and of the roots.

    A turn of n loss tokens weighs sqrt(n): the square averaging of InternVL 2.5 (arXiv 2412.05271),
    per turn; xtuner calls it `square`. The count has the dtype of the sum.

    losses: float (..., seq_len). loss_mask, loss_token_num: as in the shard, of the same shape.
    """
    weights, count = _square_root(loss_mask, loss_token_num, dtype=_sum_dtype(losses))
    return _weighted_sum(losses, weights), count


def _sum_dtype(values: Tensor) -> dtype:
    return promote_types(values.dtype, float32)


def _weighted_sum(losses: Tensor, weights: Tensor) -> Tensor:
    return where(weights != 0, losses.to(weights.dtype) * weights, 0).sum()


# The weight of every token, 0 where it is not trained, and the count that divides the sum.


def _turn_mean(
    loss_mask: Tensor, loss_token_num: Tensor, turn_num: Tensor, *, dtype: dtype
) -> tuple[Tensor, Tensor]:
    weights = where(loss_mask != 0, 1 / loss_token_num.to(dtype), 0)
    return weights, turn_num.sum(dtype=int64)


def _token_mean(loss_mask: Tensor, *, dtype: dtype) -> tuple[Tensor, Tensor]:
    trained = loss_mask != 0
    return trained.to(dtype), trained.sum(dtype=int64)


def _dialogue_mean(
    loss_mask: Tensor, position_ids: Tensor, *, dtype: dtype
) -> tuple[Tensor, Tensor]:
    trained = loss_mask != 0
    starts = position_ids == 0
    starts[..., 0] = True
    documents = starts.flatten().cumsum(0) - 1
    # There are at most as many documents as tokens: a shape that no value decides.
    lengths = documents.new_zeros(documents.shape).index_add(0, documents, trained.flatten().long())
    own_length = lengths[documents].view_as(trained)
    return where(trained, 1 / own_length.to(dtype), 0), (lengths > 0).sum(dtype=int64)


def _square_root(
    loss_mask: Tensor, loss_token_num: Tensor, *, dtype: dtype
) -> tuple[Tensor, Tensor]:
    weights = where(loss_mask != 0, loss_token_num.to(dtype).rsqrt(), 0)
    return weights, weights.sum()
