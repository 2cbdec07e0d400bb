"""The output of `inspect --full`: every figure of shards, in 80 columns."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mtpack.counts import Counts
from mtpack.report.figures import Figures, Histogram
from mtpack.report.notices import turn_summary
from mtpack.report.overview import MEANS_EXPLAINED, build_weight_table, describe_spread
from mtpack.report.source_view import show_sources
from mtpack.report.terminal import (
    INDENT,
    build_notices_table,
    draw_bar,
    format_percent,
    format_range,
    format_reasons,
    indent,
    make_heads,
    make_table,
    print_heading,
)

_DOCUMENT_BAR = 40  # columns


def show_figures(figures: Figures, console: Console) -> None:
    """Print all figures of shards, and what the run that packed them has to say about the turns."""
    console.print(Text("Contents", style="bold"))
    console.print(indent(_build_contents_table(figures)))
    for heading, unit, items, sizes in (
        ("Document lengths, in tokens", "tokens", "documents", figures.document_lengths),
        ("Documents per sequence", "documents", "sequences", figures.documents_per_sequence),
        ("Turns per sequence", "turns", "sequences", figures.turns_per_sequence),
    ):
        print_heading(heading, console)
        console.print(Text(INDENT + describe_spread(sizes)))
        console.print(indent(_build_size_table(sizes, unit, items)))
    print_heading("Fill of the sequences", console)
    console.print(indent(_build_fill_table(figures)))
    print_heading("Turn lengths, in loss tokens, and their share of the gradient", console)
    console.print(Text(INDENT + describe_spread(figures.turn_lengths)))
    console.print(indent(build_weight_table(figures.weight_by_length)))
    console.print(indent(Text(MEANS_EXPLAINED)))
    if figures.tally is not None:
        print_heading("The run that packed these shards", console)
        console.print(indent(_build_tally_table(figures, figures.tally)))
        show_sources(figures.sources, console)
        print_heading("What to know about the turns", console)
        console.print(indent(build_notices_table(turn_summary(figures.tally))))


def _build_contents_table(figures: Figures) -> Table:
    rounding = figures.pad_documents_to
    pairs = (
        ("sequences", f"{figures.rows:,}", "tokens", f"{figures.tokens:,}"),
        ("sequence length", f"{figures.seq_len:,}", "padding", f"{figures.padding:,}"),
        ("shards", f"{figures.shards:,}", "fill", format_percent(figures.fill)),
        ("documents", f"{figures.documents:,}", "loss tokens", f"{figures.loss_tokens:,}"),
        ("dialogues", f"{figures.dialogues:,}", "loss share", format_percent(figures.loss_share)),
        ("turns", f"{figures.turns:,}", "label alignment", figures.label_alignment),
        (
            "documents per sequence",
            f"{figures.documents_per_sequence.mean:,.1f}",
            "document padding",
            "none" if rounding == 1 else f"to multiples of {rounding:,}",
        ),
        ("turns per document", f"{figures.turns_per_document:,.1f}", "", ""),
    )
    table = make_table("left", "right", "left", "right")
    for pair in pairs:
        table.add_row(*map(Text, pair))
    return table


def _build_size_table(sizes: Histogram, unit: str, items: str) -> Table:
    table = make_table("right", "right", "right", "left")
    table.add_row(*make_heads(unit, items, "share", ""))
    most = max(bucket.count_share for bucket in sizes.buckets)
    for bucket in sizes.buckets:
        table.add_row(
            format_range(bucket.low, bucket.high),
            f"{bucket.count:,}",
            format_percent(bucket.count_share),
            draw_bar(bucket.count_share, most, _DOCUMENT_BAR),
        )
    return table


def _build_fill_table(figures: Figures) -> Table:
    """Build the table of how full sequences are, without the bins that hold none."""
    table = make_table("right", "right", "right", "left")
    table.add_row(*make_heads("filled", "sequences", "share", ""))
    most = max(each.sequences for each in figures.fill_of_sequences)
    for each in figures.fill_of_sequences:
        if each.sequences:
            table.add_row(
                f"{each.low:.0%} to {each.high:.0%}",
                f"{each.sequences:,}",
                format_percent(each.sequences / figures.rows),
                draw_bar(each.sequences, most, _DOCUMENT_BAR),
            )
    return table


def _build_tally_table(figures: Figures, tally: Counts) -> Table:
    lines: tuple[tuple[str, int, str], ...] = (
        ("rows read", tally.rows_read, ""),
        ("rows dropped", sum(tally.rows_dropped.values()), format_reasons(tally.rows_dropped)),
        ("rows rejected", sum(tally.rows_rejected.values()), format_reasons(tally.rows_rejected)),
        ("turns dropped", sum(tally.turns_dropped.values()), format_reasons(tally.turns_dropped)),
        ("sequences, lower bound", tally.sequences_lower_bound, f"packed: {figures.rows:,}"),
    )
    table = make_table("left", "right", "left")
    for name, count, remark in lines:
        table.add_row(Text(name), Text(f"{count:,}"), Text(remark if count else ""))
    return table
