"""The sources of a run in the terminal: what became of their rows, and their shares of the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mtpack.counts import Counts
from mtpack.report.escaping import escape_line
from mtpack.report.terminal import (
    format_percent,
    indent,
    make_heads,
    make_table,
    print_heading,
)
from mtpack.shards.manifest import SourceRecord

_NAME_WIDTH = 14
_BILLION = 10**9


def show_sources(sources: Sequence[SourceRecord], console: Console) -> None:
    """Print what became of the rows of each source, and its shares, if there are several."""
    if len(sources) > 1:
        print_heading("Sources", console)
        console.print(indent(_build_counts_table(sources)))
        print_heading("Share of each source in the tokens, and in the gradient", console)
        console.print(indent(_build_shares_table(sources)))


def show_sources_briefly(sources: Sequence[SourceRecord], console: Console) -> None:
    """Print what is packed of each source, and its shares of the gradient, if there are several."""
    if len(sources) > 1:
        print_heading("Sources, and their share of the gradient under three means", console)
        table = make_table("left", *_numbers(6))
        means = ("turn mean", "token", "dialogue")
        table.add_row(*make_heads("source", "dialogues", "turns", "tokens", *means))
        totals = [sum(each) for each in zip(*map(_list_weights, sources), strict=True)]
        for source in sources:
            counts = source.counts
            numbers = counts.rows_packed, counts.turns_packed, counts.tokens
            shares = _divide(_list_weights(source)[1:], totals[1:])
            table.add_row(_show_name(source), *map(_shorten, numbers), *shares)
        console.print(indent(table))


def _build_counts_table(sources: Sequence[SourceRecord]) -> Table:
    table = make_table("left", *_numbers(5))
    table.add_row(*make_heads("source", "rows", "left out", "turns", "tokens", "loss tokens"))
    for source in sources:
        counts = source.counts
        numbers = (
            counts.rows_read,
            _count_left_out(counts),
            counts.turns_packed,
            counts.tokens,
            counts.loss_tokens,
        )
        table.add_row(_show_name(source), *map(_shorten, numbers))
    return table


def _build_shares_table(sources: Sequence[SourceRecord]) -> Table:
    table = make_table("left", *_numbers(4))
    table.add_row(*make_heads("source", "tokens", "turn mean", "token mean", "dialogue mean"))
    totals = [sum(each) for each in zip(*map(_list_weights, sources), strict=True)]
    for source in sources:
        table.add_row(_show_name(source), *_divide(_list_weights(source), totals))
    return table


def _list_weights(source: SourceRecord) -> list[int]:
    """Return the tokens of a source, and its weight under the turn, token and dialogue mean.

    The dialogue mean gives each document the same weight.
    """
    counts = source.counts
    return [counts.tokens, counts.turns_packed, counts.loss_tokens, counts.documents]


def _divide(parts: Sequence[int], wholes: Sequence[int]) -> list[str]:
    return [format_percent(part / max(1, whole)) for part, whole in zip(parts, wholes, strict=True)]


def _numbers(columns: int) -> list[Literal["left", "right"]]:
    """Return the alignments of columns of numbers."""
    return ["right"] * columns


def _shorten(number: int) -> str:
    """Return a number that leaves room for others in 80 columns."""
    return f"{number:,}" if number < _BILLION else f"{number / _BILLION:,.1f} G"


def _count_left_out(counts: Counts) -> int:
    return counts.rows_read - counts.rows_packed


def _show_name(source: SourceRecord) -> Text:
    name = Text(escape_line(source.name), no_wrap=True)
    name.truncate(_NAME_WIDTH, overflow="ellipsis")
    return name
