"""Every document is in one sequence, no sequence overflows, and there are few sequences."""

import hashlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtpack.packing.cutting_stock import plan_histogram
from mtpack.packing.lower_bounds import sequences_lower_bound
from mtpack.packing.plan import Plan, plan_sequences
from tests.conftest import examples
from tests.support.strategies import cases, histogram_of, seeds, seq_lens


def sequences_of(plan: Plan) -> list[list[int]]:
    """Return the documents of every sequence."""
    return [
        plan.documents[start:end].tolist()
        for start, end in pairwise(plan.sequence_offsets.tolist())
    ]


def lengths_of(plan: Plan, lengths) -> list[list[int]]:
    """Return the lengths of the documents of every sequence."""
    return [lengths[sequence].tolist() for sequence in sequences_of(plan)]


packings = st.sampled_from(["dense", "none"])


@pytest.fixture(scope="module")
def many_lengths():
    return np.random.default_rng(0).integers(1, 101, 2000)


@given(cases, packings, seeds)
def test_every_document_is_in_exactly_one_sequence(case, packing, seed):
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
    plan = plan_sequences(lengths, seq_len, "dense", seed)
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


@pytest.mark.parametrize("packing", ["dense", "none"])
@pytest.mark.parametrize("other", [(8, 0), (7, 1)])
def test_another_seed_changes_the_order_but_not_the_count_of_sequences(
    many_lengths, packing, other
):
    plan = plan_sequences(many_lengths, 200, packing, (7, 0))
    changed = plan_sequences(many_lengths, 200, packing, other)
    assert changed.num_sequences == plan.num_sequences
    assert np.mean(plan.documents == changed.documents) < 0.01


def test_the_order_of_a_seed_does_not_depend_on_the_version_of_numpy():
    eight = np.ones(8, dtype=np.int64)
    assert plan_sequences(eight, 1, "none", (7,)).documents.tolist() == [6, 3, 4, 0, 2, 7, 5, 1]
    plan = plan_sequences(np.array([5, 3, 2, 5, 4, 6, 1]), 10, "dense", (7,))
    assert sequences_of(plan) == [[5, 4], [3, 0], [6, 2, 1]]


def test_the_plan_of_a_seed_never_changes():
    """Another plan changes the shards of the same command, so the changelog must announce it."""
    lengths = np.random.default_rng(0).integers(1, 1000, 5000)
    plan = plan_sequences(lengths, 4096, "dense", (7, 0))
    content = plan.documents.astype("<i8").tobytes() + plan.sequence_offsets.astype("<i8").tobytes()
    assert hashlib.sha256(content).hexdigest().startswith("fa650dbfdb357a5b")


@given(cases, seeds)
def test_the_type_of_the_lengths_makes_no_difference(case, seed):
    lengths, seq_len = case
    plan = plan_sequences(lengths.astype(np.int32), seq_len, "dense", seed)
    assert sequences_of(plan) == sequences_of(plan_sequences(lengths, seq_len, "dense", seed))


def test_long_sequences_are_planned_in_a_coarse_unit_and_none_overflows():
    lengths = np.random.default_rng(1).integers(2**18, 2**19, 300)  # a quarter to half a sequence
    histogram = histogram_of(lengths)
    found = plan_histogram(histogram, 2**20, sequences_lower_bound(histogram, 2**20))
    assert found.unit > 1
    plan = plan_sequences(lengths, 2**20, "dense", (0,))
    assert plan.num_sequences == found.num_sequences
    assert sorted(plan.documents.tolist()) == list(range(300))
    assert max(map(sum, lengths_of(plan, lengths))) <= 2**20


@pytest.mark.parametrize("seq_len", [2**16 - 1, 2**16, 2**20])
def test_lengths_of_more_than_16_bits_keep_their_documents(seq_len):
    random = np.random.default_rng(0)
    lengths = np.concatenate([random.integers(1, seq_len + 1, 200), random.integers(1, 100, 9000)])
    plan = plan_sequences(lengths, seq_len, "dense", (0,))
    assert sorted(plan.documents.tolist()) == list(range(len(lengths)))
    assert max(map(sum, lengths_of(plan, lengths))) <= seq_len


