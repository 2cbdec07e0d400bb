"""A text file is read by what it holds: lines, a JSON list, or one JSON object."""

import gzip
import json
import tracemalloc

import pytest

from mtpack.errors import InputError
from mtpack.input import json_text
from mtpack.input.files import describe_input, find_inputs
from mtpack.input.reading import LINE_LIMIT, ReadOptions, read_splits
from mtpack.input.splits import LinesInFile
from tests.support.compression import compress_zst

ROWS = [
    {"messages": [{"role": "user", "content": "Hi.\nDue?"}, {"role": "assistant", "content": "é"}]},
    {"messages": [{"role": "user", "content": "[{"}, {"role": "assistant", "content": "}]"}]},
]
BARE_LISTS = [row["messages"] for row in ROWS]
MARK = b"\xef\xbb\xbf"


PACK = {"": bytes, ".gz": gzip.compress, ".zst": compress_zst}
every_compression = pytest.mark.parametrize("compression", PACK)
every_name = pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.ndjson"])


@pytest.fixture
def write(tmp_path):
    def write_file(name: str, content: bytes):
        path = tmp_path / name
        compression = next((each for each in (".gz", ".zst") if name.endswith(each)), "")
        path.write_bytes(PACK[compression](content))
        return path

    return write_file


def read(path, limit: int = LINE_LIMIT):
    """Return the line and the value of each row."""
    rows = [
        row
        for split in read_splits([describe_input(path.name, path)], ReadOptions(line_limit=limit))
        for row in split.rows()
    ]
    return [(row.line, json.loads(row.text)) for row in rows]


def failure(path, limit: int = LINE_LIMIT) -> str:
    with pytest.raises(InputError) as caught:
        read(path, limit)
    return str(caught.value)


def as_lines(rows) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


# What is read


@every_compression
@every_name
@pytest.mark.parametrize("mark", [b"", MARK])
def test_a_row_in_each_line_is_read_whatever_the_name(write, name, compression, mark):
    path = write(name + compression, mark + b"\n \n" + as_lines(ROWS))
    assert read(path) == [(3, ROWS[0]), (4, ROWS[1])]


@every_compression
@every_name
@pytest.mark.parametrize("mark", [b"", MARK])
def test_a_list_over_several_lines_is_read_whatever_the_name(write, name, compression, mark):
    text = json.dumps(ROWS, indent=1).encode()
    starts = [line for line, each in enumerate(text.split(b"\n"), 2) if each == b" {"]
    path = write(name + compression, mark + b"\n" + text)
    assert read(path) == list(zip(starts, ROWS, strict=True))


@every_name
def test_a_list_with_an_element_in_each_line_is_read_whatever_the_name(write, name):
    elements = ",\n".join(map(json.dumps, ROWS))
    assert read(write(name, f"[{elements}]\n".encode())) == [(1, ROWS[0]), (2, ROWS[1])]


@every_compression
@every_name
def test_one_object_over_several_lines_is_read_whatever_the_name(write, name, compression):
    text = json.dumps(ROWS[0], indent=2).encode()
    assert read(write(name + compression, b"\n" + text + b"\n\n")) == [(2, ROWS[0])]


@every_name
def test_one_object_in_one_line_is_read_whatever_the_name(write, name):
    assert read(write(name, json.dumps(ROWS[0]).encode())) == [(1, ROWS[0])]


@every_name
def test_a_bare_list_of_messages_in_each_line_is_read_whatever_the_name(write, name):
    assert read(write(name, as_lines(BARE_LISTS))) == [(1, BARE_LISTS[0]), (2, BARE_LISTS[1])]


def test_one_bare_list_is_a_row_in_a_file_of_lines_and_a_list_of_rows_in_a_json_file(write):
    line = as_lines(BARE_LISTS[:1])
    assert read(write("a.jsonl", line)) == [(1, BARE_LISTS[0])]
    assert read(write("a.json", line)) == [(1, message) for message in BARE_LISTS[0]]


def test_a_bad_line_of_a_json_file_is_a_bad_row_and_the_others_are_read(write):
    path = write("a.json", as_lines(ROWS[:1]) + b'{"messages": [\n' + as_lines(ROWS[1:]))
    [split] = read_splits([describe_input("a.json", path)])
    assert [row.text for row in split.rows()] == path.read_bytes().splitlines()


def test_the_lines_of_a_json_file_are_not_held_in_memory(write):
    path = write("a.json", as_lines(ROWS) * 100_000)
    tracemalloc.start()
    try:
        pieces = [
            piece
            for split in read_splits([describe_input(path.name, path)])
            for piece in split.pieces
        ]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert all(isinstance(piece, LinesInFile) for piece in pieces)
    assert peak < path.stat().st_size // 2


