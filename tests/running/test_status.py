"""What a run reports of how far it is: the bytes of its input, and its sequences."""

import gzip
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

import mtpack
from mtpack.input.files import describe_input
from mtpack.input.reading import read_splits
from mtpack.running.callbacks import RunProgress

ANSWER = {"role": "assistant", "content": "!"}
OPTIONS = {"seq_len": 2048, "workers": 1}


def write_file(folder: Path, name: str, num_rows: int) -> Path:
    """Write rows of about a kilobyte in the form that the name of the file says."""
    noise = random.Random(0)
    rows = [
        {"messages": [{"role": "user", "content": noise.randbytes(500).hex()}, ANSWER]}
        for _ in range(num_rows)
    ]
    path = folder / name
    text = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(text))
    elif name.endswith(".zst"):
        with pa.CompressedOutputStream(str(path), "zstd") as file:
            file.write(text)
    elif name.endswith(".json"):
        path.write_text(json.dumps(rows))
    elif name.endswith(".parquet"):
        pa.parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=num_rows // 3)
    elif name.endswith(".arrow"):
        table = pa.Table.from_pylist(rows)
        with pa.ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=num_rows // 3)
    else:
        path.write_bytes(text)
    return path


NAMES = ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.json", "a.json.gz", "a.parquet", "a.arrow"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_rows", [30, 3000])
def test_the_bytes_of_all_splits_add_up_to_the_stored_size_of_the_file(name, num_rows, tmp_path):
    file = describe_input(name, write_file(tmp_path, name, num_rows))
    sizes = [split.input_bytes for split in read_splits([file])]
    assert sum(sizes) == pytest.approx(file.num_bytes, abs=4)
    assert min(sizes) >= 0


@pytest.mark.parametrize("name", NAMES)
def test_reading_of_a_large_file_is_seen_before_its_end(name, tmp_path):
    file = describe_input(name, write_file(tmp_path, name, 6000))
    sizes = [split.input_bytes for split in read_splits([file])]
    assert max(sizes) < 0.7 * file.num_bytes


@pytest.mark.parametrize("name", NAMES)
def test_the_status_goes_up_to_the_whole_input_and_all_sequences(name, tmp_path):
    reports: list[RunProgress] = []
    callbacks = mtpack.Callbacks(status=reports.append)
    inputs = [write_file(tmp_path, name, 60), write_file(tmp_path, f"b{name}", 20)]
    report = mtpack.pack(inputs, output=tmp_path / "out", callbacks=callbacks, **OPTIONS)
    first, last = reports[0], reports[-1]
    total = sum(path.stat().st_size for path in inputs)
    assert (first.bytes_done, first.is_tokenized, first.sequences_written) == (0, False, 0)
    assert {each.input_bytes for each in reports} == {total}
    assert last.bytes_done == pytest.approx(total, abs=8)
    assert last.is_tokenized
    assert last.sequences_written == last.sequences_planned == report.tally.sequences
    assert last.counts.rows_read == 80
    done = [each.bytes_done for each in reports]
    assert done == sorted(done)


def test_what_a_token_store_holds_is_counted_as_reused(tmp_path):
    rows = write_file(tmp_path, "a.jsonl", 60)
    reports: list[RunProgress] = []
    for output in ("one", "two"):
        mtpack.pack(
            rows,
            output=tmp_path / output,
            token_store=tmp_path / "store",
            callbacks=mtpack.Callbacks(status=reports.append),
            **OPTIONS,
        )
    assert {each.bytes_reused for each in reports if each.is_tokenized} == {0, rows.stat().st_size}
    assert reports[-1].bytes_reused == reports[-1].bytes_done
