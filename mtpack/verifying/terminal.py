"""What `verify` found, for the terminal: readable without colour, in 80 columns."""

from __future__ import annotations

from typing import Literal

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mtpack.findings import findings_of
from mtpack.inspecting.terminal import escaped, findings_table
from mtpack.manifest import Tally
from mtpack.verifying.structure import Violation
from mtpack.verifying.verify import VerifyReport

_INDENT = "  "
_CHECKED = {
    "structure": "every law of the format, in every sequence",
    "equivalence": "packed = one sample per turn",
}
_WEIGHED = {
    "turn_mean": "every turn weighs the same: what mtpack gives",
    "token_mean": "every token does: the usual mean; long turns rule",
    "dialogue_mean": "every dialogue does: its turns share its weight",
}


def show(report: VerifyReport, console: Console) -> None:
    """Print what was checked, what it came to, and what it does not prove."""
    console.print(Text(f"Checks, on {report.device}", style="bold"))
    console.print(_indented(_check_table(report)))
    if report.violation is not None:
        _print_violation(report.violation, console)
    if report.loss:
        console.print()
        console.print(Text("The sample's loss, by what weighs the same", style="bold"))
        console.print(_indented(_loss_table(report.loss)))
    _print_heading_if_any(report, console)
    for line in _scope(report):
        console.print(Text(line), soft_wrap=True)
    if report.tally is not None:
        _print_template(report.tally, console)


def _check_table(report: VerifyReport) -> Table:
    table = _table("left", "left", "right", "right", "left")
    table.add_row(*(Text(head, style="dim") for head in ("", "", "found", "at most", "")))
    for name, check in report.checks.items():
        table.add_row(
            Text(name),
            Text("ok") if check.ok else Text("FAILED", style="bold red"),
            Text(_small(check.value)),
            Text(_small(check.tolerance)),
            Text(_CHECKED[name], style="dim"),
        )
    return table


def _loss_table(losses: dict[str, float]) -> Table:
    table = _table("left", "right", "left")
    for name, loss in losses.items():
        table.add_row(Text(name.replace("_", " ")), Text(f"{loss:.6f}"), Text(_WEIGHED[name]))
    return table


def _print_violation(violation: Violation, console: Console) -> None:
    where = escaped(violation.shard)
    if violation.row is not None:
        where += f", row {violation.row:,}"
    if violation.position is not None:
        where += f", position {violation.position:,}"
    console.print(Text(f"{_INDENT}{where}:", style="red"), soft_wrap=True)
    console.print(Text(f"{_INDENT}{violation.law}: {violation.detail}"), soft_wrap=True)


def _print_heading_if_any(report: VerifyReport, console: Console) -> None:
    if _scope(report):
        console.print()
        console.print(Text("Covered", style="bold"))


def _scope(report: VerifyReport) -> list[str]:
    """Say what was checked of how much."""
    lines = [f"{_INDENT}structure: {report.rows:,} of {_counted(report.rows_of, 'sequence')}"]
    if covered := report.covered:
        parts = [
            f"{covered[name]:,} of {covered[f'{name}_of']:,} {name}"
            for name in ("sequences", "turns", "tokens")
        ]
        lines.append(f"{_INDENT}equivalence: {', '.join(parts)}")
    if report.tally is None:
        lines.append(f"{_INDENT}a shard without its manifest: hashes were not checked")
    return lines


def _print_template(tally: Tally, console: Console) -> None:
    """Print what the numeric checks can't prove: they are of packing and loss alone."""
    findings = findings_of(tally)
    if not findings:
        return
    console.print()
    console.print(Text("From the run that packed them, not proved by these checks", style="bold"))
    console.print(_indented(findings_table(findings)))


def _small(value: float) -> str:
    return str(int(value)) if value in (0, 1) else f"{value:.1e}"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _table(*alignments: Literal["left", "right"]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    for alignment in alignments:
        table.add_column(justify=alignment)
    return table


def _indented(table: Table) -> Padding:
    return Padding(table, (0, 0, 0, len(_INDENT)), expand=False)
