"""Document files: any documents, in any order, are read as they were written."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtpack.running.document_file import open_documents, read_documents, save_batch
from mtpack.shards.atomic_file import atomic_file
from tests.support.strategies import as_batch, as_documents, assert_same_batch, token_batches


@given(st.data(), st.lists(token_batches(min_documents=1), max_size=3))
def test_any_documents_of_any_files_are_read_as_they_were_written(data, batches):
    first_rows = [int(batch.document_rows[0]) - data.draw(st.integers(0, 5)) for batch in batches]
    with TemporaryDirectory() as folder:
        stored, expected = [], []
        for batch, first_row in zip(batches, first_rows, strict=True):
            file = f"{folder}/{len(stored)}"
            save_batch(Path(file), batch, first_row)
            stored.append(open_documents(file))
            expected.append(
                [replace(item, row=item.row - first_row) for item in as_documents(batch)]
            )
        positions = [
            (file, number)
            for file, documents in enumerate(expected)
            for number in range(len(documents))
        ]
        chosen = data.draw(st.lists(st.sampled_from(positions), max_size=8)) if positions else []
        found = read_documents((stored[file], number) for file, number in chosen)
        assert_same_batch(found, [expected[file][number] for file, number in chosen])


def test_a_split_without_documents_is_stored_in_a_file_too(tmp_path):
    save_batch(tmp_path / "split", as_batch([]), first_row=7)
    assert len(open_documents(str(tmp_path / "split")).ids) == 0


def test_a_file_replaces_an_older_one_only_when_it_is_complete(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with atomic_file(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_older_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write_and_fail() -> None:
        with atomic_file(path) as file:
            file.write(b"ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_and_fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
