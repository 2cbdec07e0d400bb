"""What `verify` found, for the terminal: readable without colour, in 80 columns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mtpack.report.findings import notices_of
from mtpack.report.inspect_view import escaped, notices_table
from mtpack.shards.manifest import Tally
from mtpack.verify.check import Check
from mtpack.verify.structure import Violation
from mtpack.verify.verify import VerifyReport
from mtpack.verify.weights import WeightBin

if TYPE_CHECKING:
    from mtpack.verify.computing import NumericReport
    from mtpack.verify.speed import SpeedReport

_INDENT = "  "
_CHECKED = {
    "structure": "every law, in every sequence",
    "equivalence": "packed = one sample per turn",
    "token_losses": "turn_mean_loss",
    "hidden_states": "linear_turn_mean_loss",
    "invariance": "however a global batch is divided",
    "micro_batches": "in other sizes and orders",
    "context_parallel": "zigzag slices, documents padded",
    "data_parallel": "processes that all-reduce",
    "isolation": "what is no part of a document",
    "documents": "other tokens in a neighbour",
    "padding_added": "more padding",
    "padding_tokens": "other tokens in the padding",
}
_WEIGHED = {
    "turn_mean": "every turn weighs the same: what mtpack gives",
    "token_mean": "every token does: the usual mean; long turns rule",
    "dialogue_mean": "every document does: its turns share its weight",
}


def show(report: VerifyReport, console: Console) -> None:
    """Print what was checked, what it came to, and what it does not prove."""
    numeric = report.numeric
    how = f", in {numeric.dtype}" if numeric else ""
    console.print(Text(f"Checks, on {report.device}{how}", style="bold"))
    console.print(_indented(_check_table(report.checks)))
    if report.violation is not None:
        _print_violation(report.violation, console)
    if numeric is not None:
        _print_mixing(numeric, console)
        _print_heading("The sample's loss, by what weighs the same", console)
        console.print(_indented(_loss_table(asdict(numeric.losses))))
    if report.weights:
        _print_heading("The share of the loss that turns decide, by their length", console)
        console.print(_indented(_weight_table(report.weights)))
        note = "token : turn, how much a turn counts under the token mean against the turn mean"
        console.print(_indented(Text(note, style="dim")))
    if report.speed is not None:
        _print_heading("The loss on this device, for information", console)
        _print_speed(report.speed, console)
    _print_heading("Covered", console)
    for line in _scope(report):
        console.print(_indented(Text(line)))
    if report.tally is not None:
        _print_template(report.tally, console)


def _check_table(checks: dict[str, Check]) -> Table:
    table = _table("left", "left", "right", "right", "left")
    table.add_row(*(Text(head, style="dim") for head in ("", "", "found", "at most", "")))
    for name, check in checks.items():
        table.add_row(*_check_cells(name, check, ""))
        for part_name, part in check.parts.items():
            table.add_row(*_check_cells(part_name, part, _INDENT))
    return table


def _check_cells(name: str, check: Check, indent: str) -> Iterator[Text]:
    yield Text(indent + name.replace("_", " "))
    yield Text("ok") if check.ok else Text("FAILED", style="bold red")
    yield Text(_small(check.value))
    yield Text(_small(check.tolerance))
    yield Text(_CHECKED[name], style="dim")


def _print_mixing(numeric: NumericReport, console: Console) -> None:
    """Say in words what a failed isolation means for whoever wants to train that model."""
    documents = numeric.checks["isolation"].parts.get("documents")
    if documents is None or documents.ok:
        return
    lines = (
        f"{numeric.model}: documents of a sequence see each other.",
        f"It was to keep them apart by {numeric.keeps_apart_by}, and does not: don't train it",
        "on packed sequences this way; try another attention implementation or --packing none.",
    )
    for line in lines:
        console.print(_indented(Text(escaped(line), style="red")))


def _loss_table(losses: dict[str, float]) -> Table:
    table = _table("left", "right", "left")
    for name, loss in losses.items():
        table.add_row(
            Text(name.replace("_", " ")), Text(f"{loss:.6f}"), Text(_WEIGHED[name], style="dim")
        )
    return table


def _weight_table(bins: list[WeightBin]) -> Table:
    table = _table("right", "right", "right", "right", "right", "right", "right")
    heads = (
        "loss tokens",
        "turns",
        "turn mean",
        "token mean",
        "dialogue",
        "square root",
        "token : turn",
    )
    table.add_row(*(Text(head, style="dim") for head in heads))
    for one in bins:
        weights = one.weights
        ratio = weights["token_mean"] / weights["turn_mean"] if one.turns else None
        table.add_row(
            Text(one.label),
            Text(f"{one.turns:,}"),
            Text(_percent(weights["turn_mean"])),
            Text(_percent(weights["token_mean"])),
            Text(_percent(weights["dialogue_mean"])),
            Text(_percent(weights["square_root"])),
            Text("" if ratio is None else f"{ratio:.2f}"),
        )
    return table


def _print_speed(speed: SpeedReport, console: Console) -> None:
    sizes = speed.sizes
    line = (
        f"{sizes.tokens:,} tokens, {_percent(speed.loss_share)} of them trained, hidden "
        f"{sizes.hidden:,}, vocabulary {sizes.vocabulary:,}, {sizes.dtype}"
    )
    console.print(_indented(Text(line)))
    table = _table("left", "right", "right", "right", "right")
    table.add_row(
        *(Text(head, style="dim") for head in ("", "forward and backward", "", "peak memory", ""))
    )
    first = speed.ways[0]
    for way in speed.ways:
        table.add_row(
            Text(way.name),
            Text("out of memory" if way.seconds is None else f"{way.seconds * 1e3:,.1f} ms"),
            Text(_against(way.seconds, first.seconds), style="dim"),
            Text("" if way.peak_bytes is None else f"{way.peak_bytes / 2**20:,.0f} MiB"),
            Text(_against(way.peak_bytes, first.peak_bytes), style="dim"),
        )
    console.print(_indented(table))


def _against(value: float | None, first: float | None) -> str:
    return f"{value / first:.2f} x" if value is not None and first else ""


def _print_violation(violation: Violation, console: Console) -> None:
    where = escaped(violation.shard)
    if violation.row is not None:
        where += f", row {violation.row:,}"
    if violation.position is not None:
        where += f", position {violation.position:,}"
    console.print(Text(f"{_INDENT}{where}:", style="red"), soft_wrap=True)
    console.print(Text(f"{_INDENT}{violation.law}: {violation.detail}"), soft_wrap=True)


def _print_heading(heading: str, console: Console) -> None:
    console.print()
    console.print(Text(heading, style="bold"))


def _scope(report: VerifyReport) -> Iterator[str]:
    """Say what was checked of how much."""
    yield f"structure: {report.rows:,} of {_counted(report.rows_of, 'sequence')}"
    if report.tally is None:
        yield "a shard without its manifest: hashes were not checked"
    if report.weights:
        turns = sum(one.turns for one in report.weights)
        yield f"the share of the loss: all {_counted(turns, 'turn')}"
    if numeric := report.numeric:
        yield f"model: {escaped(numeric.model)}, documents kept apart by {numeric.keeps_apart_by}"
        yield f"equivalence: {_sampled(numeric.covered['equivalence'])}"
        divided = numeric.covered["invariance"]
        yield f"invariance: {_sampled(divided)}"
        divisions = [f"micro-batches of {_listed(divided['micro_batch_sizes'])} sequences"]
        if "data_parallel_ranks" in divided:
            divisions.append(
                f"{divided['data_parallel_ranks']} processes over {divided['backend']}"
                + ("" if numeric.model == "built in" else ", with the built-in model")
            )
        divisions.append(f"slices of {_listed(divided['context_parallel_ranks'])} ranks")
        yield f"invariance, by: {'; '.join(divisions)}"
        isolated = numeric.covered["isolation"]
        yield (
            f"isolation: {_counted(isolated['documents'], 'document')} changed in "
            f"{_counted(isolated['sequences'], 'sequence')}, and their padding; "
            f"{_counted(isolated['losses'], 'loss', 'losses')} had to stay; 0 is to the bit"
        )
        yield from numeric.remarks


def _sampled(covered: dict[str, Any]) -> str:
    parts = [
        f"{covered[part]:,} of {covered[f'{part}_of']:,} {part}"
        for part in ("sequences", "turns", "tokens")
    ]
    return ", ".join(parts)


def _listed(numbers: list[int]) -> str:
    return f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"


def _print_template(tally: Tally, console: Console) -> None:
    """Print what the numeric checks can't prove: they are of packing and loss alone."""
    findings = notices_of(tally)
    if not findings:
        return
    console.print()
    console.print(Text("From the run that packed them, not proved by these checks", style="bold"))
    console.print(_indented(notices_table(findings)))


def _small(value: float) -> str:
    return str(int(value)) if value in (0, 1) else f"{value:.1e}"


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _counted(count: int, noun: str, plural: str | None = None) -> str:
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def _table(*alignments: Literal["left", "right"]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    for alignment in alignments:
        table.add_column(justify=alignment)
    return table


def _indented(shown: Table | Text) -> Padding:
    return Padding(shown, (0, 0, 0, len(_INDENT)), expand=False)
