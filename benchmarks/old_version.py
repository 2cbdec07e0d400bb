"""Another installed version of mtpack against this one: CPU time and wall time of `mtpack pack`.

    python -m benchmarks.compare data/*.jsonl.gz --old path/to/old/venv/bin/python

Both versions run the same command in turns: old, new, old, new, ... Every run is a new process
that writes into a new folder. One run of each comes first and is not counted. CPU time is the user
and system time of the command and of all its workers, so other work on the machine changes it less
than wall time. A ratio is new / old of the same round.

The same rows are packed in several cases (`CASES`): they differ in the files and in the options.
Other inputs (`--also`) are further cases.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import click
from rich.console import Console

from benchmarks.packing import build_pack_command
from benchmarks.setting import Setting
from benchmarks.table import Line, Rounds, compute_ratios, show_table

ROUNDS = 7

_GOAL = "<= 1.05"
_FILES = 200


@dataclass(frozen=True)
class Case:
    """What both versions pack."""

    inputs: list[str | Path]
    options: tuple[str, ...] = ()


def _compress(setting: Setting) -> Case:
    path = setting.folder / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(setting.rows.read_bytes(), compresslevel=1))
    return Case([path])


def _cut_into_files(setting: Setting) -> Case:
    rows = setting.row_texts
    size = -(-len(rows) // _FILES)
    parts = [rows[first : first + size] for first in range(0, len(rows), size)]
    return Case(
        [setting.write_rows(f"part-{number}.jsonl", part) for number, part in enumerate(parts)]
    )


CASES: dict[str, Callable[[Setting], Case]] = {
    "plain": lambda setting: Case([setting.rows]),
    "one-worker": lambda setting: Case([setting.rows], ("--workers", "1")),
    "gz": _compress,
    "files": _cut_into_files,
}
"""The rows as a plain file, with one worker, compressed, and as 200 small files."""


def list_lines(cases: Iterable[str]) -> list[Line]:
    """Return the lines of the table: both versions, for each case."""
    return [
        Line(
            f"{case}: {time} time, {version}",
            f"{version}.{case}.{figure}",
            "s",
            *((f"old.{case}.{figure}", "old", _GOAL) if version == "new" else ()),
        )
        for case in cases
        for time, figure in (("CPU", "cpu"), ("wall", "wall"))
        for version in ("old", "new")
    ]


_DESCRIBE = """
import importlib.metadata, json, os, platform, mtpack
print(json.dumps({
    "version": importlib.metadata.version("mtpack"),
    "package": os.path.dirname(mtpack.__file__),
    "python_version": platform.python_version(),
}))
"""


@dataclass(frozen=True)
class Version:
    """An installed version of mtpack."""

    python: str
    """The path of the interpreter that runs it."""
    version: str
    package: str
    """The folder that `import mtpack` finds."""
    python_version: str


@dataclass(frozen=True)
class PackRun:
    """The cost of one run of `mtpack pack`, in seconds, and its result."""

    cpu: float
    """User and system time of the command and of all processes that it started and waited for."""
    wall: float
    shards_sha256: str
    """Of the names and the contents of all shards."""


def compare_versions(
    setting: Setting, names: Iterable[str], also: Sequence[str], rounds: int
) -> dict[str, Any]:
    """Measure both versions, print the comparison, and return all of it for JSON.

    names: of `CASES`. also: other inputs, each of which is another case.
    """
    assert setting.old is not None
    versions = {
        "old": find_version(str(setting.old.absolute()), setting.folder),
        "new": find_version(sys.executable, setting.folder),
    }
    for name, version in versions.items():
        click.echo(
            f"{name}: mtpack {version.version} in {version.package}, "
            f"Python {version.python_version}"
        )
    cases = {name: CASES[name](setting) for name in names}
    cases |= {Path(name).name: Case([Path(name).absolute()]) for name in also}
    figures, digests = measure_versions(versions, setting, cases, rounds)
    lines = list_lines(cases)
    show_table(figures, Console(width=200, highlight=False), lines)
    same_shards = {
        case: len(digests[f"old.{case}"] | digests[f"new.{case}"]) == 1 for case in cases
    }
    for case, same in same_shards.items():
        click.echo(f"{case}: shards: {'the same bytes' if same else 'different bytes'}")
    return {
        "versions": {name: asdict(version) for name, version in versions.items()},
        "figures": figures,
        "medians": {name: median(values) for name, values in figures.items()},
        "ratios": {
            line.figure.removeprefix("new."): {
                "median": median(values),
                "min": min(values),
                "max": max(values),
            }
            for line in lines
            if (values := compute_ratios(line, figures))
        },
        "same_shards": same_shards,
    }


def find_version(python: str, folder: Path) -> Version:
    """Return the version of mtpack that an interpreter imports when it is started in `folder`.

    Raises click.UsageError where it imports none.
    """
    done = subprocess.run(
        [python, "-c", _DESCRIBE], cwd=folder, stdout=subprocess.PIPE, check=False
    )
    if done.returncode:
        raise click.UsageError(f"{python}: cannot import mtpack; install a version of it there")
    return Version(python, **json.loads(done.stdout))


def measure_versions(
    versions: dict[str, Version], setting: Setting, cases: dict[str, Case], rounds: int
) -> tuple[Rounds, dict[str, set[str]]]:
    """Return CPU and wall seconds of every round, and the sha256 of the shards, by version, case.

    The first case is measured once more, before all others: this round is not counted.
    """
    figures: defaultdict[str, list[float]] = defaultdict(list)
    digests: defaultdict[str, set[str]] = defaultdict(set)
    for number in range(rounds + 1):
        round_name = f"round {number} of {rounds}" if number else "warm-up"
        for case, name in product(list(cases)[: None if number else 1], versions):
            run = run_version(versions[name], setting, cases[case])
            digests[f"{name}.{case}"].add(run.shards_sha256)
            if number > 0:
                figures[f"{name}.{case}.cpu"].append(run.cpu)
                figures[f"{name}.{case}.wall"].append(run.wall)
            seconds = f"{run.cpu:.2f} s CPU, {run.wall:.2f} s"
            click.echo(f"{round_name}: {case}, {name}, {seconds}", err=True)
    return figures, digests


def run_version(version: Version, setting: Setting, case: Case) -> PackRun:
    """Pack once, in a folder from which Python imports no other mtpack than the installed one."""
    with tempfile.TemporaryDirectory(dir=setting.folder) as folder:
        output = Path(folder, "packed")
        command = build_pack_command(
            setting, output, *case.options, inputs=case.inputs, python=version.python
        )
        cpu, started = _cpu_seconds_of_children(), time.perf_counter()
        subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, check=True)
        wall = time.perf_counter() - started
        return PackRun(_cpu_seconds_of_children() - cpu, wall, _digest_shards(output))


def _cpu_seconds_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _digest_shards(output: Path) -> str:
    digest = hashlib.sha256()
    for shard in sorted(output.glob("*.arrow")):
        digest.update(f"{shard.name} {hashlib.sha256(shard.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()
