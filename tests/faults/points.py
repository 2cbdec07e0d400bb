"""Fault points: a run fails at one call, the same command runs again, and the result is compared.

What must hold, wherever the fault is:

- A run that says that it is complete (status 0) is complete, and its bytes are those of a run that
  nothing disturbed.
- A manifest in the output folder means that all its shards are there, with their hashes.
- A run that fails says why in one or two lines, without a traceback, and leaves no process.
- The same command, run again, completes. The output, and the token store, then have the same files
  with the same bytes as without the fault, and no other.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.conftest import SAMPLE_DATA
from tests.faults.machine import HANGS, MODES, Kind, Machine, Ran

SPLIT_BYTES = 2500
NOTICES = re.compile("small tokenizer that comes|already complete$|resumed: |starting over")
KILLED = -9

Tree = dict[str, bytes]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A command, and what it finds in its folders."""

    name: str
    arguments: tuple[str, ...] = ()
    has_store: bool = False
    from_stdin: bool = False
    prepare: Callable[[Bench], None] = lambda bench: None
    """Leaves in the folders what an earlier run has left."""


@dataclass(frozen=True, slots=True)
class Point:
    """What happened at one fault point."""

    scenario: str
    workers: int
    mode: str
    number: int
    call: str
    """The kind of the call that failed and the file; `none` if there were fewer calls."""
    status: int
    old_was_readable: bool
    """Whether the output folder had a complete output after the fault, old or new."""
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        where = f"{self.scenario}, {self.workers} workers, {self.mode} at call {self.number}"
        return f"{where} ({self.call}), status {self.status}: {'; '.join(self.problems)}"


class Bench:
    """Runs one scenario with faults, in folders of its own."""

    def __init__(
        self,
        machine: Machine,
        folder: Path,
        scenario: Scenario,
        workers: int,
        patches: dict[str, Any] | None = None,
    ) -> None:
        """Prepare the scenario and run it once without a fault.

        patches: a broken variant of mtpack, for the runs with faults and those after them.
        """
        self.machine, self.scenario, self.workers = machine, scenario, workers
        self.patches = {"mtpack.input.reading:SPLIT_BYTES": SPLIT_BYTES}
        self.output, self.store = folder / "packed", folder / "store"
        self.rows = folder / "rows.jsonl"
        folder.mkdir(parents=True)
        write_rows(self.rows)
        scenario.prepare(self)
        self._prepared = read_tree(folder)
        self._folder = folder
        ran = self.run()
        assert ran.status == 0, ran.stderr
        self.expected = self.read_results()
        self.calls = ran.calls
        self.patches |= patches or {}

    def run(self, mode: str = "", number: int = 0, *more: str) -> Ran:
        """Run the command of the scenario."""
        arguments: list[str | Path] = ["pack", self.rows, "-o", self.output, "--json"]
        if self.scenario.from_stdin:
            arguments[1] = "-"
        if self.scenario.has_store:
            arguments += ["--token-store", self.store]
        arguments += ["--seq-len", "1024", "--shard-size", "1", "--window", "1300"]
        arguments += ["--workers", str(self.workers), "--on-error", "skip"]
        faults = (MODES[mode], number) if mode else ()
        return self.machine.run(
            [*arguments, *self.scenario.arguments, *more],
            [self.output, self.store],
            *faults,
            patches=self.patches,
            stdin=self.rows if self.scenario.from_stdin else None,
        )

    def read_results(self) -> Tree:
        return read_tree(self.output, "packed/") | read_tree(self.store, "store/")

    def count_calls(self, mode: str) -> int:
        """Return how many calls of the mode's kinds an undisturbed run has made."""
        return sum(call.kind in MODES[mode].kinds for call in self.calls)

    def restore(self) -> None:
        """Bring the folders back to what the scenario begins with."""
        shutil.rmtree(self._folder)
        write_tree(self._folder, self._prepared)

    def try_point(self, mode: str, number: int) -> Point:
        """Let a call fail, run the command again, and say what is wrong, if anything."""
        self.restore()
        ran = self.run(mode, number)
        problems = list(self._check_failed_run(ran))
        readable = (self.output / "manifest.json").exists()
        torn_store = self.scenario.has_store and MODES[mode].loses_unsynced
        problems += self._check_second_run("packed/" if torn_store else "")
        if torn_store:  # its files are not synced: their hashes find those that are torn
            shutil.rmtree(self.output, ignore_errors=True)
            problems += self._check_second_run()
        call = "none"
        if ran.hits and number <= len(ran.calls):
            failed = ran.calls[number - 1]
            call = f"{failed.kind.name} {_relative(failed.path, self._folder)}"
        return Point(
            self.scenario.name, self.workers, mode, number, call, ran.status, readable, problems
        )

    def _check_failed_run(self, ran: Ran) -> Iterator[str]:
        if ran.status == HANGS:
            yield "hangs"
        elif ran.status not in (0, 1, 2, KILLED):
            yield f"status {ran.status}"
        if ran.survivors:
            yield "a process outlives the run"
        if ran.status > 0:
            yield from _check_message(ran.stderr)
        if ran.status == 0:
            found, expected = self.read_results(), self.expected
            changed = [name for name in expected if found.get(name) != expected[name]]
            if changed:
                yield f"status 0, but these are missing or wrong: {changed[:3]}"
        yield from check_manifest(self.output)

    def _check_second_run(self, prefix: str = "") -> Iterator[str]:
        """Run the command again and compare the files whose names begin with `prefix`."""
        again = self.run()
        if again.status != 0:
            yield f"the second run ends with {again.status}: {again.stderr[-300:]}"
        if "Traceback" in again.stderr:
            yield "the second run has a traceback"
        found = {
            name: text for name, text in self.read_results().items() if name.startswith(prefix)
        }
        expected = {name: text for name, text in self.expected.items() if name.startswith(prefix)}
        if left := sorted(set(found) - set(expected)):
            yield f"left over: {left[:3]}"
        if missing := sorted(set(expected) - set(found)):
            yield f"missing: {missing[:3]}"
        if changed := sorted(n for n in set(found) & set(expected) if found[n] != expected[n]):
            yield f"changed: {changed[:3]}"


