"""Every row of every file is read once, with file and line; unreadable files are named."""

import gzip
import json
import random
import tracemalloc

import pyarrow as pa
import pyarrow.parquet
import pytest

from mtpack.errors import InputError, SetupError
from mtpack.input import reading
from mtpack.input.dialogue import Dialogue, Origin, Reason, Reject
from mtpack.input.files import InputFile, describe_input, find_inputs
from mtpack.input.reading import LINE_LIMIT, ReadOptions, read_splits
from mtpack.input.rows import read_dialogue
from tests.support.compression import compress_zst
from tests.support.exact_lines import rows_with_exact_lines

ROWS = [
    {
        "messages": [
            {"role": "user", "content": "Wie spät ist es?\nUnd wo? 你好 😀"},
            {"role": "assistant", "content": "Half past two.", "train": False},
        ]
    },
    {
        "messages": [
            {"role": "system", "content": ""},
            {"role": "user", "content": "Add 2 and 3.", "name": "Ann"},
            {
                "role": "assistant",
                "thinking": "A sum.",
                "tool_calls": [
                    {"id": "c1", "function": {"name": "add", "arguments": '{"a": 2, "b": 3}'}}
                ],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "5"},
            {"role": "assistant", "content": "It is 5.", "weight": 1.0},
        ],
        "tools": '[{"type": "function", "function": {"name": "add"}}]',
    },
    {"messages": [{"role": "user", "content": '[{\u2028}], \\ " / \t'}]},
]


def gz(*members: bytes) -> bytes:
    return b"".join(map(gzip.compress, members))


PACK = {
    ".jsonl": b"".join,
    ".jsonl.gz": lambda parts: gz(*parts),
    ".jsonl.zst": lambda parts: compress_zst(*parts),
}
"""How to store the bytes of a text file, given in one part or in several."""
text_files = pytest.mark.parametrize("suffix", PACK)


@pytest.fixture
def write(tmp_path):
    def write_file(name: str, content: bytes):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    return write_file


def read(*paths, line_limit: int = LINE_LIMIT):
    files = [describe_input(path.name, path) for path in paths]
    options = ReadOptions(line_limit=line_limit)
    return [row for rows in rows_with_exact_lines(read_splits(files, options)) for row in rows]


