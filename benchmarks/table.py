"""The table of a comparison: figures of all rounds to medians, ratios and their spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from rich import box
from rich.console import Console
from rich.table import Table

Rounds = Mapping[str, Sequence[float]]
"""A figure's value in every round, by name."""

STAGES = ("read", "render", "tokenize", "plan", "assemble", "write")


@dataclass(frozen=True)
class Line:
    """A figure, what it is compared with, and what the comparison is to reach."""

    name: str
    figure: str
    unit: str
    against: str | None = None
    """The figure that divides it."""
    against_name: str = ""
    goal: str = ""
    inverted: bool = False
    """Whether the other figure is divided by this one, as where both are seconds."""


# What is compared: a name, its figure, and the name, the figure and the goal to set beside it.
_THROUGHPUTS = (
    ("pack", "mtpack", "TRL's way", "trl", ">= 20"),
    ("pack", "mtpack", "fastokens, encoding only", "fastokens", ">= 0.4 Chinese, 0.2 English"),
    (
        "pack with tokenizers",
        "mtpack_tokenizers",
        "tokenizers, encoding only",
        "tokenizers",
        ">= 0.85",
    ),
)

LINES = (
    *(
        Line(f"{name}{start}", f"{figure}{suffix}", "MB/s", against, against_name, goal)
        for start, suffix in (("", ""), (", without start", ".after_start"))
        for name, figure, against_name, against, goal in _THROUGHPUTS
    ),
    Line("TRL's way", "trl", "MB/s"),
    Line("tokenizers, encoding only", "tokenizers", "MB/s"),
    Line("fastokens, encoding only", "fastokens", "MB/s"),
    Line("pack, start alone", "mtpack.seconds.start", "s"),
    Line("pack, whole command", "mtpack.command", "s"),
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


def show_table(rounds: Rounds, console: Console, lines: Sequence[Line] = LINES) -> None:
    """Print the lines whose figures were measured; a ratio to one that was not is a dash."""
    table = Table(box=box.MARKDOWN)
    for title in ("what", "median", "min to max", "compared with", "ratio", "min to max", "goal"):
        table.add_column(title, no_wrap=True)
    for line in lines:
        if line.figure not in rounds:
            continue
        value, spread = _cells(rounds[line.figure])
        ratio, ratio_spread = _cells(ratios(line, rounds))
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
    """Print the stages of `mtpack pack`: their share of the seconds that all workers spent."""
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


def ratios(line: Line, rounds: Rounds) -> list[float]:
    """Return the ratio of every round."""
    if line.against is None or not (line.figure in rounds and line.against in rounds):
        return []
    pairs = zip(rounds[line.figure], rounds[line.against], strict=True)
    return [other / own if line.inverted else own / other for own, other in pairs]


def _cells(values: Sequence[float]) -> tuple[str, str]:
    if not values:
        return "-", "-"
    return _number(median(values)), f"{_number(min(values))} to {_number(max(values))}"


def _number(value: float) -> str:
    """Write thousandths of what is below 10, and tenths of what is below 100.

    >>> _number(0.0125), _number(1.002), _number(12.345), _number(1234.5), _number(98)
    ('0.013', '1.002', '12.3', '1,234', '98')
    """
    if float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:,.{3 if abs(value) < 10 else 1 if abs(value) < 100 else 0}f}"
