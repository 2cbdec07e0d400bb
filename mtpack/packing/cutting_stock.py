"""A histogram of lengths to sequences of few patterns: a cutting-stock problem. Integers only.

Take the first length that is left, fill the rest of the sequence exactly with lengths that are
left, and use that pattern as often as the counts allow. The work grows with the number of distinct
lengths, not of documents, and it is bounded by counting operations, never seconds: the same
histogram gives the same patterns everywhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mtpack.token_batch import Int64

WORK = 2**35
"""Bits that the fills of a plan may look at: 3 to 7 s of a core. Then fills are greedy."""
STEP = 2**11
"""What one length costs in a fill beside the bits of the room, in bits."""
_PATTERN = 2**18
"""What one pattern costs beside its fill, in bits."""
_FILL = 2**24
"""Bits that one exact fill may look at, where each length is tried once; others start greedily."""
_ROUNDS = 12
"""How often a histogram is planned at most; most of what is won, the first five rounds win."""
_COARSE = 2**11
"""Planning in a coarse unit loses at most about one sequence in so many."""
_FRACTION = 2**12
"""A plan is good enough when it exceeds the bound by less than one sequence in so many."""


class Pattern(NamedTuple):
    """Sequences that hold the same lengths."""

    nums: dict[int, int]
    """How many documents of each length one of them has."""
    times: int
    """How many there are."""


@dataclass(frozen=True, slots=True)
class Patterns:
    """Sequences that use up a histogram."""

    patterns: list[Pattern]
    unit: int = 1
    """Lengths in the patterns are in units of so many tokens, rounded up (see `in_units`)."""

    @property
    def num_sequences(self) -> int:
        """The number of sequences."""
        return sum(pattern.times for pattern in self.patterns)


def in_units(lengths: Int64, unit: int, seq_len: int) -> Int64:
    """Return lengths in whole units, rounded up; what does not fit in so, fills a sequence alone.

    >>> in_units(np.array([8, 9, 99]), 10, 99).tolist()
    [1, 1, 9]
    """
    return np.minimum(-(-lengths // unit), seq_len // unit)


def plan_histogram(histogram: dict[int, int], seq_len: int, lower_bound: int) -> Patterns:
    """Return patterns that use up the histogram, in few sequences.

    histogram: how many documents have each length, from 1 to `seq_len`. Where few long documents
    share a sequence, exact fills are costly and not needed: those are planned in a coarse unit as
    well, chosen so that rounding up loses at most about what is good enough anyway.
    """
    unit = lower_bound * seq_len * 2 // (_COARSE * max(1, sum(histogram.values())))
    unit = 1 << max(0, unit.bit_length() - 1)  # halves and quarters of sequences stay such
    if unit == 1:
        return Patterns(_plan_in_rounds(histogram, seq_len, lower_bound, _ROUNDS, WORK))
    exact = Patterns(_plan_in_rounds(histogram, seq_len, lower_bound, 1, WORK // 2))
    if _is_good_enough(exact.num_sequences, lower_bound):
        return exact
    rounded: Counter[int] = Counter()
    lengths = in_units(np.array(list(histogram), dtype=np.int64), unit, seq_len)
    for length, count in zip(lengths.tolist(), histogram.values(), strict=True):
        rounded[length] += count
    coarse = _plan_in_rounds(rounded, seq_len // unit, lower_bound, _ROUNDS, WORK // 2)
    return min(exact, Patterns(coarse, unit), key=lambda plan: plan.num_sequences)


def _is_good_enough(num_sequences: int, lower_bound: int) -> bool:
    return num_sequences - lower_bound <= lower_bound // _FRACTION


def _plan_in_rounds(
    histogram: dict[int, int], seq_len: int, lower_bound: int, rounds: int, work: int
) -> list[Pattern]:
    """Plan the histogram in at most so many rounds and return the best one's patterns.

    The first takes long lengths first: the short ones fit anywhere, later. Where there are few of
    those, some lengths end up in sequences that are not full; each is blamed for the room
    wasted there and comes earlier in the next round ("squeaky wheel" optimization, Joslin and
    Clements 1999).
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
        blame += _wasted_beside(patterns, lengths, seq_len) * 1000 // (counts * seq_len)
    return best


def _plan_in_order(
    lengths: Int64, counts: Int64, seq_len: int, work: int
) -> tuple[list[Pattern], int]:
    """Use up the counts, lengths early in the order first; return what is left of `work`, too."""
    left = counts.copy()
    places = dict(zip(lengths.tolist(), range(len(lengths)), strict=True))
    patterns = []
    for first, start in enumerate(lengths.tolist()):
        while left[first]:
            left[first] -= 1
            nums, looked_at = _fill(lengths[first:], left[first:], seq_len - start, work)
            work -= looked_at + _PATTERN
            left[first] += 1
            nums[start] = nums.get(start, 0) + 1
            used = [places[length] for length in nums]
            of_each = np.array(list(nums.values()))
            times = int((left[used] // of_each).min())
            left[used] -= times * of_each
            patterns.append(Pattern(nums, times))
    return patterns, work


def _fill(lengths: Int64, left: Int64, room: int, work: int) -> tuple[dict[int, int], int]:
    """Choose how many of each length go into `room`; return also what that looked at.

    As many as fit of what comes first, until an exact fill of the rest costs at most `_FILL` and
    what is left of `work`: with nothing left, and long lengths first, this is first-fit decreasing.
    """
    limit = max(0, min(_FILL, work))
    chosen: dict[int, int] = {}
    fitting = np.flatnonzero((lengths <= room) & (left > 0))
    while len(fitting) * (room + STEP) > limit:
        length = int(lengths[fitting[0]])
        chosen[length] = min(int(left[fitting[0]]), room // length)
        room -= chosen[length] * length
        fitting = fitting[1:]
        fitting = fitting[lengths[fitting] <= room]
    if not len(fitting):
        return chosen, 0
    # Most fills end early, and these views make a Python integer of what is looked at alone.
    exactly, looked_at = fullest_fill(lengths[fitting].data, left[fitting].data, room)
    return chosen | exactly, looked_at


def fullest_fill(
    lengths: Iterable[int], left: Iterable[int], room: int
) -> tuple[dict[int, int], int]:
    """Choose how many of each length fill `room` best; return also the bits looked at.

    A subset-sum by dynamic programming on one Python integer as a bit set: bit r of `lefts` is on
    when some choice leaves r of the room, so what does not fit is shifted out. A count c is offered
    in parts 1, 2, 4, ... that make up every number up to c. It stops at the first exact fill, so
    lengths early in the order are used first.
    """
    lefts = 1 << room
    steps: list[tuple[int, int, int]] = []  # length, how many of it, what could be left before
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
    return chosen, len(steps) * (room + STEP)


def _wasted_beside(patterns: list[Pattern], lengths: Int64, seq_len: int) -> Int64:
    """Sum up, for every length, the room that is wasted in the sequences of its documents."""
    wasted = dict.fromkeys(lengths.tolist(), 0)
    for nums, times in patterns:
        waste = seq_len - sum(length * num for length, num in nums.items())
        if waste:
            for length, num in nums.items():
                wasted[length] += waste * num * times
    return np.array(list(wasted.values()), dtype=np.int64)
