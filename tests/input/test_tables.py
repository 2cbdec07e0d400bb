"""Rows of Parquet and Arrow files are those of their JSON twins; what differs is counted."""

import datetime
import json
from decimal import Decimal

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from mtpack.errors import InputError
from mtpack.input.files import describe_input
from mtpack.input.reading import ReadOptions, read_splits
from tests.conftest import shared

MESSAGES = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Yes?"}]
TEXT_MESSAGES = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))


def write_stream(table: pa.Table, path) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def write_file(table: pa.Table, path) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


KINDS = {
    "a.parquet": pa.parquet.write_table,
    "stream.arrow": write_stream,
    "file.arrow": write_file,
    "a.feather": pa.feather.write_feather,
}
every_kind = pytest.mark.parametrize("name", KINDS)


@pytest.fixture
def write(tmp_path):
    def write_table(name: str, table: pa.Table):
        KINDS[name](table, tmp_path / name)
        return tmp_path / name

    return write_table


def splits_of(path, **more):
    return list(read_splits([describe_input(path.name, path)], ReadOptions(**more)))


def read(path, **more):
    """Return the value of each row."""
    return [json.loads(row.text) for split in splits_of(path, **more) for row in split.rows()]


def count_dropped_nulls(path) -> int:
    return sum(split.count_dropped_nulls() for split in splits_of(path))


def failure(path) -> str:
    with pytest.raises(InputError) as caught:
        read(path)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# Rows


@every_kind
def test_every_row_is_read_in_order_with_its_number(write, name):
    table = pa.table({"messages": [str(number) for number in range(701)]})
    [split] = splits_of(write(name, table))
    rows = [(row.file, row.line, json.loads(row.text)) for row in split.rows()]
    assert rows == [(name, number + 1, {"messages": str(number)}) for number in range(701)]


@every_kind
@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int32(), pa.string()),
    ],
    ids=str,
)
def test_text_is_read_from_every_arrow_type_of_text(write, name, kind):
    texts = pa.array(["[1]", None, "[2]"]).cast(kind)
    rows = read(write(name, pa.table({"messages": texts})))
    assert rows == [{"messages": "[1]"}, {}, {"messages": "[2]"}]


@every_kind
@pytest.mark.parametrize(
    "list_of",
    [
        pa.list_,
        pa.large_list,
        pa.list_view,
        pa.large_list_view,
        lambda kind: pa.list_(kind, 2),
    ],
    ids=["list", "large_list", "list_view", "large_list_view", "fixed_size_list"],
)
def test_messages_are_read_from_every_arrow_type_of_list(write, name, list_of):
    column = pa.array([MESSAGES, MESSAGES[::-1]], list_of(TEXT_MESSAGES.value_type))
    rows = read(write(name, pa.table({"messages": column})))
    assert rows == [{"messages": MESSAGES}, {"messages": MESSAGES[::-1]}]


@every_kind
def test_a_map_is_an_object_with_the_keys_that_are_there(write, name):
    arguments = pa.map_(pa.string(), pa.struct({"x": pa.int32(), "y": pa.int32()}))
    kind = pa.list_(pa.struct({"role": pa.string(), "arguments": arguments}))
    column = pa.array([[{"role": "a", "arguments": [("p", {"x": 1}), ("q", None)]}]], kind)
    path = write(name, pa.table({"messages": column}))
    [row] = read(path)
    assert row["messages"][0]["arguments"] == {"p": {"x": 1}, "q": None}
    assert count_dropped_nulls(path) == 1  # y


@every_kind
def test_a_row_larger_than_the_limit_has_no_text(write, name):
    path = write(name, pa.table({"messages": ["short", "x" * 100], "day": [1, 2]}))
    [split] = splits_of(path, line_limit=50)
    assert [row.text for row in split.rows()] == [b'{"messages":"short","day":true}', None]


# JSON text


def json_array(values) -> pa.Array:
    texts = [None if value is None else json.dumps(value) for value in values]
    return pa.ExtensionArray.from_storage(pa.json_(), pa.array(texts, pa.string()))


