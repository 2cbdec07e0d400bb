"""Rows in the batches in which a file is read, before they are cut into splits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from mtpack.errors import InputError
from mtpack.input.splits import Piece, RowsInMemory, TableNote
from mtpack.token_batch import Int64

_BATCH_BYTES = 2**20


@dataclass(slots=True)
class ReadPosition:
    """How many bytes of a file, as it is stored, its reader has read."""

    num_bytes: int = 0


class RowBatch(Protocol):
    """Consecutive rows of a file that are still to be cut into pieces of splits."""

    @property
    def bytes_read(self) -> int:
        """How many bytes of the file, as it is stored, were read for these and earlier rows.

        Of a part of a table, those of the part. 0 if that is not known.
        """
        ...

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
    file: str,
    rows: Iterable[tuple[int, bytes, TableNote | None]],
    line_limit: int,
    position: ReadPosition,
) -> Iterator[RowsInMemory]:
    """Yield rows in batches; each is a line number, a text, and a note if it is of a table.

    Also yields the rows before an InputError that `rows` raises. position: that of the reader.
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
                yield replace(batch, bytes_read=position.num_bytes)
                batch, num_bytes = RowsInMemory(file, None, [], []), 0
    except InputError:
        yield replace(batch, bytes_read=position.num_bytes)
        raise
    yield replace(batch, bytes_read=position.num_bytes)
