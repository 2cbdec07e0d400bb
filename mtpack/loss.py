"""The loss in which every turn weighs the same, from the columns of the shards (torch only)."""

from __future__ import annotations

from torch import Tensor


def turn_mean_loss(
    losses: Tensor, loss_mask: Tensor, loss_token_num: Tensor, turn_num: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the sum of the turns' mean losses, and how many turns that were.

    The loss of a training step is the first, summed over all micro-batches and data-parallel
    ranks, divided once by the second, summed likewise. Dividing anything earlier would weigh turns
    by where they landed.

    losses: token losses, float (..., seq_len). loss_mask, loss_token_num: as in the shard, of the
    same shape. turn_num: as in the shard, (...).
    """
    weights = loss_mask.to(losses.dtype) / loss_token_num.to(losses.dtype)
    return (losses * weights).sum(), turn_num.sum()
