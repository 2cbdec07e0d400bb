"""Patterns use up a histogram in few sequences, with a limited amount of work."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtpack.packing import cutting_stock
from mtpack.packing.cutting_stock import find_fullest_fill, plan_histogram, to_units
from mtpack.packing.lower_bounds import sequences_lower_bound
from tests.packing.test_lower_bounds import fewest_sequences, tiny_cases
from tests.support.strategies import cases, histogram_of


def plan(lengths, seq_len: int):
    """Return the patterns and the lower bound."""
    histogram = histogram_of(lengths)
    bound = sequences_lower_bound(histogram, seq_len)
    return plan_histogram(histogram, seq_len, bound), bound


def count_documents(found) -> Counter[int]:
    """Return the number of documents of each length, in units, in all sequences."""
    return sum(
        (
            Counter({length: num * times for length, num in nums.items()})
            for nums, times in found.patterns
        ),
        Counter(),
    )


def assert_fits(found, lengths, seq_len: int) -> None:
    """Check that the patterns hold every document and that no sequence overflows, in units."""
    units = to_units(np.asarray(lengths), found.unit, seq_len)
    assert count_documents(found) == Counter(units.tolist())
    for nums, times in found.patterns:
        assert times >= 1
        assert sum(length * num for length, num in nums.items()) <= seq_len // found.unit


fills = st.tuples(
    st.dictionaries(st.integers(1, 12), st.integers(0, 9), max_size=4), st.integers(0, 60)
)
"""(documents left of each length, room)"""


def fill(left: dict[int, int], room: int) -> dict[int, int]:
    return find_fullest_fill(list(left), list(left.values()), room)[0]


def all_sums(left: list[tuple[int, int]]) -> set[int]:
    """Return the sum of every choice from `left`, pairs of a length and its count."""
    sums = {0}
    for length, count in left:
        sums = {total + num * length for total in sums for num in range(count + 1)}
    return sums


@given(fills)
def test_the_fullest_fill_has_the_largest_sum_of_all_choices(case):
    left, room = case
    chosen = sum(length * num for length, num in fill(left, room).items())
    assert chosen == max(total for total in all_sums(list(left.items())) if total <= room)


@given(fills)
def test_the_fullest_fill_takes_no_more_documents_than_are_left(case):
    left, room = case
    assert all(1 <= num <= left[length] for length, num in fill(left, room).items())


@given(fills)
def test_the_fullest_fill_prefers_lengths_that_come_first(case):
    left, room = case
    for num_lengths in range(len(left) + 1):
        if room in all_sums(list(left.items())[:num_lengths]):
            assert set(fill(left, room)) <= set(list(left)[:num_lengths])
            break


@given(cases)
def test_patterns_use_up_the_histogram_and_fit(case):
    lengths, seq_len = case
    assert_fits(plan(lengths, seq_len)[0], lengths, seq_len)


@given(cases, st.integers(0, 2**22))
def test_patterns_use_up_the_histogram_with_any_amount_of_work(case, work):
    lengths, seq_len = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutting_stock, "WORK_LIMIT", work)
        patch.setattr(cutting_stock, "_FILL_WORK_LIMIT", work // 4)
        assert_fits(plan(lengths, seq_len)[0], lengths, seq_len)


@given(cases, st.integers(3, 12))
def test_patterns_in_a_coarse_unit_use_up_the_histogram_and_fit(case, coarse):
    lengths, seq_len = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutting_stock, "_COARSE_TOLERANCE", coarse)
        patch.setattr(cutting_stock, "_is_good_enough", lambda num_sequences, bound: False)
        assert_fits(plan(lengths, seq_len)[0], lengths, seq_len)


@given(st.integers(1, 1000), st.data())
def test_documents_that_fit_in_whole_units_fit_in_tokens(seq_len, data):
    unit = data.draw(st.integers(1, seq_len))
    lengths = np.array(data.draw(st.lists(st.integers(1, seq_len), min_size=1, max_size=6)))
    if to_units(lengths, unit, seq_len).sum() <= seq_len // unit:
        assert lengths.sum() <= seq_len


@given(tiny_cases)
def test_few_documents_are_planned_optimally_or_with_one_sequence_more(case):
    lengths, seq_len = case
    found, _ = plan(lengths, seq_len)
    assert found.num_sequences <= fewest_sequences(lengths.tolist(), seq_len) + 1


def test_plans_stay_near_the_bound_with_few_short_documents(monkeypatch):
    """Few documents can fill gaps, so lengths that leave gaps must be planned earlier."""
    drawn = np.random.default_rng(0).normal(1500, 500, 17_000).astype(np.int64)
    lengths = np.clip(drawn, 1, 2048)
    found, bound = plan(lengths, 4096)
    assert found.num_sequences <= 1.005 * bound
    monkeypatch.setattr(cutting_stock, "_MAX_ROUNDS", 1)
    assert plan(lengths, 4096)[0].num_sequences > 1.05 * bound


def lengths_by_kind(seq_len: int) -> dict[str, np.ndarray]:
    """Return lengths of documents by kind, for about 500 sequences of each kind."""
    random = np.random.default_rng(0)
    half = seq_len // 2
    kinds = {
        "uniform": random.integers(1, seq_len + 1, 1000),
        "short": random.lognormal(np.log(seq_len / 40), 1, 12_000),
        "long": random.lognormal(np.log(seq_len / 3), 0.6, 1300),
        "above half": half + 1 + random.integers(0, seq_len // 50, 500),
        "half and fills": np.concatenate(
            [half + 1 + random.integers(0, seq_len // 50, 500), random.integers(1, half, 500)]
        ),
        "equal": np.full(1200, seq_len * 2 // 5),
        "all different": np.arange(1, 1 + int(np.sqrt(1000 * seq_len)))[:seq_len],
        "a tenth to a quarter": random.integers(seq_len // 10, seq_len // 4, 2900),
    }
    return {kind: np.clip(drawn, 1, seq_len).astype(np.int64) for kind, drawn in kinds.items()}


@pytest.mark.oracle
@pytest.mark.parametrize("seq_len", [2048, 32_768, 1_048_576])
@pytest.mark.parametrize("kind", lengths_by_kind(64))
def test_plans_are_near_the_bound_at_every_scale(kind, seq_len):
    lengths = lengths_by_kind(seq_len)[kind]
    found, bound = plan(lengths, seq_len)
    assert_fits(found, lengths, seq_len)
    # 0.1% of so few sequences is less than one sequence.
    assert found.num_sequences <= bound + (3 if kind == "uniform" else 1)


@pytest.mark.parametrize("work", [2**28, 2**30])
def test_fills_read_no_more_bits_than_the_work_limit_allows(monkeypatch, work):
    """The test counts itself the bits that all rounds pass to the subset sums."""
    bits_read = []

    def counting(lengths, left, room):
        steps = sum(
            min(num, room // length).bit_length() for length, num in zip(lengths, left, strict=True)
        )
        bits_read.append(steps * (room + cutting_stock.STEP_WORK))
        return find_fullest_fill(lengths, left, room)

    monkeypatch.setattr(cutting_stock, "find_fullest_fill", counting)
    monkeypatch.setattr(cutting_stock, "WORK_LIMIT", work)
    lengths = np.random.default_rng(0).integers(2**18, 2**19, 3000)  # a quarter to half
    plan(lengths, 2**20)
    assert max(bits_read) <= cutting_stock._FILL_WORK_LIMIT
    assert sum(bits_read) <= 2 * work


def test_when_no_work_is_left_fills_are_greedy(monkeypatch):
    monkeypatch.setattr(cutting_stock, "WORK_LIMIT", 0)
    monkeypatch.setattr(cutting_stock, "find_fullest_fill", lambda *_: pytest.fail("an exact fill"))
    histogram = {7: 2, 5: 2, 4: 1, 3: 2, 2: 1}
    found = plan_histogram(histogram, 10, 4)
    assert count_documents(found) == Counter(histogram)
    assert found.num_sequences == 4  # 7 3, 7 3, 5 5, 4 2


def test_the_work_does_not_grow_with_the_number_of_documents(monkeypatch):
    rounds = []
    plan_in_order = cutting_stock._plan_in_order

    def counting(lengths, counts, seq_len, work):
        found, left = plan_in_order(lengths, counts, seq_len, work)
        rounds.append((len(found), work - left))
        return found, left

    monkeypatch.setattr(cutting_stock, "_plan_in_order", counting)
    lengths = np.random.default_rng(0).lognormal(5.5, 1, 100_000).astype(np.int64).clip(1, 4096)
    for scale in (1, 1000):
        histogram = {length: scale * count for length, count in histogram_of(lengths).items()}
        plan_histogram(histogram, 4096, sequences_lower_bound(histogram, 4096))
    (few_patterns, few_work), (many_patterns, many_work) = rounds
    assert many_patterns < 3 * few_patterns
    assert many_work < 3 * few_work
