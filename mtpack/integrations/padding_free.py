"""Padding-free batches for the models of transformers, and a check that documents stay separate.

A batch is one flat row in which positions restart with every document. It depends on the model
whether its documents stay separate: flash attention uses `cu_seq_lens_q`; the masks of eager, sdpa
and flex attention use `position_ids` (transformers: masking_utils.find_packed_sequence_indices);
linear attention uses `cu_seq_lens_q` and `seq_idx`, if its kernels are installed; a custom
attention may use none of them. A model that ignores them reports nothing. So `documents_leak`
measures it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtpack.errors import InputError
from mtpack.packing.columns import WITHOUT_LOSS
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

_TOKEN_COLUMNS = ("input_ids", "position_ids", "labels", "loss_mask", "loss_token_num")
_LEAK = 0.1  # of the effect of a visible document; rounding in bfloat16 stays below 0.03


def padding_free_batch(rows: Sequence[Row]) -> dict[str, Any]:
    """Concatenate sequences of `PackedDataset`, with `aligned` labels, into one flat row.

    Returns the inputs of a model, with the names of transformers' DataCollatorWithFlattening:
    `input_ids`, `position_ids`: int64 (1, tokens); `cu_seq_lens_q`, `cu_seq_lens_k`: int32
    (documents + 1,); `max_length_q`, `max_length_k`: int; `seq_idx`: int32 (1, tokens), the number
    of a token's document. Also the inputs of the loss: `labels`: int64, `loss_mask`: uint8,
    `loss_token_num`: int32, all (1, tokens); `loss_positions`: int64 (loss tokens,), the positions
    where `loss_mask` is 1; `turn_num`: int64 (sequences,); `turn_weight`: float32 (1, tokens) and
    `weight_sum`: float64 (sequences,), if the turns have weights. If they have a `row_number`, also
    `row_numbers`: int64 (sequences,).

    Raises InputError for labels that are not aligned, and for sequences that `collate` refuses.
    """
    batch = collate(rows)
    flat = {
        name: batch[name].reshape(1, -1)
        for name in (*_TOKEN_COLUMNS, "turn_weight")
        if name in batch
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
        **{name: batch[name] for name in ("turn_num", "weight_sum") if name in batch},
        **numbers,
    }


def _require_aligned(flat: dict[str, Tensor]) -> None:
    """Refuse labels that a model would shift again; `datasets` does not know the alignment."""
    trained = flat["loss_mask"].bool()
    if (flat["labels"] != flat["input_ids"])[trained].any():
        raise InputError(
            "labels are not aligned with input_ids, but transformers shifts labels itself; "
            'use PackedDataset(path, label_alignment="aligned")'
        )
    if (flat["position_ids"] == 0)[trained].any():
        raise InputError("damaged: a document's first token carries loss; run mtpack verify")


def documents_leak(logits_of: Callable[[dict[str, Any]], Tensor], vocabulary: int) -> bool:
    """Return whether a document sees the one before it in a padding-free batch.

    The batch has two documents. A change of the first must not change the logits of the second. The
    same change is also measured with both as one document, where the model does see it. A leak is
    judged relative to that effect, because rounding differs between models and dtypes.

    logits_of: computes logits (1, tokens, any) of a batch of `padding_free_batch`, without
    gradients.
    """

    def measure_effect(seq_lengths: list[int]) -> float:
        logits = [
            logits_of(padding_free_batch([_build_row(first + second, seq_lengths)]))[
                0, len(first) :
            ]
            for first in first_halves
        ]
        return float((logits[0] - logits[1]).float().norm())

    ids = [number % vocabulary for number in range(24)]
    first_halves, second = (ids[8:16], ids[16:]), ids[:8]
    return measure_effect([8, 8]) > _LEAK * measure_effect([16])


def _build_row(input_ids: list[int], seq_lengths: list[int]) -> Row:
    """Build a sequence without loss tokens."""
    return {
        "input_ids": np.array(input_ids),
        **{name: np.full(len(input_ids), value) for name, value in WITHOUT_LOSS.items()},
        "turn_num": 0,
        "turn_starts": np.empty(0, np.int32),
        "seq_lengths": np.array(seq_lengths),
    }
