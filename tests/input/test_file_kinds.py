"""The same rows in files of every kind give the same dialogues, and the same shards."""

import gzip
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

import mtpack
from mtpack.input.dialogue import Dialogue, Origin
from mtpack.input.files import describe_input, find_inputs
from mtpack.input.reading import LINE_LIMIT, read_splits
from mtpack.input.rows import read_dialogue
from tests.conftest import SAMPLE_DATA, shared
from tests.support.compression import compress_zst

CASES = "data/cases"


def read_sample_rows() -> list[dict]:
    """Return sample rows, with calls and tools as JSON text, so that columns drop no null."""
    text = (SAMPLE_DATA / "tools_and_reasoning_en.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()[:30]]
    for row in rows:
        calls = [call for message in row["messages"] for call in message.get("tool_calls", ())]
        functions = [call.get("function", call) for call in calls]
        for parent, key in [(row, "tools"), *((function, "arguments") for function in functions)]:
            if key in parent and not isinstance(parent[key], str):
                parent[key] = json.dumps(parent[key])
    return rows


PACK = {"": bytes, ".gz": gzip.compress, ".zst": compress_zst}


def write_as_text(rows: list[dict], folder: Path) -> list[Path]:
    """Write rows as every text file: lines, and lists compact and pretty, under every name."""
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    contents = [lines, json.dumps(rows), json.dumps(rows, indent=1, ensure_ascii=False)]
    paths = []
    for number, content in enumerate(contents):
        for name in ("json", "jsonl", "ndjson"):
            if number == 1 and name != "json":
                continue  # a list in one line is a row there
            for compression, pack in PACK.items():
                path = folder / f"{number}.{name}{compression}"
                path.write_bytes(pack(content.encode()))
                paths.append(path)
    return paths


def write_as_tables(rows: list[dict], folder: Path) -> list[Path]:
    """Write rows as Parquet, as Arrow files of both formats, and as Feather files."""
    table = pa.Table.from_pylist(rows)
    pa.parquet.write_table(table, folder / "a.parquet", row_group_size=7)
    for name, new_writer in (("stream", pa.ipc.new_stream), ("file", pa.ipc.new_file)):
        with new_writer(folder / f"{name}.arrow", table.schema) as writer:
            writer.write_table(table, max_chunksize=11)
    pa.feather.write_feather(table, folder / "lz4.feather")
    return [folder / name for name in ("a.parquet", "stream.arrow", "file.arrow", "lz4.feather")]


def shard_bytes(inputs, output: Path, **options) -> list[bytes]:
    mtpack.pack(inputs, output=output, workers=1, seq_len=2048, **options)
    return [path.read_bytes() for path in sorted(output.glob("shard-*.arrow"))]


def dialogues(*inputs: Path, split: str | None = None):
    names = find_inputs(map(str, inputs), split=split)
    found = []
    for part in read_splits(describe_input(name, name) for name in names):
        for row in part.rows():
            origin = Origin(row.file, row.line)
            read = read_dialogue(0, origin, row.text, LINE_LIMIT, row.format)
            assert isinstance(read, Dialogue), read
            found.append((read.messages, read.tools))
    return found


def test_every_kind_of_file_has_the_same_rows(tmp_path):
    rows = read_sample_rows()
    first, *others = [*write_as_text(rows, tmp_path), *write_as_tables(rows, tmp_path)]
    expected = dialogues(first)
    assert len(expected) == len(rows)
    for path in others:
        assert dialogues(path) == expected, path.name


def test_the_same_rows_give_the_same_shards_from_text_tables_and_what_datasets_saved(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = read_sample_rows()[:8]
    (tmp_path / "in").mkdir()
    texts, tables = write_as_text(rows, tmp_path / "in"), write_as_tables(rows, tmp_path / "in")
    expected = shard_bytes(texts[0], tmp_path / "expected")
    assert expected
    saved = datasets.Dataset.from_list(rows)
    saved.save_to_disk(tmp_path / "saved", num_shards=3)
    for number, path in enumerate([texts[-1], *tables[:2], tmp_path / "saved"]):
        assert shard_bytes(path, tmp_path / str(number)) == expected, path.name


def test_what_datasets_saved_is_read_as_datasets_reads_it(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = read_sample_rows()
    (tmp_path / "in").mkdir()
    expected = dialogues(write_as_text(rows, tmp_path / "in")[0])
    data_set = datasets.Dataset.from_list(rows)
    in_splits = datasets.DatasetDict({"train": data_set, "test": data_set.select([3])})
    in_splits.save_to_disk(tmp_path / "in_splits")
    assert dialogues(tmp_path / "in_splits", split="train") == expected
    assert dialogues(tmp_path / "in_splits", split="test") == expected[3:4]
    order = [4, 1, 3]
    data_set.select(order).save_to_disk(tmp_path / "selected")  # without a mapping of indices
    assert dialogues(tmp_path / "selected") == [expected[number] for number in order]


def test_a_run_counts_the_rows_whose_nulls_a_table_drops(tmp_path):
    report = mtpack.pack(shared(f"{CASES}/agent_saved"), output=tmp_path / "packed", workers=1)
    assert report.tally.nulls_dropped == 3
    for options in ({"token_store": tmp_path / "store"}, {"token_store": tmp_path / "store"}):
        report = mtpack.pack(
            shared(f"{CASES}/agent_saved"), output=tmp_path / "again", workers=1, **options
        )
        assert report.tally.nulls_dropped == 3
        shutil.rmtree(tmp_path / "again")


# The cases in ../shared


def test_the_rows_of_a_data_set_are_those_it_was_made_from():
    made_from = dialogues(shared(f"{CASES}/agent.jsonl"))
    saved = dialogues(shared(f"{CASES}/agent_saved"))
    train = dialogues(shared(f"{CASES}/agent_dd"), split="train")
    test = dialogues(shared(f"{CASES}/agent_dd"), split="test")
    assert saved == made_from
    assert all(each in made_from for each in train + test)
    assert len(train) > len(test) > 0


@pytest.mark.parametrize("name", ["arr.json.gz", "x.ndjson", "one_obj.json", "jsonl_named.json"])
def test_a_text_file_is_read_by_what_it_holds(name):
    hello = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    messages, tools = dialogues(shared(f"{CASES}/{name}"))[0]
    assert (messages, tools) == (hello, None)
