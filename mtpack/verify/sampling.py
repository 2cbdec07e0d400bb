"""Draw seeded samples of sequences for the numeric checks, which then take less than a minute.

A sequence is used whole if the time allows. If it is too long, it is cut after some of its first
turns: tokens after a turn do not change the loss of that turn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mtpack.packing.columns import WITHOUT_LOSS
from mtpack.shards.arrow import TOKEN_COLUMNS
from mtpack.shards.dataset import Row, Shards
from mtpack.token_batch import Int64, offsets_from_lengths
from mtpack.torch_data import PackedDataset
from mtpack.verify.causal_model import CausalModel
from mtpack.verify.model import choose_block_rows
from mtpack.verify.padding import pad_sequence

SEED = 0
BUDGET = 10.0
"""Seconds for the comparison with one sample per turn, as estimated; machines differ by a factor of
two."""
_CANDIDATES = 256  # sequences to try if the first one is too long
_NEIGHBOURS = 12  # documents of a sequence that the isolation check uses

PassCost = Callable[[Int64], float]
"""From the document index at each position, int64 (seq_len,), to the estimated seconds of a forward
and a backward pass; a very large value if memory is not enough."""

# Seconds in float64, forward and backward, measured on one of two cores: `estimate_pass_cost`.
_PER_PASS = 5e-3
_PER_TOKEN = 6e-5
_PER_SCORE = 1.4e-7
# FLOP per second in float32, of one core and of an older data-centre GPU.
_CPU_FLOPS = 2e10
_GPU_FLOPS = 1e13
_MOST_BYTES = 8e9


@dataclass(frozen=True, slots=True)
class TurnTokens:
    """The tokens of a turn, as the reference needs them."""

    document_start: int
    """The position in the sequence where the turn's document starts."""
    positions: Int64
    """Of the loss tokens (not of the tokens that predict them) in the sequence, ascending."""


def find_entries(row: Row) -> Int64:
    """Return the index of the entry of `seq_lengths` at each position, int64 (seq_len,)."""
    return np.repeat(np.arange(len(row["seq_lengths"])), row["seq_lengths"])


def find_turns(row: Row, label_alignment: str) -> list[TurnTokens]:
    """Return the tokens of each turn, from turn_starts and loss_mask, not from loss_token_num."""
    positions = np.flatnonzero(row["loss_mask"])
    groups = np.split(positions, np.searchsorted(positions, row["turn_starts"][1:]))
    entry_starts = offsets_from_lengths(row["seq_lengths"])[:-1]
    shift = 1 if label_alignment == "shifted" else 0
    turns = []
    for group in groups:
        entry = np.searchsorted(entry_starts, group[0], side="right") - 1
        turns.append(TurnTokens(int(entry_starts[entry]), group + shift))
    return turns


def cut_to_turns(row: Row, turns: int, label_alignment: str) -> Row:
    """Cut a sequence after the end of its first `turns` turns; all columns stay consistent."""
    end = int(find_turns(row, label_alignment)[turns - 1].positions[-1]) + 1
    starts = offsets_from_lengths(row["seq_lengths"])[:-1]
    entries = int(np.searchsorted(starts, end))
    remaining = end - starts[:entries]
    cut: dict[str, Any] = {name: row[name][:end].copy() for name in TOKEN_COLUMNS}
    if label_alignment == "shifted":  # the last position may predict the next turn
        for name, value in WITHOUT_LOSS.items():
            cut[name][-1] = value
    return cut | {
        "turn_num": turns,
        "turn_starts": row["turn_starts"][:turns],
        "turn_messages": row["turn_messages"][:turns],
        "seq_lengths": np.minimum(row["seq_lengths"][:entries], remaining),
        "document_lengths": np.minimum(row["document_lengths"][:entries], remaining),
        "dialogue_ids": row["dialogue_ids"][:entries],
    }


def estimate_pass_cost(documents: Int64) -> float:
    """Estimate the seconds of a forward and a backward pass of the built-in model.

    The cost has a constant part, a part per token, and a part per pair of query row and key that
    attention computes, masked or not. The constants were measured on a machine with two cores.

    documents: int64 (seq_len,), the document index at each position.
    """
    length = len(documents)
    rows = choose_block_rows(length)
    starts = np.arange(0, length, rows)
    stops = np.minimum(starts + rows, length)
    firsts = np.searchsorted(documents, documents[starts])
    scores = int(((stops - starts) * (stops - firsts)).sum())
    return _PER_PASS + _PER_TOKEN * length + _PER_SCORE * scores