@given(st.data(), cases, seeds)
def test_which_lengths_share_a_sequence_does_not_depend_on_the_input_order(data, case, seed):
    lengths, seq_len = case
    shuffled = lengths[np.array(data.draw(st.permutations(range(len(lengths)))), dtype=np.int64)]
    plan = plan_sequences(lengths, seq_len, "dense", seed)
    other = plan_sequences(shuffled, seq_len, "dense", seed)
    assert lengths_of(other, shuffled) == lengths_of(plan, lengths)


def test_documents_of_one_length_are_not_kept_in_input_order():
    lengths = np.repeat(np.array([30, 20], dtype=np.int64), 1000)
    documents = plan_sequences(lengths, 100, "dense", (0,)).documents
    for length in (30, 20):
        in_order = documents[lengths[documents] == length]
        assert abs(np.corrcoef(in_order, np.arange(1000))[0, 1]) < 0.1
        # Neighbours in the input are not neighbours in the output.
        assert np.mean(np.abs(np.diff(in_order)) == 1) < 0.02


@pytest.mark.parametrize("packing", ["dense", "none"])
def test_the_order_of_documents_does_not_follow_the_input_order(many_lengths, packing):
    documents = plan_sequences(many_lengths, 200, packing, (0,)).documents
    assert abs(np.corrcoef(documents, np.arange(2000))[0, 1]) < 0.1


@pytest.mark.parametrize("packing", ["dense", "none"])
def test_sequences_are_not_sorted_by_the_lengths_in_them(many_lengths, packing):
    plan = plan_sequences(many_lengths, 200, packing, (0,))
    longest = [max(sequence) for sequence in lengths_of(plan, many_lengths)]
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.1


def test_documents_in_a_sequence_are_not_sorted_by_length(many_lengths):
    sequences = lengths_of(plan_sequences(many_lengths, 200, "dense", (0,)), many_lengths)
    pairs = [pair for sequence in sequences for pair in pairwise(sequence) if len(set(pair)) == 2]
    assert 0.45 < np.mean([first < second for first, second in pairs]) < 0.55


def test_many_short_documents_give_a_plan_that_reaches_the_lower_bound():
    lengths = np.random.default_rng(0).exponential(300, 20_000).astype(np.int64).clip(1, 2048)
    plan = plan_sequences(lengths, 2048, "dense", (0,))
    assert plan.num_sequences == plan.lower_bound == -(-int(lengths.sum()) // 2048)


@pytest.mark.parametrize("packing", ["dense", "none"])
def test_without_documents_there_are_no_sequences(packing):
    plan = plan_sequences(np.empty(0, dtype=np.int64), 8, packing, (0,))
    assert (plan.num_sequences, plan.lower_bound, len(plan.documents)) == (0, 0, 0)
    assert plan.sequence_offsets.tolist() == [0]


@given(seq_lens, st.integers(1, 30), seeds)
def test_documents_as_long_as_a_sequence_get_one_sequence_each(seq_len, num_documents, seed):
    plan = plan_sequences(np.full(num_documents, seq_len), seq_len, "dense", seed)
    assert plan.num_sequences == plan.lower_bound == num_documents


@given(seq_lens, st.integers(1, 300), seeds)
@settings(max_examples=examples(50))
def test_documents_of_one_token_fill_all_sequences_except_one(seq_len, num_documents, seed):
    plan = plan_sequences(np.ones(num_documents, dtype=np.int64), seq_len, "dense", seed)
    assert plan.num_sequences == plan.lower_bound == -(-num_documents // seq_len)
    assert sum(len(sequence) < seq_len for sequence in sequences_of(plan)) <= 1
