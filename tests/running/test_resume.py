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
    assert files.keys() == listed | {"recipe.toml"}
    del files["recipe.toml"]  # it names the input
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
SHARD = (mtpack.running.outputs, "commit_shard")
RECORD = (mtpack.running.earlier_work, "_write_record")
WINDOW = (mtpack.running.attempt, "commit_window")
REMOVAL = (mtpack.running.attempt, "remove")
PLAN = (mtpack.running.windows.Windows, "add_plan")
PUBLISHING = (mtpack.running.outputs, "publish")
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
        (PLAN, 1, 1),
        (PLAN, 3, 2),
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


def test_a_run_that_is_killed_again_and_again_is_continued_each_time(rows, whole, tmp_path):
    output = tmp_path / "packed"
    for place, call in [(SPLIT, 6), (RECORD, 2), (WINDOW, 2), (RECORD, 4)]:
        pack_until_killed(output, rows, place, call)
    _, lines = pack(output, rows)
    assert contents(output) == contents(whole)
    assert resumed(lines)[2] >= 3


def test_an_old_output_is_readable_until_the_continued_run_is_complete(rows, whole, tmp_path):
    output = tmp_path / "packed"
    old, _ = pack(output, rows, seq_len=1024)
    pack_until_killed(output, rows, WINDOW, 3, overwrite=True)
    assert mtpack.open_shards(output).manifest.report.shards == old.shards
    pack(output, rows, overwrite=True)
    assert contents(output) == contents(whole)


def test_a_run_with_a_token_store_is_continued(rows, whole, tmp_path):
    output, store = tmp_path / "packed", tmp_path / "store"
    pack_until_killed(output, rows, WINDOW, 3, token_store=store)
    _, lines = pack(output, rows, token_store=store)
    assert contents(output) == contents(whole)
    assert resumed(lines)[2] >= 4
    assert not list((tmp_path / "store").rglob("*-*"))


@pytest.mark.parametrize("damaged", ["shard-*.arrow", "shard-*.json", "window-*.json", "splits"])
@pytest.mark.parametrize("is_cut", [False, True])
def test_what_is_damaged_is_made_again(rows, whole, tmp_path, damaged, is_cut):
    output = tmp_path / "packed"
    pack_until_killed(output, rows, WINDOW, 3)
    pattern = "splits/*/*" if damaged == "splits" else damaged
    paths = [path for path in (output / ".mtpack").glob(pattern) if path.stat().st_size]
    assert paths
    for path in paths:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content[: -len(content) // 3] if is_cut else content)
    _, lines = pack(output, rows)
    assert contents(output) == contents(whole)
    _, _, shards, _ = resumed(lines)
    assert (shards == 0) == damaged.startswith("shard")


def test_a_touched_input_has_not_changed(rows, whole, tmp_path):
    path, output = tmp_path / "rows.jsonl", tmp_path / "packed"
    shutil.copy(rows, path)
    os.utime(path, (1, 1))
    pack_until_killed(output, path, WINDOW, 3)
    os.utime(path, (2, 2))
    _, lines = pack(output, path)
    assert resumed(lines)[2] >= 4
    assert not any("has changed" in line for line in lines)
    assert contents(output)["shards"] == contents(whole)["shards"]
    os.utime(path, (3, 3))
    assert pack(output, path)[1][-1] == f"{output}: already complete"


def test_a_complete_output_is_known_by_names_sizes_and_times_without_reading(
    rows, tmp_path, monkeypatch
):
    path, output = tmp_path / "rows.jsonl", tmp_path / "packed"
    shutil.copy(rows, path)
    pack(output, path)
    monkeypatch.setattr("mtpack.running.pack.read_sources", pytest.fail)
    assert pack(output, path)[1][-1] == f"{output}: already complete"
    monkeypatch.undo()
    monkeypatch.setattr("mtpack.input.reading.SPLIT_BYTES", 8_000)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"the", b"teh", 1))
    with pytest.raises(mtpack.SetupError, match="the input is different"):
        pack(output, path)
    path.write_bytes(content + b"\n")
    with pytest.raises(mtpack.SetupError, match="the input is different"):
        pack(output, path)


@pytest.mark.parametrize("row", [0, 50, 88])
def test_splits_that_have_changed_are_made_again(rows, tmp_path, row):
    path, output = tmp_path / "rows.jsonl", tmp_path / "packed"
    shutil.copy(rows, path)
    pack_until_killed(output, path, WINDOW, 4)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[row] = re.sub(rb"[aeiou]", b"x", lines[row].replace(b"messages", b"m@ss@g@s"))
    lines[row] = lines[row].replace(b"m@ss@g@s", b"messages").replace(b"xssxstxnt", b"assistant")
    path.write_bytes(b"".join(lines))
    _, shown = pack(output, path)
    pack(tmp_path / "fresh", path)
    assert contents(output) == contents(tmp_path / "fresh")
    assert shown.count(f"{path}: the input has changed here since the earlier run") == 1
    splits, num_splits, _, _ = resumed(shown)
    assert splits < num_splits


