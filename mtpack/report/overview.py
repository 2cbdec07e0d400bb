"""The output of `inspect`: what will be trained, in one screen of 80 columns and 24 lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mtpack.report.figures import Figures, Histogram
from mtpack.report.notices import notices_of
from mtpack.report.source_view import show_sources_briefly
from mtpack.report.terminal import (
    draw_bar,
    format_count,
    format_percent,
    format_range,
    format_reasons,
    indent,
    make_heads,
    make_table,
    print_heading,
)
from mtpack.verify.weights import WeightBucket

MEANS_EXPLAINED = "equal weight for: every turn; every loss token; every document"
_MEANS = ("turn_mean", "token_mean", "dialogue_mean")
_LINES = 23  # of a screen, with one for the prompt
_FEWEST_LENGTHS = 6
_MOST_NOTICES = 4
_TEXT_WIDTH = 69  # columns
_SHARE_BAR = 20
_WEIGHT_BAR = 8


def show_overview(figures: Figures, console: Console) -> None:
    """Print what a person asks first; the other figures and reasons are in `inspect --full`."""
    lines = list(_describe(figures))
    table = make_table("left", "left")
    for name, text in lines:
        line = Text(text, no_wrap=True)
        line.truncate(_TEXT_WIDTH, overflow="ellipsis")
        table.add_row(Text(name, style="bold"), line)
    console.print(table)
    show_sources_briefly(figures.sources, console)
    num_more = len(figures.sources) + 3 if len(figures.sources) > 1 else 0  # with two headings
    rows = max(_FEWEST_LENGTHS, _LINES - len(lines) - num_more - 4)  # and those of the lengths
    print_heading("Share of the gradient by turn length, under three means", console)
    console.print(indent(build_weight_table(_merge_buckets(figures.weight_by_length, rows))))
    console.print(indent(Text(MEANS_EXPLAINED, style="dim")))


def _describe(figures: Figures) -> Iterator[tuple[str, str]]:
    """Yield the lines of the overview, each with its name."""
    yield (
        "data",
        f"{format_count(figures.dialogues, 'dialogue')}, {format_count(figures.turns, 'turn')}, "
        f"{format_count(figures.documents, 'document')}, {format_count(figures.tokens, 'token')}",
    )
    tally = figures.tally
    line = f"{figures.rows:,} of {figures.seq_len:,} tokens"
    if tally is not None:
        line += f"; at least {tally.sequences_lower_bound:,} needed"
    yield "sequences", f"{line}; labels {figures.label_alignment}"
    documents, turns = figures.documents_per_sequence, figures.turns_per_sequence
    yield "each has", f"{_format_range(documents, 'document')}, {_format_range(turns, 'turn')}"
    yield "filled", f"{_draw_share(figures.fill)} of all positions hold a token"
    yield "compute", f"{_draw_share(figures.compute_share)} of all positions carry loss"
    yield "documents", f"{describe_spread(figures.document_lengths)} tokens"
    yield "turns", f"{describe_spread(figures.turn_lengths)} loss tokens"
    if tally is None:
        yield "left out", "not known: a single shard has no manifest"
        return
    rows, turns_left = tally.rows_rejected | tally.rows_dropped, tally.turns_dropped
    yield (
        "left out",
        f"rows: {_format_left_out(rows)}; turns: {_format_left_out(turns_left)}",
    )
    notices = notices_of(tally)
    if not notices:
        yield "to know", "nothing: all turns are merged exactly"
    for number, notice in enumerate(notices[:_MOST_NOTICES]):
        text = notice.text.partition("\n")[0]
        yield "to know" if not number else "", f"{notice.name} ({notice.count:,}) {text}"
    if len(notices) > _MOST_NOTICES:
        yield "", f"and {len(notices) - _MOST_NOTICES} more: inspect --full"


def _format_left_out(reasons: dict[str, int]) -> str:
    return format_reasons(reasons) or "none"


def _format_range(sizes: Histogram, noun: str) -> str:
    if sizes.min == sizes.max:
        return format_count(sizes.min, noun)
    return f"{sizes.min:,} to {sizes.max:,} (mean {sizes.mean:,.1f}) {noun}s"


def _draw_share(share: float) -> str:
    return f"{format_percent(share):>6} {draw_bar(share, 1, _SHARE_BAR):<{_SHARE_BAR}}"


def describe_spread(sizes: Histogram) -> str:
    """Return the range, the median and the mean of sizes."""
    median = f"{sizes.median:,.1f}".removesuffix(".0")
    return f"min {sizes.min:,}, median {median}, mean {sizes.mean:,.1f}, max {sizes.max:,}"


def build_weight_table(buckets: Sequence[WeightBucket]) -> Table:
    """Build the table of the share of the gradient that turns of each length have."""
    table = make_table("right", "right", "left", "left", "left")
    heads = (f" {mean.replace('_', ' ')}" for mean in _MEANS)
    table.add_row(*make_heads("loss tokens", "turns", *heads))
    most = max(bucket.weights[mean] for bucket in buckets for mean in _MEANS)
    for bucket in buckets:
        shares = [bucket.weights[mean] for mean in _MEANS]
        table.add_row(
            format_range(bucket.low, bucket.high),
            f"{bucket.turns:,}",
            *(f"{format_percent(one):>6} {draw_bar(one, most, _WEIGHT_BAR)}" for one in shares),
        )
    return table


def _merge_buckets(buckets: Sequence[WeightBucket], most: int) -> list[WeightBucket]:
    """Return buckets that are merged to so few that they fit: powers of two, four, eight, ..."""
    exponents = 1
    while True:
        groups: dict[int, list[WeightBucket]] = {}
        for bucket in buckets:
            groups.setdefault((bucket.low.bit_length() - 1) // exponents, []).append(bucket)
        if len(groups) <= most:
            break
        exponents += 1
    return [
        WeightBucket(
            low=group[0].low,
            high=group[-1].high,
            turns=sum(bucket.turns for bucket in group),
            tokens=sum(bucket.tokens for bucket in group),
            weights={
                mean: sum(bucket.weights[mean] for bucket in group) for mean in group[0].weights
            },
        )
        for group in groups.values()
    ]
