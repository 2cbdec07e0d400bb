"""Cuts an input into sections, without reading it, and sections into splits.

A *section* is what can be read on its own: a range of bytes of a plain file with a row in each
line, some row groups of a Parquet file, any other file as a whole, or several small files of one
source. No split has rows of two sections. So the cuts are the same whoever reads a section, and
lines of plain files are first read by the worker that tokenizes them.

Rows are parsed in `rows.py`; here, only the first rows of a file are parsed, to detect the format
of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, groupby
from operator import attrgetter
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeVar

from mtpack.input.files import InputFile, check_unchanged
from mtpack.input.json_text import LINES, find_layout, read_text
from mtpack.input.row_batches import RowBatch
from mtpack.input.row_formats import ROW_KEYS, detect_format
from mtpack.input.splits import LinesInFile, Piece, Split
from mtpack.input.tables import TablePart, cut_table, is_table, read_table
from mtpack.input.text_files import find_format, open_start

AUTO = "auto"
LINE_LIMIT = 64 * 2**20
# The size of a split: small enough that many workers share a small input, large enough that sending
# it costs nothing compared with tokenizing it.
SPLIT_BYTES = 2**19

_Arguments = ParamSpec("_Arguments")
_Found = TypeVar("_Found")


class TableCall(Protocol):
    """Calls a function that reads a table and yields what it finds."""

    def __call__(
        self,
        function: Callable[_Arguments, Iterator[_Found]],
        /,
        *arguments: _Arguments.args,
        **named: _Arguments.kwargs,
    ) -> Iterator[_Found]:
        """Yield what the function yields, in this process or in another.

        The first argument is the file. Raises InputError.
        """
        ...


def call_here(
    function: Callable[_Arguments, Iterator[_Found]],
    /,
    *arguments: _Arguments.args,
    **named: _Arguments.kwargs,
) -> Iterator[_Found]:
    """Call a function that reads a table in this process."""
    return function(*arguments, **named)


class ReadOptions(NamedTuple):
    """How the rows of an input, or of one source of it, are read."""

    row_format: str = AUTO
    """The format of all rows; `auto`: detect it per file, from its first rows."""
    more_columns: tuple[str, ...] = ()
    """Columns of tables to read in addition to those with the names of a format."""
    line_limit: int = LINE_LIMIT
    """The longest row, in bytes."""
    max_rows: int | None = None
    """How many rows are read, from the first one on; None: all."""
    variant: str = ""
    """What else decides which dialogues the rows are, as text: rows with the same text and another
    variant have other tokens."""

    @property
    def format(self) -> str | None:
        """The format of all rows; None if it is detected per file."""
        return None if self.row_format == AUTO else self.row_format

    @property
    def columns(self) -> frozenset[str]:
        """The columns of tables to read."""
        return frozenset((*ROW_KEYS, *self.more_columns))


DEFAULTS = ReadOptions()


class WholeFile(NamedTuple):
    """A file, or a part of a table, that has to be read as a whole to find its rows."""

    file: InputFile
    format: str | None
    """The format of all its rows; None: detect it."""
    layout: str | None = None
    """What a text file holds, if that is known."""
    part: TablePart | None = None
    """The part of a table; None: all of the file."""
    max_rows: int | None = None
    """How many of its rows are read, from the first one on; None: all. The size of the file is then
    about that of these rows."""

    @property
    def num_bytes(self) -> int:
        """The number of bytes of the file, as it is stored, or the share of the part."""
        if self.part is None or self.max_rows is not None:
            return self.file.num_bytes
        return self.part.num_bytes


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the input that is read on its own."""

    number: int
    parts: tuple[LinesInFile | WholeFile, ...]
    source: int = 0
    """The index of the source of its files."""

    def __str__(self) -> str:
        first = self.parts[0]
        name = first.file.name if isinstance(first, WholeFile) else first.file
        return f"{name}: section {self.number:,} of the input"

    @property
    def is_split(self) -> bool:
        """Whether it is one split, which a worker can read. Otherwise it is cut as it is read."""
        return all(isinstance(part, LinesInFile) for part in self.parts)


def cut_sections(
    files: Iterable[InputFile], options: ReadOptions = DEFAULTS, call_table: TableCall = call_here
) -> Iterator[Section]:
    """Cut all files, in order, into sections of about `SPLIT_BYTES`; raise InputError.

    The cuts depend on the sizes of the files and, for Parquet files, on the sizes of the row
    groups. Only the start of plain text files and the end of Parquet files is read, and what is
    before the first row that fits a format.
    """
    return cut_sources(files, [options], call_table)


