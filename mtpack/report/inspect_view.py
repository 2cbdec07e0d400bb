"""Figures and sequences for the terminal: readable without colour, in 80 columns.

What stands in shards is untrusted text: it is shown as `rich.text.Text`, which reads no markup, and
characters that command a terminal are written out.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Literal

import numpy as np
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mtpack.report.decoding import Decoder, decode_run
from mtpack.report.figures import Bucket, Figures, Histogram
from mtpack.report.findings import Notice, turn_summary
from mtpack.report.row_view import DocumentView, RowView, TurnView
from mtpack.shards.manifest import Tally
from mtpack.token_batch import Int64

_INDENT = "  "
_EIGHTHS = " ▏▎▍▌▋▊▉"
_DOCUMENT_BAR = 40  # columns
_LOSS_BAR = 14
_TURN_COLOURS = ("green", "magenta", "cyan")  # readable on dark and on light
_OPEN, _CLOSE, _LINE_BREAK, _TAB, _SPACE = "⟦⟧⏎⇥␣"
_JOINERS = "\u200c\u200d"  # invisible, but scripts and emoji need them as they are
_COMMANDING = ("Cc", "Cf", "Cs", "Zl", "Zp")  # controls, directions, surrogates, separators


def show_figures(figures: Figures, console: Console) -> None:
    """Print what is in shards."""
    console.print(Text("Contents", style="bold"))
    console.print(_indented(_contents_table(figures)))
    _print_heading("Document lengths, in tokens", console)
    console.print(_spread(figures.document_lengths))
    console.print(_indented(_document_table(figures.document_lengths)))
    _print_heading("Turn lengths, in loss tokens, and their share of the loss", console)
    console.print(_spread(figures.turn_lengths))
    console.print(_indented(_turn_table(figures.turn_lengths)))
    console.print(Text(f"{_INDENT}token mean: every token weighs the same; turn mean: every turn"))
    if figures.tally is not None:
        _print_heading("The run that packed them", console)
        console.print(_indented(_tally_table(figures, figures.tally)))
        _print_heading("Turns, as the chat template writes them", console)
        console.print(_indented(notices_table(turn_summary(figures.tally))))


def show_row(view: RowView, decode: Decoder | None, console: Console) -> None:
    """Print one sequence, its trained tokens in brackets; ids where there is no decoder."""
    loss_tokens = sum(turn.loss_token_num for turn in view.turns)
    counts = (
        _counted(len(view.documents), "document"),
        _counted(len(view.turns), "turn"),
        _counted(loss_tokens, "loss token"),
    )
    title = f"Row {view.number:,} (of {view.rows:,}, counted from 0): {', '.join(counts)}"
    console.print(Text(title, style="bold"))
    console.print(Text(f"{_OPEN}…{_CLOSE} is trained, {_LINE_BREAK} is a trained line break"))
    token_turns = view.token_turns
    turns_in = Counter(turn.document for turn in view.turns)
    for number, document in enumerate(view.documents):
        heading = (
            f"document {number + 1:,} of {len(view.documents):,}: dialogue {document.dialogue:,}, "
            f"{_counted(document.length, 'token')}, {_counted(turns_in[number], 'turn')}"
        )
        console.print()
        console.print(Text(heading, style="bold underline"))
        text = Text()
        for piece in _document_pieces(view, document, token_turns, decode):
            text.append_text(piece)
        console.print(text)
    if view.padding:
        console.print()
        console.print(_padding_line(view))


def escaped(text: str) -> str:
    r"""Write out the characters that command a terminal, and those that this view gives a meaning.

    >>> print(escaped("a\x1b[2Jb"))
    a\x1b[2Jb
    """
    return "".join(map(_escaped_character, text))


def _escaped_character(character: str) -> str:
    if character in "\n\t" or character in _JOINERS:
        return character
    if character in (_OPEN, _CLOSE, _LINE_BREAK, _TAB, _SPACE):
        return _written_out(character)
    if not character.isprintable() and unicodedata.category(character) in _COMMANDING:
        return _written_out(character)
    return character


def _written_out(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _document_pieces(
    view: RowView, document: DocumentView, token_turns: Int64, decode: Decoder | None
) -> Iterator[Text]:
    """Yield the text of a document, cut where the loss starts, ends or goes to another turn."""
    end = document.start + document.length
    changes = np.flatnonzero(np.diff(token_turns[document.start : end])) + 1 + document.start
    edges = [document.start, *changes.tolist(), end]
    for start, stop in pairwise(edges):
        ids = view.token_ids[start:stop].tolist()
        if decode is None:
            text = " ".join(map(str, ids))
        else:
            before = view.token_ids[max(document.start, start - 1) : start].tolist()
            text = escaped(decode_run(decode, ids, before))
        number = int(token_turns[start])
        if number >= 0:
            yield from _trained(text, number, view.turns[number], stop)
        else:
            yield Text(text)
        if decode is None and stop < end:
            yield Text(" ")


def _trained(text: str, number: int, turn: TurnView, stop: int) -> Iterator[Text]:
    """Yield a stretch of trained text and, behind the last one of a turn, what it weighs."""
    visible = text.replace("\n", f"{_LINE_BREAK}\n").replace("\t", f"{_TAB}\t")
    if not text.strip(" "):
        visible = _SPACE * len(text)
    colour = _TURN_COLOURS[number % len(_TURN_COLOURS)]
    yield Text(f"{_OPEN}{visible}{_CLOSE}", style=colour)
    if turn.positions[-1] == stop - 1:
        size = _counted(turn.loss_token_num, "token")
        note = f"[message {turn.message}: {size} × 1/{turn.loss_token_num:,}]"
        yield Text(f" {note}", style="dim")


def _padding_line(view: RowView) -> Text:
    inside = sum(document.padded_length - document.length for document in view.documents)
    line = f"padding: {_counted(view.padding, 'place')}"
    if inside:
        line += f", {inside:,} of them behind documents to round their lengths up"
    return Text(line)


def _print_heading(heading: str, console: Console) -> None:
    console.print()
    console.print(Text(heading, style="bold"))


def _contents_table(figures: Figures) -> Table:
    rounding = figures.pad_documents_to
    pairs = (
        ("sequences", f"{figures.rows:,}", "tokens", f"{figures.tokens:,}"),
        ("sequence length", f"{figures.seq_len:,}", "padding", f"{figures.padding:,}"),
        ("shards", f"{figures.shards:,}", "fill", _percent(figures.fill)),
        ("documents", f"{figures.documents:,}", "loss tokens", f"{figures.loss_tokens:,}"),
        ("dialogues", f"{figures.dialogues:,}", "loss share", _percent(figures.loss_share)),
        ("turns", f"{figures.turns:,}", "labels", figures.label_alignment),
        (
            "documents per sequence",
            f"{figures.documents_per_sequence:,.1f}",
            "documents padded to",
            "no multiple" if rounding == 1 else f"multiples of {rounding:,}",
        ),
        ("turns per document", f"{figures.turns_per_document:,.1f}", "", ""),
    )
    table = _table("left", "right", "left", "right")
    for pair in pairs:
        table.add_row(*map(Text, pair))
    return table


def _document_table(lengths: Histogram) -> Table:
    table = _table("right", "right", "right", "left")
    table.add_row(*_column_heads("tokens", "documents", "share", ""))
    most = max(bucket.count_share for bucket in lengths.buckets)
    for bucket in lengths.buckets:
        bar = _bar(bucket.count_share, most, _DOCUMENT_BAR)
        table.add_row(
            _range(bucket), Text(f"{bucket.count:,}"), Text(_percent(bucket.count_share)), Text(bar)
        )
    return table


def _turn_table(lengths: Histogram) -> Table:
    """Build the table that shows what equal weight per turn changes."""
    table = _table("right", "right", "right", "left", "right", "left")
    table.add_row(*_column_heads("loss tokens", "turns", "", "token mean", "", "turn mean"))
    most = max(max(bucket.count_share, bucket.token_share) for bucket in lengths.buckets)
    for bucket in lengths.buckets:
        cells = [_range(bucket), Text(f"{bucket.count:,}")]
        for share in (bucket.token_share, bucket.count_share):
            cells += [Text(_percent(share)), Text(_bar(share, most, _LOSS_BAR))]
        table.add_row(*cells)
    return table


def _tally_table(figures: Figures, tally: Tally) -> Table:
    lines: tuple[tuple[str, int, str], ...] = (
        ("rows read", tally.rows_read, ""),
        ("rows dropped", sum(tally.rows_dropped.values()), _reasons(tally.rows_dropped)),
        ("rows rejected", sum(tally.rows_rejected.values()), _reasons(tally.rows_rejected)),
        ("turns dropped", sum(tally.turns_dropped.values()), _reasons(tally.turns_dropped)),
        ("sequences, lower bound", tally.sequences_lower_bound, f"packed: {figures.rows:,}"),
    )
    table = _table("left", "right", "left")
    for name, count, remark in lines:
        table.add_row(Text(name), Text(f"{count:,}"), Text(remark if count else ""))
    return table


def notices_table(findings: list[Notice]) -> Table:
    """Build the table that tells what a user should know of the turns."""
    table = _table("left", "right", "left")
    for finding in findings:
        cells = (finding.name, f"{finding.count:,}", escaped(finding.text))
        table.add_row(*map(Text, cells))
    return table


def _reasons(counts: dict[str, int]) -> str:
    return ", ".join(f"{escaped(reason)} {count:,}" for reason, count in counts.items())


def _spread(lengths: Histogram) -> Text:
    median = f"{lengths.median:,.1f}".removesuffix(".0")
    return Text(
        f"{_INDENT}min {lengths.min:,}, median {median}, "
        f"mean {lengths.mean:,.1f}, max {lengths.max:,}"
    )


def _table(*alignments: Literal["left", "right"]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    for alignment in alignments:
        table.add_column(justify=alignment)
    return table


def _column_heads(*heads: str) -> list[Text]:
    return [Text(head, style="dim") for head in heads]


def _range(bucket: Bucket) -> Text:
    low, high = f"{bucket.low:,}", f"{bucket.high:,}"
    return Text(low if low == high else f"{low}-{high}")


def _bar(share: float, most: float, width: int) -> str:
    """Draw a bar in eighths of a column; what is not nothing shows."""
    eighths = round(share / most * width * 8)
    if share and not eighths:
        eighths = 1
    return ("█" * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip()


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _indented(table: Table) -> Padding:
    return Padding(table, (0, 0, 0, len(_INDENT)), expand=False)
