"""The report of `verify` for the terminal: readable without colour, in 80 columns."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from mtpack.report.escaping import escape_line
from mtpack.report.notices import notices_of
from mtpack.report.terminal import (
    INDENT,
    build_notices_table,
    format_count,
    format_percent,
    format_range,
    indent,
    make_heads,
    make_table,
)
from mtpack.verify.check import Check
from mtpack.verify.files import Violation
from mtpack.verify.verify import VerifyReport
from mtpack.verify.weights import MEANS, WeightBucket

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
_VERDICTS = {
    True: Text("ok"),
    False: Text("FAILED", style="bold red"),
    None: Text("not done", style="bold yellow"),
}


def show(report: VerifyReport, console: Console) -> None:
    """Print the report."""
    console.print(build_view(report), crop=False)


def build_view(report: VerifyReport) -> RenderableType:
    """Build the view of a report: the results, what they covered, and what they do not prove."""
    numeric = report.numeric
    how = f", in {numeric.dtype}" if numeric else ""
    blocks: list[RenderableType] = [
        Text(f"Checks, on {report.device}{how}", style="bold"),
        indent(_build_check_table(report.checks)),
    ]

    def add(heading: str, table: Table) -> None:
        blocks.extend((Text(), Text(heading, style="bold"), indent(table)))

    blocks += _describe_problems(report)
    if report.weights:
        add(
            "Share of the loss by turn length; token : turn = token mean / turn mean",
            _build_weight_table(report.weights),
        )
    covered = make_table("left", "left")
    for name, text in _describe_coverage(report):
        covered.add_row(Text(name), Text(text))
    add("What the checks covered", covered)
    if report.tally is not None and (notices := notices_of(report.tally)):
        heading = "Reported by the run that packed these shards, not proven here"
        add(heading, build_notices_table(notices))
    return Group(*blocks)


def _build_check_table(checks: dict[str, Check]) -> Table:
    table = make_table("left", "left", "right", "right", "left")
    table.add_row(*make_heads("", "", "found", "allowed", ""))
    for name, check in checks.items():
        for row_name, row, before in (
            (name, check, ""),
            *((part_name, part, INDENT) for part_name, part in check.parts.items()),
        ):
            table.add_row(
                Text(before + row_name.replace("_", " ")),
                _VERDICTS[row.ok],
                Text(_format_check_value(row.value)),
                Text(_format_check_value(row.tolerance)),
                Text(_CHECKED[row_name], style="dim"),
            )
    return table


def _describe_problems(report: VerifyReport) -> Iterator[RenderableType]:
    """Yield what is wrong, and why checks were not done."""
    if violation := report.violation:
        yield _describe_violation(violation)
    for name, check in report.checks.items():
        for part_name, part in (check.parts or {name: check}).items():
            if part.detail:
                verdict = _VERDICTS[part.ok].plain
                text = f"{part_name.replace('_', ' ')}: {verdict}, because {part.detail}"
                yield indent(Text(escape_line(text)))
    if numeric := report.numeric:
        documents = numeric.checks["isolation"].parts["documents"]
        if documents.ok is False and documents.value is not None:
            warning = (
                f"{numeric.model}: documents of a sequence see each other, although "
                f"{numeric.separates_documents_by} should separate them. Do not train this model "
                "on packed sequences in this way: try another attention implementation, or pack "
                "with --packing none."
            )
            yield indent(Text(escape_line(warning), style="red"))


def _describe_violation(violation: Violation) -> Text:
    where = escape_line(violation.shard)
    if violation.row is not None:
        where += f", sequence {violation.row:,}"
    if violation.position is not None:
        where += f", position {violation.position:,}"
    text = f"{INDENT}{where}:\n{INDENT}{violation.law}: {escape_line(violation.detail)}"
    return Text(text, style="red", no_wrap=True, overflow="ignore")  # a path stays in one line


def _build_weight_table(buckets: list[WeightBucket]) -> Table:
    heads = ("turns", "turn mean", "token mean", "dialogue", "square root", "token : turn")
    table = make_table("right", "right", "right", "right", "right", "right", "right")
    table.add_row(*make_heads("loss tokens", *heads))
    for bucket in buckets:
        weights = bucket.weights
        ratio = weights["token_mean"] / weights["turn_mean"] if bucket.turns else None
        table.add_row(
            format_range(bucket.low, bucket.high),
            f"{bucket.turns:,}",
            *(format_percent(weights[mean]) for mean in MEANS),
            "" if ratio is None else f"{ratio:.2f}",
        )
    return table


def _describe_coverage(report: VerifyReport) -> Iterator[tuple[str, str]]:
    """Yield what was checked, and how much of it."""
    yield "structure", f"{report.rows:,} of {format_count(report.rows_of, 'sequence')}"
    if report.tally is None:
        yield "", "hashes were not checked: name the folder of the shards, which has a manifest"
    else:
        yield "files", "every file of the output but `about` in the manifest, which has no hash"
    if numeric := report.numeric:
        separated = f"documents separated by {numeric.separates_documents_by}"
        yield "model", f"{escape_line(numeric.model)}; {separated}"
        sample, divided = numeric.covered["equivalence"], numeric.covered["invariance"]
        parts = ("sequences", "documents", "turns", "tokens")
        counts = (f"{sample[part]:,} of {sample[f'{part}_of']:,} {part}" for part in parts)
        yield "sample", ", ".join(counts)
        sizes, slices = (
            ", ".join(map(str, divided[name]))
            for name in ("micro_batch_sizes", "context_parallel_ranks")
        )
        yield (
            "invariance",
            f"micro-batches of {sizes} sequences; slices of {slices} ranks; "
            f"{divided['data_parallel_ranks']} processes over {divided['backend']}, with the "
            "built-in model",
        )
        isolated = numeric.covered["isolation"]
        yield (
            "isolation",
            f"{format_count(isolated['documents'], 'document')} changed in "
            f"{format_count(isolated['sequences'], 'sequence')}, and their padding; "
            f"{format_count(isolated['losses'], 'loss', 'losses')} compared (0: equal bit by bit)",
        )


def _format_check_value(value: float | None) -> str:
    if value is None:
        return ""
    return str(int(value)) if value in (0, 1) else f"{value:.1e}"
