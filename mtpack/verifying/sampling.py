"""Which sequences the numeric checks take, and how far: a seeded sample of about a minute at most.

A sequence is taken whole where the time allows. Where not even one can be, because its documents
are very long, its leading turns are: nothing behind a turn has a part in that turn's loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mtpack.assembling import IGNORED
from mtpack.shard import TOKEN_COLUMNS
from mtpack.shards import Row, Shards
from mtpack.turns import Int64, offsets_of
from mtpack.verifying.model import block_rows

SEED = 0
BUDGET = 30.0
"""Seconds that a sample may cost, as estimated; machines differ by a factor of two."""
_CANDIDATES = 256  # sequences to look at where the first one is too long

# Seconds in float64, forwards and backwards, as one core of two took them; see `pass_cost`.
_PER_PASS = 5e-3
_PER_TOKEN = 6e-5
_PER_SCORE = 1.4e-7


@dataclass(frozen=True, slots=True)
class TurnTokens:
    """A turn, as the reference needs it: where its document starts, and its tokens."""

    document_start: int
    positions: Int64
    """Of the loss tokens themselves (not of what predicts them), in the sequence, ascending."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Sequences to compute with, and how much of the shards they are."""

    rows: list[Row]
    coverage: dict[str, int]
    """`sequences`, `turns` and `tokens` (documents' own), and of how many each."""


def document_ids(row: Row) -> Int64:
    """Return for each place the number of the entry of `seq_lengths` that it lies in."""
    return np.repeat(np.arange(len(row["seq_lengths"])), row["seq_lengths"])


def turns_of(row: Row, label_alignment: str) -> list[TurnTokens]:
    """Find each turn's tokens from the turn starts and the loss mask, not from loss_token_num."""
    places = np.flatnonzero(row["loss_mask"])
    groups = np.split(places, np.searchsorted(places, row["turn_starts"][1:]))
    entry_starts = offsets_of(row["seq_lengths"])[:-1]
    shift = 1 if label_alignment == "shifted" else 0
    turns = []
    for group in groups:
        entry = np.searchsorted(entry_starts, group[0], side="right") - 1
        turns.append(TurnTokens(int(entry_starts[entry]), group + shift))
    return turns


def leading_turns(row: Row, turns: int, label_alignment: str) -> Row:
    """Cut a sequence behind the last token of its first `turns` turns; all columns agree again."""
    end = int(turns_of(row, label_alignment)[turns - 1].positions[-1]) + 1
    starts = offsets_of(row["seq_lengths"])[:-1]
    entries = int(np.searchsorted(starts, end))
    room = end - starts[:entries]
    cut: dict[str, Any] = {name: row[name][:end].copy() for name in TOKEN_COLUMNS}
    if label_alignment == "shifted":  # the last place may predict the next turn, right behind it
        cut["labels"][-1], cut["loss_mask"][-1], cut["loss_token_num"][-1] = IGNORED, 0, 1
    return cut | {
        "turn_num": turns,
        "turn_starts": row["turn_starts"][:turns],
        "turn_messages": row["turn_messages"][:turns],
        "seq_lengths": np.minimum(row["seq_lengths"][:entries], room),
        "document_lengths": np.minimum(row["document_lengths"][:entries], room),
        "dialogue_ids": row["dialogue_ids"][:entries],
    }


def pass_cost(places: Int64) -> float:
    """Estimate the seconds of one pass, forwards and backwards.

    Something for every pass, something for every token, and something for every pair of a query
    row and a key that attention computes, masked or not; the figures were measured on two cores.

    places: int64 (seq_len,), the number of the document at each place.
    """
    length = len(places)
    rows = block_rows(length)
    starts = np.arange(0, length, rows)
    stops = np.minimum(starts + rows, length)
    firsts = np.searchsorted(places, places[starts])
    scores = int(((stops - starts) * (stops - firsts)).sum())
    return _PER_PASS + _PER_TOKEN * length + _PER_SCORE * scores


def row_cost(row: Row, turns: int, label_alignment: str) -> float:
    """Estimate the seconds for the first `turns` turns of a sequence, packed and one by one."""
    found = turns_of(row, label_alignment)[:turns]
    places = document_ids(row)
    if turns < row["turn_num"]:
        places = places[: int(found[-1].positions[-1]) + 1]
    prefixes = [int(turn.positions[-1]) + 1 - turn.document_start for turn in found]
    return pass_cost(places) + sum(pass_cost(np.zeros(length, np.int64)) for length in prefixes)


def draw_sample(shards: Shards, budget: float = BUDGET) -> Sample:
    """Draw sequences in seeded order until the budget is spent, one at least.

    The shards must have passed the check of their structure.
    """
    alignment = shards.metadata.label_alignment
    rows: list[Row] = []
    left = budget
    for number in _seeded_order(len(shards)):
        row = shards[number]
        left -= row_cost(row, row["turn_num"], alignment)
        if left < 0:
            break
        rows.append(row)
    if not rows:
        rows = [_affordable(shards, budget)]
    return Sample(rows, _coverage(rows, shards))


def _seeded_order(count: int) -> Int64:
    """Return distinct row numbers, enough of them for any budget, without a list of all rows."""
    random = np.random.default_rng(SEED)
    return random.choice(count, size=min(count, 20_000), replace=False, shuffle=True)


def _affordable(shards: Shards, budget: float) -> Row:
    """Cut a sequence to the turns that fit the budget; where none fits, take what costs least."""
    alignment = shards.metadata.label_alignment
    cheapest: tuple[float, Row] | None = None
    for number in _seeded_order(len(shards))[:_CANDIDATES]:
        row = shards[number]
        cost = row_cost(row, 1, alignment)
        if cost <= budget:
            return _longest_affordable(row, budget, alignment)
        if cheapest is None or cost < cheapest[0]:
            cheapest = cost, row
    assert cheapest is not None
    return leading_turns(cheapest[1], 1, alignment)


def _longest_affordable(row: Row, budget: float, label_alignment: str) -> Row:
    """Bisect: the cost ascends with the turns, and the first turn is known to fit."""
    fits, fits_not = 1, row["turn_num"]
    while fits_not - fits > 1:
        middle = (fits + fits_not) // 2
        if row_cost(row, middle, label_alignment) <= budget:
            fits = middle
        else:
            fits_not = middle
    return leading_turns(row, fits, label_alignment)


def _coverage(rows: list[Row], shards: Shards) -> dict[str, int]:
    batches = [batch for shard in shards.opened for batch in shard.batches]
    return {
        "sequences": len(rows),
        "sequences_of": len(shards),
        "turns": sum(row["turn_num"] for row in rows),
        "turns_of": sum(len(batch.turn_starts) for batch in batches),
        "tokens": sum(int(row["document_lengths"].sum()) for row in rows),
        "tokens_of": sum(int(batch.document_lengths.sum(dtype=np.int64)) for batch in batches),
    }
