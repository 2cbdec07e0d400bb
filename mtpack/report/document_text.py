"""The text of a document of a shard, in pieces that say what is trained and what is a header."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from mtpack.report.decoding import Decoder, decode_part, decode_tokens
from mtpack.report.pieces import Piece
from mtpack.report.row_view import DocumentView, RowView

_ROLE = re.compile(
    r"\s*(system|developer|user|human|assistant|model|tool|ipython|function|observation"
    r"|environment)(?=\s*$|\s*\n)",
    re.IGNORECASE,
)
"""The name of a role, alone in its line, as templates write it after a control token."""


def read_pieces(
    view: RowView, document: DocumentView, decoder: Decoder | None, *, with_tokens: bool = False
) -> list[Piece]:
    """Return the text of a document, cut where the loss starts, ends or changes to another turn.

    Without a decoder, the text is the ids. with_tokens: with the text of each token.
    """
    end = document.start + document.length
    token_turns = view.token_turns
    changes = np.flatnonzero(np.diff(token_turns[document.start : end])) + 1 + document.start
    edges = [document.start, *changes.tolist(), end]
    pieces: list[Piece] = []
    for start, stop in pairwise(edges):
        turn = int(token_turns[start]) if token_turns[start] >= 0 else None
        ids = view.token_ids[start:stop].tolist()
        if decoder is None:
            pieces.append(Piece(" ".join(map(str, ids)), turn))
            if stop < end:
                pieces.append(Piece(" "))
            continue
        before = view.token_ids[max(document.start, start - 1) : start].tolist()
        if turn is not None:
            pieces.append(_decode_piece(decoder, ids, before, with_tokens, turn))
        else:
            pieces += _decode_context(decoder, ids, before, with_tokens)
    return pieces


def _decode_piece(
    decoder: Decoder, ids: list[int], before: list[int], with_tokens: bool, turn: int | None
) -> Piece:
    if not with_tokens:
        return Piece(decode_part(decoder, ids, before), turn)
    tokens = decode_tokens(decoder, ids, before)
    return Piece("".join(tokens), turn, tokens=tokens)


def _decode_context(
    decoder: Decoder, ids: list[int], before: list[int], with_tokens: bool
) -> Iterator[Piece]:
    """Yield the pieces of a text that is not trained: control tokens, role names, other text."""
    is_control = [number in decoder.control for number in ids]
    edges = [
        0,
        *(at for at in range(1, len(ids)) if is_control[at] or is_control[at - 1]),
        len(ids),
    ]
    for start, stop in pairwise(edges):
        previous = ids[start - 1 : start] or before
        piece = _decode_piece(decoder, ids[start:stop], previous, with_tokens, None)
        if is_control[start]:
            yield Piece(piece.text, is_header=True, tokens=piece.tokens)
        elif previous and previous[0] in decoder.control and (role := _ROLE.match(piece.text)):
            yield from _split_piece(piece, role.end())
        else:
            yield piece


def _split_piece(piece: Piece, position: int) -> Iterator[Piece]:
    """Yield the header up to a position, and the rest; not if a token lies across it."""
    if piece.tokens is None:
        yield Piece(piece.text[:position], is_header=True)
        yield Piece(piece.text[position:])
        return
    ends = np.cumsum([len(token) for token in piece.tokens]).tolist()
    if position not in ends:
        yield piece
        return
    first = len(ends) - ends[::-1].index(position)
    for tokens, is_header in ((piece.tokens[:first], True), (piece.tokens[first:], False)):
        if tokens:
            yield Piece("".join(tokens), is_header=is_header, tokens=tokens)
