"""Reads text files by what they hold: a row in each line, a JSON list of rows, or one JSON object.

The content decides, not the name: a `.json` file may have a row in each line, and a `.jsonl` file
may be a list over several lines. Of a list, one element at a time is in memory.
"""

from __future__ import annotations

import json
import re
from codecs import getincrementaldecoder
from collections.abc import Iterator
from typing import BinaryIO

from mtpack.errors import InputError
from mtpack.input.files import InputFile
from mtpack.input.row_batches import ReadPosition, RowBatch, batch_rows
from mtpack.input.text_files import open_text, read_first_line, read_lines

LINES, LIST, OBJECT = "lines", "list", "object"
_OPENING = (b"[", b"{")
_ANY_JSON = "a .json file holds a list, one object, or one object per line"
# Only the ends of values matter here. Numbers may have any size, and a row says what is wrong.
_DECODER = json.JSONDecoder(parse_int=float)
_SPACES = re.compile(r"[ \t\r\n]*")
# What follows a value if it may be a number of which only a part is in memory.
_MAY_GO_ON = re.compile(r"[-+.0-9eE]*\Z")
_BLOCK_BYTES = 2**20
_MOST_VALUES = 8 * 2**20


def read_text(file: InputFile, line_limit: int, layout: str | None = None) -> Iterator[RowBatch]:
    """Yield the rows of a text file in batches; raise InputError.

    layout: what it holds; None: find that out.
    """
    if layout is None:
        with open_text(file) as stream:
            layout = find_layout(file, stream, line_limit)
    if layout == LINES:
        return read_lines(file, line_limit)
    read = _read_list if layout == LIST else _read_object
    position = ReadPosition()
    return batch_rows(file.name, read(file, line_limit, position), line_limit, position)


def find_layout(file: InputFile, stream: BinaryIO, line_limit: int) -> str:
    """Return what a file holds; raise InputError for a `.json` file that holds no JSON.

    stream: the text of the file, at its start. A file named as lines is one, unless its first line
    opens a list or an object and can't be a value, so that no line of it would be a row.
    """
    text, number, following = read_first_line(stream, line_limit)
    document = LIST if text.startswith(b"[") else OBJECT
    if file.kind.content == "lines":
        opens = not text.strip(b"[{ \t") or (document == LIST and text.endswith(b","))
        return document if opens and following else LINES
    if not text.startswith(_OPENING):
        raise InputError(f"{file.name} line {number}: {_explain(text)}")
    if document == LIST:  # in lines, it is a list of messages
        return LINES if following in _OPENING and _is_value(text) else LIST
    return LINES if not following or _is_value(text) else OBJECT


def _explain(text: bytes) -> str:
    try:
        text.decode()
    except UnicodeDecodeError:
        return "not UTF-8; convert the file"
    return f"neither a JSON list nor an object; {_ANY_JSON}"


def _is_value(text: bytes) -> bool:
    decoded = text.decode(errors="replace")
    if _has_too_many_values(decoded, 0):  # the row says so
        return True
    try:
        _, end = _DECODER.raw_decode(decoded)
    except RecursionError:  # a value that is nested too deeply: the row says so
        return True
    except ValueError:
        return False
    return end == len(decoded)


def _read_list(
    file: InputFile, line_limit: int, position: ReadPosition
) -> Iterator[tuple[int, bytes, None]]:
    """Yield the elements of a JSON list, each as line number and unchanged text."""
    with open_text(file, position) as stream:
        yield from _Document(file.name, stream, line_limit).find_elements()


def _read_object(
    file: InputFile, line_limit: int, position: ReadPosition
) -> Iterator[tuple[int, bytes, None]]:
    """Yield the only object of a file, which may be pretty-printed, as line number and text."""
    with open_text(file, position) as stream:
        yield from _Document(file.name, stream, line_limit).find_object()


def read_elements(
    name: str, stream: BinaryIO, line_limit: int, layout: str
) -> Iterator[tuple[int, bytes]]:
    """Yield line number and text of each row of a JSON list or object; raise InputError.

    stream: its text, from the start. layout: `LIST` or `OBJECT`.
    """
    document = _Document(name, stream, line_limit)
    rows = document.find_elements() if layout == LIST else document.find_object()
    for line, text, _ in rows:
        yield line, text


