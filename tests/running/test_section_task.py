"""A worker that reads a section itself makes the same splits as one that gets its rows."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

import mtpack
from mtpack.counts import RunCounts
from mtpack.input import reading
from mtpack.input.files import describe_input
from mtpack.option_arguments import options_from
from mtpack.running.callbacks import Callbacks
from mtpack.running.pipeline import Pipeline, load_pipeline
from mtpack.running.runner import LocalRunner
from mtpack.running.section_task import SectionTask, run_section_task
from mtpack.running.split_record import SplitRecord
from mtpack.running.split_task import SplitContext, SplitTask, run_split_task
from tests.support.compression import compress_zst


def row_of(number: int) -> dict:
    question = {"role": "user", "content": f"What is {number} plus one?"}
    return {"messages": [question, {"role": "assistant", "content": f"{number + 1}"}]}


ROWS = [row_of(number) for number in range(60)]
BAD = b'{"messages": "none"}\n'
LINES = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS[:30])
LINES += BAD + b"\n" + b"".join(json.dumps(row).encode() + b"\n" for row in ROWS[30:]) + BAD


def write_table(path: Path) -> None:
    pa.parquet.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=7)


def write_stream(path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)


def write_small(folder: Path) -> None:
    for number, row in enumerate(ROWS[:20]):
        text = json.dumps(row).encode()
        kind, packed = [(".jsonl", text), (".json", text), (".jsonl.gz", gzip.compress(text))][
            number % 3
        ]
        (folder / f"small-{number:02d}{kind}").write_bytes(packed)


INPUTS = {
    "gz": lambda folder: (folder / "a.jsonl.gz").write_bytes(gzip.compress(LINES)),
    "zst": lambda folder: (folder / "a.jsonl.zst").write_bytes(compress_zst(LINES)),
    "list": lambda folder: (folder / "a.json").write_text(json.dumps([*ROWS, 3], indent=1)),
    "parquet": lambda folder: write_table(folder / "a.parquet"),
    "arrow": lambda folder: write_stream(folder / "a.arrow"),
    "small files": write_small,
}


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return load_pipeline(options_from({"workers": 1, "on_error": "skip"}))


def comparable(record: SplitRecord) -> SplitRecord:
    """Return a record without the time it took, and without how: the process learns meanwhile."""
    return replace(record, seconds={}, run_counts=RunCounts(), fast_paths=frozenset())


@pytest.mark.parametrize("kind", INPUTS)
def test_records_and_stored_files_are_those_of_splits_that_are_sent(
    tmp_path, monkeypatch, pipeline, kind
):
    monkeypatch.setattr(reading, "SPLIT_BYTES", 600)
    (tmp_path / "input").mkdir()
    INPUTS[kind](tmp_path / "input")
    files = [describe_input(path.name, path) for path in sorted((tmp_path / "input").iterdir())]
    store = tmp_path / "store"
    store.mkdir()
    context = SplitContext(tmp_path, store)
    options = pipeline.read_options[0]
    read = []
    for section in reading.cut_sections(files, options):
        result = run_section_task(pipeline, SectionTask(section, context))
        assert result.error is None
        read += map(comparable, result.splits)
    stored = {path.name: path.read_bytes() for path in store.iterdir()}
    for path in store.iterdir():
        path.unlink()
    tasks = [SplitTask(split, context) for split in reading.read_splits(files, options)]
    sent = [comparable(run_split_task(pipeline, task)) for task in tasks]
    found = {path.name: path.read_bytes() for path in store.iterdir()}
    assert len(read) > 3
    assert read == sent
    documents = [name for name in stored if not name.endswith(".json")]
    assert {name: stored[name] for name in documents} == {name: found[name] for name in documents}
    assert stored.keys() == found.keys()


@pytest.mark.parametrize("kind", INPUTS)
def test_a_run_whose_workers_read_sections_has_the_same_output(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(reading, "SPLIT_BYTES", 600)
    (tmp_path / "input").mkdir()
    INPUTS[kind](tmp_path / "input")

    def pack(output: str) -> tuple:
        folder = tmp_path / output
        report = mtpack.pack(
            tmp_path / "input", output=folder, workers=1, on_error="skip", callbacks=Callbacks()
        )
        manifest = mtpack.open_shards(folder).manifest
        return report.shards, report.tally, manifest.run, (folder / "rejects.jsonl").read_text()

    sent = pack("sent")
    monkeypatch.setattr(LocalRunner, "sends_rows", False)
    assert pack("read") == sent


def test_the_rows_before_damage_are_there_with_the_error(tmp_path, monkeypatch, pipeline):
    monkeypatch.setattr(reading, "SPLIT_BYTES", 200)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(ROWS, indent=1)[:-300])
    (section,) = reading.cut_sections([describe_input("a.json", path)])
    result = run_section_task(pipeline, SectionTask(section, SplitContext(tmp_path, tmp_path)))
    assert len(result.splits) > 5
    assert str(result.error).startswith("a.json line ")
