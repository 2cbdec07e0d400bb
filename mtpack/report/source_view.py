"""The sources of a run in the terminal: what happened to their rows, and their loss shares."""

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
    """Print what happened to the rows of each source, and its shares, if there are several."""
    if len(sources) > 1:
        print_heading("Sources", console)
        console.print(indent(_build_counts_table(sources)))
        print_heading("Share of each source in the tokens, and in the gradient", console)
        console.print(indent(_build_shares_table(sources)))


def show_sources_briefly(sources: Sequence[SourceRecord], console: Console) -> None:
    """Print what is packed of each source, and its shares of the gradient, if there are several."""
    if len(sources) > 1:
        weights = _list_weights(sources)
        print_heading("Sources, and their share of the gradient", console)
        table = make_table("left", *_numbers(3 + len(weights)))
        table.add_row(*make_heads("source", "dialogues", "turns", "tokens", *weights))
        for number, source in enumerate(sources):
            counts = source.counts
            numbers = counts.rows_packed, counts.turns_packed, counts.tokens
            shares = [_divide(each, number) for each in weights.values()]
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
    shown = {"tokens": [source.counts.tokens for source in sources], **_list_weights(sources)}
    table = make_table("left", *_numbers(len(shown)))
    table.add_row(*make_heads("source", *shown))
    for number, source in enumerate(sources):
        table.add_row(_show_name(source), *(_divide(each, number) for each in shown.values()))
    return table


def _list_weights(sources: Sequence[SourceRecord]) -> dict[str, list[int]]:
    """Return the weight of each source in the loss, by the mean.

    The dialogue mean gives each document the same weight. Where turns have weights of their own,
    the counts say only what the turn mean makes of them.
    """
    counts = [source.counts for source in sources]
    if any(each.weight_units for each in counts):
        return {"turn mean": [each.weight_units for each in counts]}
    return {
        "turn mean": [each.turns_packed for each in counts],
        "token mean": [each.loss_tokens for each in counts],
        "dialogue mean": [each.documents for each in counts],
    }


def _divide(parts: Sequence[int], number: int) -> str:
    """Return the share of one of the parts in their sum."""
    return format_percent(parts[number] / max(1, sum(parts)))


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
