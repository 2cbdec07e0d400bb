"""Which sequences the numeric checks take, and how far: seeded samples, less than a minute in all.

A sequence is taken whole where the time allows. Where not even one can be, because its documents
are very long, its leading turns are: nothing behind a turn has a part in that turn's loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mtpack.packing.columns import IGNORED
from mtpack.shards.arrow import TOKEN_COLUMNS
from mtpack.shards.dataset import Row, Shards
from mtpack.token_batch import Int64, offsets_from_lengths
from mtpack.torch_data import PackedDataset
from mtpack.verify.causal_model import CausalModel
from mtpack.verify.model import block_rows
from mtpack.verify.padding import lengthened

SEED = 0
BUDGET = 10.0
"""Seconds that comparing with one sample per turn may cost, as estimated; machines differ by a
factor of two."""
_CANDIDATES = 256  # sequences to look at where the first one is too long
_NEIGHBOURS = 12  # documents of a sequence that are looked at for isolation

PassCost = Callable[[Int64], float]
"""From the number of the document at each place, (seq_len,), to the estimated seconds of one pass,
forwards and backwards; infinite where memory would not do."""

# Seconds in float64, forwards and backwards, as one core of two took them; see `pass_cost`.
_PER_PASS = 5e-3
_PER_TOKEN = 6e-5
_PER_SCORE = 1.4e-7
# In float32, as one core or an older data-centre GPU gives them.
_CPU_FLOPS = 2e10
_GPU_FLOPS = 1e13
_MOST_BYTES = 8e9


@dataclass(frozen=True, slots=True)
class TurnTokens:
    """A turn, as the reference needs it: where its document starts, and its tokens."""

    document_start: int
    positions: Int64
    """Of the loss tokens themselves (not of what predicts them), in the sequence, ascending."""


def document_ids(row: Row) -> Int64:
    """Return for each place the number of the entry of `seq_lengths` that it lies in."""
    return np.repeat(np.arange(len(row["seq_lengths"])), row["seq_lengths"])


def turns_of(row: Row, label_alignment: str) -> list[TurnTokens]:
    """Find each turn's tokens from the turn starts and the loss mask, not from loss_token_num."""
    places = np.flatnonzero(row["loss_mask"])
    groups = np.split(places, np.searchsorted(places, row["turn_starts"][1:]))
    entry_starts = offsets_from_lengths(row["seq_lengths"])[:-1]
    shift = 1 if label_alignment == "shifted" else 0
    turns = []
    for group in groups:
        entry = np.searchsorted(entry_starts, group[0], side="right") - 1
        turns.append(TurnTokens(int(entry_starts[entry]), group + shift))
    return turns


def leading_turns(row: Row, turns: int, label_alignment: str) -> Row:
    """Cut a sequence behind the last token of its first `turns` turns; all columns agree again."""
    end = int(turns_of(row, label_alignment)[turns - 1].positions[-1]) + 1
    starts = offsets_from_lengths(row["seq_lengths"])[:-1]
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


def model_pass_cost(model: CausalModel) -> PassCost:
    """Return the cost of passes through a user's model, from its size.

    6 FLOP a weight and token, and 14 * width + 50 * heads a layer and pair of tokens, masked or
    not. Logits with their gradients, and the scores of a layer, may take 8 GB; what takes more
    counts as much too long.
    """
    config: Any = model.module.config
    layers, width, heads = (
        int(getattr(config, name, None) or usual)
        for name, usual in (
            ("num_hidden_layers", 32),
            ("hidden_size", 4096),
            ("num_attention_heads", 32),
        )
    )
    weights = sum(parameter.numel() for parameter in model.parameters)
    flops = _CPU_FLOPS if model.device.type == "cpu" else _GPU_FLOPS
    most_tokens = min(_MOST_BYTES / (16 * model.vocabulary), (_MOST_BYTES / (8 * heads)) ** 0.5)

    def cost(places: Int64) -> float:
        length = len(places)
        pairs = layers * (14 * width + 50 * heads) * length**2
        too_long = 1e3 * length if length > most_tokens else 0.0
        return 4 * _PER_PASS + (6 * weights * length + pairs) / flops + too_long

    return cost


def row_cost(row: Row, turns: int, label_alignment: str, pass_cost: PassCost = pass_cost) -> float:
    """Estimate the seconds for the first `turns` turns of a sequence, packed and one by one."""
    found = turns_of(row, label_alignment)[:turns]
    places = document_ids(row)
    if turns < row["turn_num"]:
        places = places[: int(found[-1].positions[-1]) + 1]
    prefixes = [int(turn.positions[-1]) + 1 - turn.document_start for turn in found]
    return pass_cost(places) + sum(pass_cost(np.zeros(length, np.int64)) for length in prefixes)


def draw_sample(
    dataset: PackedDataset, budget: float = BUDGET, pass_cost: PassCost = pass_cost
) -> list[Row]:
    """Draw sequences in seeded order until the budget is spent, one at least.

    The shards must have passed the check of their structure.
    """
    rows: list[Row] = []
    left = budget
    for number in _seeded_order(len(dataset)):
        row = dataset[number]
        left -= row_cost(row, row["turn_num"], dataset.label_alignment, pass_cost)
        if left < 0:
            break
        rows.append(row)
    return rows or [_affordable(dataset, budget, pass_cost)]


