"""No plan has fewer sequences than the lower bound; the bound is as high as its proofs allow."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtpack.packing import lower_bounds
from mtpack.packing.lower_bounds import sequences_lower_bound
from tests.support.strategies import cases, histogram_of, lengths_within


def fewest_sequences(lengths: list[int], seq_len: int) -> int:
    """Return the fewest sequences, by trying every way to pack the documents."""

    def best(number: int, room: list[int]) -> int:
        if number == len(lengths):
            return len(room)
        tries = [best(number + 1, [*room, seq_len - lengths[number]])]
        for sequence, left in enumerate(room):
            if lengths[number] <= left:
                fuller = [*room]
                fuller[sequence] -= lengths[number]
                tries.append(best(number + 1, fuller))
        return min(tries)

    return best(0, [])


def largest_sum(lengths: list[int], seq_len: int) -> int:
    sums = {0}
    for length in lengths:
        sums |= {total + length for total in sums if total + length <= seq_len}
    return max(sums)


def slow_threshold_bound(lengths: list[int], room: int) -> int:
    """Return the bound L2 as Martello and Toth define it: the best over every threshold k."""
    bounds = [0]
    for k in range(room // 2 + 1):
        alone = [length for length in lengths if length > room - k]
        large = [length for length in lengths if room - k >= length > room / 2]
        small = [length for length in lengths if room / 2 >= length >= k]
        room_left = len(large) * room - sum(large)
        more = -(-max(0, sum(small) - room_left) // room)
        bounds.append(len(alone) + len(large) + more)
    return max(bounds)


def slow_divisor_bound(lengths: list[int], room: int) -> int:
    """Return the bound of Burdett and Johnson as the survey defines it, with C = room / divisor."""

    def weight(x: Fraction, c: Fraction) -> Fraction:
        part = c * x % 1 - c % 1
        return (c * x // 1 + max(Fraction(0), part) / (1 - c % 1)) / (c // 1)

    bounds = [0]
    for divisor in set(lengths):
        c = Fraction(room, divisor)
        bounds.append(-(-sum(weight(Fraction(length, room), c) for length in lengths) // 1))
    return max(bounds)


tiny_cases = st.integers(1, 20).flatmap(
    lambda seq_len: st.tuples(lengths_within(seq_len, max_documents=7), st.just(seq_len))
)


@given(tiny_cases)
def test_the_lower_bound_never_exceeds_the_optimum(case):
    lengths, seq_len = case
    bound = sequences_lower_bound(histogram_of(lengths), seq_len)
    assert bound <= fewest_sequences(lengths.tolist(), seq_len)


@given(cases)
def test_the_lower_bound_is_the_best_over_every_threshold_and_divisor(case):
    lengths, seq_len = case[0].tolist(), case[1]
    room = max(largest_sum(lengths, seq_len), 1)
    slow = max(slow_threshold_bound(lengths, room), slow_divisor_bound(lengths, room))
    assert sequences_lower_bound(histogram_of(case[0]), seq_len) == slow


@given(cases)
def test_the_lower_bound_covers_all_tokens_and_all_documents_above_half(case):
    lengths, seq_len = case
    bound = sequences_lower_bound(histogram_of(lengths), seq_len)
    assert bound >= -(-int(lengths.sum()) // seq_len)
    assert bound >= np.count_nonzero(2 * lengths > seq_len)


@pytest.mark.parametrize(
    ("lengths", "by_tokens"),
    [
        ([8, 8, 4, 4, 4], 3),  # long documents leave no room for medium ones
        ([7, 7, 2, 2, 2], 2),  # no sequence of 10 can be full
        ([4, 4, 4, 4, 4], 2),
        ([4, 4, 4, 4, 4, 2], 3),  # each of 4 takes at least a third
        ([7, 4, 4, 4, 4, 4, 4], 4),  # and 7 leaves no room for a 4
    ],
)
def test_the_lower_bound_can_be_higher_than_the_tokens_alone_require(lengths, by_tokens):
    assert -(-sum(lengths) // 10) == by_tokens
    bound = sequences_lower_bound(histogram_of(lengths), 10)
    assert bound == fewest_sequences(lengths, 10) >= by_tokens


@given(st.integers(1, 2000), st.integers(1, 50), st.integers(1, 1000))
def test_the_lower_bound_of_equal_lengths_is_exact(length, extra, num_documents):
    seq_len = length * extra + length // 2
    assert sequences_lower_bound({length: num_documents}, seq_len) == -(-num_documents // extra)


def test_with_no_work_left_the_bound_is_weaker_but_valid(monkeypatch):
    """The search for the largest sum has the same work limit as the planner."""
    monkeypatch.setattr(lower_bounds, "WORK_LIMIT", 0)
    assert sequences_lower_bound({6: 3, 3: 1}, 10) == 3
    assert sequences_lower_bound({45: 10, 5: 1}, 99) == 5
    monkeypatch.undo()
    assert sequences_lower_bound({45: 10, 5: 1}, 99) == 5
