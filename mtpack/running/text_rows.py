"""Render and count the rows of a split of plain text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from mtpack.counts import Counts, limit_names
from mtpack.documents.overlong import refuse_overlong
from mtpack.documents.plain_text import TextRenderer
from mtpack.input.dialogue import Dialogue, Reject
from mtpack.template.rendered_dialogue import RenderedDialogue


class TextRows:
    """Renders and counts the rows of a split of plain text."""

    def __init__(self, renderer: TextRenderer, seq_len: int, overlong: Collection[int]) -> None:
        """Start with no rows; overlong: the indices of rows to reject."""
        self._renderer = renderer
        self._seq_len = seq_len
        self._overlong = overlong
        self.rejects: list[Reject] = []
        self.row_turns: list[int] = []
        """As in `TokenizedSplit`."""
        self.warnings: set[str] = set()
        self._never_read: Counter[str] = Counter()
        self._spelling: Counter[str] = Counter()

    def render(
        self, rows: Iterable[Dialogue | Reject], chars_per_batch: int
    ) -> Iterator[tuple[str, list[RenderedDialogue]]]:
        """Yield (where it begins, rendered texts), so many characters at a time."""
        where, num_chars = "", 0
        rendered: list[RenderedDialogue] = []
        for row in rows:
            result = row if isinstance(row, Reject) else self._render(row)
            if isinstance(result, Reject):
                self.rejects.append(result)
                self.row_turns.append(-1)
                continue
            self.row_turns.append(result.num_turns)
            if result.num_turns:
                where = where or str(row.origin)
                rendered.append(result)
                num_chars += len(result.merged.text)
            if num_chars >= chars_per_batch:
                yield where, rendered
                where, num_chars, rendered = "", 0, []
        if rendered:
            yield where, rendered

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

    def count(self) -> Counts:
        """Return what nobody reads, and what texts spell."""
        spelling: dict[str, Any] = dict(self._spelling)
        return Counts(never_read=limit_names(self._never_read), **spelling)
