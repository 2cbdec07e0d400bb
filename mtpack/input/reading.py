"""Cuts files into splits: every non-blank line, list element or table row, with file and line.

Rows are parsed in `rows.py`; here, only the first rows of a file are parsed, to detect the format
of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial

from mtpack.input.files import InputFile, check_unchanged
from mtpack.input.json_text import read_text
from mtpack.input.row_formats import ROW_KEYS, detect_format
from mtpack.input.splits import Piece, RowBatch, RowsInMemory, Split
from mtpack.input.tables import is_table, read_table

AUTO = "auto"
LINE_LIMIT = 64 * 2**20
# The size of a split: small enough that many workers share a small input, large enough that sending
# it costs nothing compared with tokenizing it.
SPLIT_BYTES = 2**19

TableReader = Callable[[InputFile, int, Collection[str]], Iterator[RowsInMemory]]
"""Yields the rows of a table: from the file, the longest row in bytes, and the columns to read."""


def read_splits(
    files: Iterable[InputFile],
    line_limit: int = LINE_LIMIT,
    row_format: str = AUTO,
    more_columns: Collection[str] = (),
    read_table: TableReader = read_table,
) -> Iterator[Split]:
    """Cut the rows of all files, in order, into splits of about `SPLIT_BYTES`.

    A split ends with the row that brings it to that size, so the cuts depend on the lengths of the
    rows alone. row_format: the format of all rows; `auto`: detect it per file, from its first rows.
    more_columns: columns of tables to read in addition to those with the names of a format.
    read_table: a function that reads tables, in this process or in another. Raises InputError.
    """
    columns = {*ROW_KEYS, *more_columns}
    pieces: list[Piece] = []
    number = first_row = num_rows = num_bytes = 0
    read = partial(_read_rows, line_limit=line_limit, columns=columns, read_table=read_table)
    for rows, detected in _detect_formats(files, row_format, read):
        ends = rows.sizes().cumsum()  # of each row, in bytes from the first of `rows`
        start = counted = 0
        while start < len(ends):
            wanted = counted + SPLIT_BYTES - num_bytes
            end = min(int(ends.searchsorted(wanted)) + 1, len(ends))
            pieces.append(rows.cut(start, end).to_piece(detected))
            num_rows += end - start
            num_bytes += int(ends[end - 1]) - counted
            start, counted = end, int(ends[end - 1])
            if num_bytes >= SPLIT_BYTES:
                yield Split(number, first_row, num_rows, tuple(pieces))
                number, first_row = number + 1, first_row + num_rows
                pieces, num_rows, num_bytes = [], 0, 0
    if pieces:
        yield Split(number, first_row, num_rows, tuple(pieces))


def _detect_formats(
    files: Iterable[InputFile], row_format: str, read: Callable[[InputFile], Iterator[RowBatch]]
) -> Iterator[tuple[RowBatch, str | None]]:
    """Yield rows with the format of their file: under `auto`, that of its first row that fits one.

    It is detected before rows are cut into splits, so it does not depend on the cuts. Rows before
    that first row have no format.
    """
    for file in files:
        detected = None if row_format == AUTO else row_format
        for rows in read(file):
            first = 0
            while detected is None and first < len(rows):
                detected = detect_format(rows.text(first))
                first += detected is None
            if first:
                yield rows.cut(0, first), None
            if first < len(rows):
                yield rows.cut(first, len(rows)), detected
        check_unchanged(file.name, file.path, file.modified_ns)


def _read_rows(
    file: InputFile, line_limit: int, columns: Collection[str], read_table: TableReader
) -> Iterator[RowBatch]:
    if is_table(file):
        return read_table(file, line_limit, columns)
    return read_text(file, line_limit)