def cut_sources(
    files: Iterable[InputFile], options: Sequence[ReadOptions], call_table: TableCall = call_here
) -> Iterator[Section]:
    """Cut the files of several sources as `cut_sections` does; no section has files of two.

    files: those of each source after those of the one before. options: of each source.
    """
    numbers = count()
    for source, files_of in groupby(files, key=attrgetter("source")):
        for parts in _group_small(files_of, options[source], call_table):
            yield Section(next(numbers), parts, source)


def _group_small(
    files: Iterable[InputFile], options: ReadOptions, call_table: TableCall
) -> Iterator[tuple[LinesInFile | WholeFile, ...]]:
    """Yield the parts of each section."""
    small: list[LinesInFile | WholeFile] = []
    num_bytes = 0
    first_rows = None if options.max_rows is None else _FirstRows(options, call_table)
    for file in files:
        parts = _cut_file(file, options, call_table)
        if first_rows is not None:
            if not first_rows.left:
                break
            parts = first_rows.take(parts)
        if small and num_bytes + file.num_bytes > SPLIT_BYTES:
            yield tuple(small)
            small, num_bytes = [], 0
        if file.num_bytes > SPLIT_BYTES:
            for part in parts:
                yield (part,)
        else:
            small += parts
            num_bytes += file.num_bytes
    if small:
        yield tuple(small)


class _FirstRows:
    """Takes the first rows of the files of a source.

    To know where the last of them is, rows have to be counted: so these rows are read twice.
    """

    def __init__(self, options: ReadOptions, call_table: TableCall) -> None:
        """Begin with the first file."""
        self.left = options.max_rows or 0
        """The number of rows that are still to be taken."""
        self._options = options
        self._call_table = call_table

    def take(self, parts: Iterable[LinesInFile | WholeFile]) -> Iterator[LinesInFile | WholeFile]:
        """Yield the next parts, up to the last row, as far as they have rows to take."""
        for part in parts:
            if not self.left:
                return
            if isinstance(part, LinesInFile):
                taken, num_rows = part.take_rows(self.left)
                yield taken
            else:
                limited, num_rows = self._count_rows(part)
                yield limited if num_rows == self.left else part
            self.left -= num_rows

    def _count_rows(self, part: WholeFile) -> tuple[WholeFile, int]:
        """Return the first rows of a file as a part, and the number of those that are there."""
        limited = part._replace(max_rows=self.left)
        num_rows = bytes_read = 0
        for rows in _read_file(limited, self._options, self._call_table):
            num_rows += len(rows)
            bytes_read = rows.bytes_read
        file = part.file._replace(num_bytes=min(bytes_read, part.num_bytes) or part.num_bytes)
        return limited._replace(file=file), num_rows


def _cut_file(
    file: InputFile, options: ReadOptions, call_table: TableCall
) -> Iterator[LinesInFile | WholeFile]:
    """Yield the parts of a file: one, if it is not larger than `SPLIT_BYTES`."""
    if file.kind.content == "parquet" and file.num_bytes > SPLIT_BYTES:
        arguments = file, SPLIT_BYTES, options.line_limit, options.columns, options.format
        *_, table_parts = call_table(cut_table, *arguments)
        for part in table_parts:
            yield WholeFile(file, part.format, part=part)
        return
    if is_table(file) or file.kind.compression:
        yield WholeFile(file, options.format)
        return
    detected, format_start = options.format, 0
    with open_start(file) as start:
        layout = find_layout(file, start, options.line_limit)
        if layout == LINES and detected is None:
            start.seek(0)
            detected, format_start = find_format(file, start, options.line_limit)
    if layout != LINES:
        yield WholeFile(file, options.format, layout)
        return
    for offset in range(0, file.num_bytes, SPLIT_BYTES):
        end = min(offset + SPLIT_BYTES, file.num_bytes)
        yield LinesInFile(
            file=file.name,
            format=detected if format_start < end else None,
            path=file.path,
            offset=offset,
            num_bytes=end - offset,
            modified_ns=file.modified_ns,
            line_limit=options.line_limit,
            format_start=format_start if offset < format_start < end else 0,
        )


