"""The slice of a packed sequence that each context-parallel rank computes (needs torch)."""

from __future__ import annotations

import torch
from torch import Tensor

from mtpack.errors import InputError


def find_positions_on_rank(cu_seqlens: Tensor, size: int, rank: int) -> Tensor:
    """Return the positions of a packed sequence that a context-parallel rank computes, ascending.

    Each document is cut into 2 x size chunks. The rank has chunk number `rank`, counted from the
    front, and the same number from the back. So all ranks compute the same amount of causal
    attention. These are the indices of transformer_engine's `thd_get_partitioned_indices`, which
    its attention uses.

    cu_seqlens: integer (documents + 1,). Returns int64 (tokens / size,).
    Raises InputError if a document can't be cut into 2 x size equal chunks.

    >>> find_positions_on_rank(torch.tensor([0, 8, 12]), size=2, rank=0)
    tensor([ 0,  1,  6,  7,  8, 11])
    """
    lengths = cu_seqlens[1:] - cu_seqlens[:-1]
    if (lengths % (2 * size)).any():
        raise InputError(
            f"documents can't be divided over {size} context-parallel ranks; "
            f"pack with --pad-documents-to {2 * size}, or a multiple of it"
        )
    starts, lengths = (each.repeat_interleave(lengths) for each in (cu_seqlens[:-1], lengths))
    positions = torch.arange(len(starts), device=cu_seqlens.device)
    chunks = (positions - starts) * 2 * size // lengths
    return ((chunks == rank) | (chunks == 2 * size - 1 - rank)).nonzero()[:, 0]
