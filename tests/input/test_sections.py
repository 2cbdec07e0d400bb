"""Sections are cut without being read, and all sections together have every row once."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mtpack.input import reading, splits, text_files
from mtpack.input.dialogue import Origin
from mtpack.input.files import describe_input
from mtpack.input.reading import ReadOptions, Section, cut_sections, read_section, read_splits
from mtpack.input.splits import LinesInFile, RawRow
from mtpack.input.tables import cut_table
from tests.support.exact_lines import rows_with_exact_lines

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
ROW = b'{"messages": [{"role": "user", "content": "Hello"}]}'
OTHER = b'{"conversations": [{"from": "human", "value": "Hello"}]}'


def sections_of(*paths: Path, **options) -> list[Section]:
    files = [describe_input(path.name, path) for path in paths]
    return list(cut_sections(files, ReadOptions(**options)))


# Ranges of bytes


def simple_ranges(content: bytes, range_bytes: int, limit: int) -> list[list[RawRow]]:
    """Return the rows that begin in each range: a loop over the lines of the whole file."""
    ranges: list[list[RawRow]] = [[] for _ in range(0, len(content), range_bytes)]
    offset = 0
    for line, whole in enumerate(content.split(b"\n"), 1):
        text = whole.removeprefix(BYTE_ORDER_MARK) if line == 1 else whole
        if len(text) > limit:
            ranges[offset // range_bytes].append(RawRow("a.jsonl", line, None, "messages"))
        elif text.strip():
            ranges[offset // range_bytes].append(RawRow("a.jsonl", line, text, "messages"))
        offset += len(whole) + 1
    return ranges


contents = st.lists(
    st.sampled_from([b"\n", b"\n", b"\n\n", b"\r\n", b" ", b"\t", b"\x0b\x0c", BYTE_ORDER_MARK])
    | st.integers(1, 40).map(lambda length: b"x" * length)
    | st.integers(1, 40).map(lambda length: b" " * length),
    max_size=30,
).map(b"".join)


@given(contents, st.integers(1, 60), st.sampled_from([5, 20, 1000]), st.integers(1, 9))
@example(BYTE_ORDER_MARK + b"x\n", 1, 5, 1)
@example(b"x" * 100 + b"\nx\n" + b"x" * 100 + b"\n\nx", 7, 5, 3)
@example(b"xx\nxx\nxx", 3, 5, 1)
@example(b"x\n" + BYTE_ORDER_MARK + b"x\n", 2, 5, 1)
def test_the_rows_of_all_ranges_are_those_of_a_loop_over_the_lines(
    tmp_path_factory, content, range_bytes, limit, block_bytes
):
    path = tmp_path_factory.mktemp("input") / "a.jsonl"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splits, "_BLOCK_BYTES", block_bytes)
        patch.setattr(text_files, "_FIRST_BLOCK_BYTES", block_bytes)
        patch.setattr(reading, "SPLIT_BYTES", range_bytes)
        options = ReadOptions("messages", line_limit=limit)
        found = list(read_splits([describe_input("a.jsonl", path)], options))
    assert rows_with_exact_lines(found) == simple_ranges(content, range_bytes, limit)


@given(
    st.lists(st.sampled_from([b"{}", b"", b"nope", b"x" * 70, ROW, OTHER]), max_size=12),
    st.integers(1, 200),
    st.booleans(),
)
def test_rows_have_the_format_of_the_first_row_that_fits_one_in_all_ranges(
    tmp_path_factory, lines, range_bytes, has_mark
):
    path = tmp_path_factory.mktemp("input") / "a.jsonl"
    path.write_bytes(BYTE_ORDER_MARK * has_mark + b"\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "_FIRST_BLOCK_BYTES", 10)
        patch.setattr(reading, "SPLIT_BYTES", range_bytes)
        found = list(read_splits([describe_input("a.jsonl", path)]))
    expected, row_format = [], None
    for number, line in enumerate(lines, 1):
        row_format = row_format or {ROW: "messages", OTHER: "sharegpt"}.get(line)
        if line:
            expected.append((number, line, row_format))
    rows = [row for rows in rows_with_exact_lines(found) for row in rows]
    assert [(row.line, row.text, row.format) for row in rows] == expected


def test_a_row_in_a_later_range_is_named_by_its_line_after_a_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "SPLIT_BYTES", 1000)
    path = tmp_path / "a.jsonl"
    path.write_bytes((ROW + b"\n") * 100)
    last = list(read_splits([describe_input("a.jsonl", path)]))[-1]
    row = next(iter(last.rows()))
    origin = Origin(row.file, row.line, row.after_byte)
    assert str(origin) == "a.jsonl line 1 after byte 5,000"
    assert str(origin.place(95)) == "a.jsonl line 96"
    assert str(last) == "a.jsonl: the split that starts at byte 5,000"


# How the input is cut


def describe(section: Section) -> list[str]:
    return [
        part.file if isinstance(part, LinesInFile) else f"all of {part.file.name}"
        for part in section.parts
    ]


def test_small_files_are_together_and_large_files_are_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "SPLIT_BYTES", 100)
    sizes = {"a.jsonl": 60, "b.jsonl": 40, "c.jsonl": 1, "d.jsonl": 250, "e.jsonl": 0, "f.jsonl": 9}
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(b"x" * size)
    (tmp_path / "g.jsonl.gz").write_bytes(gzip.compress(ROW))
    (tmp_path / "h.json").write_bytes(b"[" + b"1," * 100 + b"1]")
    found = sections_of(*sorted(tmp_path.iterdir()))
    assert [describe(section) for section in found] == [
        ["a.jsonl", "b.jsonl"],
        ["c.jsonl"],
        *[["d.jsonl"]] * 3,
        ["f.jsonl", "all of g.jsonl.gz"],
        ["all of h.json"],
    ]
    assert [section.number for section in found] == list(range(7))
    assert [section.is_split for section in found] == [*[True] * 5, False, False]


def test_a_section_of_plain_lines_is_one_split_and_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "SPLIT_BYTES", 10_000)
    path = tmp_path / "a.jsonl"
    path.write_bytes(ROW + b"\n" + b"x" * 200_000)
    with monkeypatch.context() as patch:
        patch.setattr(LinesInFile, "read", pytest.fail)
        found = sections_of(path)
        cut = [split for section in found for split in read_section(section)]
    assert [split.key for split in cut] == [f"{number:07d}.0000" for number in range(len(found))]
    assert len(found) == 21


def write_groups(path: Path, groups: list[list[dict]], schema: pa.Schema) -> Path:
    with pa.parquet.ParquetWriter(path, schema) as writer:
        for rows in groups:
            writer.write_table(pa.Table.from_pylist(rows, schema))
    return path


TEXT = pa.schema({name: pa.string() for name in ("messages", "conversations", "text")})


@pytest.mark.parametrize("split_bytes", [1, 700, 1500, 10**6])
def test_the_rows_of_row_groups_are_those_of_the_whole_table(tmp_path, monkeypatch, split_bytes):
    groups = [[{"text": f"{g} {r}", "messages": "x"} for r in range(g)] for g in range(1, 9)]
    path = write_groups(tmp_path / "a.parquet", groups, TEXT)
    monkeypatch.setattr(reading, "SPLIT_BYTES", split_bytes)
    found = sections_of(path, more_columns=("text",))
    options = ReadOptions(more_columns=("text",))
    rows = [row for part in found for split in read_section(part, options) for row in split.rows()]
    assert [row.line for row in rows] == list(range(1, 37))
    assert [json.loads(row.text)["text"] for row in rows] == [
        row["text"] for rows in groups for row in rows
    ]
    assert (len(found) == 1) == (split_bytes == 10**6)


def test_row_groups_are_cut_by_their_decoded_size(tmp_path):
    groups = [[{"text": "x" * size}] for size in (500, 500, 500, 5000, 10, 10)]
    path = write_groups(tmp_path / "a.parquet", groups, TEXT)
    metadata = pa.parquet.read_metadata(path)
    two_groups = 2 * metadata.row_group(0).total_byte_size
    file = describe_input(path.name, path)
    (parts,) = cut_table(file, two_groups, 2**20, ["text"], "messages")
    assert [list(part.row_groups) for part in parts] == [[0, 1], [2], [3], [4, 5]]
    assert [part.first_row for part in parts] == [0, 2, 3, 4]


def test_row_groups_have_the_format_of_the_first_row_of_the_file_that_fits_one(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(reading, "SPLIT_BYTES", 1)
    none, some = {"text": "x"}, {"conversations": "x"}
    path = write_groups(tmp_path / "a.parquet", [[none] * 2, [none, some], [none], [none]], TEXT)
    found = sections_of(path)
    assert len(found) == 4
    rows = [row for part in found for split in read_section(part) for row in split.rows()]
    assert [row.format for row in rows] == [None, None, None, *["sharegpt"] * 3]


def test_sections_can_be_read_in_any_order(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "SPLIT_BYTES", 300)
    (tmp_path / "a.jsonl").write_bytes((ROW + b"\n") * 20)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress((ROW + b"\n") * 20))
    write_groups(tmp_path / "c.parquet", [[{"messages": "x"}]] * 5, TEXT)

    def read(sections: Iterator[Section]) -> dict[str, list[RawRow]]:
        cut = [split for section in sections for split in read_section(section)]
        return {split.key: list(split.rows()) for split in cut}

    found = sections_of(*sorted(tmp_path.iterdir()))
    assert read(reversed(found)) == read(iter(found))
