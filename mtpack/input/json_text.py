"""Reads text files by what they hold: a row in each line, a JSON list of rows, or one JSON object.

The content decides, not the name: a `.json` file may have a row in each line, and a `.jsonl` file
may be a list over several lines. Only lists are read whole, since they have no other end.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from mtpack.errors import InputError
from mtpack.input.files import InputFile
from mtpack.input.splits import RowBatch, batch_rows
from mtpack.input.text_files import BYTE_ORDER_MARK, open_text, read_first_line, read_lines

LINES, LIST, OBJECT = "lines", "list", "object"
_OPENING = (b"[", b"{")
_ANY_JSON = "a .json file holds a list, one object, or one object per line"
# Only the ends of values matter here. Numbers may have any size, and a row says what is wrong.
_DECODER = json.JSONDecoder(parse_int=float)


def read_text(file: InputFile, line_limit: int) -> Iterator[RowBatch]:
    """Yield the rows of a text file in batches; raise InputError."""
    layout = _find_layout(file, line_limit)
    if layout == LINES:
        return read_lines(file, line_limit)
    read = _read_list if layout == LIST else _read_object
    return batch_rows(file.name, read(file, line_limit), line_limit)


def _find_layout(file: InputFile, line_limit: int) -> str:
    """Return what a file holds; raise InputError for a `.json` file that holds no JSON.

    A file named as lines is one, unless its first line opens a list or an object and can't be a
    value, so that no line of it would be a row.
    """
    text, number, following = read_first_line(file, line_limit)
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
    try:
        _, end = _DECODER.raw_decode(decoded)
    except RecursionError:  # a value that is nested too deeply: the row says so
        return True
    except ValueError:
        return False
    return end == len(decoded)


def _read_list(file: InputFile, line_limit: int) -> Iterator[tuple[int, bytes, None]]:
    """Yield the elements of a JSON list, each as line number and unchanged text."""
    with open_text(file) as stream:
        document = _Document(file.name, stream.read())
    return document.find_elements()


def _read_object(file: InputFile, line_limit: int) -> Iterator[tuple[int, bytes, None]]:
    """Yield the only object of a file, which may be pretty-printed, as line number and text."""
    with open_text(file) as stream:
        content = stream.read(line_limit + 1)
    if len(content) > line_limit:
        raise InputError(
            f"{file.name}: the first line is not valid JSON, or one object of more than "
            f"{line_limit:,} bytes; {_ANY_JSON}"
        )
    return _Document(file.name, content).find_object()


class _Document:
    """The text of a JSON list or object, and a position in it."""

    def __init__(self, name: str, content: bytes) -> None:
        """Begin at the first character; raise InputError if the content is not UTF-8."""
        content = content.removeprefix(BYTE_ORDER_MARK)
        self._name = name
        self._line, self._counted = 1, 0
        try:
            self._text = content.decode()
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            raise InputError(f"{name} line {line}: not UTF-8; convert the file") from error
        self._position = 0
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
        start, line = self._position, self._line_at(self._position)
        try:
            _, self._position = _DECODER.raw_decode(self._text, start)
        except RecursionError:
            raise self._error("nested too deeply") from None
        except ValueError as problem:
            self._position = getattr(problem, "pos", start)
            raise self._error("not valid JSON") from None
        text = self._text[start : self._position].encode()
        self._skip_space()
        return line, text, None

    def _require_end(self, what: str) -> None:
        if self._position < len(self._text):
            raise self._error(f"there is text after the end of {what}")

    def _starts_with(self, characters: str | tuple[str, ...]) -> bool:
        return self._text.startswith(characters, self._position)

    def _skip(self, length: int) -> None:
        self._position += length
        self._skip_space()

    def _skip_space(self) -> None:
        while self._starts_with((" ", "\t", "\r", "\n")):
            self._position += 1

    def _line_at(self, index: int) -> int:
        self._line += self._text.count("\n", self._counted, index)
        self._counted = index
        return self._line

    def _error(self, reason: str) -> InputError:
        line = self._line_at(min(self._position, len(self._text)))
        return InputError(f"{self._name} line {line}: {reason}")