class _Document:
    """The text of a JSON list or object, of which a part is in memory, and a position in it."""

    def __init__(self, name: str, stream: BinaryIO, limit: int) -> None:
        """Begin at the first character; limit: the longest value to take, in characters."""
        self._name = name
        self._stream = stream
        self._limit = limit
        self._decode = getincrementaldecoder("utf-8")().decode
        self._text, self._position, self._is_whole = "", 0, False
        self._line, self._counted = 1, 0
        self._read_more()
        self._text = self._text.removeprefix("\ufeff")
        self._skip_space()

    def find_elements(self) -> Iterator[tuple[int, bytes, None]]:
        """Yield line number and text of each element of a list; raise InputError."""
        self._skip(1)
        more = not self._starts_with("]")
        while more:
            yield self._take_value()
            if not self._starts_with((",", "]")):
                raise self._error("expected a comma or the end of the list")
            if more := self._starts_with(","):
                self._skip(1)
        self._skip(1)
        self._require_end("the list")

    def find_object(self) -> Iterator[tuple[int, bytes, None]]:
        """Yield line number and text of the value, if nothing follows it; raise InputError."""
        value = self._take_value()
        self._require_end("the object; write one object per line, or a list")
        yield value

    def _take_value(self) -> tuple[int, bytes, None]:
        """Return line number and text of the value here; raise InputError."""
        line = self._line_at(self._position)
        end = self._find_end()
        text = self._text[self._position : end].encode()
        self._position = end
        self._skip_space()
        return line, text, None

    def _find_end(self) -> int:
        """Return the end of the value here, and read on until it is in memory."""
        while True:
            try:
                _, end = _DECODER.raw_decode(self._text, self._position)
                if self._is_whole or not _MAY_GO_ON.match(self._text, end):
                    return end
                problem = end
            except RecursionError:
                raise self._error("nested too deeply") from None
            except ValueError as error:
                problem = getattr(error, "pos", self._position)
            is_too_long = len(self._text) - self._position > self._limit
            if self._is_whole or is_too_long:
                self._position = problem
                size = f", or a value of more than {self._limit:,} bytes; {_ANY_JSON}"
                raise self._error("not valid JSON" + (size if is_too_long else ""))
            if _has_too_many_values(self._text, self._position):
                raise self._error(f"more than {_MOST_VALUES:,} values in one row")
            self._read_more()

    def _read_more(self) -> None:
        """Drop what was taken, and read as much again as is left, so that few reads are enough."""
        self._line_at(self._position)
        self._text, self._position = self._text[self._position :], 0
        self._counted = 0
        block = self._stream.read(max(_BLOCK_BYTES, len(self._text)))
        self._is_whole = not block
        try:
            self._text += self._decode(block, self._is_whole)
        except UnicodeDecodeError as error:
            line = self._line_at(len(self._text)) + error.object.count(b"\n", 0, error.start)
            raise InputError(f"{self._name} line {line}: not UTF-8; convert the file") from error

    def _require_end(self, what: str) -> None:
        if self._position < len(self._text):
            raise self._error(f"there is text after the end of {what}")

    def _starts_with(self, characters: str | tuple[str, ...]) -> bool:
        return self._text.startswith(characters, self._position)

    def _skip(self, length: int) -> None:
        self._position += length
        self._skip_space()

    def _skip_space(self) -> None:
        while True:
            spaces = _SPACES.match(self._text, self._position)
            assert spaces is not None  # it matches an empty text too
            self._position = spaces.end()
            if self._position < len(self._text) or self._is_whole:
                return
            self._read_more()

    def _line_at(self, index: int) -> int:
        self._line += self._text.count("\n", self._counted, index)
        self._counted = index
        return self._line

    def _error(self, reason: str) -> InputError:
        line = self._line_at(min(self._position, len(self._text)))
        return InputError(f"{self._name} line {line}: {reason}")


def _has_too_many_values(text: str, start: int) -> bool:
    """Return whether the rest of a text may hold more values than are parsed at once.

    A value of two characters takes up to 72 bytes of memory. Short texts are not counted.
    """
    if len(text) - start <= _MOST_VALUES:
        return False
    return sum(text.count(each, start) for each in "[{,") > _MOST_VALUES
