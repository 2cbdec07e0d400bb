"""A run that is killed is continued by the same command, with the same bytes, and without doing
again what was done."""

import io
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mtpack
import mtpack.running.attempt
import mtpack.running.earlier_work
import mtpack.running.pack
import mtpack.running.windows
import mtpack.shards.output_folder
from mtpack.tokenizer.loading import EMBEDDED_FOLDER
from tests.conftest import SAMPLE_DATA

OPTIONS: dict[str, Any] = {
    "workers": 2,
    "seq_len": 512,
    "window": "6Ki",
    "shard_size": "40KiB",
    "on_error": "skip",
}
PARTS_OF_THE_MANIFEST = ("run", "tally", "shards", "files", "sha256")


@pytest.fixture(autouse=True)
def _splits_are_small(monkeypatch):
    monkeypatch.setattr("mtpack.input.reading.SPLIT_BYTES", 8_000)


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    """Rows for 16 splits, 5 windows and 10 shards; one row is rejected."""
    lines = (SAMPLE_DATA / "conversations_en.jsonl").read_bytes().splitlines(keepends=True)
    path = tmp_path_factory.mktemp("input") / "rows.jsonl"
    path.write_bytes(b"".join([*lines[:60], b'{"messages": 5}\n', *lines[60:]]))
    return path


@pytest.fixture(scope="module")
def whole(rows, tmp_path_factory) -> Path:
    """The output of a run that nothing interrupted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mtpack.input.reading.SPLIT_BYTES", 8_000)
        output = tmp_path_factory.mktemp("whole") / "packed"
        pack(output, rows)
    return output


def pack(output: Path, rows: Any, **options: Any) -> tuple[mtpack.PackReport, list[str]]:
    """Return the report of a run and the lines that it shows."""
    lines: list[str] = []
    callbacks = mtpack.Callbacks(warn=lines.append)
    report = mtpack.pack(rows, output=output, callbacks=callbacks, **{**OPTIONS, **options})
    return report, lines


def contents(folder: Path) -> dict[str, Any]:
    """Return all that must be the same in every run; fail if there is anything else."""
    assert not (folder / ".mtpack").exists()
    files: dict[str, Any] = {path.name: path.read_bytes() for path in folder.iterdir()}
    manifest = json.loads(files.pop("manifest.json"))
    listed = {*manifest["files"], *(shard["path"] for shard in manifest["shards"])}
    assert files.keys() == listed
    return files | {name: manifest[name] for name in PARTS_OF_THE_MANIFEST}


def pack_until_killed(
    output: Path, rows: Any, place: tuple[Any, str], call: int, **options: Any
) -> None:
    """Run in a process group that is killed just before the given call of a function."""
    child = os.fork()
    if child == 0:
        try:
            os.setpgid(0, 0)
            owner, name = place
            setattr(owner, name, killing(getattr(owner, name), call))
            pack(output, rows, **options)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the function was not called so often"


def killing(function: Callable[..., Any], call: int) -> Callable[..., Any]:
    calls = 0

    def count(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.killpg(0, signal.SIGKILL)
        return function(*arguments, **named)

    return count


SPLIT = (mtpack.running.attempt.Attempt, "_add_split")
SHARD = (mtpack.running.attempt, "commit_shard")
RECORD = (mtpack.running.earlier_work, "_write_record")
WINDOW = (mtpack.running.attempt, "commit_window")
REMOVAL = (mtpack.running.windows.Windows, "remove_files")
PUBLISHING = (mtpack.running.pack, "publish")
MOVE = (mtpack.shards.output_folder.os, "replace")


def resumed(lines: list[str]) -> list[int]:
    """Return the numbers of the line that says what was taken over."""
    (line,) = (line for line in lines if line.startswith("resumed"))
    form = r"resumed: (\d+) of (\d+) splits, (\d+) of (\d+) shards"
    return list(map(int, re.fullmatch(form, line).groups()))


@pytest.mark.parametrize(
    ("place", "call", "workers"),
    [
        (SPLIT, 2, 1),
        (SPLIT, 9, 2),
        (SPLIT, 16, 2),
        (SHARD, 1, 2),
        (RECORD, 1, 1),
        (RECORD, 2, 2),
        (RECORD, 5, 2),
        (WINDOW, 3, 1),
        (REMOVAL, 1, 2),
        (REMOVAL, 5, 2),
        (PUBLISHING, 1, 2),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else str(value),
)
def test_a_killed_run_is_continued_and_gives_the_same_bytes(
    rows, whole, tmp_path, place, call, workers
):
    output = tmp_path / "packed"
    pack_until_killed(output, rows, place, call, workers=workers)
    assert not (output / "manifest.json").exists()
    report, lines = pack(output, rows)
    assert contents(output) == contents(whole)
    assert lines.count(f"{output}: an earlier run did not complete; continuing it") == 1
    splits, num_splits, shards, num_shards = resumed(lines)
    assert (report.about.splits_reused, report.about.splits) == (splits, num_splits)
    assert (report.about.shards_resumed, len(report.shards)) == (shards, num_shards)
    if place == SPLIT:
        assert splits >= call - 1
    if place == WINDOW:
        assert shards >= call
    if place == PUBLISHING:
        assert (splits, shards) == (num_splits, num_shards)


@pytest.mark.parametrize("call", range(1, 11))
def test_a_run_that_is_killed_while_it_publishes_is_completed_by_any_command(
    rows, whole, tmp_path, monkeypatch, call
):
    output = tmp_path / "packed"
    pack(output, rows, seq_len=1024)
    finish = mtpack.shards.output_folder.finish_publishing

    def finish_and_die(folder: Path, area: Path) -> bool:
        os.replace = killing(os.replace, call)
        return finish(folder, area)

    monkeypatch.setattr(mtpack.shards.output_folder, "finish_publishing", finish_and_die)
    pack_until_killed(output, rows, (mtpack.shards.output_folder, "Manifest"), 0, overwrite=True)
    monkeypatch.undo()
    with pytest.raises(mtpack.SetupError, match="its seq_len is 512, not 256"):
        pack(output, rows, seq_len=256)
    _, lines = pack(output, rows)
    assert lines[-1] == f"{output}: already complete"
    assert contents(output) == contents(whole)
