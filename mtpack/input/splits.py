"""A split of the input, as it is sent to a worker: the position of its rows, or the rows.

For text files, the process that cuts the input does nothing per row; a worker finds the rows in the
lines.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

import numpy as np
import orjson

from mtpack.errors import InputError
from mtpack.input.files import check_unchanged, wrap_read_errors
from mtpack.token_batch import Int64


class RawRow(NamedTuple):
    """One row, not parsed yet."""

    file: str
    line: int
    """The line of a text file or the row of a table, from 1."""
    text: bytes | None
    """JSON text; None for a line that is longer than the limit."""
    format: str | None = None
    """The format of the file; None if neither this row nor an earlier one fits a format."""


@dataclass(frozen=True, slots=True)
class RowsInMemory:
    """Rows with their line numbers: for all that is not consecutive lines of a text file."""

    file: str
    format: str | None
    lines: list[int]
    texts: list[bytes | None]
    """JSON texts; None for a line that is longer than the limit."""

    def __len__(self) -> int:
        return len(self.lines)

    def sizes(self) -> Int64:
        """Return the number of bytes of each row."""
        return np.array([len(text or b"") for text in self.texts], dtype=np.int64)

    def text(self, row: int) -> bytes | None:
        """Return the text of a row."""
        return self.texts[row]

    def cut(self, start: int, end: int) -> RowsInMemory:
        """Return the rows from `start` up to but not including `end`."""
        return replace(self, lines=self.lines[start:end], texts=self.texts[start:end])

    def to_piece(self, row_format: str | None) -> RowsInMemory:
        """Return the rows with a format."""
        return replace(self, format=row_format)

    def rows(self) -> Iterator[RawRow]:
        """Yield the rows."""
        for line, text in zip(self.lines, self.texts, strict=True):
            yield RawRow(self.file, line, text, self.format)


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


class LinesInFile(NamedTuple):
    """Consecutive lines of a plain text file, by their position in it."""

    file: str
    format: str | None
    first_line: int
    path: str
    offset: int
    num_bytes: int
    modified_ns: int

    def rows(self) -> Iterator[RawRow]:
        """Read and yield the rows; raise InputError, also if the file has changed."""
        with wrap_read_errors(self.file), open(self.path, "rb", buffering=0) as file:
            file.seek(self.offset)
            text = file.read(self.num_bytes)
        check_unchanged(self.file, self.path, self.modified_ns)
        if len(text) < self.num_bytes:
            raise InputError(f"{self.file}: can't be read (it ends early); run again")
        return LinesInMemory(self.file, self.format, self.first_line, text).rows()


Piece = RowsInMemory | LinesInMemory | LinesInFile


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

    def content_sha256(self) -> str:
        """Return the digest of the rows: their texts, in order, and their formats.

        It does not depend on the position of the rows or the compression of their files.
        """
        rows = list(self.rows())
        formats = [
            (row_format, len(list(same)))
            for row_format, same in groupby(rows, key=attrgetter("format"))
        ]
        # A newline inside JSON is white space, so a space in place of it means the same.
        lines = [(row.text or b"").replace(b"\n", b" ") for row in rows]
        return hashlib.sha256(b"\n".join([orjson.dumps(formats), *lines])).hexdigest()
