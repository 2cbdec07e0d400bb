"""Which document goes where: lengths in, sequences out. Integers only.

How many documents of each length stand together is decided on the histogram of the lengths
(`mtpack.packing.cutting_stock`). Which document of a length it is, the order of documents in a
sequence and the order of sequences are drawn from the seed, so packing does not sort the data by
length.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import PCG64
from numpy.typing import NDArray

from mtpack.packing.cutting_stock import Patterns, in_units, plan_histogram
from mtpack.packing.lower_bounds import sequences_lower_bound
from mtpack.token_batch import Int64, offsets_from_lengths

_Units = NDArray[np.unsignedinteger]


@dataclass(frozen=True, slots=True)
class Plan:
    """Sequences as lists of documents.

    Sequence s holds the documents `documents[sequence_offsets[s]:sequence_offsets[s+1]]`, in order.
    """

    documents: Int64
    """(documents,): every index once."""
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
    """Place every document into a sequence of at most `seq_len` tokens.

    lengths: (documents,), each from 1 to `seq_len`. packing: `optimal`, or `none` for one
    document a sequence. seed: any non-negative integers. Takes some 40 bytes a document.
    """
    num_documents = len(lengths)
    if packing == "none":
        return Plan(
            documents=_shuffled(num_documents, *seed),
            sequence_offsets=np.arange(num_documents + 1, dtype=np.int64),
            lower_bound=num_documents,
        )
    counts = np.bincount(lengths)
    values = np.flatnonzero(counts)
    histogram = dict(zip(values.tolist(), counts[values].tolist(), strict=True))
    lower_bound = sequences_lower_bound(histogram, seq_len)
    found = plan_histogram(histogram, seq_len, lower_bound)
    slots, sequence_sizes = _lay_out(found, seq_len, seed)
    slots_by_length = _grouped(slots)
    documents = _shuffled(num_documents, *seed, 1)
    units = in_units(np.arange(seq_len + 1), found.unit, seq_len).astype(slots.dtype)
    documents = documents[_grouped(units[lengths[documents]])]
    # Both list every length equally often: its k-th slot gets its k-th document.
    placed = np.empty_like(documents)
    placed[slots_by_length] = documents
    return Plan(placed, offsets_from_lengths(sequence_sizes), lower_bound)


def _lay_out(found: Patterns, seq_len: int, seed: tuple[int, ...]) -> tuple[_Units, Int64]:
    """Return the length of every slot, in units, and how many slots every sequence has.

    Sequences, and the slots in each, stand in shuffled order.
    """
    slots, sizes = _slots_of(found, seq_len)
    place = _shuffled(len(sizes), *seed, 2)
    # Sorting (place, random, length) as one integer shuffles sequences, and the slots in each.
    length_bits = np.uint64((seq_len // found.unit).bit_length())
    place_bits = np.uint64(len(sizes).bit_length())
    keys = _random(len(slots), *seed, 3)
    keys >>= place_bits + length_bits
    keys <<= length_bits
    keys |= slots
    keys |= np.repeat(place.view(np.uint64) << (np.uint64(64) - place_bits), sizes)
    keys.sort()
    keys &= (np.uint64(1) << length_bits) - np.uint64(1)
    sizes_in_place = np.empty_like(sizes)
    sizes_in_place[place] = sizes
    return keys.astype(slots.dtype), sizes_in_place


def _slots_of(found: Patterns, seq_len: int) -> tuple[_Units, Int64]:
    """Return the length of every slot, in units, and how many slots every sequence has."""
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


def _grouped(units: _Units) -> Int64:
    """Return the order that sorts `units` and keeps equal ones as they stand.

    numpy sorts 16 bits by radix, four times as fast as wider integers; so those are sorted by
    their lower half, then by their upper one.
    """
    if units.dtype == np.uint16:
        return np.argsort(units, kind="stable")
    order = np.argsort(units.astype(np.uint16), kind="stable")
    return order[np.argsort((units >> 16).astype(np.uint16)[order], kind="stable")]


def _shuffled(num: int, *seed: int) -> Int64:
    """Return the numbers below `num` in random order.

    Each stands in the lowest bits of a random key: sorting the keys in place takes half the time
    of sorting indices by them, and no two are equal, so every algorithm sorts them alike.
    """
    bits = np.uint64(num.bit_length())
    keys = _random(num, *seed)
    keys >>= bits
    keys <<= bits
    keys |= np.arange(num, dtype=np.uint64)
    keys.sort()
    keys &= (np.uint64(1) << bits) - np.uint64(1)
    return keys.view(np.int64)


def _random(num: int, *seed: int) -> NDArray[np.uint64]:
    # The raw stream of a bit generator is the part of numpy's randomness that never changes
    # between versions (NEP 19); the shards' bytes depend on it.
    return PCG64(seed).random_raw(num)
