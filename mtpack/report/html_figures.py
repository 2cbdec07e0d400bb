"""The figures of the HTML report: tiles, charts, and what happened to rows and turns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mtpack.report.figures import Figures, Histogram
from mtpack.report.html_charts import Bars, draw_bars, draw_shares
from mtpack.report.terminal import format_count, format_percent, format_range, format_reasons

_MEANS = {"turn_mean": "turn mean", "token_mean": "token mean", "dialogue_mean": "dialogue mean"}


@dataclass(frozen=True, slots=True)
class Tile:
    """One figure with its name, and a remark about it."""

    name: str
    value: str
    remark: str


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart, and the same figures as a table."""

    key: str
    """Its id in the page."""
    title: str
    note: str
    drawing: Markup
    heads: tuple[str, ...]
    rows: list[tuple[str, ...]]
    legend: tuple[str, ...] = ()
    """What each series is; empty for one series."""


def list_tiles(figures: Figures) -> list[Tile]:
    """Return what the overview says first."""
    tally = figures.tally
    least = f"of {figures.seq_len:,} tokens"
    if tally is not None:
        least += f"; at least {tally.sequences_lower_bound:,} are needed"
    means = figures.documents_per_sequence.mean, figures.turns_per_document
    return [
        Tile("sequences", f"{figures.rows:,}", least),
        Tile(
            "fill",
            format_percent(figures.fill),
            f"{format_count(figures.padding, 'position')} of padding",
        ),
        Tile(
            "tokens",
            f"{figures.tokens:,}",
            f"{format_percent(figures.loss_share)} carry loss",
        ),
        Tile(
            "compute with loss",
            format_percent(figures.compute_share),
            f"{figures.loss_tokens:,} loss tokens of all positions",
        ),
        Tile(
            "documents",
            f"{figures.documents:,}",
            f"of {format_count(figures.dialogues, 'dialogue')}; {means[0]:,.1f} in a sequence",
        ),
        Tile("turns", f"{figures.turns:,}", f"{means[1]:,.1f} in a document"),
    ]


def describe_counts(figures: Figures) -> list[tuple[str, str, str]]:
    """Return what happened to the rows and turns of the run; nothing without a manifest."""
    tally = figures.tally
    if tally is None:
        return []
    lines: tuple[tuple[str, int, dict[str, int]], ...] = (
        ("rows read", tally.rows_read, {}),
        ("rows packed", tally.rows_packed, {}),
        ("rows dropped", sum(tally.rows_dropped.values()), tally.rows_dropped),
        ("rows rejected", sum(tally.rows_rejected.values()), tally.rows_rejected),
        ("turns read", tally.turns_read, {}),
        ("turns packed", tally.turns_packed, {}),
        ("turns dropped", sum(tally.turns_dropped.values()), tally.turns_dropped),
    )
    return [(name, f"{number:,}", format_reasons(reasons)) for name, number, reasons in lines]


def list_charts(figures: Figures) -> list[Chart]:
    """Return all charts, in the order of the page."""
    return [
        _chart_compute(figures),
        _chart_weights(figures),
        _chart_fill(figures),
        _chart_sizes("turn-lengths", "Turn lengths", "loss tokens", "turns", figures.turn_lengths),
        _chart_sizes(
            "document-lengths", "Document lengths", "tokens", "documents", figures.document_lengths
        ),
        _chart_sizes(
            "turns-per-sequence",
            "Turns per sequence",
            "turns",
            "sequences",
            figures.turns_per_sequence,
        ),
        _chart_sizes(
            "documents-per-sequence",
            "Documents per sequence",
            "documents",
            "sequences",
            figures.documents_per_sequence,
        ),
    ]


def _chart_compute(figures: Figures) -> Chart:
    positions = figures.rows * figures.seq_len
    parts = (
        ("loss tokens", figures.loss_tokens),
        ("context", figures.tokens - figures.loss_tokens),
        ("padding", figures.padding),
    )
    shares = [(name, count / positions, format_percent(count / positions)) for name, count in parts]
    title = "Where the compute goes"
    return Chart(
        key="compute",
        title=title,
        note="All positions of all sequences: a training step computes each of them.",
        drawing=draw_shares(title, shares),
        heads=("part", "positions", "share"),
        rows=[
            (name, f"{count:,}", text)
            for (name, count), (_, _, text) in zip(parts, shares, strict=True)
        ],
        legend=tuple(f"{name} {text}" for name, _, text in shares),
    )


def _chart_weights(figures: Figures) -> Chart:
    title = "The gradient by length of turns"
    lines = []
    for bucket in figures.weight_by_length:
        shares = tuple(bucket.weights[mean] for mean in _MEANS)
        label = format_range(bucket.low, bucket.high)
        lines.append(Bars(label, shares, tuple(map(format_percent, shares))))
    turns = [f"{bucket.turns:,}" for bucket in figures.weight_by_length]
    return Chart(
        key="weights",
        title=title,
        note="The share that the turns of each length, in loss tokens, have under each mean.",
        drawing=draw_bars(title, lines, tuple(_MEANS.values())),
        heads=("loss tokens", "turns", *_MEANS.values()),
        rows=[(line.label, count, *line.texts) for line, count in zip(lines, turns, strict=True)],
        legend=tuple(_MEANS.values()),
    )


def _chart_fill(figures: Figures) -> Chart:
    """Chart the bins from the emptiest sequence on."""
    bins = figures.fill_of_sequences
    first = next(number for number, each in enumerate(bins) if each.sequences)
    return _chart_counts(
        key="fill",
        title="Fill of sequences",
        note="How much of each sequence holds tokens of documents.",
        heads=("filled", "sequences", "share"),
        counts=[
            (f"{each.low * 100:.0f}-{each.high * 100:.0f}%", each.sequences)
            for each in bins[first:]
        ],
    )


def _chart_sizes(key: str, title: str, unit: str, items: str, sizes: Histogram) -> Chart:
    median = f"{sizes.median:,.1f}".removesuffix(".0")
    return _chart_counts(
        key=key,
        title=title,
        note=(
            f"In {unit}: from {sizes.min:,} to {sizes.max:,}, median {median}, "
            f"mean {sizes.mean:,.1f}."
        ),
        heads=(unit, items, "share"),
        counts=[(format_range(each.low, each.high), each.count) for each in sizes.buckets],
    )


def _chart_counts(
    *,
    key: str,
    title: str,
    note: str,
    heads: tuple[str, ...],
    counts: Sequence[tuple[str, int]],
) -> Chart:
    """Chart numbers of items, with their share of all items."""
    total = sum(count for _, count in counts)
    lines = [Bars(label, (count,), (_format_short(count),)) for label, count in counts]
    rows: Iterable[tuple[str, ...]] = (
        (label, f"{count:,}", format_percent(count / total)) for label, count in counts
    )
    return Chart(key, title, note, draw_bars(title, lines, heads[1:2]), heads, list(rows))


def _format_short(count: int) -> str:
    """Return a count that fits next to a bar.

    >>> _format_short(9_999), _format_short(12_345), _format_short(12_345_678)
    ('9,999', '12.3 k', '12.3 M')
    """
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**4, "k")):
        if count >= size:
            return f"{count / (1000 if letter == 'k' else size):.1f} {letter}"
    return f"{count:,}"
