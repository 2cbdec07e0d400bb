"""Splits locate rows, depend on the rows alone, and fail if a file has changed."""

import gzip
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mtpack.errors import InputError
from mtpack.input import reading, text_files
from mtpack.input.files import describe_input, find_inputs
from mtpack.input.reading import LINE_LIMIT, ReadOptions, read_splits
from mtpack.input.splits import LinesInFile, RawRow, RowsInMemory, Split
from tests.support.compression import compress_zst

ROW = b'{"messages": [{"role": "user", "content": "Hello"}]}'
OTHER = b'{"conversations": [{"from": "human", "value": "Hello"}]}'


PACK = {".jsonl": bytes, ".jsonl.gz": gzip.compress, ".jsonl.zst": compress_zst}
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def splits_of(*paths: Path, limit: int = LINE_LIMIT, row_format: str = "auto") -> list[Split]:
    files = [describe_input(path.name, path) for path in paths]
    return list(read_splits(files, ReadOptions(row_format, line_limit=limit)))


@pytest.fixture
def split(tmp_path) -> Split:
    """A split of two rows, one in a plain file and one in a compressed file."""
    (tmp_path / "plain.jsonl").write_bytes(ROW + b"\n")
    (tmp_path / "compressed.jsonl.gz").write_bytes(gzip.compress(ROW))
    (found,) = splits_of(tmp_path / "plain.jsonl", tmp_path / "compressed.jsonl.gz")
    return found


# The content of a split


def test_a_split_of_plain_lines_has_only_their_position(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(BYTE_ORDER_MARK + b"\n" + (ROW + b"\n") * 1000)
    (found,) = splits_of(path)
    (piece,) = found.pieces
    size, modified = path.stat().st_size, path.stat().st_mtime_ns
    assert piece == LinesInFile("a.jsonl", "messages", str(path), 0, size, modified, LINE_LIMIT)
    assert [row.line for row in found.rows()] == list(range(2, 1002))


def test_a_pickled_split_has_the_same_rows(split):
    rows = [RawRow(name, 1, ROW, "messages") for name in ("plain.jsonl", "compressed.jsonl.gz")]
    assert list(pickle.loads(pickle.dumps(split)).rows()) == rows


def test_files_of_one_row_share_a_split(tmp_path):
    paths = [tmp_path / f"{number}.jsonl" for number in range(50)]
    for path in paths:
        path.write_bytes(ROW)
    (found,) = splits_of(*paths)
    assert [row.file for row in found.rows()] == [path.name for path in paths]


def test_rows_before_the_first_that_fits_a_format_have_no_format(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join([b"{}", b"", b"[", OTHER, b"{}", ROW]))
    (found,) = splits_of(path)
    assert [(row.line, row.format) for row in found.rows()] == [
        *[(1, None), (3, None)],
        *[(4, "sharegpt"), (5, "sharegpt"), (6, "sharegpt")],
    ]


# How the input is cut


def simple_rows(name: str, content: bytes, limit: int) -> Iterator[RawRow]:
    for line, text in enumerate(content.removeprefix(BYTE_ORDER_MARK).split(b"\n"), 1):
        if len(text) > limit:
            yield RawRow(name, line, None, "messages")
        elif text.strip():
            yield RawRow(name, line, text, "messages")


def simple_splits(rows: Iterator[RawRow], split_bytes: int) -> list[list[RawRow]]:
    splits: list[list[RawRow]] = [[]]
    for row in rows:
        if sum(len(earlier.text or b"") for earlier in splits[-1]) >= split_bytes:
            splits.append([])
        splits[-1].append(row)
    return [rows for rows in splits if rows]


lines = st.lists(
    st.sampled_from([b"\n", b"\n", b"\n\n", b"\r\n", b" ", b"\t", b"\x0b\x0c", b"\xef\xbb\xbf"])
    | st.integers(1, 40).map(lambda length: b"x" * length)
    | st.integers(1, 40).map(lambda length: b" " * length),
    max_size=30,
).map(b"".join)


@given(lines, st.integers(8, 30), st.sampled_from([5, 20, 1000]), st.integers(1, 60))
@example(b" " * 100 + b"\nx\n", 8, 5, 1)
@example(b"x" * 100 + b"\nx\n" + b"x" * 100 + b"\n\nx", 8, 5, 1)
@example(BYTE_ORDER_MARK + b"x" * 100 + b"\nx\n", 8, 5, 1)
def test_rows_and_cuts_of_a_compressed_file_are_those_of_a_simple_reader(
    tmp_path_factory, content, block_bytes, limit, split_bytes
):
    folder = tmp_path_factory.mktemp("input")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "_BLOCK_BYTES", block_bytes)
        patch.setattr(reading, "SPLIT_BYTES", split_bytes)
        for suffix in (".jsonl.gz", ".jsonl.zst"):
            path = folder / f"a{suffix}"
            path.write_bytes(PACK[suffix](content))
            expected = simple_splits(simple_rows(path.name, content, limit), split_bytes)
            found = splits_of(path, limit=limit, row_format="messages")
            assert [list(split.rows()) for split in found] == expected
            assert [split.digest().num_rows for split in found] == list(map(len, expected))