def _check_message(stderr: str) -> Iterator[str]:
    lines = [line for line in stderr.splitlines() if not NOTICES.search(line)]
    if "Traceback" in stderr or "Exception ignored" in stderr:
        yield f"a traceback: {stderr[-300:]}"
    elif not 1 <= len(lines) <= 2:
        yield f"{len(lines)} lines of text: {stderr[-300:]}"


def check_manifest(output: Path) -> Iterator[str]:
    """Yield what is wrong with an output that has a manifest."""
    path = output / "manifest.json"
    if not path.exists():
        return
    try:
        manifest = json.loads(path.read_bytes())
        hashes = {shard["path"]: shard["sha256"] for shard in _find_shards(manifest)}
    except (ValueError, KeyError):
        yield "the manifest can't be read"
        return
    for name, sha256 in hashes.items():
        file = output / name
        if not file.exists() or hashlib.sha256(file.read_bytes()).hexdigest() != sha256:
            yield f"there is a manifest, but {name} is missing or wrong"


def _find_shards(value: Any) -> list[dict[str, Any]]:
    """Return the list of shards, wherever the manifest has it."""
    if isinstance(value, dict):
        if isinstance(value.get("shards"), list):
            return value["shards"]
        return [shard for inner in value.values() for shard in _find_shards(inner)]
    return []


def _relative(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


def write_rows(path: Path) -> None:
    """Write the shortest sample dialogues, in splits of their own, and a bad row."""
    rows = (SAMPLE_DATA / "conversations_en.jsonl").read_text().splitlines()
    rows = sorted(rows, key=len)[:16]
    path.write_text("\n".join([*rows, '{"messages": []}', ""]))


def read_tree(folder: Path, prefix: str = "") -> Tree:
    """Return the contents of all files by path; folders end in `/`. No manifest has its `about`."""
    tree = {}
    for path in sorted(folder.rglob("*")):
        name = prefix + str(path.relative_to(folder))
        if path.is_dir():
            tree[name + "/"] = b""
        elif path.name == "manifest.json" and prefix:
            tree[name] = _without_about(path.read_bytes())
        else:
            tree[name] = path.read_bytes()
    return tree


def _without_about(text: bytes) -> bytes:
    try:
        manifest = json.loads(text)
    except ValueError:
        return text
    return json.dumps(_drop_about(manifest), sort_keys=True).encode()


def _drop_about(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _drop_about(inner) for key, inner in value.items() if key != "about"}
    return value


def write_tree(folder: Path, tree: Tree) -> None:
    """Write what `read_tree` has read."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in tree.items():
        path = folder / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def _interrupt(bench: Bench) -> None:
    """Leave what a run leaves that is killed when it has written some of its shards."""
    calls = bench.run().calls
    shutil.rmtree(bench.output)
    shards = [
        number
        for number, call in enumerate(calls, 1)
        if call.kind == Kind.RENAME and "shard-" in call.path.name
    ]
    ran = bench.run("kill", shards[1] + 1)
    assert ran.status == KILLED, ran.stderr


def _complete_another(bench: Bench) -> None:
    """Leave the complete output of other options."""
    ran = bench.run("", 0, "--seed", "7", "--seq-len", "512")
    assert ran.status == 0, ran.stderr


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("fresh"),
        Scenario("resumed", prepare=_interrupt),
        Scenario("overwrite", ("--overwrite",), prepare=_complete_another),
        Scenario("token store", has_store=True),
        Scenario("standard input", from_stdin=True),
    )
}
