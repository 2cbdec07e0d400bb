"""A split of the input, as it is sent to a worker: the position of its rows, or the rows.

For text files, the process that cuts the input does nothing per row; a worker finds the rows in the
lines.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple, Protocol

import numpy as np
import orjson

from mtpack.errors import InputError
from mtpack.input.files import check_unchanged, open_input, wrap_read_errors
from mtpack.token_batch import Int64

_BATCH_BYTES = 2**20


class RawRow(NamedTuple):
    """One row, not parsed yet."""

    file: str
    line: int
    """The line of a text file or the row of a table, from 1."""
    text: bytes | None
    """JSON text; None for a line that is longer than the limit."""
    format: str | None = None
    """The format of the file; None if neither this row nor an earlier one fits a format."""


class TableNote(NamedTuple):
    """What the text of a table's row does not say."""

    never_read: tuple[str, ...]
    """The columns that no format reads, where the row has a value."""
    has_dropped_null: bool
    """Whether a null that may mean something was read as a missing key."""


@dataclass(frozen=True, slots=True)
class RowsInMemory:
    """Rows with their line numbers: for all that is not consecutive lines of a text file."""

    file: str
    format: str | None
    lines: list[int]
    texts: list[bytes | None]
    """JSON texts; None for a line that is longer than the limit."""
    notes: list[TableNote] = field(default_factory=list)
    """One for each row of a table; else empty."""

    def __len__(self) -> int:
        return len(self.lines)

    def sizes(self) -> Int64:
        """Return the number of bytes of each row, without columns that are never read."""
        return np.array([len(text or b"") for text in self.texts], dtype=np.int64)

    def text(self, row: int) -> bytes | None:
        """Return the text of a row, without columns that are never read."""
        return self.texts[row]

    def cut(self, start: int, end: int) -> RowsInMemory:
        """Return the rows from `start` up to but not including `end`."""
        rows = slice(start, end)
        return RowsInMemory(
            self.file, self.format, self.lines[rows], self.texts[rows], self.notes[rows]
        )

    def to_piece(self, row_format: str | None) -> RowsInMemory:
        """Return the rows with a format."""
        return replace(self, format=row_format)

    def rows(self) -> Iterator[RawRow]:
        """Yield the rows; in that of a table, each column that is never read is `true`."""
        for row, (line, text) in enumerate(zip(self.lines, self.texts, strict=True)):
            if self.notes and text is not None and (names := self.notes[row].never_read):
                added = orjson.dumps(dict.fromkeys(names, True))
                text = added if text == b"{}" else text[:-1] + b"," + added[1:]
            yield RawRow(self.file, line, text, self.format)

    def list_texts(self) -> list[bytes]:
        """Return the texts of the rows, each as one line."""
        # A newline inside JSON is white space, so a space in place of it means the same.
        return [(row.text or b"").replace(b"\n", b" ") for row in self.rows()]

    def count_dropped_nulls(self) -> int:
        """Count the rows in which a null that may mean something was read as a missing key."""
        return sum(note.has_dropped_null for note in self.notes)


class LinesInMemory(NamedTuple):
    """Consecutive lines of a file, none longer than the limit; blank lines are not rows."""

    file: str
    format: str | None
    first_line: int
    text: bytes

    def rows(self) -> Iterator[RawRow]:
        """Yield the rows."""
        line, start = self.first_line, 0
        while start < len(self.text):  # line by line: splitting all at once doubles the memory
            end = self.text.find(b"\n", start)
            text = self.text[start : end if end >= 0 else None]
            if text and not text.isspace():
                yield RawRow(self.file, line, text, self.format)
            line, start = line + 1, start + len(text) + 1

    def list_texts(self) -> list[bytes]:
        """Return the texts of the rows."""
        lines = self.text.split(b"\n")
        return [line for line in lines if line and not line.isspace()]


class LinesInFile(NamedTuple):
    """Consecutive lines of a plain text file, by their position in it."""

    file: str
    format: str | None
    first_line: int
    path: str
    offset: int
    num_bytes: int
    modified_ns: int

    def read(self) -> LinesInMemory:
        """Read the lines; raise InputError, also if the file has changed."""
        with wrap_read_errors(self.file), open_input(self.path) as file:
            file.seek(self.offset)
            text = file.read(self.num_bytes)
        check_unchanged(self.file, self.path, self.modified_ns)
        if len(text) < self.num_bytes:
            raise InputError(f"{self.file}: can't be read (it ends early); run again")
        return LinesInMemory(self.file, self.format, self.first_line, text)

    def rows(self) -> Iterator[RawRow]:
        """Read and yield the rows; raise InputError, also if the file has changed."""
        return self.read().rows()

    def list_texts(self) -> list[bytes]:
        """Read and return the texts of the rows; raise InputError, also if the file has changed."""
        return self.read().list_texts()


