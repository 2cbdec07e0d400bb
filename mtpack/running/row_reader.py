"""Reads the rows of a split as dialogues in the forms that the template takes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate

import numpy as np
import orjson

from mtpack.documents.turn_units import TurnUnits
from mtpack.input.dialogue import Dialogue, Origin, Reject, make_dialogue
from mtpack.input.plain_text import read_plain_text
from mtpack.input.reading import LINE_LIMIT
from mtpack.input.rows import RowOptions, read_dialogue
from mtpack.input.splits import RawRow, Split
from mtpack.input.text_blocks import read_text_rows
from mtpack.input.text_rows import TextRows
from mtpack.running.pipeline import Pipeline
from mtpack.template.message_forms import find_forms
from mtpack.token_batch import Int64
from mtpack.turn_weight import round_weight

_MESSAGES_IN_TYPICAL_ROW = 60


class RowReader:
    """Reads the rows of a split, which are numbered within it."""

    def __init__(self, split: Split, pipeline: Pipeline) -> None:
        """Find the rows; raises InputError if a file can't be read."""
        self._pipeline = pipeline
        self._pieces = split.found_rows
        self._firsts = [0, *accumulate(map(len, self._pieces))]
        self._source = pipeline.sources[split.source]
        self._defaults = pipeline.find_defaults(self._source)
        has_weights = pipeline.options.turn_weights
        self._options = RowOptions(
            messages_key=self._source.messages_key,
            keeps_argument_text=pipeline.template.tool_arguments == "text",
            source_weight=self._source.weight if has_weights else None,
        )
        units = TurnUnits(round_weight(1.0, self._source.weight))
        self.units = units if has_weights else None
        """The weights of turns, for who reads the rows to add to; None without `--turn-weights`."""

    def __len__(self) -> int:
        return self._firsts[-1]

    def read(self, row: int) -> Dialogue | Reject:
        """Read a row."""
        raw = self._find(row)
        if self._source.is_text:
            return read_plain_text(row, _find_origin(raw), raw.text, LINE_LIMIT)
        read = read_dialogue(
            row, _find_origin(raw), raw.text, LINE_LIMIT, raw.format, self._options
        )
        if isinstance(read, Reject):
            return read
        return self._form(read if self._defaults is None else self._defaults.apply(read))

    def read_all(self) -> Iterator[Dialogue | Reject]:
        """Read the rows, one at a time."""
        return map(self.read, range(len(self)))

    def find_origin(self, row: int) -> Origin:
        """Return the position of a row."""
        return _find_origin(self._find(row))

    def describe(self, rows: Int64) -> str:
        """Return the lines of rows that follow each other, for a message."""
        ends = rows[[0, -1]].tolist() if len(rows) else []
        return " to ".join(dict.fromkeys(str(self.find_origin(row)) for row in ends))

    def read_texts(self) -> TextRows:
        """Return the rows that are read in blocks: most of those that say texts alone."""
        template = self._pipeline.template
        is_changed = self._options.messages_key is not None or self._defaults is not None
        if is_changed or find_forms(template, None).only_parts:
            return TextRows.of([])
        numbered = [
            (piece, np.arange(first, first + len(piece)))
            for piece, first in zip(self._pieces, self._firsts, strict=False)
            if piece.piece.format in (None, "messages")
        ]
        if not numbered:
            return TextRows.of([])
        pieces, rows = zip(*numbered, strict=True)
        return read_text_rows(pieces, np.concatenate(rows))

    def read_text(self, row: int) -> Dialogue:
        """Return the dialogue of a row that `read_texts` has read, without its unread keys."""
        raw = self._find(row)
        # Their keys have an order that a template may see.
        messages = orjson.loads(raw.text or b"")["messages"]
        return self._form(make_dialogue(row, _find_origin(raw), messages))

    def _find(self, row: int) -> RawRow:
        piece = bisect_right(self._firsts, row) - 1
        return self._pieces[piece].row(row - self._firsts[piece])

    def _form(self, read: Dialogue) -> Dialogue:
        """Return a dialogue in the forms of its template, and with the turns that are trained."""
        template = self._pipeline.template
        if read.template_args is not None:
            set_activity(self._pipeline, read)  # probes of the template with these arguments
            template = template.with_arguments(read.template_args)
        read = find_forms(template, read.tools).apply(read)
        return read.train_last_turn() if self._pipeline.options.train_turns == "last" else read


def _find_origin(raw: RawRow) -> Origin:
    return Origin(raw.file, raw.line, raw.after_byte)


def set_activity(pipeline: Pipeline, dialogue: Dialogue) -> None:
    """Report in the heartbeat that this dialogue is being rendered."""
    pipeline.heartbeat.begin(
        f"{dialogue.origin}: rendering with the chat template of {pipeline.template_source}",
        effort=1 + len(dialogue.messages) / _MESSAGES_IN_TYPICAL_ROW,
    )
