"""Document files: any documents, in any order, are read as they were written."""

import errno
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtpack.running.document_file import (
    open_documents,
    read_documents,
    read_lengths,
    save_batch,
)
from mtpack.shards.atomic_file import atomic_file, nameless_file
from tests.support.strategies import (
    as_batch,
    as_documents,
    assert_same_batch,
    batches_of_a_run,
    token_batches,
)


@given(st.data(), batches_of_a_run())
def test_any_documents_of_any_files_are_read_as_they_were_written(data, batches):
    first_rows = [int(batch.document_rows[0]) - data.draw(st.integers(0, 5)) for batch in batches]
    with TemporaryDirectory() as folder:
        stored, expected = [], []
        for batch, first_row in zip(batches, first_rows, strict=True):
            file = f"{folder}/{len(stored)}"
            in_split = replace(batch, document_rows=batch.document_rows - first_row)
            save_batch(Path(file), in_split)
            stored.append(open_documents(file))
            expected.append(as_documents(in_split))
        positions = [
            (file, number)
            for file, documents in enumerate(expected)
            for number in range(len(documents))
        ]
        chosen = data.draw(st.lists(st.sampled_from(positions), max_size=8)) if positions else []
        found = read_documents((stored[file], number) for file, number in chosen)
        assert_same_batch(found, [expected[file][number] for file, number in chosen])


@given(token_batches(min_documents=0))
def test_lengths_are_read_without_the_documents(batch):
    with TemporaryDirectory() as folder:
        file = Path(folder, "split")
        save_batch(file, batch)
        assert read_lengths(str(file)).tolist() == batch.document_lengths.tolist()


def test_a_split_without_documents_is_stored_in_a_file_too(tmp_path):
    save_batch(tmp_path / "split", as_batch([]))
    assert len(open_documents(str(tmp_path / "split")).ids) == 0


either_way = pytest.mark.parametrize("writing", [atomic_file, nameless_file])


@either_way
def test_a_file_replaces_an_older_one_only_when_it_is_complete(tmp_path, writing):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with writing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@either_way
def test_a_failed_write_leaves_the_older_file_and_nothing_else(tmp_path, writing):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write_and_fail() -> None:
        with writing(path) as file:
            file.write(b"ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_and_fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no files without a name")
def test_a_nameless_file_has_no_name_until_it_is_complete(tmp_path):
    path = tmp_path / "file"
    with nameless_file(path) as file:
        file.write(b"new")
        file.flush()
        if (named := list(tmp_path.iterdir())) and named[0].name.startswith("file."):
            pytest.skip("this file system does not support files without a name")
        assert not named
    assert path.read_bytes() == b"new"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no files without a name")
def test_a_second_name_that_a_killed_process_left_goes_with_the_next_write(tmp_path):
    path, second = tmp_path / "file", tmp_path / "file.new"
    path.write_bytes(b"old")
    second.write_bytes(b"of another process")
    with nameless_file(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_files_are_written_where_files_without_a_name_are_not_supported(tmp_path, monkeypatch):
    def refuse(folder, flags, *_):
        raise OSError(errno.EOPNOTSUPP, "not supported")

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        with nameless_file(tmp_path / "file") as file:
            file.write(b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no files without a name")
def test_processes_that_write_the_same_file_at_once_leave_one_file(tmp_path):
    path = tmp_path / "file"

    def write() -> None:
        for _ in range(200):
            with nameless_file(path) as file:
                file.write(b"the same")

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(write) for _ in range(4)]:
            done.result()
    assert path.read_bytes() == b"the same"
    assert list(tmp_path.iterdir()) == [path]
