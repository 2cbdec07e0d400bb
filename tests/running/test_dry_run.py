"""A dry run: it writes nothing, and says what the run would do."""

import gzip
import json
import os
import random
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

import mtpack
from mtpack.errors import InputError
from mtpack.input.reading import ReadOptions
from mtpack.running import sample
from mtpack.running.callbacks import Callbacks
from mtpack.running.dry_run import DryRunReport, dry_run
from tests.conftest import SAMPLE_DATA
from tests.running.test_replay_in_runs import break_replay

ENGLISH = SAMPLE_DATA / "conversations_en.jsonl"
OPTIONS = {"seq_len": 512, "workers": 1}


def row(question: str, answer: str | None = "Yes.", **more) -> dict:
    """Return a row with one question, and an answer if there is one."""
    messages = [{"role": "user", "content": question}]
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    return {"messages": messages, **more}


def write_rows(path: Path, rows: list) -> Path:
    """Write rows as JSON lines, compressed if the name says so."""
    text = "".join(f"{json.dumps(each) if isinstance(each, dict) else each}\n" for each in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def try_rows(path, **options) -> DryRunReport:
    return dry_run(path, callbacks=Callbacks(), output="packed", **OPTIONS | options)


@pytest.fixture
def large(tmp_path) -> Path:
    """Return a file of 4 MB with the number of its line in each row."""
    text = "It is a long way from here to there, and back again. " * 20
    return write_rows(tmp_path / "large.jsonl", [row(f"{n}", f"{n} {text}") for n in range(3500)])


def list_all(folder: Path) -> set[tuple[str, int]]:
    return {(str(path), path.stat().st_mtime_ns) for path in folder.rglob("*")}


def test_nothing_is_written(tmp_path, monkeypatch, large):
    monkeypatch.chdir(tmp_path)
    before = list_all(tmp_path)
    try_rows(large, token_store="store", work_dir="work")
    assert list_all(tmp_path) == before


def test_of_a_small_input_the_counts_are_those_of_the_run(tmp_path):
    report = dry_run(ENGLISH, output=tmp_path / "packed", **OPTIONS)
    packed = mtpack.pack(ENGLISH, output=tmp_path / "packed", callbacks=Callbacks(), **OPTIONS)
    assert report.is_whole
    assert asdict(report.counts) == asdict(packed.tally)
    assert report.estimate.sequences == packed.tally.sequences
    assert report.estimate.tokens == packed.tally.tokens
    written = sum(shard.bytes for shard in packed.shards)
    assert report.estimate.output_bytes == pytest.approx(written, rel=0.05)


def test_of_a_large_input_a_sample_stands_for_all(large, tmp_path):
    report = try_rows(large)
    packed = mtpack.pack(large, output=tmp_path / "packed", callbacks=Callbacks(), **OPTIONS)
    assert not report.is_whole
    assert report.counts.rows_read < 3000
    estimate, tally = report.estimate, packed.tally
    assert estimate.rows == pytest.approx(tally.rows_read, rel=0.1)
    assert estimate.tokens == pytest.approx(tally.tokens, rel=0.1)
    assert estimate.sequences == pytest.approx(tally.sequences, rel=0.1)


def test_the_sample_depends_on_the_seed_alone(large):
    reports = [try_rows(large, seed=seed) for seed in (1, 1, 2)]
    counts = [asdict(report.counts) for report in reports]
    assert counts[0] == counts[1]
    assert counts[0]["tokens"] != counts[2]["tokens"]


def test_the_first_dialogues_are_those_of_the_first_rows(large):
    shown = try_rows(large).shown
    assert [str(origin) for origin in shown.origins] == [f"{large} line 1", f"{large} line 2"]
    assert shown.batch.document_rows.tolist() == [0, 1]


def test_each_trouble_has_the_first_row_that_it_concerns(tmp_path):
    rows = [row("?")] * 9
    rows += [row("?", mood="good"), row("?", None), "{}", row("<|im_end|>"), "{]"]
    rows += [row("long " * 1000), row("?", None), *[row("?")] * 5]
    path = write_rows(tmp_path / "a.jsonl", rows)
    report = try_rows(path)
    lines = {trouble: origin.line for trouble, origin in report.examples.items()}
    assert lines == {
        ("never_read", "mood"): 10,
        ("rows_dropped", "no_turn"): 11,
        ("control_tokens", ""): 13,
        ("rows_dropped", "no_turn_left"): 15,
        ("turns_dropped", "overlong"): 15,
    }
    assert {reject.origin.line for reject in report.rejects.values()} == {12, 14}
    troubles = {name for name, _ in report.counts.list_troubles()}
    assert troubles == {name for name, _ in lines} | {"rows_rejected"}


def test_a_trouble_late_in_a_large_file_is_named_by_its_part(tmp_path):
    rows = [
        row(f"{n} " * 200, mood="good") if n > 2500 else row(f"{n} " * 200) for n in range(4000)
    ]
    path = write_rows(tmp_path / "a.jsonl", rows)
    (origin,) = try_rows(path, seq_len=4096).examples.values()
    assert origin.after_byte > 0.6 * path.stat().st_size
    with open(path, "rb") as file:
        file.seek(origin.after_byte - 1)
        lines = file.read().split(b"\n")[1:]
    assert b"mood" in lines[origin.line - 1]


def test_of_what_cannot_be_sought_the_first_rows_are_read(tmp_path, large):
    rows = [json.loads(line) for line in large.read_text().splitlines()]
    noise = random.Random(0)
    noisy = [row(noise.randbytes(600).hex()) for _ in range(3000)]
    zipped = write_rows(tmp_path / "b.jsonl.gz", noisy)
    listed = tmp_path / "c.json"
    listed.write_text(json.dumps(rows))
    table = pa.Table.from_pylist(rows)
    arrow = tmp_path / "d.arrow"
    with pa.ipc.new_file(str(arrow), table.schema) as writer:
        writer.write_table(table, max_chunksize=100)
    other = tmp_path / "e.parquet"
    pa.parquet.write_table(pa.Table.from_pylist(noisy), other, row_group_size=500)
    report = try_rows([large, zipped, listed, arrow, other], seq_len=2048)
    assert {*report.starts} == {str(zipped), str(listed), str(arrow)}
    assert report.estimate.rows == pytest.approx(3 * 3500 + 2 * 3000, rel=0.2)


def test_after_some_seconds_no_more_is_read_and_the_rest_is_estimated(tmp_path, monkeypatch):
    path = write_rows(tmp_path / "a.jsonl", [row(f"{n} " * 50) for n in range(5000)])
    monkeypatch.setattr("mtpack.running.dry_run._SECONDS", -1.0)
    report = try_rows(path)
    assert not report.is_whole
    assert report.counts.rows_read < 3000
    assert report.estimate.rows == pytest.approx(5000, rel=0.1)


@pytest.mark.usefixtures("learn_everything")
def test_a_fast_path_that_fails_is_left_out(monkeypatch):
    right = try_rows(ENGLISH)
    break_replay(monkeypatch, lambda: True)
    warnings: list[str] = []
    found = dry_run(ENGLISH, callbacks=Callbacks(warn=warnings.append), **OPTIONS)
    assert asdict(found.counts) == asdict(right.counts)
    assert sum("differs from its render" in warning for warning in warnings) == 1


def test_bad_rows_are_reported_and_do_not_end_it(tmp_path):
    report = try_rows(write_rows(tmp_path / "a.jsonl", ["{}", "{}", row("?")]))
    assert [reject.origin.line for reject in report.rejects.values()] == [1]
    assert sum(report.counts.rows_rejected.values()) == 2


def test_an_input_with_nothing_to_pack_has_no_estimate(tmp_path):
    report = try_rows(write_rows(tmp_path / "a.jsonl", [row("?", None)]))
    assert (report.estimate, report.shown) == (None, None)
    assert report.counts.rows_read == 1


def test_what_a_run_would_refuse_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(mtpack.SetupError, match="notes"):
        dry_run(ENGLISH, output=tmp_path, **OPTIONS)
    with pytest.raises(mtpack.SetupError, match="no such option"):
        dry_run(ENGLISH, colour="red")


@pytest.fixture
def pipe():
    """Return a function that makes a pipe with a text in it, and its reading end."""
    ends: list[int] = []

    def make(text: bytes, *, is_closed: bool) -> int:
        reading, writing = os.pipe()
        os.write(writing, text)
        if is_closed:
            os.close(writing)
        ends.extend([reading] if is_closed else [reading, writing])
        return reading

    yield make
    for end in ends:
        os.close(end)


LINE = json.dumps(row("?")).encode() + b"\n"


@pytest.mark.parametrize(
    ("text", "is_closed", "num_rows"),
    [
        (LINE * 3, True, 3),
        (LINE * 3 + LINE[:-1], True, 4),
        (LINE * 3 + LINE[:20], False, 3),
        (b"[\n" + LINE + b"," + LINE + b"]", True, 2),
        (b"[\n" + LINE + b"," + LINE + b"," + LINE[:20], False, 2),
    ],
)
def test_of_standard_input_the_whole_rows_are_read_that_have_come(pipe, text, is_closed, num_rows):
    descriptor = pipe(text, is_closed=is_closed)
    found, is_whole = sample.read_standard_input(ReadOptions(), descriptor, seconds=0.05)
    rows = [*found.split.rows()]
    assert (len(rows), is_whole) == (num_rows, is_closed)
    assert {each.format for each in rows} == {"messages"}
    assert [json.loads(each.text) for each in rows] == [row("?")] * num_rows


def test_standard_input_without_a_row_is_an_error(pipe):
    with pytest.raises(InputError, match="no whole row came"):
        sample.read_standard_input(ReadOptions(), pipe(LINE[:20], is_closed=False), seconds=0.05)
