"""Reads rows that say texts alone in blocks: whole columns of them, with `pyarrow.json`.

A row is taken from a block only if that is proven to give the same as `rows.read_dialogue`. All
other rows are read there, one by one. pyarrow accepts what a strict parser refuses, so:

- a line must begin with `{` and end with `}`, and hold no other carriage return than one at its
  end: pyarrow takes two objects on a line for two rows, an object over two lines for one, and a
  carriage return for the end of a line. Then it must find as many rows as lines;
- the texts must be UTF-8;
- no value that is read may be missing or null, and numbers must be finite;
- the number of strings in the line must be that of the keys and strings that are read. Every
  further key, and every key that appears twice, is one more string. So pyarrow may ignore keys.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from mtpack.input.dialogue import ROLES
from mtpack.input.row_keys import MEANINGFUL_KEYS
from mtpack.input.splits import PieceRows
from mtpack.input.strict_json import hide_escaped_backslashes
from mtpack.input.text_rows import TextRows, Texts
from mtpack.token_batch import Bools, Int64, offsets_from_lengths

_OPENING, _CLOSING, _RETURN, _QUOTE, _BACKSLASH = b'{}\r"\\'
# Rows that are parsed to see whether a block is worth reading, and which keys it has.
_SAMPLE = 8
# Fewer rows are not read as a block, since that takes longer than to read each.
_LEAST_ROWS = 8
_MOST_KEYS = 32
_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_ROLES = Texts.of(ROLES).array
_TYPES: dict[type, pa.DataType] = {
    str: pa.string(),
    bool: pa.bool_(),
    int: pa.float64(),
    float: pa.float64(),
}


def read_text_rows(pieces: Sequence[PieceRows], rows: Int64) -> TextRows:
    """Return those of the rows that are proven to say texts alone.

    pieces: with the format `messages`, or none. rows: the index of each of their rows in the split.
    """
    lines = _Lines(pieces)
    chosen = lines.find_candidates()
    keys = _find_keys(lines, chosen)
    found = TextRows.join([] if keys is None else _read_parts(lines, chosen, keys))
    return replace(found, rows=rows[found.rows])


class _Lines:
    """The rows of all pieces as lines of one text."""

    def __init__(self, pieces: Sequence[PieceRows]) -> None:
        self.text = pieces[0].text if len(pieces) == 1 else b"\n".join([p.text for p in pieces])
        moved = offsets_from_lengths(np.array([len(piece.text) + 1 for piece in pieces]))
        self.starts = np.concatenate([p.starts + n for p, n in zip(pieces, moved, strict=False)])
        self.ends = np.concatenate([p.ends + n for p, n in zip(pieces, moved, strict=False)])

    def find_candidates(self) -> Int64:
        """Return the lines that pyarrow takes for rows as they are, if they are valid."""
        characters = np.frombuffer(self.text, np.uint8)
        rows = np.flatnonzero(self.ends > self.starts)
        last = self.ends[rows] - 1
        has_return = characters[last] == _RETURN
        fits = characters[self.starts[rows]] == _OPENING
        fits &= characters[last - has_return] == _CLOSING
        if self.text.count(b"\r") > has_return.sum():
            returns = np.flatnonzero(characters == _RETURN)
            inside = np.searchsorted(returns, self.ends[rows] - has_return)
            fits &= inside == np.searchsorted(returns, self.starts[rows])
        candidates: Int64 = rows[fits]
        return candidates

    def join(self, rows: Int64) -> bytes:
        """Return these lines, with all that is between them if that is only their newlines."""
        starts, ends = self.starts[rows], self.ends[rows]
        if (starts[1:] == ends[:-1] + 1).all():
            return self.text[starts[0] : ends[-1]]
        spans = zip(starts.tolist(), ends.tolist(), strict=True)
        return b"\n".join([self.text[start:end] for start, end in spans])


def _find_keys(lines: _Lines, rows: Int64) -> dict[str, pa.DataType] | None:
    """Return the keys next to the messages that have plain values and no meaning, and their types.

    They are found in a sample of the rows. None if less than half of them say texts alone.
    """
    if len(rows) < _LEAST_ROWS:
        return None
    sample = rows[:: math.ceil(len(rows) / _SAMPLE)].tolist()
    num_texts = 0
    types: dict[str, pa.DataType] = {}
    for row in sample:
        value = _load(lines.text[lines.starts[row] : lines.ends[row]])
        messages = value.pop("messages", None)
        others = {key: _TYPES.get(type(item)) for key, item in value.items()}
        if (
            isinstance(messages, list)
            and all(map(_is_text, messages))
            and None not in others.values()
            and MEANINGFUL_KEYS.isdisjoint(others)
        ):
            num_texts += 1
            types |= others
    return types if 2 * num_texts >= len(sample) and len(types) <= _MOST_KEYS else None


def _load(text: bytes) -> dict[str, Any]:
    """Return the value of a line; an empty object if it is no other."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _is_text(message: Any) -> bool:
    return (
        isinstance(message, dict) and len(message) == 2 and isinstance(message.get("content"), str)
    )