@every_kind
def test_the_values_of_json_columns_are_json_at_any_depth(write, name):
    calls = [{"name": "f", "arguments": {"a": None, "b": 1e300, "c": 2**70}}]
    values = [{"role": "user", "content": "é"}, {"role": "assistant", "tool_calls": calls}]
    messages = pa.ListArray.from_arrays(pa.array([0, 2, 2], pa.int32()), json_array(values))
    deep = pa.StructArray.from_arrays([json_array([{"k": [1]}, None])], names=["value"])
    path = write(
        name, pa.table({"messages": messages, "tools": json_array([[], None]), "input": deep})
    )
    assert read(path) == [
        {"messages": values, "tools": [], "input": {"value": {"k": [1]}}},
        {"messages": [], "input": {}},
    ]
    assert count_dropped_nulls(path) == 0  # their nulls are kept


def test_json_text_in_a_column_of_texts_stays_text(write):
    path = write("a.parquet", pa.table({"messages": [json.dumps(MESSAGES)], "tools": ["[]"]}))
    assert read(path) == [{"messages": json.dumps(MESSAGES), "tools": "[]"}]


@every_kind
@pytest.mark.parametrize("text", ["", "{", "1, 2", "NaN"])
def test_a_json_column_that_holds_other_text_is_refused_with_the_row(write, name, text):
    column = pa.ExtensionArray.from_storage(pa.json_(), pa.array(["1", text]))
    path = write(name, pa.table({"messages": column}))
    assert failure(path) == f"{name} row 2: a value of a JSON column is not valid JSON"


def test_json_columns_of_datasets_are_read_as_their_values():
    path = shared("data/cases/json_msgs.parquet")
    first, second = read(path)
    assert first["messages"][0] == {"role": "user", "content": "weather in Rome?"}
    assert first["messages"][1]["tool_calls"][0]["function"]["name"] == "get_weather"
    assert second["tools"][0]["function"]["parameters"]["properties"]["seconds"]["enum"] == [1, 2]
    assert count_dropped_nulls(path) == 0


# Columns that no format reads


@every_kind
def test_columns_that_no_format_reads_are_true_where_they_have_a_value(write, name):
    table = pa.table(
        {
            "picture": pa.array([b"\xff", b"\xff", None]),
            "messages": ["x", "y", None],
            "source": ["a", "b", "c"],
            "meta": pa.array([{"path": None}, None, None], pa.struct({"path": pa.string()})),
            "tags": pa.array([[], ["t"], None], pa.list_(pa.string())),
            "nothing": pa.nulls(3),
        }
    )
    assert read(write(name, table)) == [
        {"messages": "x", "source": True, "picture": True, "meta": True, "tags": True},
        {"messages": "y", "source": True, "picture": True, "tags": True},
        {"source": True},
    ]


def test_columns_that_no_format_reads_do_not_change_the_cuts(tmp_path, monkeypatch):
    monkeypatch.setattr("mtpack.input.reading.SPLIT_BYTES", 100)
    rows = [{"messages": str(10**number)} for number in range(60)]
    marked = [{**row, "day": 1} if number % 7 else row for number, row in enumerate(rows)]
    path = tmp_path / "a.parquet"
    cuts = []
    for table in (rows[1:], marked[1:]):
        pa.parquet.write_table(pa.Table.from_pylist(table), path)
        cuts.append([split.digest().num_rows for split in splits_of(path)])
    assert cuts[0] == cuts[1]
    assert len(cuts[0]) > 10
    assert ["day" in row for row in read(path)] == ["day" in row for row in marked[1:]]


@every_kind
def test_a_column_that_no_format_reads_is_not_decoded(write, name):
    broken = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")]
    )
    assert read(write(name, pa.table({"messages": ["x"], "name": broken}))) == [
        {"messages": "x", "name": True}
    ]


def test_only_the_smallest_leaf_of_a_column_with_nulls_is_read(write):
    pictures = [{"bytes": b"x" * 10_000, "path": "p"}, {"bytes": b"y", "path": None}, None]
    path = write("a.parquet", pa.table({"messages": ["x"] * 3, "picture": pictures}))
    with pa.parquet.ParquetFile(path) as file:
        chunks = [file.metadata.row_group(0).column(number) for number in range(3)]
    [largest] = [chunk for chunk in chunks if chunk.path_in_schema == "picture.bytes"]
    with open(path, "r+b") as damaged:
        damaged.seek(largest.dictionary_page_offset)
        damaged.write(b"\xff" * largest.total_compressed_size)
    assert [row.get("picture") for row in read(path)] == [True, True, None]


