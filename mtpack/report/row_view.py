"""One sequence as documents, turns and trained tokens, whatever the label alignment."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mtpack.errors import InputError, SetupError
from mtpack.shards.dataset import Row, Shards
from mtpack.token_batch import Int32, Int64, offsets_from_lengths


@dataclass(frozen=True, slots=True)
class DocumentView:
    """One document of a sequence."""

    dialogue: int
    """The index of its input row."""
    start: int
    """Where it starts in the sequence."""
    length: int
    padded_length: int
    """With the padding that `--pad-documents-to` gave it."""


@dataclass(frozen=True, slots=True)
class TurnView:
    """One turn of a sequence."""

    document: int
    """Which of the sequence's documents it is in, from 0."""
    message: int
    """The index of its message in its dialogue."""
    positions: Int64
    """Where its trained tokens are in the sequence: the tokens, not their predictors."""
    loss_token_num: int

    @property
    def weight(self) -> float:
        """The weight of each of its tokens' losses; over a turn they add up to 1."""
        return 1 / self.loss_token_num


@dataclass(frozen=True, slots=True)
class RowView:
    """One sequence."""

    number: int
    """Its index over all shards, from 0."""
    rows: int
    """How many sequences there are."""
    documents: tuple[DocumentView, ...]
    turns: tuple[TurnView, ...]
    token_ids: Int32
    """(seq_len,)"""

    @property
    def padding(self) -> int:
        """Places that hold no token of a document."""
        return len(self.token_ids) - sum(document.length for document in self.documents)

    @property
    def token_turns(self) -> Int64:
        """Which of the sequence's turns trains each token, -1 for none, (seq_len,)."""
        token_turns = np.full(len(self.token_ids), -1, dtype=np.int64)
        for number, turn in enumerate(self.turns):
            token_turns[turn.positions] = number
        return token_turns

    def as_dict(self) -> dict[str, Any]:
        """Return the object that `inspect --row N --json` prints."""
        return {
            "row": self.number,
            "rows": self.rows,
            "documents": [asdict(document) for document in self.documents],
            "turns": [
                asdict(turn) | {"positions": turn.positions.tolist(), "weight": turn.weight}
                for turn in self.turns
            ],
            "input_ids": self.token_ids.tolist(),
            "padding": self.padding,
        }


def row_view(shards: Shards, number: int) -> RowView:
    """Return the view of one sequence; raise SetupError where there is no such one."""
    if not 0 <= number < len(shards):
        raise SetupError(
            f"row {number}: out of range; there are {len(shards):,} rows, counted from 0"
        )
    row = shards[number]
    # Where labels are shifted, a token's loss is counted at the place before it.
    shift = 1 if shards.metadata.label_alignment == "shifted" else 0
    try:
        documents = _documents_of(row)
        turns = _turns_of(row, documents, shift)
    except InputError as error:
        raise InputError(f"row {number}: damaged: {error}; pack the data again") from error
    return RowView(number, len(shards), documents, turns, row["input_ids"])


def _documents_of(row: Row) -> tuple[DocumentView, ...]:
    offsets = offsets_from_lengths(row["seq_lengths"])
    lengths, padded = row["document_lengths"], row["seq_lengths"]
    is_document = row["dialogue_ids"] >= 0
    fit = (lengths >= is_document) & (lengths <= padded)  # a document has a token, at least
    if offsets[-1] != len(row["input_ids"]) or not fit.all():
        raise InputError("its documents do not fit into it")
    if row["input_ids"].min() < 0:
        raise InputError("it has a negative token id")
    entries = zip(row["dialogue_ids"], offsets, lengths, padded, strict=False)
    return tuple(DocumentView(*map(int, entry)) for entry in entries if entry[0] >= 0)


def _turns_of(row: Row, documents: tuple[DocumentView, ...], shift: int) -> tuple[TurnView, ...]:
    """Return the turns: a turn's loss places reach from its head to the next turn's head."""
    places, heads = np.flatnonzero(row["loss_mask"]), row["turn_starts"]
    turn_of_place = np.searchsorted(heads, places, side="right") - 1
    ascending = (np.diff(heads) > 0).all() and (turn_of_place >= 0).all()
    if not len(heads) or len(heads) != row["turn_num"] or not ascending:
        raise InputError("its turn_num and turn_starts do not fit its loss_mask")
    sizes = np.bincount(turn_of_place, minlength=len(heads))
    if not sizes.all() or (row["loss_token_num"][places] != sizes[turn_of_place]).any():
        raise InputError("its loss_token_num does not fit its loss_mask")
    by_turn = np.split(places + shift, offsets_from_lengths(sizes)[1:-1])
    return tuple(
        TurnView(_document_around(positions, documents), int(message), positions, len(positions))
        for message, positions in zip(row["turn_messages"], by_turn, strict=True)
    )


def _document_around(positions: Int64, documents: tuple[DocumentView, ...]) -> int:
    number = bisect_right(documents, positions[0], key=lambda document: document.start) - 1
    if number < 0 or positions[-1] >= documents[number].start + documents[number].length:
        raise InputError("a turn lies in no document")
    return number
