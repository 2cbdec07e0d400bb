"""Reads text files block by block, as lines or up to a limit, so memory does not grow with them.

Compressed files are read from start to end. Of plain files with a row in each line, only the start
is read here; workers read the rest (`splits.LinesInFile`).
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BufferedReader, BytesIO, RawIOBase
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
import pyarrow as pa

from mtpack.errors import InputError
from mtpack.input.files import InputFile, open_input, wrap_read_errors
from mtpack.input.lines import find_lines, find_row_lines
from mtpack.input.row_batches import ReadPosition
from mtpack.input.row_formats import detect_format
from mtpack.input.splits import BYTE_ORDER_MARK, LinesInMemory, RowsInMemory
from mtpack.token_batch import Bools, Int64

_BLOCK_BYTES = 2**20
_FIRST_BLOCK_BYTES = 2**16


@dataclass(frozen=True, slots=True)
class LineRows:
    """Rows that are lines of one block of a text file."""

    file: InputFile
    block: bytes
    offset: int
    """The offset of the block in the text of the file."""
    line_limit: int
    numbers: Int64
    """(rows,): the line number of each row, from 1."""
    starts: Int64
    """(rows,): the start of each row in `block`."""
    ends: Int64
    """(rows,): the end of each row in `block`, without the newline."""
    bytes_read: int = 0
    """As in `RowBatch`."""

    def __len__(self) -> int:
        return len(self.numbers)

    def sizes(self) -> Int64:
        """Return the number of bytes of each row."""
        return self.ends - self.starts

    def text(self, row: int) -> bytes:
        """Return the text of a row."""
        return self.block[self.starts[row] : self.ends[row]]

    def cut(self, start: int, end: int) -> LineRows:
        """Return the rows from `start` up to but not including `end`."""
        return self.select(slice(start, end))

    def select(self, rows: slice | Bools) -> LineRows:
        """Return some of the rows."""
        return replace(
            self, numbers=self.numbers[rows], starts=self.starts[rows], ends=self.ends[rows]
        )

    def to_piece(self, row_format: str | None) -> LinesInMemory:
        """Return all rows, and the blank lines between them, as a piece of a split."""
        text = self.block[self.starts[0] : self.ends[-1]]
        first_line = int(self.numbers[0])
        return LinesInMemory(self.file.name, row_format, first_line, text, self.line_limit)


class FirstLine(NamedTuple):
    """The first line of a text file that is not blank."""

    text: bytes
    """Without white space around it; cut if it is longer than the limit."""
    number: int
    """From 1."""
    next: bytes
    """The first character of the text that follows; empty if none is known to follow."""


def read_lines(file: InputFile, line_limit: int) -> Iterator[LineRows | RowsInMemory]:
    """Yield the lines of a file that are not blank, a block at a time; raise InputError."""
    num_lines, position = 0, ReadPosition()
    try:
        with open_text(file, position) as stream:
            for block, offset in _read_blocks(stream, line_limit, _BLOCK_BYTES):
                lines = _find_lines(file, block, offset, num_lines + 1, line_limit)
                lines = replace(lines, bytes_read=position.num_bytes)
                num_lines += len(lines)
                yield from _select_rows(lines)
    except InputError as error:
        raise InputError(f"{error} (after line {num_lines})") from error


def find_format(file: InputFile, start: BinaryIO, line_limit: int) -> tuple[str | None, int]:
    """Return the format of a file of lines, and the byte where the first row that fits it begins.

    That byte is 0 if no row is before that one. Returns (None, 0) if no row fits a format. start:
    the text of the file, at its start.
    """
    is_first = True
    for block, offset in _read_blocks(start, line_limit, _FIRST_BLOCK_BYTES):
        for rows in _select_rows(_find_lines(file, block, offset, 1, line_limit)):
            for row in range(len(rows)):
                detected = detect_format(rows.text(row))
                if detected is not None and isinstance(rows, LineRows):
                    return detected, 0 if is_first else rows.offset + int(rows.starts[row])
                is_first = False
    return None, 0


def read_first_line(stream: BinaryIO, limit: int) -> FirstLine:
    """Return the first line that is not blank; its text is empty if all lines are blank.

    limit: reading stops when this many bytes are no blank lines.
    """
    text, number, end, is_start = bytearray(), 1, -1, True
    while len(text) <= limit and (block := stream.read(_FIRST_BLOCK_BYTES)):
        before = len(text)
        text += block.removeprefix(BYTE_ORDER_MARK) if is_start else block
        is_start = False
        if not before:
            num_blank = len(text) - len(text.lstrip())
            number += text.count(b"\n", 0, num_blank)
            del text[:num_blank]
        if end < 0:
            end = text.find(b"\n", before)
        if end >= 0 and (following := text[max(end, before) :].strip()):
            return FirstLine(bytes(text[:end].strip()), number, bytes(following[:1]))
    return FirstLine(bytes(text.strip()), number, b"")


@contextmanager
def open_start(file: InputFile) -> Iterator[BinaryIO]:
    """Open a plain text file to read its start, perhaps several times; a small one is read once.

    Errors in the block become an InputError.
    """
    with open_text(file) as stream:
        if file.num_bytes > _FIRST_BLOCK_BYTES:
            yield stream
        else:
            yield BytesIO(stream.read(_FIRST_BLOCK_BYTES))


@contextmanager
def open_text(file: InputFile, position: ReadPosition | None = None) -> Iterator[BinaryIO]:
    """Open a text file, decompressed; errors in the block become an InputError.

    position: is kept up to date with what is read of the file.
    """
    with wrap_read_errors(file.name), open_input(file.path) as opened:
        stored = opened if position is None else cast(BinaryIO, _NotingReads(opened, position))
        compression = file.kind.compression
        if compression == ".gz":
            with BufferedReader(cast(RawIOBase, stored)) as packed, gzip.open(packed) as unzipped:
                yield cast(BinaryIO, unzipped)
        elif compression == ".zst":
            with pa.CompressedInputStream(stored, "zstd") as stream:
                yield cast(BinaryIO, stream)
        else:
            yield stored


class _NotingReads(RawIOBase):
    """A file that notes how far it was read."""

    def __init__(self, file: BinaryIO, position: ReadPosition) -> None:
        """Begin at the start of the file; position: where it is noted."""
        self._file = cast(RawIOBase, file)
        self._position = position

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer and return the number of bytes; 0 at the end."""
        num_bytes: int = self._file.readinto(buffer) or 0
        self._position.num_bytes += num_bytes
        return num_bytes

    def read(self, size: int = -1) -> bytes:
        """Return up to `size` bytes."""
        block = self._file.read(size) or b""
        self._position.num_bytes += len(block)
        return block


