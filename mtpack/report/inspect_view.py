"""The output of `inspect` for the terminal: readable without colour, in 80 columns.

The text in shards is untrusted. It is shown as `rich.text.Text`, which ignores markup, and
characters that control a terminal are shown as escapes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mtpack.counts import Counts
from mtpack.report.decoding import Decoder, decode_part
from mtpack.report.escaping import CLOSE, LINE_BREAK, OPEN, SPACE, TAB, escape
from mtpack.report.figures import Figures, Histogram
from mtpack.report.notices import turn_summary
from mtpack.report.row_view import DocumentView, RowView, TurnView
from mtpack.report.terminal import (
    INDENT,
    build_notices_table,
    format_count,
    format_percent,
    format_range,
    format_reasons,
    indent,
    make_heads,
    make_table,
    print_heading,
)
from mtpack.token_batch import Int64

_EIGHTHS = " ▏▎▍▌▋▊▉"
_DOCUMENT_BAR = 40  # columns
_LOSS_BAR = 14
_TURN_COLOURS = ("green", "magenta", "cyan")  # readable on dark and on light


def show_figures(figures: Figures, console: Console) -> None:
    """Print the figures of shards."""
    console.print(Text("Contents", style="bold"))
    console.print(indent(_build_contents_table(figures)))
    print_heading("Document lengths, in tokens", console)
    console.print(_format_spread(figures.document_lengths))
    console.print(indent(_build_document_table(figures.document_lengths)))
    print_heading("Turn lengths, in loss tokens, and their share of the loss", console)
    console.print(_format_spread(figures.turn_lengths))
    console.print(indent(_build_turn_table(figures.turn_lengths)))
    console.print(
        Text(f"{INDENT}token mean: every token has the same weight; turn mean: every turn")
    )
    if figures.tally is not None:
        print_heading("The run that packed these shards", console)
        console.print(indent(_build_tally_table(figures, figures.tally)))
        print_heading("What to know about the turns", console)
        console.print(indent(build_notices_table(turn_summary(figures.tally))))


def show_row(view: RowView, decode: Decoder | None, console: Console) -> None:
    """Print one sequence with its loss tokens in brackets; as ids if there is no decoder."""
    loss_tokens = sum(turn.loss_token_num for turn in view.turns)
    counts = (
        format_count(len(view.documents), "document"),
        format_count(len(view.turns), "turn"),
        format_count(loss_tokens, "loss token"),
    )
    title = f"Sequence {view.number:,} (of {view.rows:,}, counted from 0): {', '.join(counts)}"
    console.print(Text(title, style="bold"))
    legend = f"{OPEN}…{CLOSE} is trained, {LINE_BREAK} is a trained line break, "
    console.print(Text(f"{legend}× 1/n is the weight of each token"))
    token_turns = view.token_turns
    turns_in = Counter(turn.document for turn in view.turns)
    for number, document in enumerate(view.documents):
        heading = (
            f"document {number + 1:,} of {len(view.documents):,}: dialogue {document.dialogue:,}, "
            f"{format_count(document.length, 'token')}, {format_count(turns_in[number], 'turn')}"
        )
        console.print()
        console.print(Text(heading, style="bold underline"))
        text = Text()
        for piece in _render_document(view, document, token_turns, decode):
            text.append_text(piece)
        console.print(text)
    if view.padding:
        console.print()
        console.print(_format_padding(view))


def _render_document(
    view: RowView, document: DocumentView, token_turns: Int64, decode: Decoder | None
) -> Iterator[Text]:
    """Yield the text of a document, cut where the loss starts, ends or changes to another turn."""
    end = document.start + document.length
    changes = np.flatnonzero(np.diff(token_turns[document.start : end])) + 1 + document.start
    edges = [document.start, *changes.tolist(), end]
    for start, stop in pairwise(edges):
        ids = view.token_ids[start:stop].tolist()
        if decode is None:
            text = " ".join(map(str, ids))
        else:
            before = view.token_ids[max(document.start, start - 1) : start].tolist()
            text = escape(decode_part(decode, ids, before))
        number = int(token_turns[start])
        if number >= 0:
            yield from _render_trained(text, number, view.turns[number], stop)
        else:
            yield Text(text)
        if decode is None and stop < end:
            yield Text(" ")


def _render_trained(text: str, number: int, turn: TurnView, stop: int) -> Iterator[Text]:
    """Yield a part of a turn's trained text and, after the last part, the weight of the turn."""
    visible = text.replace("\n", f"{LINE_BREAK}\n").replace("\t", f"{TAB}\t")
    if not text.strip(" "):
        visible = SPACE * len(text)
    colour = _TURN_COLOURS[number % len(_TURN_COLOURS)]
    yield Text(f"{OPEN}{visible}{CLOSE}", style=colour)
    if turn.positions[-1] == stop - 1:
        size = format_count(turn.loss_token_num, "token")
        note = f"[message {turn.message}: {size} × 1/{turn.loss_token_num:,}]"
        yield Text(f" {note}", style="dim")


def _format_padding(view: RowView) -> Text:
    inside = sum(document.padded_length - document.length for document in view.documents)
    line = f"padding: {format_count(view.padding, 'position')}"
    if inside:
        line += f", {inside:,} of them after documents to round up their lengths"
    return Text(line)


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


def _build_document_table(lengths: Histogram) -> Table:
    table = make_table("right", "right", "right", "left")
    table.add_row(*make_heads("tokens", "documents", "share", ""))
    most = max(bucket.count_share for bucket in lengths.buckets)
    for bucket in lengths.buckets:
        bar = _draw_bar(bucket.count_share, most, _DOCUMENT_BAR)
        table.add_row(
            Text(format_range(bucket.low, bucket.high)),
            Text(f"{bucket.count:,}"),
            Text(format_percent(bucket.count_share)),
            Text(bar),
        )
    return table


def _build_turn_table(lengths: Histogram) -> Table:
    """Build the table of turn lengths, with their share of the loss under two means."""
    table = make_table("right", "right", "right", "left", "right", "left")
    table.add_row(*make_heads("loss tokens", "turns", "", "token mean", "", "turn mean"))
    most = max(max(bucket.count_share, bucket.token_share) for bucket in lengths.buckets)
    for bucket in lengths.buckets:
        cells = [Text(format_range(bucket.low, bucket.high)), Text(f"{bucket.count:,}")]
        for share in (bucket.token_share, bucket.count_share):
            cells += [Text(format_percent(share)), Text(_draw_bar(share, most, _LOSS_BAR))]
        table.add_row(*cells)
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


def _format_spread(lengths: Histogram) -> Text:
    median = f"{lengths.median:,.1f}".removesuffix(".0")
    return Text(
        f"{INDENT}min {lengths.min:,}, median {median}, "
        f"mean {lengths.mean:,.1f}, max {lengths.max:,}"
    )


def _draw_bar(share: float, most: float, width: int) -> str:
    """Draw a bar in eighths of a column; a share above 0 is always visible."""
    eighths = round(share / most * width * 8)
    if share and not eighths:
        eighths = 1
    return ("█" * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip()
