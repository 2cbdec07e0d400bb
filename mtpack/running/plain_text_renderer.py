"""Renders and counts the rows of a split of plain text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

from mtpack.counts import Counts, limit_names
from mtpack.documents.overlong import refuse_overlong
from mtpack.input.dialogue import Dialogue, Reject
from mtpack.input.splits import Split
from mtpack.running.pipeline import Pipeline
from mtpack.running.row_reader import RowReader
from mtpack.running.row_renderer import BYTES_PER_BATCH
from mtpack.running.stopwatch import Stopwatch
from mtpack.template.rendered_dialogue import RenderedDialogue
from mtpack.template.rendered_documents import RenderedDocuments
from mtpack.token_batch import Int32


class PlainTextRenderer:
    """Makes documents of the rows of a split of plain text, as `RowRenderer` does of dialogues."""

    def __init__(self, pipeline: Pipeline, split: Split, overlong: Collection[int]) -> None:
        """Start with no rows; overlong: the indices of rows to reject."""
        assert pipeline.texts is not None
        self._renderer = pipeline.texts
        self._seq_len = pipeline.options.seq_len
        self._overlong = overlong
        self._reader = RowReader(split, pipeline)
        self.units = self._reader.units
        """As in `RowReader`."""
        self.rejects: list[Reject] = []
        self.row_turns: Int32 = np.full(len(self._reader), -1, np.int32)
        """As in `TokenizedSplit`."""
        self.warnings: set[str] = set()
        self._never_read: Counter[str] = Counter()
        self._spelling: Counter[str] = Counter()

    def render(self, watch: Stopwatch) -> Iterator[RenderedDocuments]:
        """Yield the documents of accepted rows, some megabytes of text at a time."""
        rendered: list[RenderedDialogue] = []
        num_chars = 0
        for row in self._reader.read_all():
            result = row if isinstance(row, Reject) else self._render(row)
            if isinstance(result, Reject):
                self.rejects.append(result)
                continue
            self.row_turns[row.row] = result.num_turns
            if result.num_turns:
                rendered.append(result)
                num_chars += len(result.merged.text)
            if num_chars >= BYTES_PER_BATCH:
                watch.lap("read")
                yield RenderedDocuments.of(rendered)
                rendered, num_chars = [], 0
        watch.lap("read")
        if rendered:
            yield RenderedDocuments.of(rendered)

    def _render(self, dialogue: Dialogue) -> RenderedDialogue | Reject:
        """Render a text and, unless it is rejected, count it."""
        if dialogue.row in self._overlong:
            return refuse_overlong(dialogue, self._seq_len)
        rendered = self._renderer.render(dialogue)
        if isinstance(rendered, RenderedDialogue):
            self._never_read.update(dialogue.unread)
            if self._renderer.find_spelled(dialogue):
                is_literal = self._renderer.renderer.policy == "literal"
                self._spelling["control_tokens_literal" if is_literal else "control_tokens"] += 1
        return rendered

    def describe(self, documents: RenderedDocuments) -> str:
        """Return the lines of the rows of documents, for a message."""
        return self._reader.describe(documents.rows)

    def count(self) -> Counts:
        """Return what nobody reads, and what texts spell."""
        spelling: dict[str, Any] = dict(self._spelling)
        return Counts(never_read=limit_names(self._never_read), **spelling)