@every_kind
def test_more_columns_are_read_on_request(write, name):
    table = pa.table({"chat": [{"turns": MESSAGES}], "source": ["a"]})
    path = write(name, table)
    assert read(path) == [{"chat": True, "source": True}]
    assert read(path, more_columns=["chat"]) == [{"chat": {"turns": MESSAGES}, "source": True}]


# Nulls


def call_of(arguments):
    return [
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
    ]


@every_kind
def test_nulls_dropped_from_arguments_results_and_tools_are_counted_by_row(write, name):
    messages = [
        call_of({"city": "Rome", "seconds": None}),
        call_of({"city": "Rome", "seconds": 3}),
        call_of(None),
        None,
        None,
    ]
    tools = [
        None,
        None,
        [{"name": "f", "parameters": {"a": "x", "b": "y"}}],
        [{"name": "f", "parameters": {"a": "x", "b": None}}],
        None,
    ]
    prompt = [None, None, None, None, [{"role": "tool", "content": {"wind": None, "sun": 1}}]]
    path = write(name, pa.table({"messages": messages, "tools": tools, "prompt": prompt}))
    assert count_dropped_nulls(path) == 3
    assert read(path)[0] == {"messages": call_of({"city": "Rome"})}


@every_kind
def test_nulls_that_mean_nothing_are_not_counted(write, name):
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "Hi.", "image": None}], "name": None},
        {"role": "assistant", "content": None, "tool_calls": None},
        {
            "role": "assistant",
            "content": [],
            "tool_calls": [{"id": None, "function": {"name": "f"}}],
        },
    ]
    assert count_dropped_nulls(write(name, pa.table({"messages": [messages]}))) == 0


def test_the_digest_of_a_split_has_its_dropped_nulls(write):
    kind = pa.list_(pa.struct({"a": pa.int8(), "b": pa.int8()}))
    [with_null] = splits_of(write("a.parquet", pa.table({"tools": pa.array([[{"a": 1}]], kind)})))
    [without] = splits_of(write("a.parquet", pa.table({"tools": [[{"a": 1}]]})))
    assert [row.text for row in with_null.rows()] == [row.text for row in without.rows()]
    assert with_null.digest() != without.digest()


# What is refused


def messages_with(value, kind) -> pa.Table:
    kind = pa.list_(pa.struct({"content": kind}))
    return pa.table({"messages": pa.array([[{"content": None}], [{"content": value}]], kind)})


NOT_JSON = "Type is not JSON serializable"


@every_kind
@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (b"x", pa.binary(), f"row 2: {NOT_JSON}: bytes"),
        (b"x", pa.large_binary(), f"row 2: {NOT_JSON}: bytes"),
        (Decimal("1.5"), pa.decimal128(5, 2), f"row 2: {NOT_JSON}: decimal.Decimal"),
        (datetime.timedelta(1), pa.duration("s"), f"row 2: {NOT_JSON}: datetime.timedelta"),
        (float("nan"), pa.float64(), "row 2: NaN or an infinity; JSON has neither"),
        ([(1, 2)], pa.map_(pa.int8(), pa.int8()), "row 2: Dict key must be str"),
        (
            [("k", 2), ("k", 3)],
            pa.map_(pa.string(), pa.int8()),
            "row 2: a map has the same key twice",
        ),
    ],
    ids=lambda value: str(value)[:20],
)
def test_values_that_json_lacks_are_refused_with_the_row(write, name, value, kind, message):
    assert failure(write(name, messages_with(value, kind))) == f"{name} {message}"


@every_kind
def test_times_are_read_as_text_in_the_iso_format(write, name):
    table = messages_with(datetime.datetime(2026, 1, 2, 3), pa.timestamp("us"))
    assert read(write(name, table))[1] == {"messages": [{"content": "2026-01-02T03:00:00"}]}


