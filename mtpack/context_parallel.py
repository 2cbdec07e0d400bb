"""What each context-parallel rank holds of a packed sequence (needs torch)."""

from __future__ import annotations

import torch
from torch import Tensor

from mtpack.errors import InputError


def places_on_rank(cu_seqlens: Tensor, size: int, rank: int) -> Tensor:
    """Return which places of a packed sequence a context-parallel rank computes, ascending.

    Each document is cut into 2 x size chunks, of which the rank has one from the front and the
    like one from the back, so that all ranks have as much of the causal attention to do. These are
    the places of transformer_engine's `thd_get_partitioned_indices`, by which its attention goes.

    cu_seqlens: integer (documents + 1,). Returns int64 (places / size,).
    Raises InputError where a document has no 2 x size equal chunks.

    >>> places_on_rank(torch.tensor([0, 8, 12]), size=2, rank=0)
    tensor([ 0,  1,  6,  7,  8, 11])
    """
    lengths = cu_seqlens[1:] - cu_seqlens[:-1]
    if (lengths % (2 * size)).any():
        raise InputError(
            f"documents can't be divided over {size} context-parallel ranks; "
            f"pack with --pad-documents-to {2 * size}, or a multiple of it"
        )
    starts, lengths = (each.repeat_interleave(lengths) for each in (cu_seqlens[:-1], lengths))
    places = torch.arange(len(starts), device=cu_seqlens.device)
    chunks = (places - starts) * 2 * size // lengths
    return ((chunks == rank) | (chunks == 2 * size - 1 - rank)).nonzero()[:, 0]
