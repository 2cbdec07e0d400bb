"""Find dialogues, texts and turns in shards, in one pass over their record batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from mtpack.errors import InputError, SetupError
from mtpack.packing.columns import Columns
from mtpack.report.batches import visit_batches
from mtpack.report.decoding import CUT_CHARACTER, Decoder
from mtpack.report.document_text import read_pieces
from mtpack.report.row_view import RowView, view_row
from mtpack.report.token_bytes import TokenBytes
from mtpack.shards.dataset import Shards
from mtpack.token_batch import Int32, Int64, offsets_from_lengths


@dataclass(frozen=True, slots=True)
class Occurrence:
    """A document that holds a text."""

    sequence: int
    document: int
    """The index of the document in its sequence, from 0."""
    dialogue: int
    message: int | None
    """The message that trains the text where it is found first; None if it is not trained."""
    times: int
    """How often the document holds the text, without overlaps."""
    before: str
    """The text of the document before it is found first; not escaped, like the next ones."""
    text: str
    after: str

    def as_dict(self) -> dict[str, Any]:
        """Return one entry of what `inspect --find TEXT --json` prints, with some context."""
        return {
            "sequence": self.sequence,
            "document": self.document,
            "dialogue": self.dialogue,
            "message": self.message,
            "times": self.times,
            "before": self.before[-_CONTEXT:],
            "after": self.after[:_CONTEXT],
        }


_CONTEXT = 100  # characters


def find_dialogue(shards: Shards, dialogue: int) -> list[tuple[RowView, int]]:
    """Return the sequence of each document of a dialogue, and the document's index in it.

    Raises SetupError if no sequence holds the dialogue, and InputError for a damaged sequence.
    """

    def visit(first: int, batch: Columns) -> list[tuple[RowView, int]]:
        entries = np.flatnonzero((batch.dialogue_ids == dialogue) & (batch.dialogue_ids >= 0))
        places = [_locate(batch, entry) for entry in entries.tolist()]
        return [(view_row(shards, first + row), number) for row, number in places]

    found = [each for part in visit_batches(shards, visit) for each in part]
    if not found:
        raise SetupError(
            f"--dialogue {dialogue}: in no sequence; it is the index of an input row, counted from "
            "0, and rows that were rejected or dropped are in none"
        )
    return found


def find_text(shards: Shards, text: str, decoder: Decoder, limit: int) -> list[Occurrence]:
    """Return the first documents that hold a text, at most `limit`.

    Raises SetupError for what is no text, and InputError for a damaged sequence.
    """
    if not text or not _is_text(text):
        raise SetupError("--find: name a text of at least one character, in UTF-8")
    found: list[Occurrence] = []
    token_bytes = None if CUT_CHARACTER in text else decoder.load_token_bytes()

    def visit(first: int, batch: Columns) -> None:
        if batch.input_ids.size and batch.input_ids.min() < 0:
            raise InputError("a token id is negative")
        starts = offsets_from_lengths(batch.seq_lengths)
        ids = batch.input_ids.ravel()
        entries: Iterable[int] = np.flatnonzero(batch.dialogue_ids >= 0).tolist()
        if token_bytes is not None:
            entries = _find_candidates(token_bytes, ids, starts, text)
        for entry in entries:
            start = int(starts[entry])
            length = int(batch.document_lengths[entry])
            if text in decoder(ids[start : start + length].tolist()):
                row, number = _locate(batch, entry)
                view = view_row(shards, first + row)
                found.append(_make_occurrence(view, number, text, decoder))
                if len(found) == limit:
                    return

    for _ in visit_batches(shards, visit):
        if len(found) == limit:
            break
    return found


def _is_text(value: str) -> bool:
    """Return whether a value can be UTF-8: bytes that are not come as half surrogate pairs."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


def _find_candidates(
    token_bytes: TokenBytes, ids: Int32, starts: Int64, text: str
) -> Iterator[int]:
    """Yield the entries in which the bytes of a text start, padding among them.

    ids: int32 (tokens,). starts: int64 (entries + 1,): where the tokens of each entry start.
    """
    content, positions = token_bytes.join(ids)
    edges = positions[starts]
    wanted, position = text.encode(), 0
    while (position := content.find(wanted, position)) >= 0:
        entry = int(np.searchsorted(edges, position, side="right")) - 1
        yield entry
        position = int(edges[entry + 1])


def _make_occurrence(view: RowView, number: int, text: str, decoder: Decoder) -> Occurrence:
    """Describe a document that holds a text, and find the turn that trains it there."""
    document = view.documents[number]
    pieces = read_pieces(view, document, decoder)
    joined = "".join(piece.text for piece in pieces)
    ids = view.token_ids[document.start : document.start + document.length].tolist()
    whole = joined if text in joined else decoder(ids)  # a piece may end in a part of a character
    position = whole.index(text)
    message = None
    if whole is joined:
        ends = np.cumsum([len(piece.text) for piece in pieces])
        turn = pieces[int(np.searchsorted(ends, position, side="right"))].turn
        message = None if turn is None else view.turns[turn].message
    return Occurrence(
        sequence=view.number,
        document=number,
        dialogue=document.dialogue,
        message=message,
        times=whole.count(text),
        before=whole[:position],
        text=text,
        after=whole[position + len(text) :],
    )


def _locate(batch: Columns, entry: int) -> tuple[int, int]:
    """Return the sequence of an entry in its record batch, and its index in the sequence."""
    row = int(np.searchsorted(batch.entry_offsets, entry, side="right")) - 1
    return row, entry - int(batch.entry_offsets[row])
