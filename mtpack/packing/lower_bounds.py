"""Lower bounds on the number of sequences. Only integers."""

from __future__ import annotations

import numpy as np

from mtpack.packing.cutting_stock import STEP_WORK, WORK_LIMIT, find_fullest_fill
from mtpack.token_batch import Int64, offsets_from_lengths

_DIVISORS = 256
"""The most divisors that `_divisor_bound` tries."""


def sequences_lower_bound(histogram: dict[int, int], seq_len: int) -> int:
    """Return the best of several lower bounds on the number of sequences.

    histogram: the number of documents of each length. No sequence can hold more tokens than the
    largest sum of lengths up to `seq_len`, so all bounds use that sum as the capacity.

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
    """Return the largest sum of lengths up to `seq_len`, or `seq_len` if that costs too much."""
    most = np.minimum(counts, seq_len // lengths)
    parts = sum(num.bit_length() for num in most.tolist())
    if parts * (seq_len + STEP_WORK) > WORK_LIMIT:
        return seq_len
    chosen, _ = find_fullest_fill(lengths.tolist(), most.tolist(), seq_len)
    return sum(length * num for length, num in chosen.items())


def _threshold_bound(lengths: Int64, counts: Int64, room: int) -> int:
    """Return the bound L2 of Martello and Toth (1990), who prove it.

    For k = 0 it is ceil(total tokens / room). For k up to room / 2, leave out documents shorter
    than k. Those longer than room - k have a sequence each, alone. The others longer than room / 2
    also have one each, with some room left. If the rest exceeds that room, it needs more sequences.
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
    room_left = num_above_half * room - (tokens_below[alone] - tokens_below[above_half])
    small_tokens = tokens_below[above_half] - tokens_below[at_least]
    more = -(-np.maximum(small_tokens - room_left, 0) // room)
    return int(np.max(num_alone + num_above_half + more))


def _divisor_bound(lengths: Int64, counts: Int64, room: int) -> int:
    """Return a bound for medium lengths: two documents of 0.4 fit into a sequence, not 2.5.

    For a divisor d, the weight of a length is the number of multiples of d in it, plus a share of
    its remainder, as far as that exceeds the remainder of `room`. The weights of the documents in a
    sequence sum to at most room // d: function f_BJ,1 in Clautiaux, Alves and Valerio de Carvalho,
    A survey of dual-feasible and superadditive functions (2010), who prove it.
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
