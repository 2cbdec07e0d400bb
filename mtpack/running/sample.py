"""Draw a sample of the input of a run: rows at random positions, of files that can be sought.

Of compressed files, JSON lists and Arrow files, only the first rows can be read without reading
all. Nothing is written.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import groupby, islice
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.random import PCG64

from mtpack.errors import InputError
from mtpack.input.files import InputFile
from mtpack.input.json_text import LINES, find_layout, read_elements
from mtpack.input.reading import (
    LINE_LIMIT,
    SPLIT_BYTES,
    ReadOptions,
    Section,
    TableCall,
    cut_sources,
    read_section,
    read_sources,
)
from mtpack.input.row_formats import detect_format
from mtpack.input.splits import (
    BYTE_ORDER_MARK,
    LinesInFile,
    LinesInMemory,
    Piece,
    RowsInMemory,
    Split,
)
from mtpack.input.tables import is_table, read_table
from mtpack.storage.urls import STANDARD_INPUT
from mtpack.token_batch import Int64

WHOLE_BYTES = 2 * 2**20
"""An input of at most so many bytes of text is read as a whole."""
_SAMPLE_BYTES = 2**17  # of text, at each position
_NUM_POSITIONS = 24
_MOST_PARTS = 4  # of the start of a file that can't be sought, if there are few files
_SECONDS_FOR_STANDARD_INPUT = 2.0


@dataclass(frozen=True, slots=True)
class SampleSplit:
    """Rows of the sample."""

    split: Split
    stratum: str
    """The kind of its file: how many bytes a row takes is alike in files of one kind. Empty if the
    whole input is read."""
    is_start: bool = False
    """Whether it is the start of a file that can't be sought, and goes on after it."""


def read_whole(
    files: Sequence[InputFile], options: Sequence[ReadOptions], call_table: TableCall
) -> Iterator[SampleSplit]:
    """Yield the whole input; options: of each source. Raises InputError."""
    for split in read_sources(files, options, call_table):
        yield SampleSplit(split, "")


def limit_files(
    files: Sequence[InputFile], options: Sequence[ReadOptions], call_table: TableCall
) -> list[InputFile]:
    """Return the files with the sizes of what is read of them, where only first rows are.

    Files of which no row is read are left out. Raises InputError.
    """
    limited: list[InputFile] = []
    for source, group in groupby(files, key=attrgetter("source")):
        of_source = list(group)
        if options[source].max_rows is None:
            limited += of_source
            continue
        sizes: dict[str, int] = {}
        for section in cut_sources(of_source, options, call_table):
            for part in section.parts:
                name = part.file if isinstance(part, LinesInFile) else part.file.name
                sizes[name] = sizes.get(name, 0) + part.num_bytes
        files_by_name = {file.name: file for file in of_source}
        limited += [files_by_name[name]._replace(num_bytes=size) for name, size in sizes.items()]
    return limited


def name_stratum(file: InputFile) -> str:
    """Return the `SampleSplit.stratum` of the rows of a file."""
    return f"{file.source} {''.join(file.kind)}"


