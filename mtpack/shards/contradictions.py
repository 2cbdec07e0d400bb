"""Compare the metadata of a shard with its columns, as far as a look at one record batch shows."""

from __future__ import annotations

import numpy as np

from mtpack.packing.columns import Columns
from mtpack.packing.label_alignment import ALIGNMENTS
from mtpack.shards.arrow import ShardMetadata
from mtpack.token_batch import expand_ranges, offsets_from_lengths


def find_contradiction(columns: Columns, metadata: ShardMetadata) -> str | None:
    """Return how columns contradict the metadata of their shard, in words; None if they do not.

    It looks at the lists, at the padding, and at the labels of the first sequence. A batch whose
    documents do not fill its sequences is damaged, which is for others to find.
    """
    lengths, documents = columns.seq_lengths.astype(np.int64), columns.document_lengths
    starts = offsets_from_lengths(lengths)
    edges = np.arange(len(columns.turn_num) + 1) * metadata.seq_len
    if (
        not np.array_equal(starts[columns.entry_offsets], edges)
        or (documents < 0).any()
        or (lengths < documents).any()
    ):
        return None
    multiple = metadata.pad_documents_to
    if (lengths % multiple).any():
        return f"pad_documents_to is {multiple}, but a document is padded to another multiple"
    padding = expand_ranges(starts[:-1] + documents, lengths - documents)
    if (columns.input_ids.ravel()[padding] != metadata.pad_id).any():
        return f"pad_id is {metadata.pad_id}, but there are other ids in the padding"
    aligned = _have_alignment(columns, metadata.label_alignment)
    if not aligned and any(_have_alignment(columns, other) for other in ALIGNMENTS):
        return f"label_alignment is {metadata.label_alignment}, but the labels have the other one"
    return None


def _have_alignment(columns: Columns, label_alignment: str) -> bool:
    """Return whether all labels of the first sequence are the ids at their place, or the next."""
    if not len(columns.turn_num):
        return True
    (trained,) = columns.loss_mask[0].nonzero()
    places = trained + (1 if label_alignment == "shifted" else 0)
    if len(places) and places[-1] >= columns.input_ids.shape[1]:
        return False
    return np.array_equal(columns.labels[0, trained], columns.input_ids[0, places])
