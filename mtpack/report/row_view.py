"""One sequence as documents, turns and loss tokens, the same for both label alignments."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mtpack.errors import InputError, SetupError
from mtpack.shards.dataset import Row, Shards
from mtpack.token_batch import Int32, Int64, offsets_from_lengths
from mtpack.turn_weight import MAX_WEIGHT, format_weight


@dataclass(frozen=True, slots=True)
class DocumentView:
    """One document of a sequence."""

    dialogue: int
    """The index of its input row."""
    start: int
    """The position of its first token in the sequence."""
    length: int
    padded_length: int
    """Its length with the padding that `--pad-documents-to` adds."""


@dataclass(frozen=True, slots=True)
class TurnView:
    """One turn of a sequence."""

    document: int
    """The index of its document in the sequence, from 0."""
    message: int
    """The index of its message in its dialogue."""
    positions: Int64
    """The positions of its loss tokens in the sequence (not of the tokens that predict them)."""
    loss_token_num: int
    bent: bool | None
    """Whether it is merged although that is not exact; None if its shard does not say."""
    turn_weight: float | None = None
    """Its own weight; None if its shard has no weights: then all turns have the weight 1."""

    @property
    def weight(self) -> float:
        """The weight of the loss of each token; the weights of a turn add up to its own, or 1."""
        return (self.turn_weight or 1) / self.loss_token_num

    @property
    def weight_text(self) -> str:
        """The weight of each token as people read it: `1/145`, `0.5/145`."""
        return describe_weight(self.turn_weight, self.loss_token_num)

    def as_dict(self) -> dict[str, Any]:
        """Return the turn as JSON values."""
        values = asdict(self) | {"positions": self.positions.tolist(), "weight": self.weight}
        if self.turn_weight is None:
            del values["turn_weight"]
        return values


def describe_weight(turn_weight: float | None, loss_tokens: int) -> str:
    """Return the weight of each token of a turn as people read it.

    >>> describe_weight(None, 145), describe_weight(0.5, 2000)
    ('1/145', '0.5/2,000')
    """
    return f"{format_weight(turn_weight or 1)}/{loss_tokens:,}"


@dataclass(frozen=True)
class RowView:
    """One sequence."""

    number: int
    """Its index over all shards, from 0."""
    rows: int
    """The number of all sequences."""
    documents: tuple[DocumentView, ...]
    turns: tuple[TurnView, ...]
    token_ids: Int32
    """(seq_len,)"""

    @property
    def padding(self) -> int:
        """The number of positions that hold no token of a document."""
        return len(self.token_ids) - sum(document.length for document in self.documents)

    @property
    def has_weights(self) -> bool:
        """Whether its turns have weights of their own."""
        return any(turn.turn_weight is not None for turn in self.turns)

    @cached_property
    def token_turns(self) -> Int64:
        """The index of the turn that trains each token, -1 for none: int64 (seq_len,)."""
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
            "turns": [turn.as_dict() for turn in self.turns],
            "input_ids": self.token_ids.tolist(),
            "padding": self.padding,
        }

    def document_as_dict(self, number: int) -> dict[str, Any]:
        """Return one document of what `inspect --dialogue ID --json` prints.

        As everywhere, positions are those in the sequence.
        """
        document = self.documents[number]
        ids = self.token_ids[document.start : document.start + document.length]
        return {
            "row": self.number,
            **asdict(document),
            "turns": [turn.as_dict() for turn in self.turns if turn.document == number],
            "input_ids": ids.tolist(),
        }


def view_row(shards: Shards, number: int) -> RowView:
    """Return the view of one sequence.

    Raises SetupError if there is no such sequence, and InputError if its columns are damaged.
    """
    if not 0 <= number < len(shards):
        raise SetupError(
            f"--row {number}: out of range; there are {len(shards):,} sequences, counted from 0"
        )
    row = shards[number]
    # With shifted labels, the loss of a token is at the position before it.
    shift = 1 if shards.metadata.label_alignment == "shifted" else 0
    try:
        documents = _read_documents(row)
        turns = _read_turns(row, documents, shift)
    except InputError as error:
        raise InputError(f"sequence {number}: damaged: {error}; pack the data again") from error
    return RowView(number, len(shards), documents, turns, row["input_ids"])


def _read_documents(row: Row) -> tuple[DocumentView, ...]:
    offsets = offsets_from_lengths(row["seq_lengths"])
    lengths, padded = row["document_lengths"], row["seq_lengths"]
    is_document = row["dialogue_ids"] >= 0
    fit = (lengths >= is_document) & (lengths <= padded)  # a document has at least one token
    if offsets[-1] != len(row["input_ids"]) or not fit.all():
        raise InputError("the lengths of its documents do not fit its own")
    if row["input_ids"].min() < 0:
        raise InputError("it has a negative token id")
    entries = zip(row["dialogue_ids"], offsets, lengths, padded, strict=False)
    return tuple(DocumentView(*map(int, entry)) for entry in entries if entry[0] >= 0)


def _read_turns(row: Row, documents: tuple[DocumentView, ...], shift: int) -> tuple[TurnView, ...]:
    """Return the turns: each has the loss positions from its start to the start of the next one."""
    positions, starts = np.flatnonzero(row["loss_mask"]), row["turn_starts"]
    turn_of_position = np.searchsorted(starts, positions, side="right") - 1
    ascending = (np.diff(starts) > 0).all() and (turn_of_position >= 0).all()
    if not len(starts) or len(starts) != row["turn_num"] or not ascending:
        raise InputError("its turn_num and turn_starts do not agree with its loss_mask")
    sizes = np.bincount(turn_of_position, minlength=len(starts))
    if not sizes.all() or (row["loss_token_num"][positions] != sizes[turn_of_position]).any():
        raise InputError("its loss_token_num does not agree with its loss_mask")
    by_turn = np.split(positions + shift, offsets_from_lengths(sizes)[1:-1])
    messages = row["turn_messages"].tolist()
    unknown = [None] * len(messages)
    bent = row["turn_bent"].astype(bool).tolist() if "turn_bent" in row else unknown
    weights = row["turn_weights"].tolist() if "turn_weights" in row else unknown
    if not all(weight is None or 0 < weight <= MAX_WEIGHT for weight in weights):
        raise InputError("its turn_weights has no weight of a turn")
    return tuple(
        TurnView(_find_document(own, documents), message, own, len(own), is_bent, weight)
        for message, is_bent, own, weight in zip(messages, bent, by_turn, weights, strict=True)
    )


def _find_document(positions: Int64, documents: tuple[DocumentView, ...]) -> int:
    number = bisect_right(documents, positions[0], key=lambda document: document.start) - 1
    if number < 0 or positions[-1] >= documents[number].start + documents[number].length:
        raise InputError("a turn is in no document")
    return number
