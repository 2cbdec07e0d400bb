"""Pack the same input on this machine's cores with both executors, and estimate larger runs.

    python -m benchmarks.executors DATA --tokenizer T

Each run is in a process of its own. Times are without the start (imports, tokenizer, the cluster).
The CPU time of the main thread per unit (a split or a shard) and that of the workers per byte of
text are the costs that `estimate` needs; docs/scaling.md explains it. DATA are JSON Lines.
"""

from __future__ import annotations

import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe_machine

_EXECUTORS = ("local", "ray")
_STAGES = ("read", "render", "tokenize", "store", "plan", "assemble", "write")
_TEXTS = {"1 TB": 1e12, "100 TB": 1e14}
_NODES = (10, 1000)


@dataclass(frozen=True)
class Run:
    """One run of `pack`."""

    seconds: float
    """Without start."""
    start: float
    main_cpu: float
    """CPU seconds of the main thread, after the first split."""
    worker_seconds: float
    """Of all stages that workers do, summed."""
    units: int
    """Splits and shards."""
    shard_bytes: int


@dataclass(frozen=True)
class Costs:
    """What a run costs, by its parts."""

    worker: float
    """Seconds of a core for a byte of text."""
    main: float
    """Seconds of the main process for a unit."""
    unit_bytes: float
    """Bytes of text for each unit."""
    stored_bytes: float
    """Bytes written and read in the shared folder for a byte of text."""


def compute_costs(run: Run, text_bytes: int) -> Costs:
    """Return the costs of a run; text_bytes: the size of its input.

    A byte of text is read once. Tokenized splits are written and read once, and shards are written
    once; a split takes about a third of the shards that it gets into.
    """
    return Costs(
        worker=run.worker_seconds / text_bytes,
        main=run.main_cpu / run.units,
        unit_bytes=text_bytes / run.units,
        stored_bytes=1 + (1 + 2 / 3) * run.shard_bytes / text_bytes,
    )


@dataclass(frozen=True)
class Estimate:
    """The seconds that a run takes at least, by what limits it."""

    workers: float
    main: float
    storage: float

    @property
    def seconds(self) -> float:
        """The time of the run without its start: that of its limit."""
        return max(self.workers, self.main, self.storage)


def estimate(
    costs: Costs, text_bytes: float, nodes: int, cores: int, storage_bandwidth: float
) -> Estimate:
    """Estimate a run.

    cores: of each node. storage_bandwidth: bytes per second that the shared storage reads and
    writes for all nodes together.
    """
    return Estimate(
        workers=text_bytes * costs.worker / (nodes * cores),
        main=text_bytes / costs.unit_bytes * costs.main,
        storage=text_bytes * costs.stored_bytes / storage_bandwidth,
    )


def pack_once(inputs: Sequence[str], options: dict[str, Any]) -> Run:
    """Pack in this process, which does nothing else, and return what it took."""
    import mtpack
    from mtpack.running.callbacks import Callbacks

    begun: list[float] = []

    def note_begin(stage: str, amount: int) -> None:
        if not begun:  # the first split is done
            begun.append(time.thread_time())

    report = mtpack.pack(inputs, callbacks=Callbacks(note_begin), **options)
    main_cpu = time.thread_time() - begun[0]
    seconds = report.about.seconds
    return Run(
        seconds=seconds["total"],
        start=seconds["start"],
        main_cpu=main_cpu,
        worker_seconds=sum(seconds.get(stage, 0.0) for stage in _STAGES),
        units=report.about.splits + len(report.shards),
        shard_bytes=sum(shard.bytes for shard in report.shards),
    )


def run_alone(inputs: Sequence[str], options: dict[str, Any], folder: Path) -> Run:
    """Run `pack_once` in a new process."""
    output = folder / "packed"
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as process:
        run = process.submit(pack_once, inputs, {**options, "output": str(output)}).result()
    shutil.rmtree(output)
    return run


def show_runs(runs: dict[str, list[Run]], console: Console) -> None:
    """Print the times of both executors, and their ratio, run by run."""
    table = Table(box=box.MARKDOWN)
    for title in ("executor", "seconds without start", "start", "compared with local"):
        table.add_column(title, no_wrap=True)
    for executor, done in runs.items():
        pairs = zip(done, runs["local"], strict=True)
        ratios = [run.seconds / local.seconds for run, local in pairs]
        table.add_row(
            executor,
            f"{median(run.seconds for run in done):.2f}",
            f"{median(run.start for run in done):.2f}",
            f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        )
    console.print(table)


def show_estimates(costs: Costs, cores: int, storage_bandwidth: float, console: Console) -> None:
    """Print the costs, and the estimates for large runs."""
    console.print(
        f"workers: {costs.worker * 1e9:.0f} s of a core per GB of text; "
        f"main process: {costs.main * 1e3:.3f} ms per unit of {costs.unit_bytes / 2**10:,.0f} KiB; "
        f"shared storage: {costs.stored_bytes:.1f} bytes per byte of text"
    )
    table = Table(box=box.MARKDOWN)
    for title in ("text", "nodes", "workers", "main process", "storage", "without start"):
        table.add_column(title, no_wrap=True)
    for text, num_bytes in _TEXTS.items():
        for nodes in _NODES:
            found = estimate(costs, num_bytes, nodes, cores, storage_bandwidth)
            parts = (found.workers, found.main, found.storage, found.seconds)
            table.add_row(text, f"{nodes:,}", *map(_format_seconds, parts))
    console.print(table)


def _format_seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


@click.command()
@click.argument("inputs", nargs=-1, required=True, metavar="DATA...")
@click.option("--tokenizer", help="Default: the one of mtpack.")
@click.option("--chat-template")
@click.option("--seq-len", default=4096, show_default=True)
@click.option("--workers", default=2, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--only", type=click.Choice(_EXECUTORS), help="Run this one alone.")
@click.option("--cores", default=32, show_default=True, help="Of a node, for the estimates.")
@click.option("--storage", default=10e9, show_default=True, help="Bytes per second, for all nodes.")
@click.option("--folder", default=tempfile.gettempdir(), help="Where outputs are written.")
def main(
    inputs: tuple[str, ...],
    rounds: int,
    only: str | None,
    cores: int,
    storage: float,
    folder: str,
    **chosen: Any,
) -> None:
    """Pack DATA with both executors, in turn."""
    console = Console(width=200, highlight=False, soft_wrap=True)
    console.print(describe_machine())
    options = {name: value for name, value in chosen.items() if value is not None}
    executors = ("local",) if only == "local" else _EXECUTORS
    runs: dict[str, list[Run]] = {executor: [] for executor in executors}
    with tempfile.TemporaryDirectory(dir=folder) as place:
        for _ in range(rounds):
            for executor, done in runs.items():
                done.append(run_alone(inputs, {**options, "executor": executor}, Path(place)))
    show_runs(runs, console)
    text_bytes = sum(Path(name).stat().st_size for name in inputs)
    fastest = min(runs[executors[-1]], key=lambda run: run.seconds)
    show_estimates(compute_costs(fastest, text_bytes), cores, storage, console)


if __name__ == "__main__":
    main()
