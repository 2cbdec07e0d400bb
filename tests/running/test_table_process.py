"""Tables are read in a process of their own: a hostile one ends that process, not the run."""

import json
import os
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

import mtpack
from mtpack.errors import InputError
from mtpack.input.files import describe_input
from mtpack.input.reading import ReadOptions, call_here, read_splits
from mtpack.running import table_process
from tests.input.test_tables import KINDS

MESSAGES = json.dumps(
    [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Yes?"}]
)
every_kind = pytest.mark.parametrize("name", KINDS)


def read(path, columns=(), line_limit=2**20):
    """Return the rows of a file that another process reads."""
    files = [describe_input(path.name, path)]
    with table_process.table_process(files, line_limit) as call_table:
        splits = read_splits(files, ReadOptions("auto", columns, line_limit), call_table)
        return [(row.line, row.text) for split in splits for row in split.rows()]


@every_kind
def test_the_rows_are_those_that_this_process_reads(tmp_path, name):
    rows = [MESSAGES.replace("Hi", "Hi" * number) for number in range(1000)]
    KINDS[name](pa.table({"messages": rows}), tmp_path / name)
    files = [describe_input(name, tmp_path / name)]
    here = [(row.line, row.text) for split in read_splits(files) for row in split.rows()]
    assert read(tmp_path / name) == here


@every_kind
def test_an_error_is_that_of_reading_in_this_process(tmp_path, name):
    (tmp_path / name).write_bytes(b"no table")
    with pytest.raises(InputError) as here:
        list(read_splits([describe_input(name, tmp_path / name)]))
    with pytest.raises(InputError) as there:
        read(tmp_path / name)
    assert str(there.value) == str(here.value)


def write_repeated_value(path):
    """2 KB: one text of 16 MB, in a dictionary, for 1,000 rows."""
    values = pa.DictionaryArray.from_arrays(pa.array(np.zeros(1000, np.int32)), ["x" * 2**24])
    pa.parquet.write_table(pa.table({"messages": values}), path, compression="zstd")


def write_long_page(path):
    """One text of 100 MB, in one page that zstd compresses."""
    values = pa.array(["x" * 100 * 2**20])
    pa.parquet.write_table(
        pa.table({"messages": values}), path, compression="zstd", use_dictionary=False
    )


def write_compressed_batch(path):
    """A record batch of 200 MB that zstd compresses."""
    batch = pa.record_batch({"messages": pa.array(["x" * 2**20] * 200)})
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(path, batch.schema, options=options) as writer:
        writer.write_batch(batch)


BOMBS = {
    "value.parquet": write_repeated_value,
    "page.parquet": write_long_page,
    "batch.arrow": write_compressed_batch,
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_table_that_decodes_to_more_than_the_longest_rows_is_refused(tmp_path, name):
    path = tmp_path / name
    BOMBS[name](path)
    assert path.stat().st_size < 100_000
    with pytest.raises(InputError, match=f"{name}: .*needs too much memory"):
        read(path, line_limit=2**20)


def test_rows_of_the_longest_length_are_read(tmp_path):
    rows = [f"{number:03d}" + "x" * (2**20 - 100) for number in range(8)]
    pa.parquet.write_table(pa.table({"messages": rows}), tmp_path / "a.parquet")
    assert len(read(tmp_path / "a.parquet")) == 8


def die(*_):
    os.kill(os.getpid(), 11)


def test_a_process_that_dies_is_an_error_that_names_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(table_process, "may_fork", lambda: True)
    monkeypatch.setattr("mtpack.input.reading.read_table", die)
    KINDS["a.parquet"](pa.table({"messages": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: damaged, or .*SIGSEGV"):
        read(tmp_path / "a.parquet")


def never_end(*_):
    while True:
        time.process_time()


def test_a_batch_that_takes_too_much_time_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(table_process, "may_fork", lambda: True)
    monkeypatch.setattr("mtpack.input.reading.read_table", never_end)
    monkeypatch.setattr(table_process, "_SECONDS", 0)
    KINDS["a.parquet"](pa.table({"messages": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: .*SIGXCPU"):
        read(tmp_path / "a.parquet")


def test_a_file_that_becomes_shorter_does_not_end_the_run(tmp_path):
    path = tmp_path / "a.arrow"
    KINDS["stream.arrow"](pa.table({"messages": [MESSAGES] * 100_000}), path)
    files = [describe_input(path.name, path)]
    with table_process.table_process(files) as call_table:
        splits = read_splits(files, call_table=call_table)
        next(splits)
        os.truncate(path, 1000)
        with pytest.raises(InputError, match=r"a\.arrow: "):
            list(splits)


def test_a_run_names_such_a_table_and_leaves_no_output(tmp_path):
    values = pa.DictionaryArray.from_arrays(pa.array(np.zeros(1000, np.int32)), ["x" * 2**25])
    pa.parquet.write_table(pa.table({"messages": values}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: .*needs too much memory"):
        mtpack.pack(tmp_path / "a.parquet", output=tmp_path / "packed", workers=1)
    assert not (tmp_path / "packed").exists()


def test_no_process_is_started_without_a_table():
    with table_process.table_process([]) as call_table:
        assert call_table is call_here