def draw_sample(
    files: Sequence[InputFile], options: Sequence[ReadOptions], call_table: TableCall, seed: int
) -> Iterator[SampleSplit]:
    """Yield the start of the input, then rows at random positions; raise InputError.

    Each byte of the input is as likely as any other to be near a position, but where a file can't
    be sought, its first rows are read instead. There is at least one position in each kind of file.
    The same seed gives the same sample. files: with the sizes of what is read of them
    (`limit_files`). options: of each source.
    """
    options = [each._replace(max_rows=None) for each in options]
    known: dict[int, list[Section]] = {}
    drawn: set[object] = set()
    for number, offset in _draw_positions(files, seed):
        file = files[number]
        if number not in known:
            known[number] = _cut_start(file, options, call_table)
        section = _find_section(known[number], file, offset)
        if section is None:
            continue
        part = section.parts[0]
        if isinstance(part, LinesInFile):
            part = _cut_around(part, offset, file.num_bytes)
        if (number, part) in drawn:
            continue
        drawn.add((number, part))
        stratum, read_options = name_stratum(file), options[file.source]
        if isinstance(part, LinesInFile):
            split = Split(f"{number}", (part,), part.num_bytes, file.source, read_options.variant)
            yield SampleSplit(split, stratum)
            continue
        splits = read_section(section, read_options, _limit_table(call_table))
        first = next(splits, None)
        if is_table(part.file):
            first, *_ = [first, *splits]  # to the end, so that the next table can be asked for
        if first is not None:
            is_start = part.part is None and first.input_bytes < 0.9 * part.num_bytes
            for divided in _divide(first, max(1, _MOST_PARTS // len(files))):
                yield SampleSplit(divided, stratum, is_start)


def _draw_positions(files: Sequence[InputFile], seed: int) -> list[tuple[int, int]]:
    """Return the indices of files and offsets in them, the start of the input first."""
    sizes = np.array([file.num_bytes for file in files], dtype=np.int64)
    ends: Int64 = np.cumsum(sizes)
    drawn = PCG64(seed).random_raw(_NUM_POSITIONS) % np.uint64(max(1, ends[-1]))
    numbers = np.searchsorted(ends, drawn.astype(np.int64), side="right")
    positions = [(0, 0)]
    for number, position in zip(numbers.tolist(), drawn.tolist(), strict=True):
        positions.append((number, position - int(ends[number] - sizes[number])))
    by_kind = {name_stratum(file): number for number, file in reversed([*enumerate(files)])}
    found = {name_stratum(files[number]) for number, _ in positions}
    positions += [(number, 0) for kind, number in by_kind.items() if kind not in found]
    return list(dict.fromkeys(positions))


def _cut_start(
    file: InputFile, options: Sequence[ReadOptions], call_table: TableCall
) -> list[Section]:
    """Return the sections of a file; of one with a row in each line, which may be large, those up
    to the first that has a format.
    """
    sections = []
    for section in cut_sources([file], options, call_table):
        sections.append(section)
        if all(isinstance(part, LinesInFile) and part.format for part in section.parts):
            break
    return sections


def _find_section(sections: list[Section], file: InputFile, offset: int) -> Section | None:
    """Return the section of a file that holds a byte, or None if the file is empty."""
    start = 0
    for section in sections:
        start += sum(part.num_bytes for part in section.parts)
        if start > offset:
            return section
    last = sections[-1].parts[0] if sections else None
    if not isinstance(last, LinesInFile):
        return sections[-1] if sections else None
    offset -= offset % SPLIT_BYTES
    num_bytes = min(SPLIT_BYTES, file.num_bytes - offset)
    part = last._replace(offset=offset, num_bytes=num_bytes, format_start=0)
    return Section(0, (part,), file.source)


def _cut_around(part: LinesInFile, offset: int, file_bytes: int) -> LinesInFile:
    """Return the lines that begin in the range of `_SAMPLE_BYTES` that holds a byte of a file."""
    offset -= offset % _SAMPLE_BYTES
    num_bytes = min(_SAMPLE_BYTES, file_bytes - offset)
    end = offset + num_bytes
    return part._replace(
        offset=offset,
        num_bytes=num_bytes,
        format=part.format if part.format_start < end else None,
        format_start=part.format_start if offset < part.format_start < end else 0,
    )


def _limit_table(call_table: TableCall) -> TableCall:
    """Return a function that calls as `call_table` does, but reads only the start of a table."""

    def call(function: Any, /, *arguments: Any, **named: Any) -> Iterator[Any]:
        if function is read_table:
            function = read_table_start
        return call_table(function, *arguments, **named)

    return call


def read_table_start(*arguments: Any, **named: Any) -> Iterator[RowsInMemory]:
    """Yield the first batch that `read_table` yields; it may run in another process."""
    return islice(read_table(*arguments, **named), 1)


def _divide(split: Split, most: int) -> Iterator[Split]:
    """Yield the first rows of a split in parts of about `_SAMPLE_BYTES`, so many at most.

    Each has its share of the bytes that were read for the split.
    """
    rows = split_rows(split)
    ends = np.cumsum([int(row.sizes()[0]) for row in rows])
    share = split.input_bytes / max(1, ends[-1]) if len(ends) else 0
    start = taken = 0
    for part in range(1, most + 1):
        end = min(int(np.searchsorted(ends, part * _SAMPLE_BYTES)) + 1, len(rows))
        if start == end:
            return
        input_bytes = max(1, int((ends[end - 1] - taken) * share))
        yield replace(
            split,
            key=f"{split.key}.{part}",
            pieces=tuple(rows[start:end]),
            input_bytes=input_bytes,
        )
        start, taken = end, int(ends[end - 1])


def split_rows(split: Split) -> list[RowsInMemory]:
    """Return the rows of a split that is in memory, each as a piece."""
    rows: list[RowsInMemory] = []
    for found in split.found_rows:
        piece = found.piece
        if isinstance(piece, RowsInMemory):  # with what is known of the columns of a table
            rows += [piece.cut(number, number + 1) for number in range(len(piece))]
        else:
            raw = map(found.row, range(len(found)))
            rows += [RowsInMemory(row.file, row.format, [row.line], [row.text]) for row in raw]
    return rows


def read_standard_input(
    options: ReadOptions,
    descriptor: int = 0,
    seconds: float = _SECONDS_FOR_STANDARD_INPUT,
    source: int = 0,
) -> tuple[SampleSplit, bool]:
    """Read the first rows of standard input, and return them and whether they are all.

    seconds: how long to wait for them. source: its index, with these options. Raises InputError if
    there is no row then.
    """
    text, is_whole = _read_for_a_while(descriptor, seconds)
    text = text.removeprefix(BYTE_ORDER_MARK)
    file = InputFile(STANDARD_INPUT, STANDARD_INPUT, len(text), 0)
    layout = find_layout(file, BytesIO(text), options.line_limit) if text.strip() else LINES
    if layout == LINES:
        text = text if is_whole else text[: text.rfind(b"\n") + 1]
        lines = [line for line in text.split(b"\n") if line.strip()]
        row_format = options.format or _detect_first(lines)
        piece: Piece = LinesInMemory(STANDARD_INPUT, row_format, 1, text, options.line_limit)
    else:
        numbers, lines = [], []
        try:
            for number, line in read_elements(STANDARD_INPUT, BytesIO(text), LINE_LIMIT, layout):
                numbers.append(number)
                lines.append(line)
        except InputError:
            if is_whole:
                raise
        row_format = options.format or _detect_first(lines)
        piece = RowsInMemory(STANDARD_INPUT, row_format, numbers, [*lines])
    if not lines and not is_whole:
        raise InputError(
            f"{STANDARD_INPUT}: no whole row came in {seconds:g} s; "
            "write rows to it, or give a file"
        )
    split = Split(STANDARD_INPUT, (piece,), len(text), source, options.variant)
    return SampleSplit(split, STANDARD_INPUT), is_whole


def _detect_first(rows: Sequence[bytes]) -> str | None:
    return next(filter(None, map(detect_format, rows)), None)


def _read_for_a_while(descriptor: int, seconds: float) -> tuple[bytes, bool]:
    """Return what can be read, up to a limit of bytes and seconds, and whether that is all."""
    end = time.monotonic() + seconds
    blocks: list[bytes] = []
    num_bytes = 0
    while num_bytes < WHOLE_BYTES:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            return b"".join(blocks), False
        block = os.read(descriptor, 2**16)
        if not block:
            return b"".join(blocks), True
        blocks.append(block)
        num_bytes += len(block)
    return b"".join(blocks), False
