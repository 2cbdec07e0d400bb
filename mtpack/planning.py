"""Which document goes where: lengths in, sequences out. Integers only.

Lengths are small integers and many documents share one, so the plan is made on the *histogram* of
lengths (a cutting-stock problem), not on the documents: take the longest length that is left,
fill the rest of the sequence exactly with lengths that are left, and use that pattern as often as
the counts allow. The work grows with the number of distinct lengths, not of documents.

Which document of a length goes into which pattern, the order of documents in a sequence and the
order of sequences are drawn from the seed, so packing does not sort the data by length.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from mtpack.turns import Int64, expand_ranges, offsets_of

_Order = Callable[[tuple[int, int]], tuple[int, int]]


def _longest(item: tuple[int, int]) -> tuple[int, int]:
    length, count = item
    return -length, -count


def _commonest(item: tuple[int, int]) -> tuple[int, int]:
    length, count = item
    return -count, -length


# Tried in this order until one meets the lower bound. Long lengths first leaves the short ones,
# which fit anywhere, for later; where there are few short ones, keeping the shape of the
# histogram does better (`tests/test_planning.py` has such a case).
_STRATEGIES: tuple[tuple[_Order, _Order], ...] = (
    (_longest, _longest),
    (_longest, _commonest),
    (_commonest, _commonest),
)


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


def plan_sequences(lengths: Int64, seq_len: int, packing: str, seed: tuple[int, ...]) -> Plan:
    """Place every document into a sequence of at most `seq_len` tokens.

    lengths: int64 (documents,), each from 1 to `seq_len`. packing: `optimal`, or `none` for one
    document a sequence. seed: any non-negative integers.
    """
    if packing == "none":
        return Plan(
            documents=_shuffled(len(lengths), *seed),
            sequence_offsets=np.arange(len(lengths) + 1, dtype=np.int64),
            lower_bound=len(lengths),
        )
    values, counts = np.unique(lengths, return_counts=True)
    histogram = dict(zip(values.tolist(), counts.tolist(), strict=True))
    lower_bound = sequences_lower_bound(histogram, seq_len)
    slots, sequence_sizes = _lay_out(_best_patterns(histogram, seq_len, lower_bound), seed)
    documents = np.empty(len(lengths), dtype=np.int64)
    # Both sides list every length equally often: the k-th slot of a length gets its k-th document.
    by_length = _shuffled(len(lengths), *seed, 1)
    by_length = by_length[np.argsort(lengths[by_length], kind="stable")]
    documents[np.argsort(slots, kind="stable")] = by_length
    return Plan(documents, offsets_of(sequence_sizes), lower_bound)


def sequences_lower_bound(histogram: dict[int, int], seq_len: int) -> int:
    """Return the best of the simple lower bounds on the number of sequences.

    With k = 0 the bound below is ceil(total tokens / seq_len). For k up to seq_len / 2: documents
    longer than seq_len - k share no sequence with any of at least k; those longer than half share
    none with each other; what the rest exceeds the room beside the latter by needs more.
    Martello and Toth (1990), bound L2, where the proof stands.

    >>> sequences_lower_bound({6: 3, 4: 2}, 10)
    3
    >>> sequences_lower_bound({6: 3, 5: 1}, 10)
    4
    """
    if not histogram:
        return 0
    lengths = np.array(sorted(histogram), dtype=np.int64)
    counts = np.array([histogram[length] for length in lengths.tolist()], dtype=np.int64)
    documents_below = offsets_of(counts)
    tokens_below = offsets_of(counts * lengths)
    half = seq_len // 2
    thresholds = np.append(0, lengths[lengths <= half])
    at_least = np.searchsorted(lengths, thresholds)
    above_half = np.searchsorted(lengths, half, side="right")
    alone = np.searchsorted(lengths, seq_len - thresholds, side="right")
    num_alone = documents_below[-1] - documents_below[alone]
    num_above_half = documents_below[alone] - documents_below[above_half]
    room = num_above_half * seq_len - (tokens_below[alone] - tokens_below[above_half])
    small_tokens = tokens_below[above_half] - tokens_below[at_least]
    more = -(-np.maximum(small_tokens - room, 0) // seq_len)
    return int(np.max(num_alone + num_above_half + more))


def _best_patterns(
    histogram: dict[int, int], seq_len: int, lower_bound: int
) -> list[tuple[list[int], int]]:
    """Return the patterns with the fewest sequences among the `_STRATEGIES`, first come first."""
    best: list[tuple[list[int], int]] = []
    fewest = sum(histogram.values()) + 1
    for first, fill in _STRATEGIES:
        patterns = list(_patterns(histogram, seq_len, first, fill))
        num_sequences = sum(times for _, times in patterns)
        if num_sequences < fewest:
            best, fewest = patterns, num_sequences
        if fewest == lower_bound:
            break
    return best


def _patterns(
    histogram: dict[int, int], seq_len: int, first: _Order, fill: _Order
) -> Iterator[tuple[list[int], int]]:
    """Yield (lengths of one sequence, how many sequences have them) until nothing is left.

    A pattern starts with the first length in the order `first`; its room is filled by `fill`.
    """
    left = dict(sorted(histogram.items(), reverse=True))  # and so it stays: longest first
    while left:
        start = next(iter(left)) if first is _longest else min(left.items(), key=first)[0]
        left[start] -= 1
        items = left.items() if fill is _longest else sorted(left.items(), key=fill)
        pattern = Counter(_fullest_fill(items, seq_len - start))
        left[start] += 1
        pattern[start] += 1
        times = min(left[length] // num for length, num in pattern.items())
        for length, num in pattern.items():
            left[length] -= num * times
            if not left[length]:
                del left[length]
        yield sorted(pattern.elements(), reverse=True), times


def _fullest_fill(left: Iterable[tuple[int, int]], room: int) -> list[int]:
    """Choose lengths from `left` (length, count) that fill `room` best.

    A subset-sum by dynamic programming on one Python integer as a bit set: bit s of `reached` is on
    when some choice sums to s. A count c is offered in parts 1, 2, 4, ... that make up every number
    up to c. It stops at the first exact fill, so lengths early in the order are used first.
    """
    full = 1 << room
    within = (full << 1) - 1
    reached = 1
    steps: list[tuple[int, int, int]] = []  # length, how many of it, what was reached before
    for length, count in left:
        most = min(count, room // length)
        part = 1
        while most > 0:
            num = min(part, most)
            steps.append((length, num, reached))
            reached |= (reached << (length * num)) & within
            most -= num
            part *= 2
        if reached & full:
            break
    total = reached.bit_length() - 1
    chosen: list[int] = []
    for length, num, before in reversed(steps):
        if not before >> total & 1:
            chosen += [length] * num
            total -= length * num
    return chosen


def _lay_out(patterns: list[tuple[list[int], int]], seed: tuple[int, ...]) -> tuple[Int64, Int64]:
    """Return the length of every slot and the slots of every sequence, both in shuffled order."""
    sizes = np.repeat(
        np.array([len(pattern) for pattern, _ in patterns], dtype=np.int64),
        np.array([times for _, times in patterns], dtype=np.int64),
    )
    runs = [np.tile(np.array(pattern, dtype=np.int64), times) for pattern, times in patterns]
    slots = np.concatenate([np.empty(0, np.int64), *runs])
    starts = offsets_of(sizes)[:-1]
    order = _shuffled(len(sizes), *seed, 2)
    sizes = sizes[order]
    slots = slots[expand_ranges(starts[order], sizes)]
    # Sorting by (sequence, random) shuffles the documents inside every sequence.
    sequence = np.repeat(np.arange(len(sizes)), sizes)
    return slots[np.lexsort((_random(len(slots), *seed, 3), sequence))], sizes


def _shuffled(num: int, *seed: int) -> Int64:
    return np.argsort(_random(num, *seed), kind="stable")


def _random(num: int, *seed: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    # The raw stream of a bit generator is the part of numpy's randomness that never changes
    # between versions (NEP 19); the shards' bytes depend on it.
    return np.random.PCG64(seed).random_raw(num)
