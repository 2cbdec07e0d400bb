"""The report of `pack` for the terminal."""

from __future__ import annotations

import shlex

from rich.console import Console
from rich.text import Text

from mtpack.counts import Counts
from mtpack.input.dialogue import Reason
from mtpack.report.escaping import escape_line
from mtpack.report.notices import turn_summary
from mtpack.report.terminal import (
    build_notices_table,
    format_count,
    format_percent,
    format_reasons,
    make_table,
    print_heading,
)
from mtpack.shards.manifest import PackReport


def show_report(report: PackReport, console: Console) -> None:
    """Print what was packed, what was left out, what to know about the turns, and what is next."""
    tally, about = report.tally, report.about
    table = make_table("left", "right", "left")
    left_out = {**tally.rows_rejected, **tally.rows_dropped}
    lines = [
        ("rows", tally.rows_read, _format_left_out(tally.rows_packed, left_out)),
        ("turns", tally.turns_read, _describe_turns(tally)),
        ("rendered", about.rendered, "dialogues, by the chat template"),
        (
            "replayed",
            about.replayed,
            "dialogues, from recordings of the template: identical by construction, "
            "and audited on a sample",
        ),
        ("documents", tally.documents, "in sequences, each a dialogue or a piece of one"),
        ("tokens", tally.tokens, f"{format_percent(tally.loss_tokens / tally.tokens)} carry loss"),
        (
            "sequences",
            tally.sequences,
            f"of {report.seq_len:,} tokens, {report.fill:.2%} filled; "
            f"at least {tally.sequences_lower_bound:,} are needed",
        ),
    ]
    for name, number, remark in lines:
        if number or name != "replayed":
            table.add_row(name, f"{number:,}", Text(remark))
    console.print(table)
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


def _describe_turns(tally: Counts) -> str:
    text = _format_left_out(tally.turns_packed, tally.turns_dropped)
    if Reason.OVERLONG in tally.turns_dropped:
        text += "; a larger --seq-len keeps more, and so may --overlong split"
    return text


def _format_left_out(packed: int, reasons: dict[str, int]) -> str:
    if not reasons:
        return "all packed"
    return f"{packed:,} packed; left out: {format_reasons(reasons)}"
