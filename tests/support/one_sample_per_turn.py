"""The mean over turns by definition: every turn is a sample of its own, after its context."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mtpack.shards.dataset import Row


def compute_mean_over_turns(model: Any, rows: Sequence[Row]) -> Tensor:
    """Return the mean over all turns of rows (`aligned`) of the mean of a turn's token losses.

    Every turn is a sample of its own: its document up to the turn's last token, neither packed nor
    merged with others. model: a causal language model of transformers.
    """
    means = []
    for row in rows:
        document_ends = np.cumsum(row["seq_lengths"])
        turns = itertools.pairwise([*row["turn_starts"].tolist(), len(row["labels"])])
        for start, next_start in turns:
            document = int(np.searchsorted(document_ends, start, side="right"))
            first = document_ends[document] - row["seq_lengths"][document]
            positions = np.flatnonzero(row["labels"][start:next_start] != -100) + start - first
            ids = torch.tensor(row["input_ids"][first : first + positions[-1] + 1].tolist())
            logits = model(input_ids=ids[None], use_cache=False).logits[0]
            means.append(cross_entropy(logits[positions - 1], ids[positions]))
    return torch.stack(means).mean()
