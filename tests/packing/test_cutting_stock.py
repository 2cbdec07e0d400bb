"""Patterns use up a histogram in few sequences, and within a bound of work."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtpack.packing import cutting_stock
from mtpack.packing.cutting_stock import fullest_fill, in_units, plan_histogram
from mtpack.packing.lower_bounds import sequences_lower_bound
from tests.packing.test_lower_bounds import fewest_sequences, tiny_cases
from tests.support.strategies import cases, histogram_of


def planned(lengths, seq_len: int):
    """The patterns, and the lower bound."""
    histogram = histogram_of(lengths)
    bound = sequences_lower_bound(histogram, seq_len)
    return plan_histogram(histogram, seq_len, bound), bound


def used_up(found) -> Counter[int]:
    """How many documents of each length, in units, all sequences hold."""
    return sum(
        (
            Counter({length: num * times for length, num in nums.items()})
            for nums, times in found.patterns
        ),
        Counter(),
    )


def assert_fits(found, lengths, seq_len: int) -> None:
    """Every document has its place, and no sequence overflows even if rounding lost nothing."""
    units = in_units(np.asarray(lengths), found.unit, seq_len)
    assert used_up(found) == Counter(units.tolist())
    for nums, times in found.patterns:
        assert times >= 1
        assert sum(length * num for length, num in nums.items()) <= seq_len // found.unit


fills = st.tuples(
    st.dictionaries(st.integers(1, 12), st.integers(0, 9), max_size=4), st.integers(0, 60)
)
"""(how many are left of each length, room)"""


def filled(left: dict[int, int], room: int) -> dict[int, int]:
    return fullest_fill(list(left), list(left.values()), room)[0]


def every_sum(left: list[tuple[int, int]]) -> set[int]:
    """The tokens of every choice from `left`."""
    sums = {0}
    for length, count in left:
        sums = {total + num * length for total in sums for num in range(count + 1)}
    return sums


@given(fills)
def test_the_fullest_fill_is_the_fullest_of_all_choices(case):
    left, room = case
    chosen = sum(length * num for length, num in filled(left, room).items())
    assert chosen == max(total for total in every_sum(list(left.items())) if total <= room)


@given(fills)
def test_the_fullest_fill_takes_no_more_than_there_is(case):
    left, room = case
    assert all(1 <= num <= left[length] for length, num in filled(left, room).items())


@given(fills)
def test_the_fullest_fill_prefers_the_lengths_early_in_the_order(case):
    left, room = case
    for num_lengths in range(len(left) + 1):
        if room in every_sum(list(left.items())[:num_lengths]):
            assert set(filled(left, room)) <= set(list(left)[:num_lengths])
            break


@given(cases)
def test_patterns_use_up_the_histogram_and_fit(case):
    lengths, seq_len = case
    assert_fits(planned(lengths, seq_len)[0], lengths, seq_len)


@given(cases, st.integers(0, 2**22))
def test_patterns_use_up_the_histogram_with_any_amount_of_work(case, work):
    lengths, seq_len = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutting_stock, "WORK", work)
        patch.setattr(cutting_stock, "_FILL", work // 4)
        assert_fits(planned(lengths, seq_len)[0], lengths, seq_len)


@given(cases, st.integers(3, 12))
def test_patterns_in_a_coarse_unit_use_up_the_histogram_and_fit(case, coarse):
    lengths, seq_len = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutting_stock, "_COARSE", coarse)
        patch.setattr(cutting_stock, "_is_good_enough", lambda num_sequences, bound: False)
        assert_fits(planned(lengths, seq_len)[0], lengths, seq_len)


@given(st.integers(1, 1000), st.data())
def test_documents_that_fit_in_whole_units_fit_in_tokens(seq_len, data):
    unit = data.draw(st.integers(1, seq_len))
    lengths = np.array(data.draw(st.lists(st.integers(1, seq_len), min_size=1, max_size=6)))
    if in_units(lengths, unit, seq_len).sum() <= seq_len // unit:
        assert lengths.sum() <= seq_len


@given(tiny_cases)
def test_few_documents_are_planned_optimally_or_with_one_sequence_more(case):
    lengths, seq_len = case
    found, _ = planned(lengths, seq_len)
    assert found.num_sequences <= fewest_sequences(lengths.tolist(), seq_len) + 1


def test_few_short_documents_do_not_spoil_the_plan(monkeypatch):
    """Nothing fills the gaps, so what is hard to place must be placed earlier."""
    drawn = np.random.default_rng(0).normal(1500, 500, 17_000).astype(np.int64)
    lengths = np.clip(drawn, 1, 2048)
    found, bound = planned(lengths, 4096)
    assert found.num_sequences <= 1.005 * bound
    monkeypatch.setattr(cutting_stock, "_ROUNDS", 1)
    assert planned(lengths, 4096)[0].num_sequences > 1.05 * bound


def drawn_lengths(seq_len: int) -> dict[str, np.ndarray]:
    """Lengths of documents, about 500 sequences of each kind."""
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


@pytest.mark.parametrize("seq_len", [2048, 32_768, 1_048_576])
@pytest.mark.parametrize("kind", drawn_lengths(64))
def test_plans_are_near_the_bound_at_every_scale(kind, seq_len):
    lengths = drawn_lengths(seq_len)[kind]
    found, bound = planned(lengths, seq_len)
    assert_fits(found, lengths, seq_len)
    # Of so few sequences, 0.1% is less than one.
    assert found.num_sequences <= bound + (3 if kind == "uniform" else 1)


@pytest.mark.parametrize("work", [2**28, 2**30])
def test_fills_look_at_no_more_than_the_work_allowed(monkeypatch, work):
    """Counted here, not believed: the bits that are offered to the subset sums of all rounds."""
    looked_at = []

    def counting(lengths, left, room):
        looked_at.append(sum(min(num, room // length).bit_length() * (room + cutting_stock.STEP)
                             for length, num in zip(lengths, left, strict=True)))  # fmt: skip
        return fullest_fill(lengths, left, room)

    monkeypatch.setattr(cutting_stock, "fullest_fill", counting)
    monkeypatch.setattr(cutting_stock, "WORK", work)
    lengths = np.random.default_rng(0).integers(2**18, 2**19, 3000)  # a quarter to half
    planned(lengths, 2**20)
    assert max(looked_at) <= cutting_stock._FILL
    assert sum(looked_at) <= 2 * work


def test_when_the_work_is_done_the_rest_is_planned_greedily(monkeypatch):
    monkeypatch.setattr(cutting_stock, "WORK", 0)
    monkeypatch.setattr(cutting_stock, "fullest_fill", lambda *_: pytest.fail("an exact fill"))
    histogram = {7: 2, 5: 2, 4: 1, 3: 2, 2: 1}
    found = plan_histogram(histogram, 10, 4)
    assert used_up(found) == Counter(histogram)
    assert found.num_sequences == 4  # 7 3, 7 3, 5 5, 4 2


def test_lengths_of_a_hundred_million_documents_take_no_longer_than_of_a_hundred(monkeypatch):
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