def test_structs_with_two_fields_of_one_name_are_refused(write):
    column = pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    assert failure(write("stream.arrow", pa.table({"messages": column}))) == (
        'stream.arrow rows 1 to 1: the column "messages" has values that JSON has no form for; '
        "write it as text"
    )


@every_kind
def test_rows_of_tokens_are_refused(write, name):
    assert failure(write(name, pa.table({"input_ids": [[1, 2]], "labels": [[1, 2]]}))) == (
        f'{name}: its rows are tokens ("input_ids"), not dialogues; give the files of dialogues '
        "that it was made from"
    )


def test_two_columns_of_one_name_are_refused_only_if_they_are_read(write):
    table = pa.Table.from_arrays([pa.array(["x"])] * 2, names=["messages", "messages"])
    for name in ("a.parquet", "stream.arrow", "file.arrow"):
        assert failure(write(name, table)) == f"{name}: two columns have the same name; remove one"
    table = pa.Table.from_arrays([pa.array(["x"])] * 3, names=["messages", "day", "day"])
    for name in ("a.parquet", "stream.arrow", "file.arrow"):
        assert read(write(name, table)) == [{"messages": "x", "day": True}]


def test_an_arrow_stream_that_ends_early_is_refused_even_between_batches(write):
    path = write("stream.arrow", pa.table({"messages": ["x"] * 9}))
    whole = path.read_bytes()
    for length in (0, 4, len(whole) // 2, len(whole) - 8, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert failure(path) == (
            "stream.arrow: no Arrow file, or truncated: the mark at the end is missing; "
            "restore the file and run again"
        )


def test_an_arrow_file_that_ends_early_is_refused(write):
    path = write("file.arrow", pa.table({"messages": ["x"] * 9}))
    whole = path.read_bytes()
    for length in (8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert failure(path).startswith("file.arrow: can't be read (")


@pytest.mark.parametrize("name", ["stream.arrow", "file.arrow"])
@pytest.mark.parametrize("offsets", [[0, 99, 1], [0, -5, 1]], ids=str)
def test_offsets_out_of_bounds_are_refused(write, name, offsets):
    starts = pa.py_buffer(pa.array(offsets, pa.int32()).buffers()[1])
    broken = pa.Array.from_buffers(pa.string(), 2, [None, starts, pa.py_buffer(b"x")])
    assert failure(write(name, pa.table({"messages": broken}))).startswith(
        f"{name}: can't be read ("
    )


@pytest.mark.parametrize("name", ["stream.arrow", "file.arrow"])
def test_a_batch_of_endless_nulls_is_refused(tmp_path, name):
    new_writer = pa.ipc.new_stream if name == "stream.arrow" else pa.ipc.new_file
    batch = pa.record_batch({"messages": pa.nulls(12_345_678)})
    path = tmp_path / name
    with new_writer(path, batch.schema) as writer:
        writer.write_batch(batch)
    before, after = (number.to_bytes(8, "little") for number in (12_345_678, 2**50))
    path.write_bytes(path.read_bytes().replace(before, after))
    assert failure(path) == f"{name}: a record batch of 1,125,899,906,842,624 rows"


def test_text_that_is_not_utf8_is_refused(write):
    starts = pa.py_buffer(b"\0\0\0\0\1\0\0\0")
    broken = pa.Array.from_buffers(pa.string(), 1, [None, starts, pa.py_buffer(b"\xff")])
    for name in KINDS:
        message = failure(write(name, pa.table({"messages": broken})))
        assert message.startswith(f"{name}: can't be read (")


def test_the_first_version_of_feather_is_refused(tmp_path):
    (tmp_path / "a.feather").write_bytes(b"FEA1\0\0\0\0")
    assert failure(tmp_path / "a.feather") == (
        "a.feather: Feather version 1, which is no Arrow file; write it as version 2"
    )


def test_a_file_that_is_no_table_is_refused(tmp_path):
    for name in KINDS:
        (tmp_path / name).write_bytes(b'{"messages": []}\n')
        assert failure(tmp_path / name).startswith(f"{name}: ")
