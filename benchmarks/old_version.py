"""Another installed version of mtpack against this one: CPU time and wall time of `mtpack pack`.

    python -m benchmarks.compare data/*.jsonl.gz --old path/to/old/venv/bin/python

Both versions run the same command in turns: old, new, old, new, ... Every run is a new process
that writes into a new folder. One run of each comes first and is not counted. CPU time is the user
and system time of the command and of all its workers, so other work on the machine changes it less
than wall time. A ratio is new / old of the same round.
"""

from __future__ import annotations

import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click
from rich.console import Console

from benchmarks.packing import build_pack_command
from benchmarks.setting import Setting
from benchmarks.table import Line, Rounds, compute_ratios, show_table

ROUNDS = 7

_LINES = {
    "cpu": Line("CPU time, new", "new.cpu", "s", "old.cpu", "old"),
    "wall": Line("wall time, new", "new.wall", "s", "old.wall", "old"),
}
_TABLE = (
    Line("CPU time, old", "old.cpu", "s"),
    _LINES["cpu"],
    Line("wall time, old", "old.wall", "s"),
    _LINES["wall"],
)

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


def compare_versions(old_python: Path, setting: Setting, rounds: int) -> dict[str, Any]:
    """Measure both versions, print the comparison, and return all of it for JSON."""
    versions = {
        "old": find_version(str(old_python.absolute()), setting.folder),
        "new": find_version(sys.executable, setting.folder),
    }
    for name, version in versions.items():
        click.echo(
            f"{name}: mtpack {version.version} in {version.package}, "
            f"Python {version.python_version}"
        )
    figures, digests = measure_versions(versions, setting, rounds)
    same_shards = len(digests["old"] | digests["new"]) == 1
    show_table(figures, Console(width=200, highlight=False), _TABLE)
    click.echo(f"shards: {'the same bytes' if same_shards else 'different bytes'}")
    return {
        "versions": {name: asdict(version) for name, version in versions.items()},
        "figures": figures,
        "medians": {name: median(values) for name, values in figures.items()},
        "ratios": {
            name: {"median": median(values), "min": min(values), "max": max(values)}
            for name, line in _LINES.items()
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
    versions: dict[str, Version], setting: Setting, rounds: int
) -> tuple[Rounds, dict[str, set[str]]]:
    """Return CPU and wall seconds of every round, and the sha256 of the shards of each version."""
    figures: defaultdict[str, list[float]] = defaultdict(list)
    digests: defaultdict[str, set[str]] = defaultdict(set)
    for number in range(rounds + 1):
        for name, version in versions.items():
            run = run_version(version, setting)
            digests[name].add(run.shards_sha256)
            if number > 0:  # round 0 is the warm-up
                figures[f"{name}.cpu"].append(run.cpu)
                figures[f"{name}.wall"].append(run.wall)
            round_name = f"round {number} of {rounds}" if number else "warm-up"
            click.echo(f"{round_name}: {name}, {run.cpu:.2f} s CPU, {run.wall:.2f} s", err=True)
    return figures, digests


def run_version(version: Version, setting: Setting) -> PackRun:
    """Pack once, in a folder from which Python imports no other mtpack than the installed one."""
    with tempfile.TemporaryDirectory(dir=setting.folder) as folder:
        output = Path(folder, "packed")
        command = build_pack_command(setting, output, python=version.python)
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
