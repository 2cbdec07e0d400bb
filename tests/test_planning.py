"""Every document has one place, no sequence overflows, and there are few sequences."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtpack import planning
from mtpack.planning import Plan, plan_sequences, sequences_lower_bound
from tests.strategies import lengths_within, seeds, seq_lens


def sequences_of(plan: Plan) -> list[list[int]]:
    """The documents of every sequence."""
    return [
        plan.documents[start:end].tolist()
        for start, end in pairwise(plan.sequence_offsets.tolist())
    ]


def lengths_of(plan: Plan, lengths) -> list[list[int]]:
    """The lengths of the documents of every sequence."""
    return [lengths[sequence].tolist() for sequence in sequences_of(plan)]


def histogram_of(lengths) -> dict[int, int]:
    values, counts = np.unique(lengths, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def fewest_sequences(lengths: list[int], seq_len: int) -> int:
    """Try every way to put the documents into sequences."""

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


def slow_lower_bound(lengths: list[int], seq_len: int) -> int:
    """Martello and Toth's L2, as in their paper: the best over every threshold k."""
    bounds = [0]
    for k in range(seq_len // 2 + 1):
        alone = [length for length in lengths if length > seq_len - k]
        large = [length for length in lengths if seq_len - k >= length > seq_len / 2]
        small = [length for length in lengths if seq_len / 2 >= length >= k]
        beside = len(large) * seq_len - sum(large)
        more = -(-max(0, sum(small) - beside) // seq_len)
        bounds.append(len(alone) + len(large) + more)
    return max(bounds)


cases = seq_lens.flatmap(lambda seq_len: st.tuples(lengths_within(seq_len), st.just(seq_len)))
"""(lengths, seq_len)"""

tiny_cases = st.integers(1, 20).flatmap(
    lambda seq_len: st.tuples(lengths_within(seq_len, max_documents=7), st.just(seq_len))
)

packings = st.sampled_from(["optimal", "none"])


@pytest.fixture(scope="module")
def many_lengths():
    return np.random.default_rng(0).integers(1, 101, 2000)


@given(cases, packings, seeds)
def test_every_document_is_placed_exactly_once(case, packing, seed):
    lengths, seq_len = case
    plan = plan_sequences(lengths, seq_len, packing, seed)
    assert sorted(plan.documents.tolist()) == list(range(len(lengths)))
    assert plan.sequence_offsets[0] == 0
    assert plan.sequence_offsets[-1] == len(lengths)
    assert plan.documents.dtype == plan.sequence_offsets.dtype == np.int64


@given(cases, packings, seeds)
def test_no_sequence_overflows_and_none_is_empty(case, packing, seed):
    lengths, seq_len = case
    for sequence in lengths_of(plan_sequences(lengths, seq_len, packing, seed), lengths):
        assert 1 <= sum(sequence) <= seq_len


@given(cases, packings, seeds)
def test_there_are_never_fewer_sequences_than_the_lower_bound(case, packing, seed):
    lengths, seq_len = case
    plan = plan_sequences(lengths, seq_len, packing, seed)
    assert plan.num_sequences == len(sequences_of(plan)) >= plan.lower_bound


@given(cases, seeds)
def test_the_plan_reports_the_lower_bound_of_its_lengths(case, seed):
    lengths, seq_len = case
    plan = plan_sequences(lengths, seq_len, "optimal", seed)
    assert plan.lower_bound == sequences_lower_bound(histogram_of(lengths), seq_len)


@given(tiny_cases)
def test_the_lower_bound_never_exceeds_the_optimum(case):
    lengths, seq_len = case
    bound = sequences_lower_bound(histogram_of(lengths), seq_len)
    assert bound <= fewest_sequences(lengths.tolist(), seq_len)


@given(cases)
def test_the_lower_bound_is_the_best_over_every_threshold(case):
    lengths, seq_len = case
    bound = sequences_lower_bound(histogram_of(lengths), seq_len)
    assert bound == slow_lower_bound(lengths.tolist(), seq_len)


@given(cases)
def test_the_lower_bound_is_at_least_what_the_tokens_need_and_the_long_documents(case):
    lengths, seq_len = case
    bound = sequences_lower_bound(histogram_of(lengths), seq_len)
    assert bound >= -(-int(lengths.sum()) // seq_len)
    assert bound >= np.count_nonzero(2 * lengths > seq_len)


def test_the_lower_bound_sees_that_long_documents_have_no_room_for_middling_ones():
    lengths = [8, 8, 4, 4, 4]  # 28 tokens would go into 3 sequences of 10
    assert sequences_lower_bound({8: 2, 4: 3}, 10) == fewest_sequences(lengths, 10) == 4


@given(cases, seeds)
def test_without_packing_every_document_has_a_sequence_of_its_own(case, seed):
    lengths, seq_len = case
    plan = plan_sequences(lengths, seq_len, "none", seed)
    assert [len(sequence) for sequence in sequences_of(plan)] == [1] * len(lengths)
    assert plan.lower_bound == len(lengths)


@given(cases, packings, seeds)
def test_the_same_seed_gives_the_same_plan(case, packing, seed):
    lengths, seq_len = case
    first = plan_sequences(lengths, seq_len, packing, seed)
    assert sequences_of(plan_sequences(lengths.copy(), seq_len, packing, seed)) == sequences_of(
        first
    )


@pytest.mark.parametrize("packing", ["optimal", "none"])
@pytest.mark.parametrize("other", [(8, 0), (7, 1)])
def test_another_seed_gives_another_order_of_as_many_sequences(many_lengths, packing, other):
    plan = plan_sequences(many_lengths, 200, packing, (7, 0))
    changed = plan_sequences(many_lengths, 200, packing, other)
    assert changed.num_sequences == plan.num_sequences
    assert np.mean(plan.documents == changed.documents) < 0.01


def test_the_order_drawn_from_a_seed_is_the_same_with_every_numpy():
    eight = np.ones(8, dtype=np.int64)
    assert plan_sequences(eight, 1, "none", (7,)).documents.tolist() == [6, 3, 4, 0, 2, 7, 5, 1]
    plan = plan_sequences(np.array([5, 3, 2, 5, 4, 6, 1]), 10, "optimal", (7,))
    assert sequences_of(plan) == [[4, 5], [3, 0], [1, 2, 6]]


@given(st.data(), cases, seeds)
def test_which_lengths_stand_together_does_not_depend_on_the_order_of_the_input(data, case, seed):
    lengths, seq_len = case
    shuffled = lengths[np.array(data.draw(st.permutations(range(len(lengths)))), dtype=np.int64)]
    plan = plan_sequences(lengths, seq_len, "optimal", seed)
    other = plan_sequences(shuffled, seq_len, "optimal", seed)
    assert lengths_of(other, shuffled) == lengths_of(plan, lengths)


def test_documents_of_one_length_are_not_kept_in_input_order():
    lengths = np.repeat(np.array([30, 20], dtype=np.int64), 1000)
    placed = plan_sequences(lengths, 100, "optimal", (0,)).documents
    for length in (30, 20):
        in_order = placed[lengths[placed] == length]
        assert abs(np.corrcoef(in_order, np.arange(1000))[0, 1]) < 0.1
        # Nor are neighbours of the input neighbours in the output.
        assert np.mean(np.abs(np.diff(in_order)) == 1) < 0.02


@pytest.mark.parametrize("packing", ["optimal", "none"])
def test_places_in_the_run_do_not_follow_the_order_of_the_input(many_lengths, packing):
    placed = plan_sequences(many_lengths, 200, packing, (0,)).documents
    assert abs(np.corrcoef(placed, np.arange(2000))[0, 1]) < 0.1


@pytest.mark.parametrize("packing", ["optimal", "none"])
def test_sequences_are_not_sorted_by_the_lengths_in_them(many_lengths, packing):
    plan = plan_sequences(many_lengths, 200, packing, (0,))
    longest = [max(sequence) for sequence in lengths_of(plan, many_lengths)]
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.1


def test_documents_in_a_sequence_are_not_sorted_by_length(many_lengths):
    sequences = lengths_of(plan_sequences(many_lengths, 200, "optimal", (0,)), many_lengths)
    pairs = [pair for sequence in sequences for pair in pairwise(sequence) if len(set(pair)) == 2]
    assert 0.45 < np.mean([first < second for first, second in pairs]) < 0.55


fills = st.tuples(
    st.dictionaries(st.integers(1, 12), st.integers(0, 9), max_size=4).map(
        lambda left: list(left.items())
    ),
    st.integers(0, 60),
)
"""(what is left as (length, count), room)"""


def every_sum(left: list[tuple[int, int]]) -> set[int]:
    """The tokens of every choice from `left`."""
    sums = {0}
    for length, count in left:
        sums = {total + num * length for total in sums for num in range(count + 1)}
    return sums


@given(fills)
def test_the_fullest_fill_is_the_fullest_of_all_choices(case):
    left, room = case
    chosen = planning._fullest_fill(left, room)
    assert sum(chosen) == max(total for total in every_sum(left) if total <= room)


@given(fills)
def test_the_fullest_fill_takes_no_more_than_there_is(case):
    left, room = case
    chosen = planning._fullest_fill(left, room)
    assert set(chosen) <= {length for length, _ in left}
    assert all(chosen.count(length) <= count for length, count in left)


@given(fills)
def test_the_fullest_fill_prefers_the_lengths_early_in_the_order(case):
    left, room = case
    for num_lengths in range(len(left) + 1):
        if room in every_sum(left[:num_lengths]):
            early = {length for length, _ in left[:num_lengths]}
            assert set(planning._fullest_fill(left, room)) <= early
            break


@given(cases, st.integers(0, 2))
def test_every_strategy_uses_up_the_histogram(case, number):
    lengths, seq_len = case
    left = histogram_of(lengths)
    patterns = list(planning._patterns(left, seq_len, *planning._STRATEGIES[number]))
    assert all(times >= 1 for _, times in patterns)
    used = [length for pattern, times in patterns for length in pattern * times]
    assert sorted(used) == sorted(lengths.tolist())


def test_few_short_documents_do_not_spoil_the_plan():
    """Nothing fills the gaps, so the shape of the histogram must be kept to the end."""
    drawn = np.random.default_rng(0).normal(1500, 500, 17_000).astype(np.int64)
    lengths = np.clip(drawn, 1, 2048)
    plan = plan_sequences(lengths, 4096, "optimal", (0,))
    longest_first = planning._patterns(histogram_of(lengths), 4096, *planning._STRATEGIES[0])
    assert sum(times for _, times in longest_first) > 1.05 * plan.lower_bound
    assert plan.num_sequences <= 1.015 * plan.lower_bound


def test_many_short_documents_fill_every_gap():
    lengths = np.random.default_rng(0).exponential(300, 20_000).astype(np.int64).clip(1, 2048)
    plan = plan_sequences(lengths, 2048, "optimal", (0,))
    assert plan.num_sequences == plan.lower_bound == -(-int(lengths.sum()) // 2048)


@pytest.mark.parametrize("packing", ["optimal", "none"])
def test_no_documents_make_no_sequences(packing):
    plan = plan_sequences(np.empty(0, dtype=np.int64), 8, packing, (0,))
    assert (plan.num_sequences, plan.lower_bound, len(plan.documents)) == (0, 0, 0)
    assert plan.sequence_offsets.tolist() == [0]


@given(seq_lens, st.integers(1, 30), seeds)
def test_documents_as_long_as_a_sequence_have_one_each(seq_len, num_documents, seed):
    plan = plan_sequences(np.full(num_documents, seq_len), seq_len, "optimal", seed)
    assert plan.num_sequences == plan.lower_bound == num_documents


@given(seq_lens, st.integers(1, 300), seeds)
@settings(max_examples=50)
def test_documents_of_one_token_fill_all_sequences_but_one(seq_len, num_documents, seed):
    plan = plan_sequences(np.ones(num_documents, dtype=np.int64), seq_len, "optimal", seed)
    assert plan.num_sequences == plan.lower_bound == -(-num_documents // seq_len)
    assert sum(len(sequence) < seq_len for sequence in sequences_of(plan)) <= 1