# Files that change during the run


def reading_error(split: Split) -> str:
    with pytest.raises(InputError) as caught:
        list(split.rows())
    message = str(caught.value)
    assert message.startswith("plain.jsonl: ")
    assert len(message.splitlines()) == 1
    return message


def test_a_rewritten_file_is_not_read(split, tmp_path):
    path = tmp_path / "plain.jsonl"
    modified = path.stat().st_mtime_ns
    path.write_bytes(ROW + b"\n")
    os.utime(path, ns=(modified, modified + 1))
    assert "changed" in reading_error(split)


def test_a_truncated_file_is_not_read(split, tmp_path):
    path = tmp_path / "plain.jsonl"
    modified = path.stat().st_mtime_ns
    path.write_bytes(ROW[:-1])
    os.utime(path, ns=(modified, modified))
    assert "ends early" in reading_error(split)


def test_a_deleted_file_is_not_read(split, tmp_path):
    (tmp_path / "plain.jsonl").unlink()
    assert "can't be read" in reading_error(split)


@pytest.mark.parametrize("suffix", [*PACK, ".json", ".parquet"])
def test_a_file_that_changes_before_it_is_cut_is_refused(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(PACK.get(suffix, bytes)(b"[1]"))
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pa.table({"messages": ["x"]}), path)
    described = describe_input(path.name, path)
    os.utime(path, ns=(0, described.modified_ns + 1))
    with pytest.raises(InputError, match=r"changed during the run"):
        [list(split.rows()) for split in read_splits([described])]


# The digest of a split


def digest(path: Path, row_format: str = "auto") -> str:
    (found,) = splits_of(path, row_format=row_format)
    return found.digest().sha256


def test_the_digest_does_not_depend_on_the_position_or_compression_of_the_rows(tmp_path):
    digests = set()
    for number, (suffix, pack) in enumerate(PACK.items()):
        for content in (ROW + b"\n" + ROW, BYTE_ORDER_MARK + b"\n" + ROW + b"\n \n" + ROW + b"\n"):
            path = tmp_path / f"{number}{suffix}"
            path.write_bytes(pack(content))
            digests.add(digest(path))
    (tmp_path / "list.json").write_bytes(b"[\n" + ROW + b",\n" + ROW + b"]")
    digests.add(digest(tmp_path / "list.json"))
    piece = RowsInMemory("elsewhere", "messages", [7, 9], [ROW, ROW])
    digests.add(Split("0000003.0020", (piece,)).digest().sha256)
    assert len(digests) == 1


def test_the_digest_depends_on_texts_formats_and_their_order():
    def of(*rows: tuple[bytes | None, str | None]) -> str:
        pieces = tuple(RowsInMemory("a", row_format, [1], [text]) for text, row_format in rows)
        return Split("", pieces).digest().sha256

    different = [
        [],
        [(b"1", None)],
        [(b"1", "messages")],
        [(b"1", "sharegpt")],
        [(None, "messages")],
        [(b"12", None)],
        [(b"1", None), (b"2", None)],
        [(b"2", None), (b"1", None)],
        [(b"1", "messages"), (b"2", None)],
        [(b"1", None), (b"2", "messages")],
        [(b"1\n2", None)],
        [(orjson.dumps([[None, 1]]), None)],
    ]
    assert len({of(*rows) for rows in different}) == len(different)


# Folders


def test_files_below_the_output_are_not_read(tmp_path):
    for name in ("a.jsonl", "deep/b.jsonl", "packed/c.jsonl", "packed/deep/d.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(ROW)
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "packed" / "c.jsonl")
    (tmp_path / "other.jsonl").symlink_to(tmp_path / "deep" / "b.jsonl")
    found = find_inputs([str(tmp_path)], tmp_path / "packed")
    names = [Path(name).relative_to(tmp_path).as_posix() for name in found]
    assert names == ["a.jsonl", "deep/b.jsonl", "other.jsonl"]
