"""Draw text that is trained in part: brackets, colours by turn, and a note after each turn.

`inspect` draws documents of shards with this, and `pack --dry-run` rendered dialogues. It is
readable without colour: brackets, and not colours alone, say what is trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.text import Text

from mtpack.report.escaping import BOUNDARY, CLOSE, LINE_BREAK, OPEN, SPACE, TAB, escape

_TURN_COLOURS = ("green", "magenta", "cyan")  # readable on dark and on light
LEGEND = f"{OPEN}…{CLOSE} is trained, {LINE_BREAK} is a trained line break"


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a text that is drawn alike. Its text comes from data and is not escaped yet."""

    text: str
    turn: int | None = None
    """The number of the turn that trains it, for its colour and its note; None: not trained."""
    is_header: bool = False
    """Whether it is a control token or the name of a role, which is dimmed."""
    tokens: tuple[str, ...] | None = None
    """The texts of its tokens, each followed by a mark; None: without marks. Of the tokens that
    one character is made of, the first has the character and the others are empty."""


def draw_pieces(pieces: Sequence[Piece], notes: Mapping[int, str]) -> Text:
    """Return the text of pieces, with the note of each turn in brackets after its last piece."""
    last = {piece.turn: number for number, piece in enumerate(pieces)}
    text = Text()
    for number, piece in enumerate(pieces):
        if piece.turn is None:
            text.append(_show_text(piece), style="dim" if piece.is_header else None)
            continue
        colour = _TURN_COLOURS[piece.turn % len(_TURN_COLOURS)]
        text.append(f"{OPEN}{_show_text(piece)}{CLOSE}", style=colour)
        if last[piece.turn] == number and piece.turn in notes:
            text.append(" ")
            text.append(f"[{notes[piece.turn]}]", style="dim")
    return text


def _show_text(piece: Piece) -> str:
    """Return the text of a piece, escaped; with symbols for white space if it is trained."""
    if piece.tokens is not None:
        return "".join(_mark_end(_show_white_space(escape(token))) for token in piece.tokens)
    text = escape(piece.text)
    if piece.turn is None:
        return text
    return _show_white_space(text) if text.strip(" ") else SPACE * len(text)


def _mark_end(token: str) -> str:
    """Return a token with the mark after it; a line break at its end is drawn after the mark."""
    return f"{token[:-1]}{BOUNDARY}\n" if token.endswith("\n") else f"{token}{BOUNDARY}"


def _show_white_space(text: str) -> str:
    return text.replace("\n", f"{LINE_BREAK}\n").replace("\t", f"{TAB}\t")
