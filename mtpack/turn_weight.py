"""The weight of a turn in the mean (`--turn-weights`): a multiple of 1/1024.

Everything counts weights in units of 1/1024, as integers: they are exact in a float32 column, and
in an integer divisor. Without the option, every turn has the weight 1.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache

from mtpack.token_batch import WEIGHT_UNITS

MAX_WEIGHT = 16384
"""So many units fit into a float32 without rounding: 2 ** 24."""


@lru_cache(maxsize=1024)
def round_weight(weight: float, source_weight: float = 1.0) -> int:
    """Return a weight times that of its source in units: rounded once, a half to the even unit.

    weight: of the message, 0 or more. source_weight: above 0. The product is exact before it is
    rounded. Raises ValueError for one that is negative, not finite, or above `MAX_WEIGHT`.

    >>> round_weight(0.3), round_weight(0.3, 0.5), round_weight(0.0004)
    (307, 154, 0)
    """
    if not (0 <= weight < float("inf") and 0 <= source_weight < float("inf")):
        raise ValueError("not a weight")
    units = round(Fraction(weight) * Fraction(source_weight) * WEIGHT_UNITS)
    if units > MAX_WEIGHT * WEIGHT_UNITS:
        raise ValueError("a weight is too large")
    return units


def format_weight(weight: float) -> str:
    """Return a weight as people read it. Different multiples of 1/1024 give different texts.

    >>> format_weight(1.0), format_weight(307 / 1024), format_weight(2500.5)
    ('1', '0.2998', '2,500.5')
    """
    return f"{weight:,.4f}".rstrip("0").rstrip(".")
