"""The report of a run, for people."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mtpack.report.findings import turn_summary
from mtpack.shards.manifest import PackReport


def show_report(report: PackReport, console: Console) -> None:
    """Print what was packed, what was left out, and what a user should know of it."""
    tally = report.tally
    table = _table()
    left_out = {**tally.rows_rejected, **tally.rows_dropped}
    rows = [
        ("rows", tally.rows_read, _left_out(tally.rows_packed, left_out)),
        ("turns", tally.turns_read, _left_out(tally.turns_packed, tally.turns_dropped)),
        (
            "rendered",
            report.about.rendered,
            f"dialogues; {report.about.replayed:,} filled in without that, exactly the same",
        ),
        ("documents", tally.documents, ""),
        ("tokens", tally.tokens, f"{_share(tally.loss_tokens, tally.tokens)} carry loss"),
        (
            "sequences",
            tally.sequences,
            f"of {report.seq_len:,} tokens, {report.fill:.2%} filled; "
            f"no plan has fewer than {tally.sequences_lower_bound:,}",
        ),
    ]
    for name, number, remark in rows:
        table.add_row(name, f"{number:,}", remark)
    console.print(table)
    console.print()
    console.print(Text("Turns, as the chat template writes them", style="bold"))
    turns = _table()
    for finding in turn_summary(tally):
        turns.add_row(Text(finding.name), Text(f"{finding.count:,}"), Text(finding.text))
    console.print(turns)
    console.print()
    seconds = report.about.seconds
    num_bytes = sum(shard.bytes for shard in report.shards)
    shards = "1 shard" if len(report.shards) == 1 else f"{len(report.shards):,} shards"
    console.print(
        f"{report.output}: {shards}, {num_bytes / 2**20:,.1f} MiB, "
        f"in {seconds['total']:.1f} s after {seconds['start']:.1f} s of loading",
        soft_wrap=True,
    )
    if report.about.token_store_bytes:
        console.print(
            f"token store: {report.about.token_store_bytes / 2**20:,.1f} MiB; "
            f"{report.about.reused:,} dialogues of this run were there",
            soft_wrap=True,
        )


def _table() -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    return table


def _left_out(packed: int, reasons: dict[str, int]) -> str:
    if not reasons:
        return "all packed"
    told = ", ".join(f"{reason} {count:,}" for reason, count in reasons.items())
    return f"{packed:,} packed; left out: {told}"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "0%"
