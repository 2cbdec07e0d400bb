"""Packed rows as one flat row, as the models of transformers take them, and what it rests on.

A batch is one row in which positions restart with every document. Whether a model then keeps the
documents apart is its own affair: flash attention goes by `cu_seq_lens_q`, the masks of eager, sdpa
and flex attention by `position_ids` (transformers: masking_utils.find_packed_sequence_indices),
linear attention by `cu_seq_lens_q` and `seq_idx`, where its kernels are installed; a custom
attention perhaps by nothing. None of them says so when it does not. So it is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtpack.errors import InputError
from mtpack.shards.dataset import Row
from mtpack.torch_data import collate

MODEL_INPUTS = (
    "input_ids",
    "position_ids",
    "cu_seq_lens_q",
    "cu_seq_lens_k",
    "max_length_q",
    "max_length_k",
    "seq_idx",
)

_LEAK = 0.1  # of what a document changes when it is seen; rounding in bfloat16 stays below 0.03


def padding_free_batch(rows: Sequence[Row]) -> dict[str, Any]:
    """Build one flat row of rows of `PackedDataset`, whose labels are `aligned`.

    Returns what a model takes, by the names of transformers' DataCollatorWithFlattening:
    `input_ids`, `position_ids`: int64 (1, tokens); `cu_seq_lens_q`, `cu_seq_lens_k`: int32
    (documents + 1,); `max_length_q`, `max_length_k`: int; `seq_idx`: int32 (1, tokens), the number
    of a token's document. And what the loss takes: `labels`: int64, `loss_mask`: uint8,
    `loss_token_num`: int32, all (1, tokens); `loss_positions`: int64 (loss tokens,), where
    `loss_mask` is 1; `turn_num`: int64 (rows,). And `row_numbers`: int64 (rows,), for rows that
    have a `row_number`.

    Raises InputError for labels that are not aligned, and for what `collate` refuses.
    """
    batch = collate(rows)
    flat = {
        name: batch[name].reshape(1, -1)
        for name in ("input_ids", "position_ids", "labels", "loss_mask", "loss_token_num")
    }
    _require_aligned(flat)
    edges, longest = batch["cu_seqlens"], int(batch["max_seqlen"])
    documents = torch.arange(len(edges) - 1, dtype=torch.int32)
    numbers = {}
    if "row_number" in rows[0]:
        numbers["row_numbers"] = torch.tensor([row["row_number"] for row in rows])
    return {
        **flat,
        "cu_seq_lens_q": edges,
        "cu_seq_lens_k": edges,
        "max_length_q": longest,
        "max_length_k": longest,
        "seq_idx": documents.repeat_interleave(edges.diff())[None],
        "loss_positions": flat["loss_mask"][0].nonzero()[:, 0],
        "turn_num": batch["turn_num"],
        **numbers,
    }


def _require_aligned(flat: dict[str, Tensor]) -> None:
    """Refuse labels that a model would shift a second time; rows of `datasets` don't say."""
    trained = flat["loss_mask"].bool()
    if (flat["labels"] != flat["input_ids"])[trained].any():
        raise InputError(
            "labels that are not aligned with input_ids; transformers shifts them itself: "
            'use PackedDataset(path, label_alignment="aligned")'
        )
    if (flat["position_ids"] == 0)[trained].any():
        raise InputError("damaged: a document's first token carries loss; run mtpack verify")


def documents_leak(logits_of: Callable[[dict[str, Any]], Tensor], vocabulary: int) -> bool:
    """Say whether a document sees the one before it in a padding-free batch.

    Another first document must not change the logits of the second. How much it would change them
    if it were seen is measured too, on one document of the same tokens: so rounding, which differs
    between models and types, is not taken for a leak, nor a leak for rounding.

    logits_of: from a batch of `padding_free_batch` to logits, (1, tokens, any), without gradients.
    """

    def effect_of_the_first_half(seq_lengths: list[int]) -> float:
        logits = [
            logits_of(padding_free_batch([_row(first + second, seq_lengths)]))[0, len(first) :]
            for first in first_halves
        ]
        return float((logits[0] - logits[1]).float().norm())

    ids = [number % vocabulary for number in range(24)]
    first_halves, second = (ids[8:16], ids[16:]), ids[:8]
    return effect_of_the_first_half([8, 8]) > _LEAK * effect_of_the_first_half([16])


def _row(input_ids: list[int], seq_lengths: list[int]) -> Row:
    """A row in which nothing is trained."""
    return {
        "input_ids": np.array(input_ids),
        "labels": np.full(len(input_ids), -100),
        "loss_mask": np.zeros(len(input_ids), np.uint8),
        "loss_token_num": np.ones(len(input_ids), np.int32),
        "turn_num": 0,
        "turn_starts": np.empty(0, np.int32),
        "seq_lengths": np.array(seq_lengths),
    }
