"""The table of a comparison: medians, ratios and their spread, from the figures of all rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from rich import box
from rich.console import Console
from rich.table import Table

Rounds = Mapping[str, Sequence[float]]
"""The values of a figure in all rounds, by name."""

STAGES = ("read", "render", "tokenize", "store", "plan", "assemble", "write")


@dataclass(frozen=True)
class Line:
    """A line of the table: a figure, the figure that it is compared with, and a goal."""

    name: str
    figure: str
    unit: str
    against: str | None = None
    """The figure that is the divisor of the ratio."""
    against_name: str = ""
    goal: str = ""
    inverted: bool = False
    """Whether the other figure is divided by this one, so that fewer seconds are a higher ratio."""


# Name, figure, name of the other, figure of the other, goal without start.
_THROUGHPUTS = (
    ("pack", "mtpack", "TRL's way", "trl", ">= 45 English, 35 Chinese"),
    ("pack", "mtpack", "fastokens, encoding only", "fastokens", ">= 0.22 English, 0.5 Chinese"),
    (
        "pack with tokenizers",
        "mtpack_tokenizers",
        "tokenizers, encoding only",
        "tokenizers",
        ">= 0.85",
    ),
)

_LINES = (
    *(
        Line(f"{name}{start}", f"{figure}{suffix}", "MB/s", against, against_name, goal * reached)
        for start, suffix, reached in (("", "", False), (", without start", ".after_start", True))
        for name, figure, against_name, against, goal in _THROUGHPUTS
    ),
    Line("pack, whole command", "mtpack.whole", "MB/s", "trl", "TRL's way", ">= 10 English"),
    Line("TRL's way", "trl", "MB/s"),
    Line("tokenizers, encoding only", "tokenizers", "MB/s"),
    Line("fastokens, encoding only", "fastokens", "MB/s"),
    Line("pack, start only", "mtpack.seconds.start", "s"),
    Line("pack, whole command", "mtpack.command", "s"),
    Line("python and imports", "start.imports", "s"),
    Line("python, imports, tokenizers loaded", "start.tokenizers", "s"),
    Line("python, imports, fastokens loaded", "start.fastokens", "s"),
    Line(
        "200 rows, whole command",
        "start.few",
        "s",
        "start.tokenizers",
        "python, imports, tokenizers loaded",
        "<= 1.4",
    ),
    Line(
        "all rows, whole command",
        "start.whole",
        "s",
        "start.allowed",
        "python, imports, fastokens loaded, 1.3 times without start",
        "<= 1",
    ),
    Line("pack of 10 times the input", "copies.10", "s", "copies.1", "once", "<= 10.5"),
    Line(
        "memory for 10 times the input",
        "copies.10.memory",
        "MiB",
        "copies.1.memory",
        "once",
        "<= 1.15",
    ),
    Line(
        "pack again, tokens kept", "pack.again", "s", "pack.first", "first", ">= 3", inverted=True
    ),
    Line("--help, more than python", "help.more", "s", goal="<= 0.25 s"),
    Line("sample data, whole command", "sample", "s", goal="<= 2 s"),
    Line("planned sequences", "plan.sequences", "", "plan.bound", "lower bound"),
    Line("best-fit decreasing", "bfd.sequences", "", "plan.bound", "lower bound"),
    Line("planning", "plan.seconds", "s", "bfd.seconds", "best-fit decreasing"),
    *(
        Line("random rows", "rows.mtpack", "rows/s", f"rows.{name}", f"datasets, {name}")
        for name in (None, "numpy", "torch", "arrow")
    ),
    Line(
        "random rows as tensors", "rows.tensors", "rows/s", "rows.torch", "datasets, torch", ">= 5"
    ),
    *(
        Line(
            f"batches of tensors, {name}",
            f"batches.mtpack.{figure}",
            "rows/s",
            f"batches.datasets.{figure}",
            "datasets, torch",
            goal,
        )
        for name, figure, goal in (("no worker", "alone", ">= 5"), ("workers", "workers", ""))
    ),
)

_OF_VERSIONS = ("mtpack", "start", "pack")
"""How the names of figures begin that another version of mtpack has as well."""


def _add_old(line: Line) -> tuple[Line, ...]:
    """Return a line and, if the other version has it too, the same line for that one."""
    old, against = (
        f"old.{figure}" if figure and figure.split(".")[0] in _OF_VERSIONS else figure
        for figure in (line.figure, line.against)
    )
    assert old is not None
    if old == line.figure:
        return (line,)
    return line, replace(line, name=f"{line.name}, old", figure=old, against=against, goal="")


LINES = (
    *(line for new_line in _LINES for line in _add_old(new_line)),
    Line(
        "pack again, tokens kept",
        "pack.again",
        "s",
        "old.pack.first",
        "first, old",
        ">= 4",
        inverted=True,
    ),
)


def show_table(rounds: Rounds, console: Console, lines: Sequence[Line] = LINES) -> None:
    """Print the lines whose figures were measured; a dash if the other figure was not."""
    table = Table(box=box.MARKDOWN)
    for title in ("what", "median", "min to max", "compared with", "ratio", "min to max", "goal"):
        table.add_column(title, no_wrap=True)
    for line in lines:
        if line.figure not in rounds:
            continue
        value, spread = _format_cells(rounds[line.figure])
        ratio, ratio_spread = _format_cells(compute_ratios(line, rounds))
        table.add_row(
            line.name,
            f"{value} {line.unit}".strip(),
            spread,
            line.against_name,
            ratio if line.against else "",
            ratio_spread if line.against else "",
            line.goal,
        )
    console.print(table)


def show_profile(rounds: Rounds, console: Console) -> None:
    """Print the stages of `mtpack pack`, and their share of the seconds of all workers."""
    table = Table(box=box.MARKDOWN)
    for title in ("stage", "seconds of all workers", "share"):
        table.add_column(title, no_wrap=True)
    seconds = {
        stage: median(rounds[name])
        for stage in STAGES
        if (name := f"mtpack.seconds.{stage}") in rounds
    }
    for stage, amount in seconds.items():
        table.add_row(stage, f"{amount:.2f}", f"{amount / sum(seconds.values()):.0%}")
    console.print(table)


def compute_ratios(line: Line, rounds: Rounds) -> list[float]:
    """Return the ratio of a line in every round; empty if a figure was not measured."""
    if line.against is None or not (line.figure in rounds and line.against in rounds):
        return []
    pairs = zip(rounds[line.figure], rounds[line.against], strict=True)
    return [other / own if line.inverted else own / other for own, other in pairs]


def _format_cells(values: Sequence[float]) -> tuple[str, str]:
    if not values:
        return "-", "-"
    middle, low, high = map(_format_number, (median(values), min(values), max(values)))
    return middle, f"{low} to {high}"


def _format_number(value: float) -> str:
    """Format a number: three decimals below 10, one below 100.

    >>> [_format_number(value) for value in (0.0125, 1.002, 12.345, 1234.5, 98)]
    ['0.013', '1.002', '12.3', '1,234', '98']
    """
    if float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:,.{3 if abs(value) < 10 else 1 if abs(value) < 100 else 0}f}"
