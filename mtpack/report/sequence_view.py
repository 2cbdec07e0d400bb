"""Sequences and documents in the terminal, as a person reads them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.text import Text

from mtpack.report.decoding import Decoder
from mtpack.report.document_text import read_pieces
from mtpack.report.escaping import BOUNDARY
from mtpack.report.folding import fold
from mtpack.report.pieces import LEGEND, draw_pieces
from mtpack.report.row_view import RowView
from mtpack.report.terminal import format_count, make_rule
from mtpack.report.turn_marks import TurnMark

Marks = Mapping[int, Sequence[TurnMark]]
"""What is unusual about turns, by their numbers in a sequence."""


def show_row(
    view: RowView,
    decoder: Decoder | None,
    console: Console,
    *,
    marks: Marks | None = None,
    with_tokens: bool = False,
) -> None:
    """Print one sequence with its loss tokens in brackets; as ids if there is no decoder."""
    loss_tokens = sum(turn.loss_token_num for turn in view.turns)
    counts = (
        format_count(len(view.documents), "document"),
        format_count(len(view.turns), "turn"),
        format_count(loss_tokens, "loss token"),
    )
    title = f"Sequence {view.number:,} (of {view.rows:,}, counted from 0): {', '.join(counts)}"
    console.print(Text(title, style="bold"))
    print_legend(view, console, with_tokens=with_tokens and decoder is not None)
    for number, document in enumerate(view.documents):
        heading = f"document {number + 1:,} of {len(view.documents):,}: dialogue "
        heading += f"{document.dialogue:,}, {_describe_size(view, number)}"
        show_document(
            view, number, heading, decoder, console, marks=marks or {}, with_tokens=with_tokens
        )
    if view.padding:
        console.print()
        console.print(make_rule(_describe_padding(view), console))


def show_dialogue(
    found: Sequence[tuple[RowView, int, Marks]],
    decoder: Decoder | None,
    console: Console,
    *,
    with_tokens: bool = False,
) -> None:
    """Print the documents of one dialogue.

    found: for each of them its sequence, its index in the sequence, and the marks of the sequence.
    """
    turns = [turn for view, number, _ in found for turn in view.turns if turn.document == number]
    counts = (
        format_count(len(found), "document"),
        format_count(len(turns), "turn"),
        format_count(sum(turn.loss_token_num for turn in turns), "loss token"),
    )
    view, number, _ = found[0]
    title = f"Dialogue {view.documents[number].dialogue:,}: {', '.join(counts)}"
    console.print(Text(title, style="bold"))
    print_legend(view, console, with_tokens=with_tokens and decoder is not None)
    for view, number, marks in found:
        heading = f"sequence {view.number:,}, document {number + 1:,} of "
        heading += f"{len(view.documents):,}: {_describe_size(view, number)}"
        show_document(view, number, heading, decoder, console, marks=marks, with_tokens=with_tokens)


def print_legend(view: RowView, console: Console, *, with_tokens: bool) -> None:
    """Print what the brackets and symbols of a sequence mean."""
    weight = "w" if view.has_weights else "1"
    console.print(Text(f"{LEGEND}, ×{weight}/n is the weight of each token"))
    if with_tokens:
        line = f"{BOUNDARY} ends a token; as many follow a character as tokens make it up"
        console.print(Text(line))


def show_document(
    view: RowView,
    number: int,
    heading: str,
    decoder: Decoder | None,
    console: Console,
    *,
    marks: Marks,
    with_tokens: bool,
) -> None:
    """Print an empty line, a heading, and the text of one document of a sequence."""
    console.print()
    console.print(make_rule(heading, console))
    pieces = read_pieces(view, view.documents[number], decoder, with_tokens=with_tokens)
    console.print(fold(draw_pieces(pieces, make_notes(view, marks)), console.width))


def make_notes(view: RowView, marks: Marks) -> dict[int, str]:
    """Return what is said after each turn, by its number."""
    return {
        number: "; ".join([f"message {turn.message}: ×{turn.weight_text}", *marks.get(number, ())])
        for number, turn in enumerate(view.turns)
    }


def _describe_size(view: RowView, number: int) -> str:
    turns = Counter(turn.document for turn in view.turns)[number]
    tokens = format_count(view.documents[number].length, "token")
    return f"{tokens}, {format_count(turns, 'turn')}"


def _describe_padding(view: RowView) -> str:
    inside = sum(document.padded_length - document.length for document in view.documents)
    line = f"padding: {format_count(view.padding, 'position')}"
    if inside:
        line += f", {inside:,} of them after documents"
    return line
