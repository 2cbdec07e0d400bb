"""Read the record batches of shards one after the other; shards may be damaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np

from mtpack.errors import InputError
from mtpack.packing.columns import Columns
from mtpack.shards.dataset import Shards
from mtpack.token_batch import offsets_from_lengths
from mtpack.turn_weight import MAX_WEIGHT
from mtpack.verify.weights import TurnWeights, read_turn_weights

_Result = TypeVar("_Result")


def visit_batches(shards: Shards, visit: Callable[[int, Columns], _Result]) -> Iterator[_Result]:
    """Yield what `visit` returns for the number of a batch's first sequence, and the batch.

    Raises InputError, which names the shard, if the documents of a batch do not fit into its
    sequences, or if `visit` raises one.
    """
    first = 0
    for shard in shards.opened:
        for batch in shard.map_again():
            try:
                _require_documents(batch, shards.metadata.seq_len)
                result = visit(first, batch)
            except InputError as error:
                raise InputError(f"{shard.path}: damaged: {error}; pack the data again") from error
            yield result
            first += len(batch.turn_num)


def _require_documents(batch: Columns, seq_len: int) -> None:
    entries, lengths = batch.seq_lengths, batch.document_lengths
    edges = np.arange(len(batch.turn_num) + 1) * seq_len
    if (entries < 0).any() or (offsets_from_lengths(entries)[batch.entry_offsets] != edges).any():
        raise InputError("the lengths of documents do not add up to seq_len")
    if (lengths < (batch.dialogue_ids >= 0)).any() or (lengths > entries).any():
        raise InputError("a document has an impossible length")
    if (np.diff(batch.turn_offsets) < 1).any() or (np.diff(batch.entry_offsets) < 1).any():
        raise InputError("a sequence has no turn or no document")


def read_turns(batch: Columns, seq_len: int) -> TurnWeights:
    """Return the turns of a record batch that `visit_batches` gives.

    Raises InputError if its columns contradict each other.
    """
    if not np.array_equal(batch.turn_num, np.diff(batch.turn_offsets)):
        raise InputError("turn_num and turn_starts do not agree")
    starts = batch.turn_starts
    if starts.size and not 0 <= starts.min() <= starts.max() < seq_len:
        raise InputError("a turn starts outside of its sequence")
    turns = read_turn_weights(batch, seq_len)
    lengths = turns.loss_tokens
    if lengths.size and not 1 <= lengths.min() <= lengths.max() <= seq_len:
        raise InputError("a turn has an impossible length")
    if lengths.sum() != np.count_nonzero(batch.loss_mask):
        raise InputError("loss_mask and loss_token_num do not agree")
    if turns.own is not None and not ((turns.own > 0) & (turns.own <= MAX_WEIGHT)).all():
        raise InputError("turn_weights has no weight of a turn")
    return turns