def read_section(
    section: Section, options: ReadOptions = DEFAULTS, call_table: TableCall = call_here
) -> Iterator[Split]:
    """Cut a section into splits of about `SPLIT_BYTES`; options: those of its source.

    A split ends with the row that brings it to that size, so the cuts depend on the lengths of the
    rows alone. Of lines in a plain file, the size of the file counts. Raises InputError.
    """
    part = num_bytes = input_bytes = 0
    pieces: list[Piece] = []

    def close_split() -> Split:
        nonlocal part, num_bytes, input_bytes
        key = f"{section.number:07d}.{part:04d}"
        split = Split(key, tuple(pieces), input_bytes, section.source, options.variant)
        part, num_bytes, input_bytes = part + 1, 0, 0
        pieces.clear()
        return split

    for rows, row_format, bytes_read in _read_parts(section, options, call_table):
        if rows is None or isinstance(rows, LinesInFile):
            input_bytes += bytes_read
        if rows is None:
            continue
        if isinstance(rows, LinesInFile):
            pieces.append(rows)
            num_bytes += rows.num_bytes
            if num_bytes >= SPLIT_BYTES:
                yield close_split()
            continue
        ends = rows.sizes().cumsum()  # of each row, in bytes from the first of `rows`
        whole = max(1, int(ends[-1]))
        start = counted = 0
        while start < len(ends):
            wanted = counted + SPLIT_BYTES - num_bytes
            end = min(int(ends.searchsorted(wanted)) + 1, len(ends))
            pieces.append(rows.cut(start, end).to_piece(row_format))
            num_bytes += int(ends[end - 1]) - counted
            input_bytes += bytes_read * int(ends[end - 1]) // whole - bytes_read * counted // whole
            start, counted = end, int(ends[end - 1])
            if num_bytes >= SPLIT_BYTES:
                yield close_split()
    if pieces:
        yield close_split()


def _read_parts(
    section: Section, options: ReadOptions, call_table: TableCall
) -> Iterator[tuple[RowBatch | LinesInFile | None, str | None, int]]:
    """Yield the rows of a section, the format of their file, and the bytes that were read of it.

    The bytes are those since the last rows; after the last rows of a file, there are none (None)
    with the rest. The format is detected before rows are cut into splits, so it does not depend on
    the cuts. Rows before the first that fits a format have none.
    """
    for part in section.parts:
        if isinstance(part, LinesInFile):
            yield part, part.format, part.num_bytes
            continue
        detected, bytes_read = part.format, 0
        for rows in _read_file(part, options, call_table):
            new_bytes = max(0, rows.bytes_read - bytes_read)
            bytes_read += new_bytes
            first = 0
            while detected is None and first < len(rows):
                detected = detect_format(rows.text(first))
                first += detected is None
            if first:
                yield rows.cut(0, first), None, 0
            if first < len(rows):
                yield rows.cut(first, len(rows)), detected, new_bytes
            else:
                yield None, None, new_bytes
        yield None, None, max(0, part.num_bytes - bytes_read)
        check_unchanged(part.file.name, part.file.path, part.file.modified_ns)


def _read_file(part: WholeFile, options: ReadOptions, call_table: TableCall) -> Iterator[RowBatch]:
    if is_table(part.file):
        arguments = part.file, options.line_limit, options.columns, part.part
        if part.max_rows is not None:
            return call_table(read_table_rows, *arguments, most=part.max_rows)
        return call_table(read_table, *arguments)
    batches: Iterator[RowBatch] = read_text(part.file, options.line_limit, part.layout)
    return batches if part.max_rows is None else take_rows(batches, part.max_rows)


def read_table_rows(*arguments: Any, most: int) -> Iterator[RowBatch]:
    """Yield the first rows that `read_table` yields; it may run in another process."""
    return take_rows(read_table(*arguments), most)


def take_rows(batches: Iterator[RowBatch], most: int) -> Iterator[RowBatch]:
    """Yield the first rows of all batches, and read no further."""
    for rows in batches:
        if len(rows):
            yield rows if len(rows) <= most else rows.cut(0, most)
            most -= len(rows)
        if most <= 0:
            return


def read_splits(
    files: Iterable[InputFile], options: ReadOptions = DEFAULTS, call_table: TableCall = call_here
) -> Iterator[Split]:
    """Cut all files, in order, into splits; raise InputError."""
    return read_sources(files, [options], call_table)


def read_sources(
    files: Iterable[InputFile], options: Sequence[ReadOptions], call_table: TableCall = call_here
) -> Iterator[Split]:
    """Cut the files of several sources, as for `cut_sources`, into splits; raise InputError."""
    for section in cut_sources(files, options, call_table):
        yield from read_section(section, options[section.source], call_table)
