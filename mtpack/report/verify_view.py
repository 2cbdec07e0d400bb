"""The report of `verify` for the terminal: readable without colour, in 80 columns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mtpack.counts import Counts
from mtpack.report.notices import notices_of
from mtpack.report.terminal import (
    INDENT,
    build_notices_table,
    escape,
    format_count,
    format_percent,
    format_range,
    indent,
    make_heads,
    make_table,
    print_heading,
)
from mtpack.verify.check import Check
from mtpack.verify.structure import Violation
from mtpack.verify.verify import VerifyReport
from mtpack.verify.weights import WeightBucket

if TYPE_CHECKING:
    from mtpack.verify.computing import NumericReport
    from mtpack.verify.speed import SpeedReport

# What each check and part compares: at most 32 characters, to fit into 80 columns.
_CHECKED = {
    "structure": "every law, in every sequence",
    "equivalence": "packed = one sample per turn",
    "token_losses": "by turn_mean_loss",
    "hidden_states": "by linear_turn_mean_loss",
    "invariance": "any division of a global batch",
    "micro_batches": "other sizes and orders",
    "context_parallel": "zigzag slices, padded documents",
    "data_parallel": "processes that all-reduce",
    "isolation": "documents see only themselves",
    "documents": "another document is changed",
    "padding_added": "padding is added",
    "padding_tokens": "tokens of padding are changed",
}
_MEAN_TEXTS = {
    "turn_mean": "each turn has the same weight: the mean of mtpack",
    "token_mean": "each token has the same weight: long turns dominate",
    "dialogue_mean": "each document has the same weight; turns share it",
}


def show(report: VerifyReport, console: Console) -> None:
    """Print the results of the checks, what they covered, and what they do not prove."""
    numeric = report.numeric
    how = f", in {numeric.dtype}" if numeric else ""
    console.print(Text(f"Checks, on {report.device}{how}", style="bold"))
    console.print(indent(_build_check_table(report.checks)))
    if report.violation is not None:
        _print_violation(report.violation, console)
    if numeric is not None:
        _print_leak(numeric, console)
        print_heading("The loss of the sample, under three means", console)
        console.print(indent(_build_loss_table(asdict(numeric.losses))))
    if report.weights:
        print_heading("Share of the loss, by the length of turns", console)
        console.print(indent(_build_weight_table(report.weights)))
        note = "token : turn is the weight under the token mean / under the turn mean"
        console.print(indent(Text(note, style="dim")))
    if report.speed is not None:
        print_heading("Speed of the loss on this device (information, not a check)", console)
        _print_speed(report.speed, console)
    print_heading("What the checks covered", console)
    table = make_table("left", "left")
    for name, covered in _describe_coverage(report):
        table.add_row(Text(name), Text(covered))
    console.print(indent(table))
    if report.tally is not None:
        _print_template(report.tally, console)


def _build_check_table(checks: dict[str, Check]) -> Table:
    table = make_table("left", "left", "right", "right", "left")
    table.add_row(*make_heads("", "", "found", "allowed", ""))
    for name, check in checks.items():
        table.add_row(*_make_check_cells(name, check, ""))
        for part_name, part in check.parts.items():
            table.add_row(*_make_check_cells(part_name, part, INDENT))
    return table


def _make_check_cells(name: str, check: Check, indent: str) -> Iterator[Text]:
    yield Text(indent + name.replace("_", " "))
    yield Text("ok") if check.ok else Text("FAILED", style="bold red")
    yield Text(_format_check_value(check.value))
    yield Text(_format_check_value(check.tolerance))
    yield Text(_CHECKED[name], style="dim")


def _print_leak(numeric: NumericReport, console: Console) -> None:
    """Explain what a failed isolation check means for the training of the model."""
    documents = numeric.checks["isolation"].parts.get("documents")
    if documents is None or documents.ok:
        return
    warning = (
        f"{numeric.model}: documents of a sequence see each other, although "
        f"{numeric.separates_documents_by} should separate them. Do not train this model on packed "
        "sequences in this way: try another attention implementation, or pack with --packing none."
    )
    console.print(indent(Text(escape(warning), style="red")))


def _build_loss_table(losses: dict[str, float]) -> Table:
    table = make_table("left", "right", "left")
    for name, loss in losses.items():
        table.add_row(
            Text(name.replace("_", " ")), Text(f"{loss:.6f}"), Text(_MEAN_TEXTS[name], style="dim")
        )
    return table


def _build_weight_table(buckets: list[WeightBucket]) -> Table:
    table = make_table("right", "right", "right", "right", "right", "right", "right")
    heads = (
        "loss tokens",
        "turns",
        "turn mean",
        "token mean",
        "dialogue",
        "square root",
        "token : turn",
    )
    table.add_row(*make_heads(*heads))
    for bucket in buckets:
        weights = bucket.weights
        ratio = weights["token_mean"] / weights["turn_mean"] if bucket.turns else None
        table.add_row(
            Text(format_range(bucket.low, bucket.high)),
            Text(f"{bucket.turns:,}"),
            Text(format_percent(weights["turn_mean"])),
            Text(format_percent(weights["token_mean"])),
            Text(format_percent(weights["dialogue_mean"])),
            Text(format_percent(weights["square_root"])),
            Text("" if ratio is None else f"{ratio:.2f}"),
        )
    return table


def _print_speed(speed: SpeedReport, console: Console) -> None:
    sizes = speed.sizes
    line = (
        f"{sizes.tokens:,} tokens, {format_percent(speed.loss_share)} loss tokens; hidden "
        f"{sizes.hidden:,}, vocabulary {sizes.vocabulary:,}, {sizes.dtype}"
    )
    console.print(indent(Text(line)))
    table = make_table("left", "right", "right", "right", "right")
    table.add_row(*make_heads("", "forward and backward", "", "peak memory", ""))
    first = speed.ways[0]
    for way in speed.ways:
        table.add_row(
            Text(way.name),
            Text("out of memory" if way.seconds is None else f"{way.seconds * 1e3:,.1f} ms"),
            Text(_format_ratio(way.seconds, first.seconds), style="dim"),
            Text("" if way.peak_bytes is None else f"{way.peak_bytes / 2**20:,.0f} MiB"),
            Text(_format_ratio(way.peak_bytes, first.peak_bytes), style="dim"),
        )
    console.print(indent(table))


def _format_ratio(value: float | None, first: float | None) -> str:
    return f"{value / first:.2f} x" if value is not None and first else ""


def _print_violation(violation: Violation, console: Console) -> None:
    where = escape(violation.shard)
    if violation.row is not None:
        where += f", sequence {violation.row:,}"
    if violation.position is not None:
        where += f", position {violation.position:,}"
    console.print(Text(f"{INDENT}{where}:", style="red"), soft_wrap=True)
    console.print(Text(f"{INDENT}{violation.law}: {violation.detail}"), soft_wrap=True)


def _describe_coverage(report: VerifyReport) -> Iterator[tuple[str, str]]:
    """Yield what was checked, and how much of it."""
    yield "structure", f"{report.rows:,} of {format_count(report.rows_of, 'sequence')}"
    if report.tally is None:
        yield "", "hashes were not checked: name the folder of the shards, which has a manifest"
    if report.weights:
        turns = sum(one.turns for one in report.weights)
        yield "share of the loss", f"all {format_count(turns, 'turn')}"
    if numeric := report.numeric:
        separated = f"documents separated by {numeric.separates_documents_by}"
        yield "model", f"{escape(numeric.model)}; {separated}"
        yield "equivalence", _format_sample(numeric.covered["equivalence"])
        divided = numeric.covered["invariance"]
        yield "invariance", _format_sample(divided)
        sizes = _format_list(divided["micro_batch_sizes"])
        yield "  micro batches", f"of {sizes} sequences"
        if "data_parallel_ranks" in divided:
            used = "" if numeric.model == "built in" else ", with the built-in model"
            ranks = f"{divided['data_parallel_ranks']} processes over {divided['backend']}"
            yield "  data parallel", ranks + used
        ranks = _format_list(divided["context_parallel_ranks"])
        yield "  context parallel", f"slices of {ranks} ranks"
        isolated = numeric.covered["isolation"]
        yield (
            "isolation",
            f"{format_count(isolated['documents'], 'document')} changed in "
            f"{format_count(isolated['sequences'], 'sequence')}, and their padding; "
            f"{format_count(isolated['losses'], 'loss', 'losses')} compared (0: equal bit by bit)",
        )
        for remark in numeric.remarks:
            yield "not checked", remark


def _format_sample(covered: dict[str, Any]) -> str:
    parts = [
        f"{covered[part]:,} of {covered[f'{part}_of']:,} {part}"
        for part in ("sequences", "turns", "tokens")
    ]
    return ", ".join(parts)


def _format_list(numbers: list[int]) -> str:
    return f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"


def _print_template(tally: Counts, console: Console) -> None:
    """Print the notices of the run: the checks prove packing and loss, not the chat template."""
    notices = notices_of(tally)
    if not notices:
        return
    print_heading("Reported by the run that packed these shards, not proven here", console)
    console.print(indent(build_notices_table(notices)))


def _format_check_value(value: float) -> str:
    return str(int(value)) if value in (0, 1) else f"{value:.1e}"
