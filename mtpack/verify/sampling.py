"""Draw a seeded sample of sequences of a fixed size for the numeric checks.

Where the shards have them, a sample has at least three sequences with two documents of 16 tokens
each, and eight turns. Long documents are shortened to a part around their first turn. The turns
that are kept are whole, so their columns stay as they are in the shards.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mtpack.shards.arrow import EXTRA_TYPES, TOKEN_COLUMNS
from mtpack.shards.dataset import Row, Shards
from mtpack.token_batch import Int64, expand_ranges, offsets_from_lengths
from mtpack.torch_data import PackedDataset
from mtpack.verify.padding import PADDING

SEED = 0
LEAST_TURNS = 8
LEAST_TOKENS = 16
"""Of a document, where it has them; also of the context that is kept before its first turn."""
_CANDIDATES = 1024  # sequences among which those with several documents are preferred


@dataclass(frozen=True, slots=True)
class SampleSize:
    """The size of a sample; it has more sequences if these hold fewer than eight turns."""

    sequences: int
    documents: int
    """Of a sequence, at most."""
    tokens: int
    """Of a document, at most, except that its first turn stays whole."""


USUAL = SampleSize(sequences=5, documents=8, tokens=512)
"""For small models; well below a minute on two cores with the built-in one."""
LEAST = SampleSize(sequences=3, documents=3, tokens=32)
"""For large models."""


@dataclass(frozen=True, slots=True)
class TurnTokens:
    """The tokens of a turn, as the reference needs them."""

    document_start: int
    """The position in the sequence where the turn's document starts."""
    positions: Int64
    """Of the loss tokens (not of the tokens that predict them) in the sequence, ascending."""

    @property
    def stop(self) -> int:
        """The position after the last token of the turn."""
        return int(self.positions[-1]) + 1


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


def draw_sample(dataset: PackedDataset, size: SampleSize) -> list[Row]:
    """Draw sequences in seeded order, first those with two documents of 16 tokens or more.

    The shards must have passed the structure check.
    """
    count = min(len(dataset), _CANDIDATES)
    order = np.random.default_rng(SEED).choice(len(dataset), count, replace=False).tolist()
    order.sort(key=lambda number: (dataset[number]["document_lengths"] >= LEAST_TOKENS).sum() < 2)
    rows: list[Row] = []
    turns = 0
    for number in order:
        rows.append(shorten_row(dataset[number], size, dataset.label_alignment))
        turns += rows[-1]["turn_num"]
        if len(rows) >= size.sequences and turns >= LEAST_TURNS:
            break
    return rows


def shorten_row(row: Row, size: SampleSize, label_alignment: str) -> Row:
    """Return a sequence with at most `size.documents` documents, each shortened to a part of it.

    The shortest documents of 16 tokens or more are preferred. A turn that is not whole any more has
    no loss. Padding is shortened too. All columns stay consistent.
    """
    turns = find_turns(row, label_alignment)
    parts = _find_parts(row, turns, size.tokens)
    lengths = parts[:, 1] - parts[:, 0]
    documents = np.flatnonzero(row["dialogue_ids"] >= 0)
    is_short = row["document_lengths"][documents] < LEAST_TOKENS
    preferred = np.lexsort((lengths[documents], is_short))
    kept = row["dialogue_ids"] < 0
    kept[documents[preferred[: size.documents]]] = True

    positions = expand_ranges(parts[kept, 0], lengths[kept])
    is_trained = np.zeros(len(row["input_ids"]), np.bool_)
    shift = 1 if label_alignment == "shifted" else 0
    turn_entries = find_entries(row)[row["turn_starts"]]
    kept_turns = [
        index
        for index, (turn, entry) in enumerate(zip(turns, turn_entries, strict=True))
        if kept[entry] and turn.stop <= parts[entry, 1]
    ]
    for index in kept_turns:
        is_trained[turns[index].positions - shift] = True
    per_turn = ("turn_messages", *EXTRA_TYPES)
    columns = {name: row[name][positions] for name in TOKEN_COLUMNS}
    for name in ("labels", "loss_mask", "loss_token_num"):
        columns[name][~is_trained[positions]] = PADDING[name]
    return {
        **row,
        **columns,
        "turn_num": len(kept_turns),
        "turn_starts": np.searchsorted(positions, row["turn_starts"][kept_turns]),
        **{name: row[name][kept_turns] for name in per_turn if name in row},
        "seq_lengths": lengths[kept],
        "document_lengths": np.minimum(row["document_lengths"], lengths)[kept],
        "dialogue_ids": row["dialogue_ids"][kept],
    }


def _find_parts(row: Row, turns: list[TurnTokens], limit: int) -> Int64:
    """Return where the part of each entry that can be kept begins and ends, int64 (entries, 2).

    A document of more than `limit` tokens keeps 16 tokens before its first turn, that turn, and
    what follows within `limit`.
    """
    starts = offsets_from_lengths(row["seq_lengths"])[:-1]
    parts = np.stack((starts, starts + row["seq_lengths"]), axis=1)
    first_turns = {turn.document_start: turn for turn in reversed(turns)}
    for entry, (start, tokens) in enumerate(zip(starts, row["document_lengths"], strict=True)):
        turn = first_turns.get(int(start))
        if turn is None:  # padding
            parts[entry, 1] = min(parts[entry, 1], start + limit)
        elif tokens > limit:
            begin = max(start, turn.positions[0] - LEAST_TOKENS)
            parts[entry] = begin, min(start + tokens, max(begin + limit, turn.stop))
    return parts


def count_coverage(rows: list[Row], shards: Shards) -> dict[str, int]:
    """Count what a sample holds of all shards; `tokens` are those of documents."""
    documents = turns = tokens = 0
    for batch in shards.batches():
        documents += int(np.count_nonzero(batch.document_lengths))
        turns += len(batch.turn_starts)
        tokens += int(batch.document_lengths.sum(dtype=np.int64))
    return {
        "sequences": len(rows),
        "sequences_of": len(shards),
        "documents": sum(int(np.count_nonzero(row["document_lengths"])) for row in rows),
        "documents_of": documents,
        "turns": sum(row["turn_num"] for row in rows),
        "turns_of": turns,
        "tokens": sum(int(row["document_lengths"].sum()) for row in rows),
        "tokens_of": tokens,
    }
