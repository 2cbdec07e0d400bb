"""A weight of a turn is rounded once, to a multiple of 1/1024."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtpack.turn_weight import MAX_WEIGHT, format_weight, round_weight

weights = st.floats(0, 16, allow_subnormal=True)
sources = st.floats(1 / 1024, 16)


@given(weights, sources)
def test_the_product_of_message_and_source_is_rounded_once_to_the_nearest_unit(weight, source):
    exact = Fraction(weight) * Fraction(source)
    units = round_weight(weight, source)
    assert abs(Fraction(units, 1024) - exact) <= Fraction(1, 2048)


@given(st.integers(0, 2**24))
def test_every_multiple_of_a_unit_stays_as_it_is_and_is_exact_in_a_float32(units):
    assert round_weight(units / 1024) == units
    assert np.float32(units / 1024) * np.float32(1024) == units


@pytest.mark.parametrize(
    ("weight", "source", "units"),
    [
        (1, 1, 1024),
        (0.3, 1, 307),
        (0.5, 0.5, 256),
        (0.3, 0.1, 31),  # 30.72; to round each of the two would give 307 * 102 / 1024 = 30.58
        (1 / 2048, 1, 0),  # a tie, to the even unit
        (3 / 2048, 1, 2),
        (0.0005, 1, 1),
        (16384, 1, 2**24),
    ],
)
def test_weights_in_units(weight, source, units):
    assert round_weight(weight, source) == units


@pytest.mark.parametrize(
    ("weight", "source"), [(-1, 1), (float("nan"), 1), (float("inf"), 1), (MAX_WEIGHT, 1.1)]
)
def test_what_is_no_weight_is_refused(weight, source):
    with pytest.raises(ValueError, match="weight"):
        round_weight(weight, source)


def test_a_weight_is_shown_with_four_digits():
    assert [format_weight(units / 1024) for units in (1, 307, 1024, 2**24)] == [
        *("0.001", "0.2998", "1", "16,384"),
    ]
