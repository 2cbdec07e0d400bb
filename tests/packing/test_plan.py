"""Every document has one place, no sequence overflows, and there are few sequences."""

import hashlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtpack.packing.cutting_stock import plan_histogram
from mtpack.packing.lower_bounds import sequences_lower_bound
from mtpack.packing.plan import Plan, plan_sequences
from tests.support.strategies import cases, histogram_of, seeds, seq_lens


def sequences_of(plan: Plan) -> list[list[int]]:
    """The documents of every sequence."""
    return [
        plan.documents[start:end].tolist()
        for start, end in pairwise(plan.sequence_offsets.tolist())
    ]


def lengths_of(plan: Plan, lengths) -> list[list[int]]:
    """The lengths of the documents of every sequence."""
    return [lengths[sequence].tolist() for sequence in sequences_of(plan)]


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
    assert sequences_of(plan) == [[5, 4], [3, 0], [6, 2, 1]]


def test_the_plan_of_a_seed_never_changes():
    """Another plan means other shards for the same command: to be announced, not slipped in."""
    lengths = np.random.default_rng(0).integers(1, 1000, 5000)
    plan = plan_sequences(lengths, 4096, "optimal", (7, 0))
    told = plan.documents.astype("<i8").tobytes() + plan.sequence_offsets.astype("<i8").tobytes()
    assert hashlib.sha256(told).hexdigest().startswith("fa650dbfdb357a5b")


@given(cases, seeds)
def test_the_type_of_the_lengths_makes_no_difference(case, seed):
    lengths, seq_len = case
    plan = plan_sequences(lengths.astype(np.int32), seq_len, "optimal", seed)
    assert sequences_of(plan) == sequences_of(plan_sequences(lengths, seq_len, "optimal", seed))


def test_long_sequences_are_planned_in_a_coarse_unit_and_none_overflows():
    lengths = np.random.default_rng(1).integers(2**18, 2**19, 300)  # a quarter to half of one
    histogram = histogram_of(lengths)
    found = plan_histogram(histogram, 2**20, sequences_lower_bound(histogram, 2**20))
    assert found.unit > 1
    plan = plan_sequences(lengths, 2**20, "optimal", (0,))
    assert plan.num_sequences == found.num_sequences
    assert sorted(plan.documents.tolist()) == list(range(300))
    assert max(map(sum, lengths_of(plan, lengths))) <= 2**20


@pytest.mark.parametrize("seq_len", [2**16 - 1, 2**16, 2**20])
def test_lengths_above_16_bits_find_their_documents(seq_len):
    random = np.random.default_rng(0)
    lengths = np.concatenate([random.integers(1, seq_len + 1, 200), random.integers(1, 100, 9000)])
    plan = plan_sequences(lengths, seq_len, "optimal", (0,))
    assert sorted(plan.documents.tolist()) == list(range(len(lengths)))
    assert max(map(sum, lengths_of(plan, lengths))) <= seq_len


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
