"""The report of a run, for people."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from mtpack.manifest import PackReport


def show_report(report: PackReport, console: Console) -> None:
    """Print what was packed, what was left out, and what a user should know of it."""
    tally = report.tally
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    left_out = {**tally.rows_rejected, **tally.rows_dropped}
    rows = [
        ("rows", tally.rows_read, _left_out(tally.rows_packed, left_out)),
        ("turns", tally.turns_read, _left_out(tally.turns_packed, tally.turns_dropped)),
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
    for line in notes(report):
        console.print(line)
    seconds = report.about.seconds["total"]
    num_bytes = sum(shard.bytes for shard in report.shards)
    shards = "1 shard" if len(report.shards) == 1 else f"{len(report.shards):,} shards"
    console.print(
        f"{report.output}: {shards}, {num_bytes / 2**20:,.1f} MiB, in {seconds:.1f} s",
        soft_wrap=True,
    )


def notes(report: PackReport) -> list[str]:
    """Return what is out of the ordinary in a run, a line each, with the remedy."""
    tally = report.tally
    rows = [
        (
            tally.control_tokens,
            "spell control tokens in the text of users, systems or tools, and the model will read "
            "them as such; --control-tokens literal makes them ordinary text, error refuses them",
        ),
        (
            tally.control_tokens_literal,
            "spell control tokens in the text of users, systems or tools, encoded as ordinary text",
        ),
    ]
    turns = [
        (
            tally.turns_own_document,
            "can't be merged exactly, because the chat template rewrites history, and have "
            f"documents of their own: {tally.tokens:,} tokens instead of "
            f"{tally.tokens_if_merged:,}. A template that keeps history avoids it, or "
            "--merge always",
        ),
        (tally.bent, "merged although the chat template rewrites history (--merge always)"),
        (
            tally.prompt_differs,
            "not where the model's prompt ends; a --template-arg such as enable_thinking=false "
            "may help",
        ),
        (tally.no_eot, "without a control token at the end, so the model won't learn to stop"),
        (tally.unproven, "can't be rendered alone, so it is not proven that merging is exact"),
    ]
    tokens = [
        (tally.given_trained, "carry loss although the prompt gives them, as the template has it"),
        (tally.straddles, "left out of the loss, since they reach over the edge of a turn"),
    ]
    return [
        f"{kind}: {number:,} {text}"
        for kind, found in (("rows", rows), ("turns", turns), ("tokens", tokens))
        for number, text in found
        if number
    ]


def _left_out(packed: int, reasons: dict[str, int]) -> str:
    if not reasons:
        return "all packed"
    told = ", ".join(f"{reason} {count:,}" for reason, count in reasons.items())
    return f"{packed:,} packed; left out: {told}"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "0%"