Piece = RowsInMemory | LinesInMemory | LinesInFile


class RowBatch(Protocol):
    """Consecutive rows of a file that are still to be cut into pieces of splits."""

    def __len__(self) -> int: ...

    def sizes(self) -> Int64:
        """Return the number of bytes of each row."""
        ...

    def text(self, row: int) -> bytes | None:
        """Return the text of a row; None if it is longer than the limit."""
        ...

    def cut(self, start: int, end: int) -> RowBatch:
        """Return the rows from `start` up to but not including `end`."""
        ...

    def to_piece(self, row_format: str | None) -> Piece:
        """Return the rows as a piece of a split."""
        ...


def batch_rows(
    file: str, rows: Iterable[tuple[int, bytes, TableNote | None]], line_limit: int
) -> Iterator[RowsInMemory]:
    """Yield rows in batches; each is a line number, a text, and a note if it is of a table.

    Also yields the rows before an InputError that `rows` raises.
    """
    batch, num_bytes = RowsInMemory(file, None, [], []), 0
    try:
        for line, text, note in rows:
            batch.lines.append(line)
            batch.texts.append(text if len(text) <= line_limit else None)
            if note is not None:
                batch.notes.append(note)
            num_bytes += len(text)
            if num_bytes >= _BATCH_BYTES:
                yield batch
                batch, num_bytes = RowsInMemory(file, None, [], []), 0
    except InputError:
        yield batch
        raise
    yield batch


@dataclass(frozen=True, slots=True)
class Split:
    """Consecutive rows: the part of the input that one worker reads."""

    number: int
    first_row: int
    num_rows: int
    pieces: tuple[Piece, ...]
    """The parts of the split in order, each of one file."""

    def rows(self) -> Iterator[RawRow]:
        """Yield the rows; raise InputError if a file can't be read or has changed."""
        for piece in self.pieces:
            yield from piece.rows()

    def count_dropped_nulls(self) -> int:
        """Count the rows of tables in which a null that may mean something was left out."""
        tables = (piece for piece in self.pieces if isinstance(piece, RowsInMemory))
        return sum(table.count_dropped_nulls() for table in tables)

    def read(self) -> Split:
        """Return the split with all rows in memory; raise InputError as `rows` does.

        So what is hashed is what is tokenized, and no file is read twice.
        """
        read = (p.read() if isinstance(p, LinesInFile) else p for p in self.pieces)
        return replace(self, pieces=tuple(read))

    def content_sha256(self) -> str:
        """Return the digest of the rows: their texts in order, their formats, and dropped nulls.

        It does not depend on the position of the rows or the compression of their files.
        """
        texts = [(piece.format, piece.list_texts()) for piece in self.pieces]
        formats = [
            (row_format, sum(len(part) for _, part in same))
            for row_format, same in groupby(texts, key=itemgetter(0))
        ]
        lines = [line for _, part in texts for line in part]
        if num_dropped := self.count_dropped_nulls():
            lines.append(b"%d" % num_dropped)
        return hashlib.sha256(b"\n".join([orjson.dumps(formats), *lines])).hexdigest()

    def file_sha256s(self) -> list[tuple[str, str]]:
        """Return the name of each file in the split, and the digest of its rows in the split."""
        parts = [
            (name, replace(self, pieces=tuple(pieces)))
            for name, pieces in groupby(self.pieces, key=attrgetter("file"))
        ]
        return [(name, part.content_sha256()) for name, part in parts]


class InputHashes:
    """Hashes each file of an input: the digests of its rows, split by split, in order.

    Blank lines and the compression of a file change nothing, as in `Split.content_sha256`.
    """

    def __init__(self) -> None:
        """Begin before the first split."""
        self._hashes: dict[str, Any] = {}

    def add(self, file_sha256s: Iterable[tuple[str, str]]) -> None:
        """Add the next split: what its `file_sha256s` returned."""
        for name, sha256 in file_sha256s:
            self._get(name).update(bytes.fromhex(sha256))

    def sha256(self, name: str) -> str:
        """Return the sha256 of a file whose splits have all been added."""
        return str(self._get(name).hexdigest())

    def _get(self, name: str) -> Any:
        return self._hashes.setdefault(name, hashlib.sha256())
