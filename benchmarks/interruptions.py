"""Kill `mtpack pack` at random times and continue it; or measure what that ability costs.

    python -m benchmarks.interruptions DATA --tokenizer T --kills 100
    python -m benchmarks.interruptions DATA --tokenizer T --overhead

A round starts the command in a process group of its own, kills the whole group (SIGKILL) at a share
x of the time that an undisturbed run takes, and runs the same command to its end. Every file of the
output is compared with that of the undisturbed run, except for `about` in the manifest. The bound
for the second run is (1 - x) of the undisturbed time, plus the start, plus one split for each
worker: a worker can lose the one that it was making. The last two are measured together, as a run
over the first splits of the input, as many as there are workers. DATA are JSON Lines.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

import mtpack
from benchmarks.machine import describe_machine
from benchmarks.memory import find_processes
from mtpack.input.reading import SPLIT_BYTES
from mtpack.shards.manifest import MANIFEST, hash_file

_UNDISTURBED_RUNS = 3
_BINS = 10


@dataclass(frozen=True)
class Undisturbed:
    """The undisturbed run that rounds are compared with."""

    files: dict[str, Any]
    """The output, as from `read_output`."""
    wall: float
    """Seconds of the whole command: the median of several runs."""
    start: float
    """Seconds of a run over one split for each worker: the median of several runs."""

    def bound(self, share: float) -> float:
        """Return the most seconds that a run should take to continue one killed at `share`."""
        return (1 - share) * self.wall + self.start


@dataclass(frozen=True)
class Round:
    """A run that was killed, and the one that continued it."""

    folder: Path
    share: float
    """The share of the undisturbed time after which the first run was killed."""
    was_complete: bool
    """Whether the output was complete when the first run was killed."""
    status: int
    """The exit status of the second run."""
    seconds: float
    """The time of the second run."""
    resumed: str
    """What the second run said that it had taken over."""
    is_identical: bool
    leftovers: list[str]
    """Names of files and folders that should not be there, and processes that still run."""


def read_output(folder: Path) -> dict[str, Any]:
    """Return the contents of the files of an output by name, without `about` in the manifest."""
    files: dict[str, Any] = {path.name: _read(path) for path in folder.iterdir()}
    if MANIFEST in files:
        files[MANIFEST] = {**json.loads(files[MANIFEST]), "about": None}
    return files


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def run_undisturbed(
    inputs: Sequence[str], flags: Sequence[str], workers: int, folder: Path
) -> Undisturbed:
    """Run the command several times, over the whole input and over its first splits."""
    first = folder / "first.jsonl"
    write_first_lines(inputs, workers * SPLIT_BYTES, first)
    start, _ = _time_runs([str(first), *flags], folder)
    wall, files = _time_runs([*inputs, *flags], folder)
    return Undisturbed(files, wall, start)


def write_first_lines(inputs: Sequence[str], num_bytes: int, path: Path) -> None:
    """Write the first lines of the inputs, at least `num_bytes` of them if there are as many."""
    lines = (line for name in inputs for line in Path(name).read_bytes().splitlines(keepends=True))
    with open(path, "wb") as file:
        while file.tell() < num_bytes and (line := next(lines, b"")):
            file.write(line)


def _time_runs(arguments: Sequence[str], folder: Path) -> tuple[float, dict[str, Any]]:
    """Return the median time of several runs of the command, and the output."""
    seconds = []
    for number in range(_UNDISTURBED_RUNS):
        output = folder / f"undisturbed-{number}"
        started = time.perf_counter()
        done = subprocess.run(
            _build_command(arguments, output), capture_output=True, env=_environment(folder)
        )
        seconds.append(time.perf_counter() - started)
        if done.returncode:
            raise click.ClickException(done.stderr.decode(errors="replace"))
        files = read_output(output)
        shutil.rmtree(output)
    return median(seconds), files


def run_round(
    arguments: Sequence[str], folder: Path, share: float, undisturbed: Undisturbed
) -> Round:
    """Run the command, kill its process group, and run it again."""
    command = _build_command(arguments, folder / "packed")
    environment = _environment(folder)
    silent = subprocess.DEVNULL
    with subprocess.Popen(
        command, stdout=silent, stderr=silent, start_new_session=True, env=environment
    ) as process:
        with suppress(subprocess.TimeoutExpired):
            process.wait(share * undisturbed.wall)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    was_complete = (folder / "packed" / MANIFEST).exists()
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, env=environment)
    seconds = time.perf_counter() - started
    said = done.stderr.decode(errors="replace").splitlines()
    files = read_output(folder / "packed")
    leftovers = [*(files.keys() - undisturbed.files.keys()), *os.listdir(folder / "temporary")]
    leftovers += [f"process {number}" for number in find_processes(process.pid)]
    return Round(
        folder=folder,
        share=share,
        was_complete=was_complete,
        status=done.returncode,
        seconds=seconds,
        resumed=next((line for line in said if "resumed:" in line), ""),
        is_identical=all(files.get(name) == value for name, value in undisturbed.files.items()),
        leftovers=leftovers,
    )


def _build_command(arguments: Sequence[str], output: Path) -> list[str]:
    return [sys.executable, "-m", "mtpack", "pack", *arguments, "--json", "-o", str(output)]


def _environment(folder: Path) -> dict[str, str]:
    """Return the environment of a run: its temporary files are in `folder`, to be counted."""
    temporary = folder / "temporary"
    temporary.mkdir(exist_ok=True)
    return {**os.environ, "TMPDIR": str(temporary)}


def show_rounds(rounds: Sequence[Round], undisturbed: Undisturbed, console: Console) -> None:
    """Print what became of all rounds, and how long the second runs took, by share."""
    console.print(
        f"undisturbed: {undisturbed.wall:.2f} s; "
        f"over one split for each worker: {undisturbed.start:.2f} s\n"
        f"rounds: {len(rounds)}, identical: {sum(each.is_identical for each in rounds)}, "
        f"complete before the kill: {sum(each.was_complete for each in rounds)}, "
        f"with leftovers: {sum(bool(each.leftovers) for each in rounds)}, "
        f"with an exit status other than 0: {sum(each.status != 0 for each in rounds)}"
    )
    table = Table(box=box.MARKDOWN)
    for title in (
        *("killed at", "rounds", "something taken over", "median time", "bound", "ratio"),
        *("above the bound", "highest ratio"),
    ):
        table.add_column(title, no_wrap=True)
    continued = [each for each in rounds if not each.was_complete]
    for number in range(_BINS):
        chosen = [each for each in continued if int(each.share * _BINS) == number]
        if not chosen:
            continue
        bounds = [undisturbed.bound(each.share) for each in chosen]
        ratios = [each.seconds / bound for each, bound in zip(chosen, bounds, strict=True)]
        table.add_row(
            f"{number / _BINS:.1f} to {(number + 1) / _BINS:.1f}",
            str(len(chosen)),
            str(sum(bool(each.resumed) for each in chosen)),
            f"{median(each.seconds for each in chosen):.2f} s",
            f"{median(bounds):.2f} s",
            f"{median(ratios):.2f}",
            str(sum(ratio > 1 for ratio in ratios)),
            f"{max(ratios):.2f}",
        )
    console.print(table)


def interrupt(
    arguments: Sequence[str],
    undisturbed: Undisturbed,
    kills: int,
    seed: int,
    minutes: float,
    folder: Path,
    console: Console,
) -> None:
    """Run the rounds and print their tables. The folder of a round with a fault is kept."""
    end = time.monotonic() + 60 * minutes
    generator = random.Random(seed)
    rounds = []
    for number in range(kills):
        if time.monotonic() > end:
            break
        place = folder / f"round-{number:04d}"
        place.mkdir()
        done = run_round(arguments, place, generator.random(), undisturbed)
        rounds.append(done)
        if done.is_identical and not done.leftovers and not done.status:
            shutil.rmtree(place)
        else:
            console.print(
                f"{place}: killed at {done.share:.3f}, exit status {done.status}, "
                f"{'' if done.is_identical else 'not '}identical, leftovers: {done.leftovers}"
            )
    show_rounds(rounds, undisturbed, console)


_sha256 = hashlib.sha256
_HASHED_BYTES = 4096


class _ShortDigest:
    """Takes the place of a sha256: it hashes the start of what it gets, which costs nothing."""

    def __init__(self, data: Any = b"") -> None:
        self._digest = _sha256()
        self.update(data)
        self.digest, self.hexdigest = self._digest.digest, self._digest.hexdigest

    def update(self, data: Any) -> None:
        """Hash the start of a buffer."""
        self._digest.update(memoryview(data).cast("B")[:_HASHED_BYTES])


@contextmanager
def _no_protection() -> Iterator[None]:
    """Make `pack` sync nothing and hash almost nothing: so nothing protects its output."""
    patched = (
        (os, "fsync", lambda descriptor: None),
        (hashlib, "sha256", _ShortDigest),
        (hashlib, "file_digest", lambda file, name: _ShortDigest(file.read(_HASHED_BYTES))),
    )
    originals = [getattr(module, name) for module, name, _ in patched]
    try:
        for module, name, replacement in patched:
            setattr(module, name, replacement)
        yield
    finally:
        for (module, name, _), original in zip(patched, originals, strict=True):
            setattr(module, name, original)


def measure_overhead(
    inputs: Sequence[str], options: dict[str, Any], rounds: int, console: Console
) -> None:
    """Pack with and without hashing and syncing, in turn, and print what that costs.

    Also prints the seconds of the parts, of the last run. Splits are stored, and shards hashed, by
    all workers at the same time, and shards are committed by as many threads: their seconds are
    divided by the number of workers. The parts are no sum: to store a split is to write its
    documents too, and threads commit while workers go on.
    """
    pack = mtpack.pack  # imports what it needs
    totals: dict[str, list[float]] = {"with": [], "without": []}
    for _ in range(rounds):
        shutil.rmtree(options["output"], ignore_errors=True)
        with _no_protection():
            totals["without"].append(pack(inputs, **options).about.seconds["total"])
        shutil.rmtree(options["output"])
        started = time.perf_counter()
        report = pack(inputs, **options)
        seconds = report.about.seconds
        publish = time.perf_counter() - started - seconds["start"] - seconds["total"]
        totals["with"].append(seconds["total"])
    started = time.perf_counter()
    for shard in report.shards:
        hash_file(Path(report.output, shard.path))
    hashing = time.perf_counter() - started
    workers = options["workers"]
    parts = {
        "store splits: write, hash, record, rename": seconds.get("store", 0.0) / workers,
        "hash shards": hashing / workers,
        "commit shards: sync, rename, record": seconds.get("commit", 0.0) / workers,
        "record windows": seconds.get("record", 0.0),
        "publish: sync, manifest, rename": publish,
    }
    console.print(
        f"{seconds['total']:.2f} s without start, {report.about.splits} splits, "
        f"{len(report.shards)} shards, {workers} workers"
    )
    table = Table(box=box.MARKDOWN)
    for title in ("part", "seconds", "share of the time without start"):
        table.add_column(title, no_wrap=True)
    for name, amount in parts.items():
        table.add_row(name, f"{amount:.3f}", f"{amount / seconds['total']:.1%}")
    console.print(table)
    ratios = [a / b for a, b in zip(totals["with"], totals["without"], strict=True)]
    console.print(
        f"compared with runs that sync and hash nothing: {median(ratios):.3f} times the time "
        f"({min(ratios):.3f} to {max(ratios):.3f}, {rounds} pairs of runs)"
    )


@click.command()
@click.argument("inputs", nargs=-1, required=True, metavar="DATA...")
@click.option("--tokenizer", help="Default: the one of mtpack.")
@click.option("--chat-template")
@click.option("--seq-len", default=4096, show_default=True)
@click.option("--workers", default=2, show_default=True)
@click.option("--kills", default=100, show_default=True, help="The number of rounds.")
@click.option("--minutes", default=60.0, show_default=True, help="Start no round after these.")
@click.option("--seed", default=0, show_default=True, help="Of the times of the kills.")
@click.option("--shard-size", default="8MiB", show_default=True, help="Not for --overhead.")
@click.option("--window", default="1Mi", show_default=True, help="Not for --overhead.")
@click.option("--overhead", is_flag=True, help="Measure the overhead; kill nothing.")
@click.option("--pairs", default=3, show_default=True, help="Of runs, for --overhead.")
@click.option("--folder", default=tempfile.gettempdir(), help="Where outputs are written.")
def main(inputs: tuple[str, ...], kills: int, seed: int, minutes: float, **chosen: Any) -> None:
    """Kill and continue packing DATA; or print the overhead of that."""
    console = Console(width=200, highlight=False, soft_wrap=True)
    folder = Path(tempfile.mkdtemp(prefix="interruptions-", dir=chosen.pop("folder")))
    console.print(describe_machine())
    is_overhead, pairs = chosen.pop("overhead"), chosen.pop("pairs")
    small = {name: chosen.pop(name) for name in ("shard_size", "window")}
    options = {name: value for name, value in chosen.items() if value is not None}
    if is_overhead:
        measure_overhead(inputs, {**options, "output": str(folder / "packed")}, pairs, console)
        shutil.rmtree(folder)
        return
    named = {**options, **small}.items()
    flags = [text for name, value in named for text in ("--" + name.replace("_", "-"), str(value))]
    undisturbed = run_undisturbed(inputs, flags, options["workers"], folder)
    interrupt([*inputs, *flags], undisturbed, kills, seed, minutes, folder, console)
    shutil.rmtree(folder / "temporary")
    (folder / "first.jsonl").unlink()
    if not os.listdir(folder):
        folder.rmdir()


if __name__ == "__main__":
    main()