def draw_short_rows(
    dataset: PackedDataset, count: int, seconds: float, pass_cost: PassCost = pass_cost
) -> list[Row]:
    """Draw sequences of equal lengths that cost so many seconds a pass each, in seeded order.

    At most `count`. One that is too long gives its leading turns, and padding where it is then
    shorter than others.
    """
    rows: list[Row] = []
    for number in _seeded_order(len(dataset))[:_CANDIDATES]:
        row = dataset[number]
        turns = _affordable_turns(row, seconds, dataset.label_alignment, pass_cost)
        if turns:
            rows.append(_first_turns(row, turns, dataset.label_alignment))
        if len(rows) == count:
            break
    if not rows:
        rows = [_affordable(dataset, seconds, pass_cost)]
    longest = max(len(row["input_ids"]) for row in rows)
    return [lengthened(row, longest) for row in rows]


def draw_neighbours(
    dataset: PackedDataset, count: int, seconds: float, pass_cost: PassCost = pass_cost
) -> list[Row]:
    """Draw sequences with two documents or more, in seeded order, where there are some.

    Of each the leading documents, and as much of each as a pass of so many seconds has room for.
    """
    rows: list[Row] = []
    for number in _seeded_order(len(dataset))[:_CANDIDATES]:
        row = dataset[number]
        limit = int(row["seq_lengths"].max())
        cut = leading_parts(row, limit)
        while limit > 1 and pass_cost(document_ids(cut)) > seconds:
            limit //= 2
            cut = leading_parts(row, limit)
        if np.count_nonzero(cut["dialogue_ids"] >= 0) > 1:
            rows.append(cut)
        if len(rows) == count:
            break
    return rows or [cut]


def leading_parts(row: Row, limit: int) -> Row:
    """Cut a sequence to its first documents, and each to its first tokens.

    All columns agree again but loss_token_num, which counts what is cut off as well.
    """
    entries = document_ids(row)
    starts = offsets_from_lengths(row["seq_lengths"])[:-1]
    within = np.arange(len(entries)) - starts[entries]
    kept = (within < limit) & (entries < _NEIGHBOURS)
    heads = kept[row["turn_starts"]]
    cut: dict[str, Any] = {name: row[name][kept] for name in TOKEN_COLUMNS}
    for name in ("seq_lengths", "document_lengths"):
        cut[name] = np.minimum(row[name][:_NEIGHBOURS], limit)
    return cut | {
        "turn_num": int(heads.sum()),
        "turn_starts": (np.cumsum(kept) - 1)[row["turn_starts"][heads]],
        "turn_messages": row["turn_messages"][heads],
        "dialogue_ids": row["dialogue_ids"][:_NEIGHBOURS],
    }


def _seeded_order(count: int) -> list[int]:
    """Return distinct row numbers, enough of them for any budget, without a list of all rows."""
    random = np.random.default_rng(SEED)
    drawn: list[int] = random.choice(
        count, size=min(count, 20_000), replace=False, shuffle=True
    ).tolist()
    return drawn


def _affordable(dataset: PackedDataset, budget: float, pass_cost: PassCost) -> Row:
    """Cut a sequence to the turns that fit the budget; where none fits, take what costs least."""
    alignment = dataset.label_alignment
    cheapest: tuple[float, Row] | None = None
    for number in _seeded_order(len(dataset))[:_CANDIDATES]:
        row = dataset[number]
        cost = row_cost(row, 1, alignment, pass_cost)
        if cost <= budget:

            def fits(turns: int, row: Row = row) -> bool:
                return row_cost(row, turns, alignment, pass_cost) <= budget

            return _first_turns(row, _most_turns(row, fits), alignment)
        if cheapest is None or cost < cheapest[0]:
            cheapest = cost, row
    assert cheapest is not None
    return _first_turns(cheapest[1], 1, alignment)


def _affordable_turns(row: Row, seconds: float, label_alignment: str, pass_cost: PassCost) -> int:
    """Return how many leading turns a pass of so many seconds has room for."""
    places = document_ids(row)
    if pass_cost(places) <= seconds:
        return int(row["turn_num"])
    ends = [int(turn.positions[-1]) + 1 for turn in turns_of(row, label_alignment)]

    def fits(turns: int) -> bool:
        return pass_cost(places[: ends[turns - 1]]) <= seconds

    return _most_turns(row, fits) if fits(1) else 0


def _most_turns(row: Row, fits: Callable[[int], bool]) -> int:
    """Bisect: the cost ascends with the turns, and the first one is known to fit."""
    fitting, too_many = 1, int(row["turn_num"]) + 1
    while too_many - fitting > 1:
        middle = (fitting + too_many) // 2
        if fits(middle):
            fitting = middle
        else:
            too_many = middle
    return fitting


def _first_turns(row: Row, turns: int, label_alignment: str) -> Row:
    return row if turns == row["turn_num"] else leading_turns(row, turns, label_alignment)


def coverage_of(rows: list[Row], shards: Shards) -> dict[str, int]:
    """Count `sequences`, `turns` and `tokens` (documents' own), and of how many each."""
    batches = [batch for shard in shards.opened for batch in shard.batches]
    return {
        "sequences": len(rows),
        "sequences_of": len(shards),
        "turns": sum(row["turn_num"] for row in rows),
        "turns_of": sum(len(batch.turn_starts) for batch in batches),
        "tokens": sum(int(row["document_lengths"].sum()) for row in rows),
        "tokens_of": sum(int(batch.document_lengths.sum(dtype=np.int64)) for batch in batches),
    }