@pytest.mark.parametrize("is_longer", [False, True])
def test_rows_at_the_end_may_come_and_go(rows, tmp_path, is_longer):
    path, output = tmp_path / "rows.jsonl", tmp_path / "packed"
    shutil.copy(rows, path)
    pack_until_killed(output, path, WINDOW, 4)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines, *lines[:30]] if is_longer else lines[:60]))
    _, shown = pack(output, path)
    pack(tmp_path / "fresh", path)
    assert contents(output) == contents(tmp_path / "fresh")
    assert resumed(shown)[2] >= 4


def test_other_packing_options_take_the_tokenized_splits(rows, tmp_path):
    output, other = tmp_path / "packed", {"seq_len": 256, "overlong": "split"}
    pack_until_killed(output, rows, WINDOW, 2)
    left = len(list((output / ".mtpack").glob("splits/*/*.json")))
    _, lines = pack(output, rows, **other)
    assert (
        f"{output}: an earlier run did not complete, and its overlong is turns, not split; "
        "taking its tokenized splits"
    ) in lines
    assert resumed(lines)[0] == left > 3
    assert resumed(lines)[2] == 0
    pack(tmp_path / "fresh", rows, **other)
    assert contents(output) == contents(tmp_path / "fresh")


@pytest.mark.parametrize("what", ["tokenizer", "template", "version"])
def test_another_tokenizer_template_or_version_starts_over(rows, tmp_path, monkeypatch, what):
    output, folder, other = tmp_path / "packed", tmp_path / "tokenizer", {}
    pack_until_killed(output, rows, WINDOW, 2)
    if what == "version":
        for module in ("run_record", "token_store"):
            monkeypatch.setattr(f"mtpack.running.{module}.__version__", "9.9")
        difference = f"it was one of mtpack {mtpack.__version__}, not 9.9"
    else:
        shutil.copytree(EMBEDDED_FOLDER, folder)
        other, difference = {"tokenizer": folder}, "the tokenizer is different"
        config = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps(config | {"bos_token": "<think>"}))
    if what == "template":
        template = folder / "template.jinja"
        template.write_text((folder / "chat_template.jinja").read_text() + "{# other #}")
        other, difference = {"chat_template": template}, "the chat template is different"
    _, lines = pack(output, rows, **other)
    line = f"{output}: an earlier run did not complete, and {difference}; starting over"
    assert line in lines
    assert not any(line.startswith("resumed") for line in lines)
    pack(tmp_path / "fresh", rows, **other)
    assert contents(output) == contents(tmp_path / "fresh")


def test_standard_input_is_continued_if_it_gives_the_same_rows(rows, whole, tmp_path, monkeypatch):
    def give_rows() -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(rows.read_bytes())))

    output = tmp_path / "packed"
    give_rows()
    pack_until_killed(output, "-", WINDOW, 3)
    give_rows()
    _, lines = pack(output, "-")
    assert resumed(lines)[2] >= 4
    assert contents(output)["shards"] == contents(whole)["shards"]
    give_rows()
    assert pack(output, "-")[1][-1] == f"{output}: already complete"


def test_a_fast_path_that_was_found_wrong_is_not_used_by_the_run_that_continues(
    rows, whole, tmp_path, learn_everything, monkeypatch
):
    output = tmp_path / "packed"
    with monkeypatch.context() as patch:
        patch.setattr("mtpack.template.tracing.replayer.Replayer._replay", replay_wrongly)
        pack_until_killed(output, rows, RECORD, 5)
        record = json.loads((output / ".mtpack" / "run.json").read_text())
        assert record["mtpack_run"]["disabled"] == ["replay"]
    report, lines = pack(output, rows)
    assert contents(output) == contents(whole)
    assert report.about.replayed == 0
    assert report.about.audit_mismatches == 1
    assert any("an earlier run found replay to be wrong" in line for line in lines)


def replay_wrongly(replayer, dialogue, shape):
    rendered = replayer.render_without_replay(dialogue)
    return rendered._replace(merged=rendered.merged._replace(text=rendered.merged.text + " "))


def test_work_is_left_only_where_something_was_finished(rows, tmp_path):
    lines = rows.read_bytes().splitlines(keepends=True)
    bad, path, output = lines[60], tmp_path / "rows.jsonl", tmp_path / "packed"
    path.write_bytes(bad + b"".join(lines[:60] + lines[61:]))
    with pytest.raises(mtpack.InputError, match="line 1: "):
        pack(output, path, on_error="fail")
    assert not output.exists()
    path.write_bytes(b"".join(lines))
    with pytest.raises(mtpack.InputError, match="line 61: "):
        pack(output, path, on_error="fail")
    path.write_bytes(b"".join(lines[:60] + lines[61:]))
    _, shown = pack(output, path, on_error="fail")
    assert resumed(shown)[0] >= 9
    pack(tmp_path / "fresh", path)
    assert contents(output) == contents(tmp_path / "fresh")