def failure(path) -> str:
    """Return the message of the InputError: one or two lines that start with the file name."""
    with pytest.raises(InputError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(path.name)
    assert len(message.splitlines()) <= 2
    return message


def refusal(*inputs) -> str:
    """Return the message of the SetupError: one or two lines that start with the first input."""
    with pytest.raises(SetupError) as caught:
        find_inputs(map(str, inputs))
    message = str(caught.value)
    assert message.startswith(str(inputs[0]))
    assert len(message.splitlines()) <= 2
    return message


def origins(rows) -> list[tuple[str, int]]:
    return [(row.file, row.line) for row in rows]


def texts(rows) -> list[bytes | None]:
    return [row.text for row in rows]


def dialogues(rows):
    """Return the messages and tools that the template would see."""
    found = []
    for row in rows:
        dialogue = read_dialogue(0, Origin(row.file, row.line), row.text, LINE_LIMIT)
        assert isinstance(dialogue, Dialogue), dialogue
        found.append((dialogue.messages, dialogue.tools))
    return found


def as_lines(rows) -> list[bytes]:
    return [json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows]


# The same rows from every kind of file


@text_files
def test_each_line_is_a_row_whatever_the_compression(write, suffix):
    rows = read(write(f"a{suffix}", PACK[suffix](as_lines(ROWS))))
    assert texts(rows) == [line.removesuffix(b"\n") for line in as_lines(ROWS)]
    assert origins(rows) == [(f"a{suffix}", 1), (f"a{suffix}", 2), (f"a{suffix}", 3)]


@text_files
def test_several_members_or_frames_are_read_as_one_file(write, suffix):
    whole = b"".join(as_lines(ROWS))
    cuts = sorted(random.Random(0).sample(range(len(whole)), 9))
    parts = [whole[i:j] for i, j in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    rows = read(write(f"a{suffix}", PACK[suffix]([*parts[:4], b"", *parts[4:]])))
    assert texts(rows) == whole.splitlines()


@pytest.mark.parametrize(
    "style",
    [
        {"separators": (",", ":")},
        {"indent": 2},
        {"indent": "\t", "separators": (" ,", "  :")},
        {"ensure_ascii": False, "indent": 0},
    ],
    ids=str,
)
def test_a_json_list_gives_the_same_dialogues_as_lines(write, style):
    of_list = read(write("a.json", json.dumps(ROWS, **style).encode()))
    of_lines = read(write("a.jsonl", b"".join(as_lines(ROWS))))
    assert dialogues(of_list) == dialogues(of_lines)


def test_the_line_of_a_json_list_element_is_the_line_where_it_starts(write):
    text = json.dumps(ROWS, indent=2)
    starts = [number for number, line in enumerate(text.split("\n"), 1) if line == "  {"]
    assert len(starts) == len(ROWS)
    rows = read(write("a.json", text.encode()))
    assert origins(rows) == [("a.json", line) for line in starts]
    rows = read(write("b.json", text.replace("\n", "\r\n").encode()))
    assert origins(rows) == [("b.json", line) for line in starts]


def test_the_elements_of_a_compact_json_list_have_the_same_line(write):
    rows = read(write("a.json", b"\n\n" + json.dumps(ROWS).encode() + b"\n"))
    assert origins(rows) == [("a.json", 3)] * len(ROWS)


def test_the_text_of_json_list_elements_is_unchanged(write):
    rows = read(
        write("a.json", b'\xef\xbb\xbf [ {"a" : 1.50},\n12345678901234567890123 , "\\u00e9"]')
    )
    assert texts(rows) == [b'{"a" : 1.50}', b"12345678901234567890123", b'"\\u00e9"']


def test_invalid_elements_of_a_json_list_are_refused_one_by_one(write):
    rows = read(write("a.json", b'[\n{"messages": NaN},\n{"a": 1, "a": 2},\n{"a": "\\ud800"}]'))
    rejects = [read_dialogue(0, Origin(row.file, row.line), row.text, LINE_LIMIT) for row in rows]
    assert [(reject.reason, reject.origin.line) for reject in rejects] == [
        (Reason.NOT_A_NUMBER, 2),
        (Reason.DUPLICATE_KEY, 3),
        (Reason.LONE_SURROGATE, 4),
    ]


def write_table(path, **columns):
    pyarrow.parquet.write_table(pa.table(columns), path)
    return path


def test_a_table_gives_the_same_dialogues_as_lines(write, tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(
        pa.table({key: [row.get(key) for row in ROWS] for key in ("messages", "tools")}), path
    )
    rows = read(path)
    assert dialogues(rows) == dialogues(read(write("a.jsonl", b"".join(as_lines(ROWS)))))
    assert origins(rows) == [("a.parquet", 1), ("a.parquet", 2), ("a.parquet", 3)]


def test_null_fields_of_a_table_row_are_read_as_missing(tmp_path):
    path = write_table(
        tmp_path / "a.parquet",
        messages=[
            [{"role": "user", "content": "Add.", "tool_calls": None}],
            [{"role": "assistant", "content": None, "tool_calls": [{"name": "add", "id": None}]}],
        ],
        tools=[None, [{"name": "add", "description": None}]],
    )
    assert [json.loads(text) for text in texts(read(path))] == [
        {"messages": [{"role": "user", "content": "Add."}]},
        {
            "messages": [{"role": "assistant", "tool_calls": [{"name": "add"}]}],
            "tools": [{"name": "add"}],
        },
    ]


def test_a_table_without_known_columns_still_has_its_rows(tmp_path):
    path = write_table(tmp_path / "a.parquet", text=["a"] * 700)
    assert [row.line for row in read(path)] == list(range(1, 701))


def test_a_table_is_read_in_order_across_batches_and_row_groups(tmp_path):
    path = tmp_path / "a.parquet"
    table = pa.table({"messages": [str(number) for number in range(1000)]})
    pyarrow.parquet.write_table(table, path, row_group_size=300)
    rows = read(path)
    assert [json.loads(row.text)["messages"] for row in rows] == [str(i) for i in range(1000)]
    assert [row.line for row in rows] == list(range(1, 1001))


# Lines


@text_files
def test_blank_lines_count_as_lines_but_not_as_rows(write, suffix):
    rows = read(write(f"a{suffix}", PACK[suffix]([b"\n1\n\n \t\n\r\n2\n   \n\n3\n\n\n"])))
    assert [(row.line, row.text) for row in rows] == [(2, b"1"), (6, b"2"), (9, b"3")]


@text_files
def test_windows_line_ends_give_the_same_dialogues(write, suffix):
    content = b"".join(as_lines(ROWS))
    unix = read(write(f"a{suffix}", PACK[suffix]([content])))
    windows = read(write(f"a{suffix}", PACK[suffix]([content.replace(b"\n", b"\r\n")])))
    assert dialogues(windows) == dialogues(unix)
    assert origins(windows) == origins(unix)


@text_files
def test_a_byte_order_mark_at_the_start_is_ignored(write, suffix):
    rows = read(write(f"a{suffix}", PACK[suffix]([b"\xef\xbb\xbf1\n2\n"])))
    assert [(row.line, row.text) for row in rows] == [(1, b"1"), (2, b"2")]


def test_a_byte_order_mark_elsewhere_is_text_and_refused(write):
    _, row = read(write("a.jsonl", b"1\n\xef\xbb\xbf{}\n"))
    assert isinstance(read_dialogue(1, Origin("a.jsonl", 2), row.text, LINE_LIMIT), Reject)


@text_files
def test_the_last_line_needs_no_newline(write, suffix):
    rows = read(write(f"a{suffix}", PACK[suffix]([b"1\n2"])))
    assert [(row.line, row.text) for row in rows] == [(1, b"1"), (2, b"2")]


@text_files
@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b"\n", b"\xef\xbb\xbf\r\n \n"], ids=str)
def test_a_file_without_text_gives_no_rows(write, suffix, content):
    assert read(write(f"a{suffix}", PACK[suffix]([content]))) == []


def test_an_empty_list_and_an_empty_table_give_no_rows(write, tmp_path):
    assert read(write("a.json", b"[ \n ]")) == []
    assert read(write_table(tmp_path / "a.parquet", messages=pa.array([], pa.string()))) == []


def test_only_a_line_feed_ends_a_line(write):
    line = '"\u2028 \u2029 \x85 \x0b \x0c \r'.encode()
    assert texts(read(write("a.jsonl", line + b"\n" + line))) == [line, line]


@text_files
def test_lines_longer_than_a_block_are_complete(write, suffix):
    lines = [b"a" * size for size in (2**20 - 1, 2**20, 1, 5 * 2**20 // 2, 2**20 + 1)]
    rows = read(write(f"a{suffix}", PACK[suffix]([b"\n".join(lines)])))
    assert texts(rows) == lines


# Lines above the limit


@text_files
def test_a_line_above_the_limit_has_no_text_and_reading_continues(write, suffix):
    lines = [b"1", b"x" * 101, b"y" * 100, b"", b"z" * (3 * 2**20), b"2", b"w" * 500]
    rows = read(write(f"a{suffix}", PACK[suffix]([b"\n".join(lines)])), line_limit=100)
    assert [(row.line, row.text) for row in rows] == [
        (1, b"1"),
        (2, None),
        (3, b"y" * 100),
        (5, None),
        (6, b"2"),
        (7, None),
    ]


def test_the_limit_applies_to_list_elements_and_table_rows_too(write, tmp_path):
    path = write("a.json", b'["short",\n"' + b"x" * 100 + b'",\n"last"]')
    assert texts(read(path, line_limit=50)) == [b'"short"', None, b'"last"']
    path = write_table(tmp_path / "a.parquet", messages=["short", "x" * 100, "last"])
    assert [row.text is None for row in read(path, line_limit=50)] == [False, True, False]


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
def test_a_decompression_bomb_of_one_line_takes_bounded_memory(write, suffix):
    bomb = [b"1\n", b"x" * (30 * 2**20), b"\n2\n"]
    path = write(f"a{suffix}", PACK[suffix](bomb))
    assert path.stat().st_size < 2**17
    tracemalloc.start()
    try:
        rows = read(path, line_limit=2**20)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert texts(rows) == [b"1", None, b"2"]
    assert peak < 10 * 2**20


# Several inputs


def test_rows_are_counted_over_all_files_and_lines_per_file(write, tmp_path):
    paths = [
        write("b.jsonl", b"1\n\n2\n"),
        write("empty.jsonl", b""),
        write("a.json", b"[3,\n4]"),
        write("c.jsonl.gz", gz(b"\n5\n")),
        write_table(tmp_path / "d.parquet", messages=["6", "7"]),
        write("e.jsonl.zst", compress_zst(b"8")),
    ]
    splits = list(read_splits(describe_input(path.name, path) for path in paths))
    rows = [row for split in splits for row in split.rows()]
    assert origins(rows) == [
        *[("b.jsonl", 1), ("b.jsonl", 3), ("a.json", 1), ("a.json", 2), ("c.jsonl.gz", 2)],
        *[("d.parquet", 1), ("d.parquet", 2), ("e.jsonl.zst", 1)],
    ]
    assert [split.key for split in splits] == ["0000000.0000"]


def test_a_file_named_twice_is_read_twice(write):
    path = write("a.jsonl", b"1\n")
    assert origins(read(path, path)) == [("a.jsonl", 1)] * 2


def test_standard_input_is_read_as_lines(write):
    spooled = describe_input("-", write("spooled", b"1\n\n2\n"))
    [split] = read_splits([spooled])
    assert [(row.file, row.line, row.text) for row in split.rows()] == [
        ("-", 1, b"1"),
        ("-", 3, b"2"),
    ]


def test_inputs_keep_the_order_in_which_they_are_named(write):
    b, a = write("b.jsonl", b""), write("a.parquet", b"")
    assert find_inputs([str(b), "-", str(a)]) == [str(b), "-", str(a)]
    assert find_inputs([]) == []


def test_a_folder_gives_all_input_files_below_it_sorted(write, tmp_path):
    names = ["b.jsonl", "a.json", "deep/er/c.parquet", "deep/z.jsonl.gz", "C.JSONL", "e.jsonl.zst"]
    for name in [*names, "README.md", "rows.csv", "jsonl", "deep/rows.txt", "x.jsonl.bz2"]:
        write(name, b"")
    (tmp_path / "folder.jsonl").mkdir()
    assert find_inputs([str(tmp_path)]) == sorted(str(tmp_path / name) for name in names)


def test_a_pattern_gives_the_matching_input_files_sorted(write, tmp_path):
    for name in [
        "part-2.jsonl",
        "part-1.jsonl",
        "part-1.txt",
        "deep/er/part-3.jsonl",
        "other.jsonl",
    ]:
        write(name, b"")
    (tmp_path / "part-0.jsonl").mkdir()

    def found(pattern):
        return [
            name.removeprefix(f"{tmp_path}/") for name in find_inputs([f"{tmp_path}/{pattern}"])
        ]

    assert found("part-*") == ["part-1.jsonl", "part-2.jsonl"]
    assert found("part-[2-9].jsonl") == ["part-2.jsonl"]
    assert found("**/part-*") == ["deep/er/part-3.jsonl", "part-1.jsonl", "part-2.jsonl"]


def test_an_existing_file_whose_name_looks_like_a_pattern_is_read(write):
    path = write("rows[1].jsonl", b"")
    write("rows1.jsonl", b"")
    assert find_inputs([str(path)]) == [str(path)]


# Inputs that can't be found


def test_a_missing_file_is_refused(tmp_path):
    assert "no such file" in refusal(tmp_path / "missing.jsonl")


def test_a_folder_without_inputs_is_refused(write, tmp_path):
    write("folder/README.md", b"")
    message = refusal(tmp_path / "folder")
    assert message.endswith(f"the folder holds no input; mtpack reads {KINDS}")


def test_a_pattern_that_matches_no_input_is_refused(write, tmp_path):
    write("a.txt", b"")
    assert "pattern" in refusal(tmp_path / "*.jsonl")
    assert "pattern" in refusal(tmp_path / "a.*")


KINDS = ".jsonl, .ndjson, .json (also with .gz or .zst), .parquet, .arrow, .feather"


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl.bz2", "a.parquet.gz", "jsonl", "a.gz"])
def test_an_unknown_kind_of_file_is_refused(write, name):
    path = write(name, b"1\n")
    assert refusal(path) == (
        f"{path}: unknown kind of file; mtpack reads {KINDS} and - (JSONL from standard input)"
    )


def test_standard_input_can_be_given_only_once():
    assert "once" in refusal("-", "-")


# Files that can't be read


def many_lines() -> bytes:
    source = random.Random(0)
    return b"".join(b'"%s"\n' % source.randbytes(20).hex().encode() for _ in range(2000))


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
@pytest.mark.parametrize("share", [0.0001, 0.01, 0.5, 0.999])
def test_a_truncated_compressed_file_fails(write, suffix, share):
    whole = PACK[suffix]([many_lines()])
    failure(write(f"a{suffix}", whole[: max(1, int(len(whole) * share))]))


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
def test_a_compressed_file_with_a_truncated_last_member_fails(write, suffix):
    whole = PACK[suffix]([many_lines(), many_lines()])
    failure(write(f"a{suffix}", whole[:-1]))


@pytest.mark.parametrize("where", [0, 2, 0.25, 0.5, 0.75, -6, -2])
def test_a_gzip_file_with_one_damaged_byte_fails(write, where):
    damaged = bytearray(gz(many_lines()))
    damaged[int(len(damaged) * where) if isinstance(where, float) else where] ^= 255
    failure(write("a.jsonl.gz", bytes(damaged)))


def test_a_gzip_file_with_an_unknown_block_type_fails(write):
    damaged = bytearray(gz(many_lines()))
    damaged[10] |= 0b110  # the first byte after the header
    failure(write("a.jsonl.gz", bytes(damaged)))


def test_a_damaged_zstd_frame_fails(write):
    whole = compress_zst(many_lines())
    failure(write("a.jsonl.zst", whole[:1000] + whole[1100:]))


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_a_file_whose_content_does_not_match_its_suffix_fails(write, suffix):
    failure(write(f"a{suffix}", many_lines()))
    failure(write(f"b{suffix}", b"{}"))


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
def test_garbage_after_the_last_member_fails(write, suffix):
    failure(write(f"a{suffix}", PACK[suffix]([b"1\n"]) + b"garbage"))


@pytest.mark.parametrize(
    ("content", "line", "what"),
    [
        (b"[1, 2]\n\n, 3", 3, "after the end"),
        (b'[1,\n2,\n{"a":\n\n nope}]', 5, "not valid JSON"),
        (b'[1,\n"cut off', 2, "not valid JSON"),
        (b"[1,\n2,\n]", 3, "not valid JSON"),
        (b"[\n,1]", 2, "not valid JSON"),
        (b"[1\n2]", 2, "expected a comma"),
        (b"[1,\r\n2", 2, "expected a comma"),
        (b'[1,\n"\xff"]', 2, "not UTF-8"),
        ("[1]".encode("utf-16"), 1, "not UTF-8"),
        (b"[\n" + b"[" * 100_000, 2, "nested"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_an_invalid_json_list_is_refused_with_the_line(write, content, line, what):
    message = failure(write("a.json", content))
    assert message.startswith(f"a.json line {line}: ")
    assert what in message


def test_a_damaged_table_fails(tmp_path):
    whole = write_table(tmp_path / "a.parquet", messages=["x" * 1000]).read_bytes()
    for number, content in enumerate([b"", whole[:-10], whole[:20] + whole[40:], whole[4:]]):
        path = tmp_path / f"{number}.parquet"
        path.write_bytes(content)
        failure(path)


def test_bytes_in_a_table_are_refused_with_their_row(tmp_path):
    path = write_table(
        tmp_path / "a.parquet",
        messages=pa.array(
            [[{"content": None}], [{"content": b"Hello"}]],
            pa.list_(pa.struct({"content": pa.binary()})),
        ),
    )
    message = failure(path)
    assert message.startswith("a.parquet row 2: ")
    assert "bytes" in message


def test_text_in_a_table_that_is_not_utf8_fails(tmp_path):
    broken = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")]
    )
    failure(write_table(tmp_path / "a.parquet", messages=broken))


def test_a_missing_file_or_a_folder_fails(tmp_path):
    failure(tmp_path / "gone.jsonl")
    failure(tmp_path)


def test_an_input_is_described_by_its_size_and_time(write):
    content = many_lines()
    path = write("a.jsonl", content)
    modified = path.stat().st_mtime_ns
    expected = InputFile("its name", str(path), len(content), modified)
    assert describe_input("its name", path) == expected


# Splits


def lines_of_all_lengths() -> list[bytes]:
    source = random.Random(0)
    return [b"%d" % 10 ** source.randrange(120) for _ in range(60)]


@pytest.mark.parametrize("split_bytes", [1, 100, 1000, 10**6])
def test_splits_of_a_compressed_file_have_the_requested_size(write, monkeypatch, split_bytes):
    monkeypatch.setattr(reading, "SPLIT_BYTES", split_bytes)
    lines = lines_of_all_lengths()
    path = write("a.jsonl.gz", gz(b"\n".join(lines)))
    splits = list(read_splits([describe_input(path.name, path)]))
    found = [texts(split.rows()) for split in splits]
    assert [text for rows in found for text in rows] == lines
    assert [split.key for split in splits] == [f"0000000.{n:04d}" for n in range(len(splits))]
    assert all(sum(map(len, rows[:-1])) < split_bytes for rows in found)
    assert all(sum(map(len, rows)) >= split_bytes for rows in found[:-1])


def test_rows_above_the_limit_are_in_splits_too(write, monkeypatch):
    monkeypatch.setattr(reading, "SPLIT_BYTES", 2)
    path = write("a.jsonl.gz", gz(b"1\n" + b"x" * 50 + b"\n2\n" + b"y" * 50))
    splits = read_splits([describe_input(path.name, path)], ReadOptions(line_limit=10))
    assert [texts(split.rows()) for split in splits] == [[b"1", None, b"2"], [None]]


def test_rows_before_an_error_are_yielded_before_it(write, monkeypatch):
    monkeypatch.setattr(reading, "SPLIT_BYTES", 1)
    splits = read_splits([describe_input("a.json", write("a.json", b"[1,\n2,\nnope]"))])
    assert [texts(next(splits).rows()), texts(next(splits).rows())] == [[b"1"], [b"2"]]
    with pytest.raises(InputError, match=r"a\.json line 3"):
        next(splits)