def _read_parts(lines: _Lines, rows: Int64, keys: dict[str, pa.DataType]) -> list[TextRows]:
    """Read rows as one block; if pyarrow can't, those before and after the middle apart."""
    if len(rows) < _LEAST_ROWS:
        return []
    found = _read_block(lines.join(rows), rows, keys)
    if found is not None or len(rows) == 1:
        return [] if found is None else [found]
    middle = len(rows) // 2
    return [*_read_parts(lines, rows[:middle], keys), *_read_parts(lines, rows[middle:], keys)]


def _read_block(block: bytes, rows: Int64, keys: dict[str, pa.DataType]) -> TextRows | None:
    """Read the lines of a block; None if pyarrow can't."""
    schema = pa.schema([("messages", _MESSAGES), *keys.items()])
    try:
        table = pyarrow.json.read_json(
            pa.BufferReader(block),
            read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(block) + 1),
            parse_options=pyarrow.json.ParseOptions(
                explicit_schema=schema, unexpected_field_behavior="ignore"
            ),
        )
        table.validate(full=True)
    except pa.ArrowInvalid:
        return None
    if len(table) != len(rows) or table["messages"].num_chunks != 1:
        return None
    columns = {name: table[name].chunk(0) for name in schema.names}  # one block, so one chunk
    lists = columns.pop("messages")
    offsets = _get_values(lists.offsets, np.int32).astype(np.int64)
    lengths = np.diff(offsets)
    roles, are_known = _encode_roles(lists.values)
    is_read = (lengths > 0) & _is_valid(lists)
    counted = offsets_from_lengths((~are_known).astype(np.int64))
    is_read &= counted[offsets[1:]] == counted[offsets[:-1]]
    num_strings = 1 + 4 * lengths
    given = {name: _is_valid(column) for name, column in columns.items()}
    for name, column in columns.items():
        num_strings += given[name] * (1 + int(keys[name] == pa.string()))
        if keys[name] == pa.float64():
            is_read &= np.isfinite(_get_values(column, np.float64)) | ~given[name]
    is_read &= _count_strings(block) == num_strings
    unread, codes = _name_unread(given, len(rows))
    found = TextRows(
        rows, offsets[:-1], lengths, roles, Texts(lists.values.field(1)), unread, codes
    )
    return found if is_read.all() else found.take(is_read)


def _is_valid(column: pa.Array) -> Bools:
    """Return where a column has a value, (rows,)."""
    if not column.null_count:
        return np.ones(len(column), np.bool_)
    bits = np.unpackbits(np.frombuffer(column.buffers()[0], np.uint8), bitorder="little")
    return bits[column.offset : column.offset + len(column)].astype(np.bool_)


def _get_values(column: pa.Array, dtype: type) -> Any:
    """Return the values of a column of numbers; anything where it has none."""
    values: Any = np.frombuffer(column.buffers()[1], dtype)
    return values[column.offset : column.offset + len(column)]


def _encode_roles(messages: pa.StructArray) -> tuple[Any, Bools]:
    """Return the codes of the roles, and which messages have a known one and a text."""
    roles, contents = messages.field(0), messages.field(1)
    codes = pc.index_in(roles, value_set=_ROLES)
    known = _is_valid(codes) & _is_valid(contents) & _is_valid(messages)
    return np.where(known, _get_values(codes, np.int32), 0).astype(np.uint8), known


def _count_strings(block: bytes) -> Int64:
    """Return the number of keys and strings in each line of a block, (lines,)."""
    characters = np.frombuffer(block, np.uint8)
    quotes = np.flatnonzero(characters == _QUOTE)
    is_escaped = characters[quotes - 1] == _BACKSLASH
    if (characters[quotes[is_escaped] - 2] == _BACKSLASH).any():  # rare, and takes longer
        hidden = np.frombuffer(hide_escaped_backslashes(block), np.uint8)
        is_escaped = hidden[quotes - 1] == _BACKSLASH
    quotes = quotes[~is_escaped]
    ends = np.append(np.flatnonzero(characters == ord("\n")), len(block))
    counts: Int64 = np.diff(np.searchsorted(quotes, ends), prepend=0) // 2
    return counts


def _name_unread(
    given: dict[str, Bools], num_rows: int
) -> tuple[tuple[tuple[str, ...], ...], Int64]:
    """Return the different sets of keys that rows have, and the index of that of each row."""
    codes: Int64 = np.zeros(num_rows, np.int64)
    for bit, is_given in enumerate(given.values()):
        codes |= is_given.astype(np.int64) << bit
    if num_rows and (codes == codes[0]).all():
        different, indices = codes[:1], np.zeros(num_rows, np.int64)
    else:
        different, indices = np.unique(codes, return_inverse=True)
    names = tuple(
        tuple(name for bit, name in enumerate(given) if code >> bit & 1)
        for code in different.tolist()
    )
    return names, indices
