"""The plan: which documents share a sequence, in which order. Lengths in, indices out.

Documents of many lengths must fill sequences of one length, with as little padding as possible.
Two things are decided separately:

1. Which *lengths* share a sequence. `cutting_stock.py` decides it on the histogram of the lengths.
   There are at most `seq_len` distinct lengths, so the work does not grow with the number of
   documents. The result is a list of patterns, for example "2 documents of 1500 tokens and one of
   1096, 320 times". `lower_bounds.py` proves how many sequences any plan needs at least.
2. Which *document* of that length it is. It is drawn from the seed, like the order of documents in
   a sequence and the order of sequences. So packing does not sort the data by length.

In this file, a *slot* is the room for one document in a sequence: it has a length, and gets a
document last.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import PCG64
from numpy.typing import NDArray

from mtpack.packing.cutting_stock import Patterns, plan_histogram, to_units
from mtpack.packing.lower_bounds import sequences_lower_bound
from mtpack.token_batch import Int64, offsets_from_lengths

_Units = NDArray[np.unsignedinteger]


@dataclass(frozen=True, slots=True)
class Plan:
    """The documents of every sequence.

    Sequence s holds the documents `documents[sequence_offsets[s]:sequence_offsets[s+1]]`, in order.
    """

    documents: Int64
    """(documents,): indices of documents, each index once."""
    sequence_offsets: Int64
    """(sequences + 1,)"""
    lower_bound: int
    """No plan for these lengths can have fewer sequences."""

    @property
    def num_sequences(self) -> int:
        """The number of sequences."""
        return len(self.sequence_offsets) - 1


def plan_sequences(
    lengths: NDArray[np.signedinteger], seq_len: int, packing: str, seed: tuple[int, ...]
) -> Plan:
    """Assign every document to a sequence of at most `seq_len` tokens.

    lengths: (documents,), each from 1 to `seq_len`. packing: `dense`, or `none` for one document
    per sequence. seed: any non-negative integers. Needs about 40 bytes of memory per document.
    """
    num_documents = len(lengths)
    if packing == "none":
        return Plan(
            documents=_draw_permutation(num_documents, *seed),
            sequence_offsets=np.arange(num_documents + 1, dtype=np.int64),
            lower_bound=num_documents,
        )
    counts = np.bincount(lengths)
    values = np.flatnonzero(counts)
    histogram = dict(zip(values.tolist(), counts[values].tolist(), strict=True))
    lower_bound = sequences_lower_bound(histogram, seq_len)
    found = plan_histogram(histogram, seq_len, lower_bound)
    slots, sequence_sizes = _shuffle_slots(found, seq_len, seed)
    slots_by_length = _argsort(slots)
    documents = _draw_permutation(num_documents, *seed, 1)
    units = to_units(np.arange(seq_len + 1), found.unit, seq_len).astype(slots.dtype)
    documents = documents[_argsort(units[lengths[documents]])]
    # Every length has as many slots as documents: its k-th slot gets its k-th document.
    document_of_slot = np.empty_like(documents)
    document_of_slot[slots_by_length] = documents
    return Plan(document_of_slot, offsets_from_lengths(sequence_sizes), lower_bound)


def _shuffle_slots(found: Patterns, seq_len: int, seed: tuple[int, ...]) -> tuple[_Units, Int64]:
    """Return the length of every slot, in units, and the number of slots in every sequence.

    The sequences are in random order, and so are the slots in each.
    """
    slots, sizes = _list_slots(found, seq_len)
    rank = _draw_permutation(len(sizes), *seed, 2)
    # Sorting keys (rank of the sequence, random, length), each one integer, shuffles the sequences
    # and the slots in each.
    length_bits = np.uint64((seq_len // found.unit).bit_length())
    rank_bits = np.uint64(len(sizes).bit_length())
    keys = _draw_keys(len(slots), *seed, 3)
    keys >>= rank_bits + length_bits
    keys <<= length_bits
    keys |= slots
    keys |= np.repeat(rank.view(np.uint64) << (np.uint64(64) - rank_bits), sizes)
    keys.sort()
    keys &= (np.uint64(1) << length_bits) - np.uint64(1)
    shuffled_sizes = np.empty_like(sizes)
    shuffled_sizes[rank] = sizes
    return keys.astype(slots.dtype), shuffled_sizes


def _list_slots(found: Patterns, seq_len: int) -> tuple[_Units, Int64]:
    """Return the length of every slot, in units, and the number of slots in every sequence."""
    times = np.array([pattern.times for pattern in found.patterns], dtype=np.int64)
    sizes = np.array([sum(pattern.nums.values()) for pattern in found.patterns], dtype=np.int64)
    dtype = np.uint16 if seq_len // found.unit < 2**16 else np.uint32
    slots: _Units = np.empty(int(times @ sizes), dtype=dtype)
    offsets = offsets_from_lengths(times * sizes)
    for pattern, start, end in zip(found.patterns, offsets[:-1], offsets[1:], strict=True):
        lengths = np.array(list(pattern.nums), dtype=slots.dtype)
        sequence = np.repeat(lengths, list(pattern.nums.values()))
        slots[start:end].reshape(pattern.times, len(sequence))[:] = sequence
    return slots, np.repeat(sizes, times)


def _argsort(units: _Units) -> Int64:
    """Return the indices that sort `units`; equal values keep their order.

    numpy uses radix sort for 16 bits, which is four times as fast as its sort of wider integers. So
    wider ones are sorted by their lower half, then by their upper half.
    """
    if units.dtype == np.uint16:
        return np.argsort(units, kind="stable")
    order = np.argsort(units.astype(np.uint16), kind="stable")
    return order[np.argsort((units >> 16).astype(np.uint16)[order], kind="stable")]


def _draw_permutation(num: int, *seed: int) -> Int64:
    """Return the numbers below `num` in random order.

    Each number is in the lowest bits of a random key. Sorting the keys in place takes half the time
    of `argsort`, and no two keys are equal, so every sorting algorithm gives the same order.
    """
    bits = np.uint64(num.bit_length())
    keys = _draw_keys(num, *seed)
    keys >>= bits
    keys <<= bits
    keys |= np.arange(num, dtype=np.uint64)
    keys.sort()
    keys &= (np.uint64(1) << bits) - np.uint64(1)
    return keys.view(np.int64)


def _draw_keys(num: int, *seed: int) -> NDArray[np.uint64]:
    """Return random integers of 64 bits, (num,)."""
    # The raw stream of a bit generator is the part of numpy's randomness that never changes
    # between versions (NEP 19); the shards' bytes depend on it.
    return PCG64(seed).random_raw(num)
