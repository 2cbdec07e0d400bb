"""Fill sequences from a histogram of lengths: a cutting-stock problem. Only integers.

Take the first length that is left. Fill the rest of the sequence exactly, with other lengths that
are left. Use this pattern as often as the counts allow, and repeat. The work grows with the number
of distinct lengths, not with the number of documents. It is limited by counting operations, never
by measuring time, so the same histogram gives the same patterns on every machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mtpack.token_batch import Int64

WORK_LIMIT = 2**35
"""Bits that the exact fills of a plan may read: 3 to 7 s on one core. Later fills are greedy."""
STEP_WORK = 2**11
"""The cost of one step of a fill in bits, in addition to the bits of the room."""
_PATTERN_WORK = 2**18
"""The cost of one pattern in bits, in addition to its fill."""
_FILL_WORK_LIMIT = 2**24
"""Bits that one exact fill may read, with one step per length; larger fills start greedily."""
_MAX_ROUNDS = 12
"""The most rounds of planning; most of the gain comes from the first five."""
_COARSE_TOLERANCE = 2**11
"""Planning in a coarse unit loses at most about one sequence in this many."""
_TOLERANCE = 2**12
"""A plan is good enough if it exceeds the bound by less than one sequence in this many."""


class Pattern(NamedTuple):
    """Sequences that hold the same lengths."""

    nums: dict[int, int]
    """The number of documents of each length in one sequence."""
    times: int
    """The number of such sequences."""


@dataclass(frozen=True, slots=True)
class Patterns:
    """Patterns that together use up a histogram."""

    patterns: list[Pattern]
    unit: int = 1
    """Lengths in the patterns are in units of this many tokens, rounded up (see `to_units`)."""

    @property
    def num_sequences(self) -> int:
        """The number of sequences."""
        return sum(pattern.times for pattern in self.patterns)


def to_units(lengths: Int64, unit: int, seq_len: int) -> Int64:
    """Return lengths in whole units, rounded up, but at most those that fit into a sequence.

    >>> to_units(np.array([8, 9, 99]), 10, 99).tolist()
    [1, 1, 9]
    """
    return np.minimum(-(-lengths // unit), seq_len // unit)


def plan_histogram(histogram: dict[int, int], seq_len: int, lower_bound: int) -> Patterns:
    """Return patterns that use up the histogram in few sequences.

    histogram: the number of documents of each length, from 1 to `seq_len`. If only few, long
    documents share a sequence, exact fills are costly and not needed. Then the histogram is also
    planned in a coarse unit, and the better plan is used. The unit is chosen so that rounding up
    loses about as few sequences as the tolerance allows.
    """
    unit = lower_bound * seq_len * 2 // (_COARSE_TOLERANCE * max(1, sum(histogram.values())))
    unit = 1 << max(0, unit.bit_length() - 1)  # a power of 2 keeps half a sequence exact
    if unit == 1:
        return Patterns(_plan_in_rounds(histogram, seq_len, lower_bound, _MAX_ROUNDS, WORK_LIMIT))
    exact = Patterns(_plan_in_rounds(histogram, seq_len, lower_bound, 1, WORK_LIMIT // 2))
    if _is_good_enough(exact.num_sequences, lower_bound):
        return exact
    rounded: Counter[int] = Counter()
    lengths = to_units(np.array(list(histogram), dtype=np.int64), unit, seq_len)
    for length, count in zip(lengths.tolist(), histogram.values(), strict=True):
        rounded[length] += count
    coarse = _plan_in_rounds(rounded, seq_len // unit, lower_bound, _MAX_ROUNDS, WORK_LIMIT // 2)
    return min(exact, Patterns(coarse, unit), key=lambda plan: plan.num_sequences)


def _is_good_enough(num_sequences: int, lower_bound: int) -> bool:
    return num_sequences - lower_bound <= lower_bound // _TOLERANCE


def _plan_in_rounds(
    histogram: dict[int, int], seq_len: int, lower_bound: int, rounds: int, work: int
) -> list[Pattern]:
    """Plan the histogram in at most `rounds` rounds and return the patterns of the best one.

    The first round takes long lengths first, because short ones fit anywhere later. If there are
    few short ones, some sequences are not full. The lengths in them are blamed for the wasted room
    and come earlier in the next round ("squeaky wheel" optimization, Joslin and Clements 1999).
    """
    lengths = np.array(sorted(histogram, reverse=True), dtype=np.int64)
    counts = np.array([histogram[length] for length in lengths.tolist()], dtype=np.int64)
    blame = np.zeros(len(lengths), dtype=np.int64)
    best: list[Pattern] = []
    fewest = int(counts.sum()) + 1
    for _ in range(rounds):
        order = np.argsort(-blame, kind="stable")
        patterns, work = _plan_in_order(lengths[order], counts[order], seq_len, work)
        num_sequences = sum(pattern.times for pattern in patterns)
        if num_sequences < fewest:
            best, fewest = patterns, num_sequences
        if _is_good_enough(fewest, lower_bound) or work <= 0:
            break
        # In thousandths of a sequence for each document.
        blame += _sum_waste(patterns, lengths, seq_len) * 1000 // (counts * seq_len)
    return best


def _plan_in_order(
    lengths: Int64, counts: Int64, seq_len: int, work: int
) -> tuple[list[Pattern], int]:
    """Use up the counts, in the order of the lengths; return the patterns and the work left."""
    left = counts.copy()
    index_of = dict(zip(lengths.tolist(), range(len(lengths)), strict=True))
    patterns = []
    for first, start in enumerate(lengths.tolist()):
        while left[first]:
            left[first] -= 1
            nums, bits_read = _fill(lengths[first:], left[first:], seq_len - start, work)
            work -= bits_read + _PATTERN_WORK
            left[first] += 1
            nums[start] = nums.get(start, 0) + 1
            used = [index_of[length] for length in nums]
            of_each = np.array(list(nums.values()))
            times = int((left[used] // of_each).min())
            left[used] -= times * of_each
            patterns.append(Pattern(nums, times))
    return patterns, work


def _fill(lengths: Int64, left: Int64, room: int, work: int) -> tuple[dict[int, int], int]:
    """Choose how many of each length go into `room`; return them and the bits read.

    Take as many as fit of each length in order, until an exact fill of the rest costs at most
    `_FILL_WORK_LIMIT` and at most `work`. If no work is left and long lengths come first, this is
    first-fit decreasing.
    """
    limit = max(0, min(_FILL_WORK_LIMIT, work))
    chosen: dict[int, int] = {}
    fitting = np.flatnonzero((lengths <= room) & (left > 0))
    while len(fitting) * (room + STEP_WORK) > limit:
        length = int(lengths[fitting[0]])
        chosen[length] = min(int(left[fitting[0]]), room // length)
        room -= chosen[length] * length
        fitting = fitting[1:]
        fitting = fitting[lengths[fitting] <= room]
    if not len(fitting):
        return chosen, 0
    # Most fills end early. Iterating these views makes Python integers only of what is read.
    exactly, bits_read = find_fullest_fill(lengths[fitting].data, left[fitting].data, room)
    return chosen | exactly, bits_read


def find_fullest_fill(
    lengths: Iterable[int], left: Iterable[int], room: int
) -> tuple[dict[int, int], int]:
    """Choose how many of each length fill `room` best; return them and the bits read.

    This solves subset sum by dynamic programming, with one Python integer as a bit set: bit r of
    `lefts` is set if some choice leaves r of the room. Choices that do not fit are shifted out. A
    count c is split into parts 1, 2, 4, ... whose sums are all numbers up to c. The search stops at
    the first exact fill, so lengths early in the order are used first.
    """
    lefts = 1 << room
    steps: list[tuple[int, int, int]] = []  # length, number of documents, `lefts` before the step
    for length, count in zip(lengths, left, strict=True):
        most = room // length
        if count < most:  # `min` would take as long as a step
            most = count
        part = 1
        while most > 0:
            num = part if part < most else most
            steps.append((length, num, lefts))
            lefts |= lefts >> length * num
            most -= num
            part *= 2
        if lefts & 1:
            break
    rest = (lefts & -lefts).bit_length() - 1
    chosen: dict[int, int] = {}
    for length, num, before in reversed(steps):
        if not before >> rest & 1:
            chosen[length] = chosen.get(length, 0) + num
            rest += length * num
    return chosen, len(steps) * (room + STEP_WORK)


def _sum_waste(patterns: list[Pattern], lengths: Int64, seq_len: int) -> Int64:
    """Return for every length the room wasted in the sequences of its documents, summed."""
    wasted = dict.fromkeys(lengths.tolist(), 0)
    for nums, times in patterns:
        waste = seq_len - sum(length * num for length, num in nums.items())
        if waste:
            for length, num in nums.items():
                wasted[length] += waste * num * times
    return np.array(list(wasted.values()), dtype=np.int64)
