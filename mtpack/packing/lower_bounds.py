"""How many sequences there must be at least. Integers only."""

from __future__ import annotations

import numpy as np

from mtpack.packing.cutting_stock import STEP, WORK, fullest_fill
from mtpack.token_batch import Int64, offsets_from_lengths

_DIVISORS = 256
"""How many divisors `_divisor_bound` tries."""


def sequences_lower_bound(histogram: dict[int, int], seq_len: int) -> int:
    """Return the best of several lower bounds on the number of sequences.

    histogram: how many documents have each length. No sequence can hold more than the largest sum
    of lengths up to `seq_len`, so that is the room of a sequence in all of them.

    >>> sequences_lower_bound({6: 3, 4: 2}, 10)
    3
    >>> sequences_lower_bound({6: 3, 5: 1}, 10)
    4
    >>> sequences_lower_bound({4: 6}, 10)
    3
    """
    if not histogram:
        return 0
    lengths = np.array(sorted(histogram), dtype=np.int64)
    counts = np.array([histogram[length] for length in lengths.tolist()], dtype=np.int64)
    room = _largest_sum(lengths[::-1], counts[::-1], seq_len)
    return max(_threshold_bound(lengths, counts, room), _divisor_bound(lengths, counts, room))


def _largest_sum(lengths: Int64, counts: Int64, seq_len: int) -> int:
    most = np.minimum(counts, seq_len // lengths)
    parts = sum(num.bit_length() for num in most.tolist())
    if parts * (seq_len + STEP) > WORK:
        return seq_len
    chosen, _ = fullest_fill(lengths.tolist(), most.tolist(), seq_len)
    return sum(length * num for length, num in chosen.items())


def _threshold_bound(lengths: Int64, counts: Int64, room: int) -> int:
    """Martello and Toth's (1990) bound L2, where the proof stands.

    With k = 0 it is ceil(total tokens / room). For k up to room / 2: documents longer than
    room - k share no sequence with any of at least k; those longer than half share none with
    each other; what the rest exceeds the room beside the latter by needs more.
    """
    documents_below = offsets_from_lengths(counts)
    tokens_below = offsets_from_lengths(counts * lengths)
    half = room // 2
    thresholds = np.append(0, lengths[lengths <= half])
    at_least = np.searchsorted(lengths, thresholds)
    above_half = np.searchsorted(lengths, half, side="right")
    alone = np.searchsorted(lengths, room - thresholds, side="right")
    num_alone = documents_below[-1] - documents_below[alone]
    num_above_half = documents_below[alone] - documents_below[above_half]
    beside = num_above_half * room - (tokens_below[alone] - tokens_below[above_half])
    small_tokens = tokens_below[above_half] - tokens_below[at_least]
    more = -(-np.maximum(small_tokens - beside, 0) // room)
    return int(np.max(num_alone + num_above_half + more))


def _divisor_bound(lengths: Int64, counts: Int64, room: int) -> int:
    """What documents of middling lengths need: a sequence holds two of 0.4, not two and a half.

    For a divisor d, a length counts as the multiples of d in it, plus a share of its remainder as
    far as that exceeds the remainder of `room`. The weights of what fits into a sequence sum
    to at most room // d: function f_BJ,1 in Clautiaux, Alves and Valerio de Carvalho, A survey
    of dual-feasible and superadditive functions (2010), where the proof stands.
    """
    best = 0
    tried = np.linspace(0, len(lengths) - 1, min(_DIVISORS, len(lengths))).astype(np.int64)
    for divisor in [*lengths[tried].tolist(), room]:
        quotient, remainder = divmod(room, divisor)
        span = divisor - remainder
        multiples, left = np.divmod(lengths, divisor)
        weights = multiples * span + np.maximum(left - remainder, 0)
        best = max(best, -(-int(weights @ counts) // (span * quotient)))
    return best