def _read_blocks(stream: BinaryIO, limit: int, block_bytes: int) -> Iterator[tuple[bytes, int]]:
    """Yield blocks of whole lines and their offsets; all blocks but the last end in a newline.

    To bound memory by about `limit`, a part of a longer line may be left out. Such a line is the
    first of its block, and the offset of the block is then right for the lines after it.
    """
    unfinished: list[bytes] = []  # of the line that continues in the next block
    length = left_out = offset = 0
    while block := stream.read(block_bytes):
        if not (offset or length) and block.startswith(BYTE_ORDER_MARK):
            block, offset = block.removeprefix(BYTE_ORDER_MARK), len(BYTE_ORDER_MARK)
        end = block.rfind(b"\n") + 1
        if end:
            whole = b"".join([*unfinished, memoryview(block)[:end]])
            yield whole, offset + left_out
            offset += left_out + len(whole)
            unfinished, length, left_out = [block[end:]], len(block) - end, 0
        elif length <= limit:
            unfinished.append(block)
            length += len(block)
        else:
            left_out += len(block)
    if length:
        yield b"".join(unfinished), offset + left_out


def _find_lines(
    file: InputFile, block: bytes, offset: int, first_line: int, line_limit: int
) -> LineRows:
    """Find the lines of a block."""
    starts, ends = find_lines(block)
    numbers = np.arange(first_line, first_line + len(ends))
    return LineRows(file, block, offset, line_limit, numbers, starts, ends)


def _select_rows(lines: LineRows) -> Iterator[LineRows | RowsInMemory]:
    """Yield the lines without blank ones, and without the texts of those above the limit."""
    is_row, too_long = find_row_lines(lines.block, lines.starts, lines.ends, lines.line_limit)
    if not is_row.all():
        lines, too_long = lines.select(is_row), too_long[is_row]
    first = 0
    for line in too_long.nonzero()[0].tolist():
        if first < line:
            yield lines.cut(first, line)
        number = int(lines.numbers[line])
        yield RowsInMemory(lines.file.name, None, [number], [None], bytes_read=lines.bytes_read)
        first = line + 1
    if first < len(lines):
        yield lines.cut(first, len(lines))
