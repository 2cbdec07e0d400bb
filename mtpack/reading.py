"""Files to raw rows: every non-blank line, list element or table row, with its file and line.

What a row means is decided in `formats`; here, only the first rows of a file are parsed, to tell
which format the file is in. Text files are read as streams, so memory does not grow with their
size (`.json` lists are the exception: JSON has no rows).
"""

from __future__ import annotations

import glob
import gzip
import hashlib
import json
import math
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import orjson
import pyarrow as pa
import pyarrow.parquet

from mtpack.errors import InputError, SetupError
from mtpack.formats.shapes import ROW_KEYS, format_of

STANDARD_INPUT = "-"
AUTO = "auto"
SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".jsonl.zst", ".parquet")
LINE_LIMIT = 64 * 2**20
# What one split holds: small enough that many workers share a small input, large enough that
# handing it over costs nothing beside tokenizing it.
SPLIT_BYTES = 2**20
_BLOCK_BYTES = 2**20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class InputFile:
    """An input as the user named it, and what it holds."""

    name: str
    path: Path
    num_bytes: int
    sha256: str


class RawRow(NamedTuple):
    """One row as it stands in its file."""

    file: str
    line: int
    """Line of a text file, row of a table; from 1."""
    text: bytes | None
    """JSON text, or None for a line above the limit."""
    format: str | None = None
    """The format of its file, or None where neither this row nor one before it fits any."""


@dataclass(frozen=True, slots=True)
class Split:
    """Consecutive rows: the piece of the input that one worker reads."""

    number: int
    first_row: int
    rows: list[RawRow]


def find_inputs(inputs: Iterable[str], output: Path | None = None) -> list[str]:
    """Expand folders and globs into file names, sorted within each; raise SetupError.

    `-` (standard input) stays as it is. What a folder or a glob has below `output` is no input.
    """
    names = [file for name in inputs for file in _expand(name, output)]
    for name in names:
        if name != STANDARD_INPUT and not _suffix(name):
            raise SetupError(
                f"{name}: unknown kind of file; mtpack reads {', '.join(SUFFIXES)} "
                "and - (JSONL from standard input)"
            )
    if names.count(STANDARD_INPUT) > 1:
        raise SetupError("-: standard input can be read only once; name it once")
    return names


def _expand(name: str, output: Path | None) -> list[str]:
    def is_input(found: str) -> bool:
        if _suffix(found) is None or not os.path.isfile(found):
            return False
        return output is None or not Path(found).resolve().is_relative_to(output.resolve())

    if name == STANDARD_INPUT or os.path.isfile(name):
        return [name]
    if os.path.isdir(name):
        inside = sorted(filter(is_input, map(str, Path(name).rglob("*"))))
        if not inside:
            kinds = ", ".join(SUFFIXES)
            raise SetupError(f"{name}: the folder holds no input; mtpack reads {kinds}")
        return inside
    matching = sorted(filter(is_input, glob.glob(name, recursive=True)))
    if not matching:
        raise SetupError(f"{name}: no such file; check the name or the pattern")
    return matching


def describe_input(name: str, path: Path) -> InputFile:
    """Return size and sha256 of the file at `path`; raise InputError."""
    with _read_errors(name), open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return InputFile(name, path, file.tell(), digest)


def read_splits(
    files: Iterable[InputFile], line_limit: int = LINE_LIMIT, row_format: str = AUTO
) -> Iterator[Split]:
    """Cut the rows of all files, in order, into splits of about `SPLIT_BYTES`.

    row_format: the format of all rows; `auto` tells it for each file from its first rows.
    """
    rows: list[RawRow] = []
    number = first_row = num_bytes = 0
    for file in files:
        read = _READERS[_suffix(file.name) or ".jsonl"]
        for row in _with_format(read(file, line_limit), row_format):
            rows.append(row)
            num_bytes += len(row.text or b"")
            if num_bytes >= SPLIT_BYTES:
                yield Split(number, first_row, rows)
                number, first_row = number + 1, first_row + len(rows)
                rows, num_bytes = [], 0
    if rows:
        yield Split(number, first_row, rows)


def _with_format(rows: Iterable[RawRow], row_format: str) -> Iterator[RawRow]:
    """Give the rows of a file their format: that of the first row that fits one, under `auto`.

    It is told here, before rows are cut into splits, so it does not depend on where the cuts are.
    """
    told = None if row_format == AUTO else row_format
    for row in rows:
        told = told or format_of(row.text)
        yield RawRow(row.file, row.line, row.text, told)


def _suffix(name: str) -> str | None:
    fitting = [suffix for suffix in SUFFIXES if name.lower().endswith(suffix)]
    return max(fitting, key=len, default=None)


