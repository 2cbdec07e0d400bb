"""A split of the input, as it goes to a worker: where its rows are, or the rows themselves.

Whoever cuts the input does nothing row by row for text files; a worker makes rows of the lines.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

import orjson

from mtpack.errors import InputError
from mtpack.input.files import check_unchanged, read_errors


class RawRow(NamedTuple):
    """One row as it stands in its file."""

    file: str
    line: int
    """Line of a text file, row of a table; from 1."""
    text: bytes | None
    """JSON text, or None for a line above the limit."""
    format: str | None = None
    """The format of its file, or None where neither this row nor one before it fits any."""


class RowsHeld(NamedTuple):
    """Rows with their lines in the file; what is no line of text comes this way."""

    file: str
    format: str | None
    lines: Sequence[int]
    texts: Sequence[bytes | None]

    def rows(self) -> Iterator[RawRow]:
        """Yield the rows."""
        for line, text in zip(self.lines, self.texts, strict=True):
            yield RawRow(self.file, line, text, self.format)

    def held(self) -> RowsHeld:
        """Return itself."""
        return self

    def rows_as_texts(self) -> Sequence[bytes | None]:
        """Return the texts of all rows."""
        return self.texts


class LinesHeld(NamedTuple):
    """Consecutive lines of a file, none of them above the limit; blank ones are no rows."""

    file: str
    format: str | None
    first_line: int
    text: bytes

    def rows(self) -> Iterator[RawRow]:
        """Yield the rows."""
        line, start = self.first_line, 0
        while start < len(self.text):  # line by line: all at once would be twice the memory
            end = self.text.find(b"\n", start)
            text = self.text[start : end if end >= 0 else None]
            if text and not text.isspace():
                yield RawRow(self.file, line, text, self.format)
            line, start = line + 1, start + len(text) + 1

    def held(self) -> LinesHeld:
        """Return itself."""
        return self

    def rows_as_texts(self) -> Sequence[bytes | None]:
        """Return the texts of all rows, in a twentieth of the time."""
        return [text for text in self.text.split(b"\n") if text and not text.isspace()]


class LinesInFile(NamedTuple):
    """The same where they stand in a file that is plain text."""

    file: str
    format: str | None
    first_line: int
    path: str
    offset: int
    num_bytes: int
    modified_ns: int

    def rows(self) -> Iterator[RawRow]:
        """Read and yield the rows; raise InputError, also where the file was changed."""
        return self.held().rows()

    def held(self) -> LinesHeld:
        """Read the lines; raise InputError likewise."""
        with read_errors(self.file), open(self.path, "rb", buffering=0) as file:
            file.seek(self.offset)
            text = file.read(self.num_bytes)
        check_unchanged(self.file, self.path, self.modified_ns)
        if len(text) < self.num_bytes:
            raise InputError(f"{self.file}: can't be read (it ends early); run again")
        return LinesHeld(self.file, self.format, self.first_line, text)


Piece = RowsHeld | LinesHeld | LinesInFile


@dataclass(frozen=True, slots=True)
class Split:
    """Consecutive rows: the piece of the input that one worker reads."""

    number: int
    first_row: int
    num_rows: int
    pieces: tuple[Piece, ...]
    """Each of one file, in order."""

    def rows(self) -> Iterator[RawRow]:
        """Yield the rows; raise InputError where a file can't be read or was changed."""
        for piece in self.pieces:
            yield from piece.rows()

    def content_sha256(self) -> str:
        """Return the digest of what the rows say: their texts, in order, and their formats.

        It is the same wherever the rows stand and however their files are packed. Lines of a file
        are hashed as they stand if none is blank, in half the time of their rows.
        """
        held = [piece.held() for piece in self.pieces]
        texts = [piece.text for piece in held if isinstance(piece, LinesHeld)]
        numbers = list(map(_num_lines, texts))
        if len(texts) < len(held) or sum(numbers) != self.num_rows:
            texts = [_as_lines(piece.rows_as_texts()) for piece in held]
            numbers = list(map(_num_lines, texts))
        told = zip((piece.format for piece in held), numbers, strict=True)
        formats = [
            (row_format, sum([number for _, number in pieces]))
            for row_format, pieces in groupby(told, key=itemgetter(0))
        ]
        return hashlib.sha256(b"\n".join([orjson.dumps(formats), *texts])).hexdigest()


def _num_lines(text: bytes) -> int:
    return text.count(b"\n") + 1


def _as_lines(texts: Iterable[bytes | None]) -> bytes:
    """Return rows as lines without blank ones in between, but for those above the limit.

    A newline inside JSON is white space, and any other means the same.
    """
    return b"\n".join([(text or b"").replace(b"\n", b" ") for text in texts])