def make_pass_cost(model: CausalModel) -> PassCost:
    """Return the function that estimates the cost of a pass of a user's model, from its size.

    6 FLOP per weight and token, and 14 * width + 50 * heads per layer and pair of tokens, masked or
    not. Logits with their gradients, and the scores of a layer, may take 8 GB each; a sequence that
    needs more gets a very high cost.
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

    def cost(documents: Int64) -> float:
        length = len(documents)
        pairs = layers * (14 * width + 50 * heads) * length**2
        too_long = 1e3 * length if length > most_tokens else 0.0
        return 4 * _PER_PASS + (6 * weights * length + pairs) / flops + too_long

    return cost


def estimate_row_cost(
    row: Row, turns: int, label_alignment: str, pass_cost: PassCost = estimate_pass_cost
) -> float:
    """Estimate the seconds for the first `turns` turns of a sequence: packed, and one by one."""
    found = find_turns(row, label_alignment)[:turns]
    documents = find_entries(row)
    if turns < row["turn_num"]:
        documents = documents[: int(found[-1].positions[-1]) + 1]
    prefixes = [int(turn.positions[-1]) + 1 - turn.document_start for turn in found]
    return pass_cost(documents) + sum(pass_cost(np.zeros(length, np.int64)) for length in prefixes)


def draw_sample(
    dataset: PackedDataset, budget: float = BUDGET, pass_cost: PassCost = estimate_pass_cost
) -> list[Row]:
    """Draw sequences in seeded order until the budget (seconds) is spent; at least one.

    The shards must have passed the structure check.
    """
    rows: list[Row] = []
    left = budget
    for number in _draw_order(len(dataset)):
        row = dataset[number]
        left -= estimate_row_cost(row, row["turn_num"], dataset.label_alignment, pass_cost)
        if left < 0:
            break
        rows.append(row)
    return rows or [_draw_affordable(dataset, budget, pass_cost)]


def draw_short_rows(
    dataset: PackedDataset, count: int, seconds: float, pass_cost: PassCost = estimate_pass_cost
) -> list[Row]:
    """Draw up to `count` sequences in seeded order, of which a pass costs at most `seconds` each.

    A sequence that is too long is cut after some of its first turns. Then all are padded to the
    same length.
    """
    rows: list[Row] = []
    for number in _draw_order(len(dataset))[:_CANDIDATES]:
        row = dataset[number]
        turns = _count_affordable_turns(row, seconds, dataset.label_alignment, pass_cost)
        if turns:
            rows.append(_cut_if_needed(row, turns, dataset.label_alignment))
        if len(rows) == count:
            break
    if not rows:
        rows = [_draw_affordable(dataset, seconds, pass_cost)]
    longest = max(len(row["input_ids"]) for row in rows)
    return [pad_sequence(row, longest) for row in rows]


def draw_neighbours(
    dataset: PackedDataset, count: int, seconds: float, pass_cost: PassCost = estimate_pass_cost
) -> list[Row]:
    """Draw up to `count` sequences with two documents or more, in seeded order, if there are any.

    Each is cut to its first documents, and each document to a length for which a pass costs at most
    `seconds`.
    """
    rows: list[Row] = []
    for number in _draw_order(len(dataset))[:_CANDIDATES]:
        row = dataset[number]
        limit = int(row["seq_lengths"].max())
        cut = cut_documents(row, limit)
        while limit > 1 and pass_cost(find_entries(cut)) > seconds:
            limit //= 2
            cut = cut_documents(row, limit)
        if np.count_nonzero(cut["dialogue_ids"] >= 0) > 1:
            rows.append(cut)
        if len(rows) == count:
            break
    return rows or [cut]


def cut_documents(row: Row, limit: int) -> Row:
    """Cut a sequence to its first documents, and each document to its first `limit` tokens.

    All columns stay consistent except loss_token_num, which still counts the removed tokens.
    """
    entries = find_entries(row)
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


def _draw_order(count: int) -> list[int]:
    """Return up to 20,000 different indices in seeded order, enough for any budget."""
    random = np.random.default_rng(SEED)
    drawn: list[int] = random.choice(
        count, size=min(count, 20_000), replace=False, shuffle=True
    ).tolist()
    return drawn


def _draw_affordable(dataset: PackedDataset, budget: float, pass_cost: PassCost) -> Row:
    """Return a sequence cut to the turns that fit the budget; if none fits, the cheapest turn."""
    alignment = dataset.label_alignment
    cheapest: tuple[float, Row] | None = None
    for number in _draw_order(len(dataset))[:_CANDIDATES]:
        row = dataset[number]
        cost = estimate_row_cost(row, 1, alignment, pass_cost)
        if cost <= budget:

            def fits(turns: int, row: Row = row) -> bool:
                return estimate_row_cost(row, turns, alignment, pass_cost) <= budget

            return _cut_if_needed(row, _find_most_turns(row, fits), alignment)
        if cheapest is None or cost < cheapest[0]:
            cheapest = cost, row
    assert cheapest is not None
    return _cut_if_needed(cheapest[1], 1, alignment)


def _count_affordable_turns(
    row: Row, seconds: float, label_alignment: str, pass_cost: PassCost
) -> int:
    """Return the number of first turns for which a pass costs at most `seconds`."""
    documents = find_entries(row)
    if pass_cost(documents) <= seconds:
        return int(row["turn_num"])
    ends = [int(turn.positions[-1]) + 1 for turn in find_turns(row, label_alignment)]

    def fits(turns: int) -> bool:
        return pass_cost(documents[: ends[turns - 1]]) <= seconds

    return _find_most_turns(row, fits) if fits(1) else 0


def _find_most_turns(row: Row, fits: Callable[[int], bool]) -> int:
    """Return the largest fitting number of turns, by bisection; one turn must fit."""
    fitting, too_many = 1, int(row["turn_num"]) + 1
    while too_many - fitting > 1:
        middle = (fitting + too_many) // 2
        if fits(middle):
            fitting = middle
        else:
            too_many = middle
    return fitting


def _cut_if_needed(row: Row, turns: int, label_alignment: str) -> Row:
    return row if turns == row["turn_num"] else cut_to_turns(row, turns, label_alignment)


def count_coverage(rows: list[Row], shards: Shards) -> dict[str, int]:
    """Count `sequences`, `turns` and `tokens` (without padding) of a sample, and of all shards."""
    batches = [batch for shard in shards.opened for batch in shard.batches]
    return {
        "sequences": len(rows),
        "sequences_of": len(shards),
        "turns": sum(row["turn_num"] for row in rows),
        "turns_of": sum(len(batch.turn_starts) for batch in batches),
        "tokens": sum(int(row["document_lengths"].sum()) for row in rows),
        "tokens_of": sum(int(batch.document_lengths.sum(dtype=np.int64)) for batch in batches),
    }
