"""Rows that say texts alone, as columns: no Python object for a message.

Such a row is a list of messages that each have a role and a text and nothing else. There are no
tools, and all assistant messages carry loss.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa

from mtpack.input.dialogue import ROLES, Dialogue
from mtpack.token_batch import Bools, Int64, UInt8, offsets_from_lengths

_ROLE_CODES = {role: code for code, role in enumerate(ROLES)}
# The bytes with which white space begins, in UTF-8; that with E3 continues with 80.
_BEGINS_SPACE = np.isin(np.arange(256), [*range(0x21), 0xC2, 0xE1, 0xE2, 0xE3])
_IDEOGRAPHIC, _SPACE_PART = 0xE3, 0x80


@dataclass(frozen=True)
class Texts:
    """Texts that follow each other."""

    array: pa.StringArray

    @classmethod
    def of(cls, texts: Sequence[str]) -> Texts:
        """Make them of strings. (`pyarrow.array` would import pandas.)"""
        encoded = list(map(str.encode, texts))
        ends = offsets_from_lengths(np.array(list(map(len, encoded)), np.int64)).astype(np.int32)
        buffers = pa.py_buffer(ends), pa.py_buffer(b"".join(encoded))
        return cls(pa.StringArray.from_buffers(len(encoded), *buffers))

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, text: int) -> str:
        return self.joined[self.offsets[text] : self.offsets[text + 1]].decode()

    @cached_property
    def offsets(self) -> Int64:
        """The offsets of the texts in `joined`, (texts + 1,)."""
        first, buffer = self.array.offset, self.array.buffers()[1]
        if buffer is None:
            return np.zeros(1, np.int64)
        offsets = np.frombuffer(buffer, np.int32)[first : first + len(self.array) + 1]
        return offsets.astype(np.int64)

    @cached_property
    def joined(self) -> bytes:
        """All texts, one after the other, in UTF-8."""
        buffer = self.array.buffers()[2]
        return b"" if buffer is None else buffer.to_pybytes()

    def have_pair(self, pair: bytes) -> bool:
        """Return whether `joined` has two bytes next to each other.

        Python's search takes fifteen times as long where the first byte is frequent.
        """
        number, size = int.from_bytes(pair, "little"), len(self.joined)
        return any(
            (np.frombuffer(self.joined, "<u2", max(0, size - start) // 2, start) == number).any()
            for start in (0, 1)
            if size >= start + 2
        )


@dataclass(frozen=True)
class TextRows:
    """Rows that say texts alone. Row r has the messages `starts[r]:starts[r] + lengths[r]`."""

    rows: Int64
    """(rows,): the index of each row in its split, ascending."""
    starts: Int64
    """(rows,)"""
    lengths: Int64
    """(rows,): the number of messages, at least 1."""
    roles: UInt8
    """(messages,): indices in `ROLES`."""
    contents: Texts
    """(messages,)"""
    unread: tuple[tuple[str, ...], ...]
    """Different values of `Dialogue.unread`."""
    unread_codes: Int64
    """(rows,): the index of that of each row in `unread`."""

    @classmethod
    def of(cls, dialogues: Sequence[Dialogue]) -> TextRows:
        """Make the columns of dialogues that have only texts."""
        lengths: Int64 = np.array([len(dialogue.roles) for dialogue in dialogues], np.int64)
        unread = dict.fromkeys(dialogue.unread for dialogue in dialogues)
        codes = {names: code for code, names in enumerate(unread)}
        roles = bytes([_ROLE_CODES[role] for dialogue in dialogues for role in dialogue.roles])
        texts = [message["content"] for dialogue in dialogues for message in dialogue.messages]
        return cls(
            rows=np.array([dialogue.row for dialogue in dialogues], np.int64),
            starts=offsets_from_lengths(lengths)[:-1],
            lengths=lengths,
            roles=np.frombuffer(roles, np.uint8),
            contents=Texts.of(texts),
            unread=tuple(unread),
            unread_codes=np.array([codes[dialogue.unread] for dialogue in dialogues], np.int64),
        )

    @classmethod
    def join(cls, parts: Sequence[TextRows]) -> TextRows:
        """Return the rows of all parts, ascending."""
        parts = [part for part in parts if len(part)] or [cls.of([])]
        if len(parts) == 1:
            return parts[0]
        messages = offsets_from_lengths(np.array([len(part.contents) for part in parts]))
        codes = offsets_from_lengths(np.array([len(part.unread) for part in parts]))
        joined = cls(
            rows=np.concatenate([part.rows for part in parts]),
            starts=np.concatenate([p.starts + n for p, n in zip(parts, messages, strict=False)]),
            lengths=np.concatenate([part.lengths for part in parts]),
            roles=np.concatenate([part.roles for part in parts]),
            contents=Texts(pa.concat_arrays([part.contents.array for part in parts])),
            unread=tuple(names for part in parts for names in part.unread),
            unread_codes=np.concatenate(
                [p.unread_codes + n for p, n in zip(parts, codes, strict=False)]
            ),
        )
        return joined.take(np.argsort(joined.rows))

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, chosen: Int64 | Bools) -> TextRows:
        """Return some of the rows: their indices, or which of them, (rows,)."""
        return replace(
            self,
            rows=self.rows[chosen],
            starts=self.starts[chosen],
            lengths=self.lengths[chosen],
            unread_codes=self.unread_codes[chosen],
        )

    def list_roles(self, row: int) -> tuple[str, ...]:
        """Return the roles of the messages of a row."""
        start = self.starts[row]
        return tuple([ROLES[code] for code in self.roles[start : start + self.lengths[row]]])

    def num_bytes(self) -> Int64:
        """Return the number of bytes of the texts of each row."""
        sizes: Int64 = (
            self.contents.offsets[self.starts + self.lengths] - self.contents.offsets[self.starts]
        )
        return sizes

    def find_shapes(self) -> tuple[Int64, Int64]:
        """Return the shape of each row, and the first row of each shape.

        Rows with the same roles have the same shape: 0 for the first row, then 1, 2 and so on.
        """
        roles = self.roles.tobytes()
        ends = self.starts + self.lengths
        shapes: dict[bytes, int] = {}
        codes = [
            shapes.setdefault(roles[start:end], len(shapes))
            for start, end in zip(self.starts.tolist(), ends.tolist(), strict=True)
        ]
        found: Int64 = np.array(codes, np.int64)
        return found, np.unique(found, return_index=True)[1]

    def find_rows_with(self, part: str) -> Bools:
        """Return in which rows a text has this part, (rows,)."""
        pattern = re.escape(part.encode())
        starts = (
            re.finditer(pattern, self.contents.joined)
            if part.encode() in self.contents.joined
            else ()
        )
        positions = np.array([match.start() for match in starts], np.int64)
        return self._find_rows(positions, lambda text: part in text)

    def find_rows_where(self, first_bytes: bytes, is_found: Callable[[str], bool]) -> Bools:
        """Return in which rows a text has what is looked for, (rows,).

        first_bytes: the bytes with which it may begin. is_found: returns whether a text has it.
        """
        text = np.frombuffer(self.contents.joined, np.uint8)
        occurring = [byte for byte in first_bytes if byte in self.contents.joined]
        starts = [np.flatnonzero(text == byte) for byte in occurring]
        return self._find_rows(np.concatenate([np.empty(0, np.int64), *starts]), is_found)

    def find_rows_with_role(self, role: str) -> Bools:
        """Return which rows have a message of a role, (rows,)."""
        return self._mark_rows(np.flatnonzero(self.roles == _ROLE_CODES[role]))

    def find_rows_with_blank(self) -> Bools:
        """Return in which rows a text is blank: empty, or white space alone, (rows,)."""
        if not self.contents.joined:
            return np.ones(len(self), np.bool_)
        text, starts = np.frombuffer(self.contents.joined, np.uint8), self.contents.offsets[:-1]
        first = text[np.minimum(starts, len(text) - 1)]
        may_be_blank = np.flatnonzero(_BEGINS_SPACE[first] | (np.diff(self.contents.offsets) == 0))
        second = text[np.minimum(starts[may_be_blank] + 1, len(text) - 1)]
        # With E3 begin all kana.
        is_kana = (first[may_be_blank] == _IDEOGRAPHIC) & (second != _SPACE_PART)
        messages = may_be_blank[
            ~is_kana | (np.diff(self.contents.offsets)[may_be_blank] == 0)
        ].tolist()
        blank = [message for message in messages if not self.contents[message].strip()]
        return self._mark_rows(np.array(blank, np.int64))

    def _find_rows(self, starts: Int64, is_found: Callable[[str], bool]) -> Bools:
        """Return in which rows a text has what is looked for, which begins at some of `starts`."""
        may_have = np.zeros(len(self.contents), np.bool_)
        may_have[np.searchsorted(self.contents.offsets, starts, side="right") - 1] = True
        messages = np.flatnonzero(may_have).tolist()
        found = [message for message in messages if is_found(self.contents[message])]
        return self._mark_rows(np.array(found, np.int64))

    def _mark_rows(self, messages: Int64) -> Bools:
        """Return which rows have one of these messages, (rows,)."""
        if not len(messages):
            return np.zeros(len(self), np.bool_)
        counted = np.zeros(len(self.contents) + 1, np.int64)
        np.add.at(counted, messages + 1, 1)
        before = np.cumsum(counted)
        marked: Bools = before[self.starts + self.lengths] > before[self.starts]
        return marked
