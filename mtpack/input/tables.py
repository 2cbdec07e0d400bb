"""Reads the rows of tables, Parquet and Arrow files, as JSON text.

Files are mapped into memory, so that only what is decoded takes memory. A file that becomes shorter
meanwhile ends the process, and so may a damaged one: a run reads tables in a process of their own
(`running/table_process.py`).

Only the columns that a format reads are decoded. Of the others, a row's note says which have a
value, so that none of them is left out in silence.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import repeat
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
import pyarrow as pa

from mtpack.errors import InputError
from mtpack.input.files import InputFile, choose_buffer_size, open_table, wrap_read_errors
from mtpack.input.row_batches import ReadPosition, batch_rows
from mtpack.input.row_errors import quote_name
from mtpack.input.row_formats import detect_format
from mtpack.input.splits import RowsInMemory, TableNote
from mtpack.input.table_values import DroppedNulls, make_converter

if TYPE_CHECKING:
    import pyarrow.parquet

_ROWS_AT_ONCE = 256
_MAX_BATCH_ROWS = 2**31
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
_TOKENS = "input_ids"


class _Columns(NamedTuple):
    """The columns of a table, by what is done with them."""

    read: list[str]
    never_read: list[str]


class TablePart(NamedTuple):
    """Consecutive row groups of a Parquet file."""

    row_groups: range
    first_row: int
    """The number of rows before it."""
    format: str | None
    """The format of its rows; None if it is to be detected, or no row up to its last fits one."""
    num_bytes: int
    """Its share of the bytes of the file."""


_Rows = Iterator[tuple[int, bytes, TableNote]]


def is_table(file: InputFile) -> bool:
    """Return whether a file is a table, by its name."""
    return file.kind.content in _READERS


def read_table(
    file: InputFile, line_limit: int, columns: Collection[str], part: TablePart | None = None
) -> Iterator[RowsInMemory]:
    """Yield the rows of a Parquet file, or of an Arrow IPC file or stream, in batches.

    columns: those to read. part: of a Parquet file, the part to read. Raises InputError.
    """
    position = ReadPosition()
    rows = _READERS[file.kind.content](file, line_limit, columns, part, position)
    return batch_rows(file.name, rows, line_limit, position)


def cut_table(
    file: InputFile,
    part_bytes: int,
    line_limit: int,
    columns: Collection[str],
    row_format: str | None,
) -> Iterator[list[TablePart]]:
    """Yield the parts of a Parquet file: row groups of `part_bytes` together, as they decode.

    A larger row group is a part of its own. row_format: that of all rows; None: that of the first
    row that fits one, which is then known of the parts after that row. Yields empty lists before,
    while it looks for that row. Raises InputError.
    """
    with _open_parquet(file) as table:
        parts = _cut_row_groups(table.metadata, part_bytes, row_format, file.num_bytes)
    if row_format is None and len(parts) > 1:
        for rows in read_table(file, line_limit, columns):
            for row in range(len(rows)):
                if (detected := detect_format(rows.text(row))) is not None:
                    line = rows.lines[row]
                    yield [
                        part._replace(format=detected) if part.first_row >= line else part
                        for part in parts
                    ]
                    return
            yield []
    yield parts


def _cut_row_groups(
    metadata: pa.parquet.FileMetaData, part_bytes: int, row_format: str | None, file_bytes: int
) -> list[TablePart]:
    num_groups = metadata.num_row_groups
    groups = [metadata.row_group(number) for number in range(num_groups)]
    sizes = [int(max(0, group.total_byte_size)) for group in groups]
    share = file_bytes / max(1, sum(sizes))
    parts: list[TablePart] = []
    first = first_row = num_rows = num_bytes = 0
    for number, (group, size) in enumerate(zip(groups, sizes, strict=True)):
        if number > first and num_bytes + size > part_bytes:
            rows = range(first, number)
            parts.append(TablePart(rows, first_row, row_format, int(num_bytes * share)))
            first, first_row, num_bytes = number, num_rows, 0
        num_bytes += size
        num_rows += int(max(0, group.num_rows))
    rest = int(num_bytes * share)
    return [*parts, TablePart(range(first, num_groups), first_row, row_format, rest)]


@contextmanager
def _open_parquet(file: InputFile) -> Iterator[pa.parquet.ParquetFile]:
    """Open a Parquet file; errors in the block become an InputError."""
    from pyarrow.parquet import ParquetFile  # takes 15 ms, and few runs need it

    with (
        wrap_read_errors(file.name),
        open_table(file.path) as source,
        ParquetFile(source, buffer_size=choose_buffer_size(file.path)) as table,
    ):
        yield table


def _read_parquet_rows(
    file: InputFile,
    line_limit: int,
    columns: Collection[str],
    part: TablePart | None,
    position: ReadPosition,
) -> _Rows:
    with _open_parquet(file) as table:
        chosen = _choose_columns(file.name, table.schema_arrow, columns)
        always, leaves = _look_at_statistics(table, chosen.never_read)
        wanted = [*chosen.read, *leaves.values()]
        whole = TablePart(range(table.num_row_groups), 0, None, file.num_bytes)
        chosen_part = part or whole
        row_groups = list(chosen_part.row_groups)
        groups = [table.metadata.row_group(number) for number in row_groups]
        num_rows, all_rows = 0, sum(max(0, group.num_rows) for group in groups)
        first_row = chosen_part.first_row
        writer = _RowWriter(file.name, table.schema_arrow, chosen.read, first_row)
        rows_at_once = _choose_rows_at_once(table.metadata, line_limit)
        for batch in table.iter_batches(rows_at_once, row_groups=row_groups, columns=wanted):
            num_rows += batch.num_rows
            position.num_bytes = chosen_part.num_bytes * num_rows // max(1, all_rows)
            yield from writer.write(batch, always, list(leaves))


def _choose_rows_at_once(metadata: pa.parquet.FileMetaData, num_bytes: int) -> int:
    """Return how many rows are decoded at once: about `num_bytes`, if the file says the truth."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    decoded = sum(int(max(0, group.total_byte_size)) for group in groups)
    fitting = num_bytes * int(max(0, metadata.num_rows)) // max(1, decoded)
    return max(1, min(_ROWS_AT_ONCE, fitting))


