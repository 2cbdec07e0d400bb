"""The report of `pack` for the terminal."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mtpack.counts import Counts
from mtpack.input.dialogue import Reason
from mtpack.report.escaping import escape_line
from mtpack.report.notices import turn_summary
from mtpack.report.source_view import show_sources
from mtpack.report.terminal import (
    build_notices_table,
    format_count,
    format_reasons,
    make_table,
    print_heading,
)
from mtpack.shards.manifest import PackReport


def show_report(report: PackReport, console: Console) -> None:
    """Print what was packed, what was left out, what to know about the turns, and what is next."""
    tally, about = report.tally, report.about
    rendered = [("rendered", about.rendered, "dialogues, by the chat template")]
    if about.replayed:
        remark = (
            "dialogues, from recordings of the template: identical by construction, "
            "and audited on a sample"
        )
        rendered.append(("replayed", about.replayed, remark))
    console.print(build_tally_table(tally, report.seq_len, rendered))
    show_sources(report.sources, console)
    print_heading("What to know about the turns", console)
    console.print(build_notices_table(turn_summary(tally)))
    console.print()
    num_bytes = sum(shard.bytes for shard in report.shards)
    shards = format_count(len(report.shards), "shard")
    line = (
        f"{report.output}: {shards}, {num_bytes / 2**20:,.1f} MiB; packed in "
        f"{about.seconds['total']:.1f} s, after {about.seconds['start']:.1f} s of loading"
    )
    console.print(Text(escape_line(line)), soft_wrap=True)
    inputs = format_count(len(about.inputs), "input file")
    line = f"mtpack {about.mtpack_version}, tokenizer {about.tokenizer}, {inputs}"
    console.print(Text(escape_line(line)), soft_wrap=True)
    if about.token_store_bytes:
        console.print(
            f"token store: {about.token_store_bytes / 2**20:,.1f} MiB; "
            f"{about.reused:,} dialogues of this run were taken from it",
            soft_wrap=True,
        )
    console.print()
    command = f"mtpack inspect {shlex.quote(report.output)}"
    console.print(Text(f"Next: {escape_line(command)}"), soft_wrap=True)


def build_tally_table(
    tally: Counts, seq_len: int, rendered: Sequence[tuple[str, int, str]] = ()
) -> Table:
    """Build the table of what is packed of rows; rendered: lines on how they are rendered."""
    table = make_table("left", "right", "left")
    left_out = {**tally.rows_rejected, **tally.rows_dropped}
    lines = [
        ("rows", tally.rows_read, _format_left_out(tally.rows_packed, left_out)),
        ("turns", tally.turns_read, _describe_turns(tally)),
        *rendered,
        ("documents", tally.documents, "in sequences, each a dialogue or a piece of one"),
    ]
    if tally.tokens:
        fill = tally.tokens / (tally.sequences * seq_len)
        bound = f"at least {tally.sequences_lower_bound:,} are needed"
        lines += [
            ("tokens", tally.tokens, f"{tally.loss_tokens / tally.tokens:.1%} carry loss"),
            ("sequences", tally.sequences, f"of {seq_len:,} tokens, {fill:.2%} filled; {bound}"),
        ]
    for name, number, remark in lines:
        table.add_row(name, f"{number:,}", Text(remark))
    return table


def _describe_turns(tally: Counts) -> str:
    text = _format_left_out(tally.turns_packed, tally.turns_dropped)
    if Reason.OVERLONG in tally.turns_dropped:
        text += "; a larger --seq-len keeps more, and so may --overlong split"
    return text


def _format_left_out(packed: int, reasons: dict[str, int]) -> str:
    if not reasons:
        return "all packed"
    return f"{packed:,} packed; left out: {format_reasons(reasons)}"
