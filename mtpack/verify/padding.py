"""Add padding to sequences: after every document, as context parallelism needs, or at the end."""

from __future__ import annotations

import numpy as np

from mtpack.packing.columns import WITHOUT_LOSS, pad_lengths
from mtpack.shards.arrow import TOKEN_COLUMNS
from mtpack.shards.dataset import Row
from mtpack.token_batch import offsets_from_lengths

PADDING = {"input_ids": 0, **WITHOUT_LOSS}
"""The values of columns where nothing is trained."""


def pad_documents(row: Row, multiple: int) -> Row:
    """Pad every entry (document or padding) to a multiple of `multiple`; the sequence grows."""
    lengths = row["seq_lengths"].astype(np.int64)
    padded = pad_lengths(lengths, multiple)
    starts, new_starts = offsets_from_lengths(lengths), offsets_from_lengths(padded)
    positions = np.arange(starts[-1]) + np.repeat((new_starts - starts)[:-1], lengths)
    columns = {}
    for name in TOKEN_COLUMNS:
        columns[name] = np.full(new_starts[-1], PADDING[name], row[name].dtype)
        columns[name][positions] = row[name]
    return {
        **row,
        **columns,
        "turn_starts": positions[row["turn_starts"]].astype(np.int32),
        "seq_lengths": padded.astype(np.int32),
    }


def pad_sequence(row: Row, seq_len: int) -> Row:
    """Add padding at the end of a sequence, up to `seq_len`."""
    missing = seq_len - len(row["input_ids"])
    if not missing:
        return row
    entry = {"seq_lengths": missing, "document_lengths": 0, "dialogue_ids": -1}
    columns = {
        name: np.pad(row[name], (0, missing), constant_values=PADDING[name])
        for name in TOKEN_COLUMNS
    }
    return {
        **row,
        **columns,
        **{name: np.append(row[name], row[name].dtype.type(entry[name])) for name in entry},
    }