def _look_at_statistics(
    table: pa.parquet.ParquetFile, names: list[str]
) -> tuple[list[str], dict[str, str]]:
    """Return the columns that have a value in every row, and the smallest leaf of each other.

    A leaf without nulls has a value in every row, and so has the column above it. The statistics
    say no more, since an empty list counts as a null too. For the others, a leaf is enough to know
    where the column has a value.
    """
    metadata, always, leaves = table.metadata, [], {}
    paths = [metadata.schema.column(index).path for index in range(metadata.num_columns)]
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    for name in names:
        inside = [
            index for index, path in enumerate(paths) if path == name or path.startswith(f"{name}.")
        ]
        chunks = {index: [group.column(index) for group in groups] for index in inside}
        if any(all(map(_has_no_null, chunks[index])) for index in inside):
            always.append(name)
        elif inside:
            sizes = {
                index: sum(chunk.total_compressed_size for chunk in chunks[index])
                for index in inside
            }
            leaves[name] = paths[min(inside, key=lambda index: sizes[index])]
    return always, leaves


def _has_no_null(chunk: Any) -> bool:
    statistics = chunk.statistics
    return statistics is not None and statistics.has_null_count and not statistics.null_count


def _read_arrow_rows(
    file: InputFile,
    line_limit: int,
    columns: Collection[str],
    part: TablePart | None,
    position: ReadPosition,
) -> _Rows:
    assert part is None
    with wrap_read_errors(file.name):
        with _open_arrow(file, None) as (schema, _):
            chosen = _choose_columns(file.name, schema, columns)
        names = [*chosen.read, *chosen.never_read]
        included = sorted(schema.names.index(name) for name in names)
        writer = _RowWriter(file.name, schema, chosen.read)
        with _open_arrow(file, included) as (_, batches):
            for batch, position.num_bytes in batches:
                if batch.num_rows > _MAX_BATCH_ROWS:  # nulls alone take no space
                    raise InputError(f"{file.name}: a record batch of {batch.num_rows:,} rows")
                for name in chosen.read:  # offsets out of bounds would crash a reader
                    _column(batch, name).validate(full=True)
                for name in chosen.never_read:
                    _column(batch, name).validate()
                for start in range(0, batch.num_rows, _ROWS_AT_ONCE):
                    rows = batch.slice(start, _ROWS_AT_ONCE)
                    yield from writer.write(rows, [], chosen.never_read)