def peak_memory(function):
    """Return what a function returns, and the most memory of Python that it held."""
    tracemalloc.start()
    try:
        return function(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


BOMBS = {
    "one object": b'{\n"a": "' + b"x" * (20 * 2**20) + b'"}',
    "one element": b'[\n"' + b"x" * (20 * 2**20) + b'"]',
    "an element that does not end": b"[\n[" + b"1, " * (6 * 2**20),
}


@pytest.mark.parametrize("compression", [".gz", ".zst"])
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_value_that_unfolds_beyond_the_limit_is_refused_in_bounded_memory(
    write, bomb, compression
):
    path = write(f"a.json{compression}", BOMBS[bomb])
    message, peak = peak_memory(lambda: failure(path, limit=2**20))
    assert message == (
        f"a.json{compression} line 2: not valid JSON, or a value of more than 1,048,576 bytes; "
        "a .json file holds a list, one object, or one object per line"
    )
    assert peak < 30 * 2**20  # less than 20 times the limit: parsed numbers take more than text


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize(
    "content",
    [
        b"[\n" + (as_lines(ROWS[:1]).strip() + b",\n") * 120_000 + b"1]",
        b"[\n" + as_lines(ROWS[:1]) + b"," + b" " * (12 * 2**20) + b"2]" + b"\n" * (12 * 2**20),
    ],
    ids=["elements", "spaces"],
)
def test_a_long_list_is_read_without_being_held_in_memory(write, content, compression):
    path = write(f"a.json{compression}", content)

    def count():
        return sum(
            1 for split in read_splits([describe_input(path.name, path)]) for _ in split.rows()
        )

    rows, peak = peak_memory(count)
    assert rows == content.count(b'"messages"') + 1
    assert peak < 8 * 2**20


@pytest.mark.parametrize("block", range(1, 20))
def test_a_list_is_the_same_wherever_it_is_cut_into_blocks(write, monkeypatch, block):
    monkeypatch.setattr(json_text, "_BLOCK_BYTES", block)
    elements = [12, {"a": "\u00fc\u4e2d\U0001f600"}, -3.25e-7, ["]", "\\", '"'], True, None, 5]
    text = json.dumps(elements, indent=1, ensure_ascii=False)
    path = write("a.json", text.encode())
    rows = [
        (row.line, json.loads(row.text))
        for split in read_splits([describe_input("a.json", path)])
        for row in split.rows()
    ]
    assert [value for _, value in rows] == elements
    lines = text.split("\n")
    assert all(lines[line - 1].startswith(" ") for line, _ in rows)


def test_a_row_of_very_many_values_is_refused(write, monkeypatch):
    monkeypatch.setattr(json_text, "_MOST_VALUES", 1000)
    monkeypatch.setattr(json_text, "_BLOCK_BYTES", 64)
    path = write("a.json", b"[\n1,\n[" + b"[]," * 1000 + b"1]]")
    assert failure(path) == "a.json line 3: more than 1,000 values in one row"


def test_the_kinds_of_text_files_are_found_in_folders(write, tmp_path):
    names = [
        f"a.{kind}{compression}" for kind in ("json", "jsonl", "ndjson") for compression in PACK
    ]
    for name in names:
        write(name, b"")
    assert find_inputs([str(tmp_path)]) == sorted(str(tmp_path / name) for name in names)


# What is refused

ANY_JSON = "a .json file holds a list, one object, or one object per line"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", f"a.json line 1: neither a JSON list nor an object; {ANY_JSON}"),
        (MARK, f"a.json line 1: neither a JSON list nor an object; {ANY_JSON}"),
        (b"\n\n", f"a.json line 3: neither a JSON list nor an object; {ANY_JSON}"),
        (b'\n "text"\n', f"a.json line 2: neither a JSON list nor an object; {ANY_JSON}"),
        (b"<html>", f"a.json line 1: neither a JSON list nor an object; {ANY_JSON}"),
        ("[1]".encode("utf-16"), "a.json line 1: not UTF-8; convert the file"),
        (b'{"a": 1,\n"b" 2}', "a.json line 2: not valid JSON"),
        (b'{"a": 1,\n"b": 2', "a.json line 2: not valid JSON"),
        (b'{"a":\n"\xff"}', "a.json line 2: not UTF-8; convert the file"),
        (b'{"a":\n' + b"[" * 100_000, "a.json line 1: nested too deeply"),
        (
            b'{\n"a": 1}\n{\n"a": 2}',
            "a.json line 3: there is text after the end of the object; "
            "write one object per line, or a list",
        ),
        (b"[1, 2]\n\n, 3", "a.json line 3: there is text after the end of the list"),
        (b"[1,\n2]\n[3]", "a.json line 3: there is text after the end of the list"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_json_file_that_holds_none_of_these_is_refused_with_the_line(write, content, message):
    assert failure(write("a.json", content)) == message


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "-"])
def test_a_list_or_object_over_several_lines_of_a_file_of_lines_is_refused_with_the_line(
    write, name
):
    assert (
        failure(write(name, b"[\n1,\n2"))
        == f"{name} line 3: expected a comma or the end of the list"
    )
    assert failure(write(name, b'{\n"a": 1,\n2}')) == f"{name} line 3: not valid JSON"


@pytest.mark.parametrize(
    "first", [b'{"messages": [', b'[{"role": "user"', b"[", b"{", b"1", b"nope,"]
)
def test_a_broken_first_line_of_a_file_of_lines_is_a_bad_row(write, first):
    content = first + b"\n" + as_lines(ROWS) if len(first) > 1 or first == b"1" else first
    [split] = read_splits([describe_input("a.jsonl", write("a.jsonl", content))])
    assert [row.text for row in split.rows()] == content.splitlines()


@pytest.mark.parametrize("compression", [".gz", ".zst"])
def test_a_truncated_compressed_json_file_is_refused(write, compression):
    path = write(f"a.json{compression}", json.dumps(ROWS * 500, indent=1).encode())
    path.write_bytes(path.read_bytes()[:-20])
    assert failure(path).startswith(f"a.json{compression}: ")
    assert len(failure(path).splitlines()) == 1