@contextmanager
def _read_errors(name: str) -> Iterator[None]:
    """Turn what can go wrong in a file into one line with its name."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            f"{name}: damaged or cut off ({error}); restore the file and run again"
        ) from error
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        detail = getattr(error, "strerror", None) or str(error).split("\n")[0]
        raise InputError(f"{name}: can't be read ({detail})") from error


def _read_jsonl(file: InputFile, line_limit: int) -> Iterator[RawRow]:
    line = 0
    try:
        with _open_text(file) as stream:
            for line, text in enumerate(_lines(stream, line_limit), 1):
                if text is None or text.strip():
                    yield RawRow(file.name, line, text)
    except InputError as error:
        raise InputError(f"{error} (behind line {line})") from error


@contextmanager
def _open_text(file: InputFile) -> Iterator[BinaryIO]:
    with _read_errors(file.name):
        suffix = _suffix(file.name)
        if suffix == ".jsonl.gz":
            with gzip.open(file.path) as unzipped:
                yield cast(BinaryIO, unzipped)
        elif suffix == ".jsonl.zst":
            with pa.OSFile(str(file.path)) as packed, pa.CompressedInputStream(packed, "zstd") as s:
                yield cast(BinaryIO, s)
        else:
            with open(file.path, "rb") as plain:
                yield plain


def _lines(stream: BinaryIO, limit: int) -> Iterator[bytes | None]:
    """Yield lines without their newline, None for one above `limit`, in memory of about `limit`."""
    pieces: list[bytes] = []  # of the line that is not finished yet
    length = 0
    first = True
    while block := stream.read(_BLOCK_BYTES):
        if first:
            block, first = block.removeprefix(_BYTE_ORDER_MARK), False
        *ends, rest = block.split(b"\n")
        for end in ends:
            yield b"".join([*pieces, end]) if length + len(end) <= limit else None
            pieces, length = [], 0
        length += len(rest)
        pieces = [*pieces, rest] if length <= limit else []
    if length:
        yield b"".join(pieces) if length <= limit else None


def _read_json(file: InputFile, line_limit: int) -> Iterator[RawRow]:
    """Yield the elements of a JSON list as the text they are written in."""
    with _read_errors(file.name):
        content = file.path.read_bytes().removeprefix(_BYTE_ORDER_MARK)
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{file.name} line {line}: not UTF-8; convert the file") from error
    for start, end, line in _list_elements(file.name, text):
        row = text[start:end].encode()
        yield RawRow(file.name, line, row if len(row) <= line_limit else None)


def _list_elements(name: str, text: str) -> Iterator[tuple[int, int, int]]:
    """Yield start, end and line of each element of the list that `text` holds."""
    decoder = json.JSONDecoder()
    position = _skip_space(text, 0)
    line, counted = 1, 0

    def line_at(index: int) -> int:
        nonlocal line, counted
        line, counted = line + text.count("\n", counted, index), index
        return line

    def error(reason: str) -> InputError:
        return InputError(f"{name} line {line_at(min(position, len(text)))}: {reason}")

    if not text.startswith("[", position):
        raise error("not a JSON list; one dialogue a line belongs into a .jsonl file")
    position = _skip_space(text, position + 1)
    more = not text.startswith("]", position)
    while more:
        try:
            _, end = decoder.raw_decode(text, position)
        except RecursionError:
            raise error("nested too deeply") from None
        except ValueError as problem:
            position = getattr(problem, "pos", position)
            raise error("not valid JSON") from None
        yield position, end, line_at(position)
        position = _skip_space(text, end)
        if not text.startswith((",", "]"), position):
            raise error("expected a comma or the end of the list")
        if more := text.startswith(",", position):
            position = _skip_space(text, position + 1)
    position = _skip_space(text, position + 1)
    if position < len(text):
        raise error("text behind the end of the list")


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _read_parquet(file: InputFile, line_limit: int) -> Iterator[RawRow]:
    """Yield table rows as JSON text.

    Arrow gives every struct of a column the same fields, so it can't tell a missing field from a
    null one: null fields are taken as missing, as in TRL.
    """
    with _read_errors(file.name), pa.parquet.ParquetFile(file.path) as table:
        columns = [name for name in table.schema_arrow.names if name in ROW_KEYS]
        if len(set(columns)) < len(columns):
            raise InputError(f"{file.name}: has two columns of the same name; remove one")
        line = 0
        for batch in table.iter_batches(batch_size=256, columns=columns):
            for row in batch.to_pylist():
                line += 1
                try:
                    text = orjson.dumps(_without_nulls(row))
                except TypeError as error:
                    raise InputError(f"{file.name} row {line}: {error}") from error
                yield RawRow(file.name, line, text if len(text) <= line_limit else None)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise TypeError("NaN or an infinity, which JSON does not have")
    return value


_READERS = {
    ".jsonl": _read_jsonl,
    ".jsonl.gz": _read_jsonl,
    ".jsonl.zst": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
}