@contextmanager
def _open_arrow(
    file: InputFile, included: list[int] | None
) -> Iterator[tuple[pa.Schema, Iterator[tuple[pa.RecordBatch, int]]]]:
    """Open a file in either of Arrow's IPC formats; included: the indices of columns to read.

    Provides the schema, and the record batches, each with the bytes of the file up to its end.
    """
    options = pa.ipc.IpcReadOptions(included_fields=included)
    with open_table(file.path) as source:
        magic = source.read(len(_END_OF_STREAM))
        if magic.startswith(b"FEA1"):
            raise InputError(
                f"{file.name}: Feather version 1, which is no Arrow file; write it as version 2"
            )
        if magic.startswith(b"ARROW1"):
            reader = pa.ipc.open_file(source, options=options)
            num_batches = reader.num_record_batches
            ends = (file.num_bytes * (number + 1) // num_batches for number in range(num_batches))
            yield reader.schema, zip(map(reader.get_batch, range(num_batches)), ends, strict=True)
            return
        source.seek(max(0, source.size() - len(_END_OF_STREAM)))
        if source.read(len(_END_OF_STREAM)) != _END_OF_STREAM:  # readers take this for the end
            raise InputError(
                f"{file.name}: no Arrow file, or truncated: the mark at the end is missing; "
                "restore the file and run again"
            )
        source.seek(0)
        stream = pa.ipc.open_stream(source, options=options)
        yield stream.schema, ((batch, source.tell()) for batch in stream)


def _choose_columns(name: str, schema: pa.Schema, columns: Collection[str]) -> _Columns:
    """Choose the columns to read; raise InputError if two have one name, or rows are tokens."""
    read = [column for column in schema.names if column in columns]
    if len(set(read)) < len(read):
        raise InputError(f"{name}: two columns have the same name; remove one")
    if not read and _TOKENS in schema.names:
        raise InputError(
            f'{name}: its rows are tokens ("{_TOKENS}"), not dialogues; give the files of '
            "dialogues that it was made from"
        )
    return _Columns(read, [column for column in dict.fromkeys(schema.names) if column not in read])


def _column(batch: pa.RecordBatch, name: str) -> pa.Array:
    """Return the first column with a name; columns that are never read may share one."""
    return batch.column(batch.schema.names.index(name))


class _RowWriter:
    """Writes the rows of a table as JSON text."""

    def __init__(
        self, name: str, schema: pa.Schema, columns: list[str], first_row: int = 0
    ) -> None:
        """Begin with the row of that index; name: of the file, columns: those to write."""
        self._name = name
        self._row = first_row
        self._nulls = DroppedNulls()
        fields = {column: schema.field(schema.names.index(column)) for column in columns}
        self._converters = {
            column: make_converter(field, self._nulls) for column, field in fields.items()
        }

    def write(self, batch: pa.RecordBatch, always: list[str], sometimes: list[str]) -> _Rows:
        """Yield row number, JSON text and note of each row of a batch.

        always, sometimes: the columns that are never read, those with a value in every row and
        others. In Arrow, all structs of a column have the same fields, so a missing field is stored
        as null: null fields are read as missing, as in TRL.
        """
        values = [self._list_values(batch, name) for name in self._converters]
        rows = zip(*values, strict=True) if values else repeat((), batch.num_rows)
        found = [_column(batch, name).is_valid().to_pylist() for name in sometimes]
        notes: dict[TableNote, TableNote] = {}  # most are equal, and a split is sent with each once
        for index, row in enumerate(rows):
            self._row += 1
            self._nulls.found = False
            try:
                # A copy: a text of orjson keeps the kilobyte that it was written into.
                text = bytes(memoryview(orjson.dumps(self._convert(row))))
            except (TypeError, RecursionError) as error:
                raise InputError(f"{self._name} row {self._row}: {error}") from error
            present = [name for name, has in zip(sometimes, found, strict=True) if has[index]]
            note = TableNote((*always, *present), self._nulls.found)
            yield self._row, text, notes.setdefault(note, note)

    def _list_values(self, batch: pa.RecordBatch, name: str) -> list[Any]:
        try:
            values: list[Any] = _column(batch, name).to_pylist()
        except (pa.ArrowException, UnicodeDecodeError):  # damaged
            raise
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            first, last = self._row + 1, self._row + batch.num_rows
            raise InputError(
                f"{self._name} rows {first} to {last}: the column {quote_name(name)} has values "
                "that JSON has no form for; write it as text"
            ) from error
        return values

    def _convert(self, row: tuple[Any, ...]) -> dict[str, Any]:
        return {
            name: convert(value) if convert else value
            for (name, convert), value in zip(self._converters.items(), row, strict=True)
            if value is not None
        }


_READERS = {"parquet": _read_parquet_rows, "arrow": _read_arrow_rows}
