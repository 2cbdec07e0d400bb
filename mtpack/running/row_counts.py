"""Counts what the accepted rows of a split have, apart from tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from mtpack.counts import Counts, limit_names
from mtpack.documents.control_tokens import Renderer
from mtpack.input.dialogue import Dialogue
from mtpack.input.reasoning import END_OF_THINK
from mtpack.input.text_rows import TextRows
from mtpack.template.dropped_content import Kind, MessageKinds
from mtpack.template.hidden_tools import list_tool_kinds
from mtpack.template.reasoning_counts import ReasoningCounts
from mtpack.template.turn_probes import TurnProbes
from mtpack.template.unread_keys import find_unread_keys

# Different keys of rows that are kept until they are counted.
_MAX_KEYS = 1024


class RowCounts:
    """Counts accepted rows that one template renders."""

    def __init__(self, renderer: Renderer) -> None:
        """Start with no rows; renderer: theirs."""
        self._renderer = renderer
        self._kinds = MessageKinds()
        self._reasoning = ReasoningCounts(TurnProbes(renderer.template, renderer.added_tokens))
        self._spelling: Counter[str] = Counter()
        self._keys: Counter[tuple[tuple[str, ...], ...]] = Counter()
        """Rows by the keys that mtpack does not read, and the names of their arguments."""
        self._never_read: Counter[str] = Counter()

    def add(self, dialogue: Dialogue, kinds: list[Kind] | None) -> None:
        """Count a row; kinds: see `list_tool_kinds`."""
        self._kinds.add(dialogue, kinds)
        self._reasoning.add(dialogue)
        if names := self._renderer.name_counts(dialogue):
            self._spelling.update(names)
        self._add_keys(dialogue.unread, tuple(dialogue.template_args or ()), 1)

    def add_texts(self, rows: TextRows, train_turns: str, read: Callable[[int], Dialogue]) -> None:
        """Count rows that have texts alone.

        train_turns: `all` or `last`. read: returns the dialogue of a row, by `TextRows.rows`.
        """
        spells = self._renderer.spelled.find_rows(rows)
        if self._renderer.policy == "error":  # such rows are rejected
            spells[:] = False
        is_plain = ~(rows.find_rows_with_blank() | rows.find_rows_with(END_OF_THINK) | spells)
        for row in rows.rows[~is_plain].tolist():
            dialogue = read(row)
            self.add(dialogue._replace(unread=()), list_tool_kinds(dialogue))
        shapes, firsts = rows.find_shapes()
        numbers = np.bincount(shapes[is_plain], minlength=len(firsts)).tolist()
        for first, number in zip(firsts.tolist(), numbers, strict=True):
            roles = rows.list_roles(first)
            num_turns = roles.count("assistant")
            if train_turns == "last":
                num_turns = min(1, num_turns)
            self._kinds.add_plain(roles, number)
            self._reasoning.add_plain(number * num_turns)
        codes = np.bincount(rows.unread_codes, minlength=len(rows.unread)).tolist()
        for unread, number in zip(rows.unread, codes, strict=True):
            self._add_keys(unread, (), number)

    def _add_keys(self, unread: tuple[str, ...], arguments: tuple[str, ...], number: int) -> None:
        if number and (unread or arguments):
            self._keys[unread, arguments] += number
            if len(self._keys) > _MAX_KEYS:
                self._count_keys()

    def _count_keys(self) -> None:
        """Count the rows by each of their keys that is never read."""
        for (unread, arguments), number in self._keys.items():
            for key in find_unread_keys(self._renderer.template, unread, arguments):
                self._never_read[key] += number
        self._keys.clear()
        self._never_read = limit_names(self._never_read)

    def count(self) -> Counts:
        """Return what nobody reads, what the template drops, which reasoning is missing, and what
        texts spell.
        """
        self._count_keys()
        template, added_tokens = self._renderer.template, self._renderer.added_tokens
        spelling: dict[str, Any] = dict(self._spelling)
        dropped = self._kinds.count_dropped(template, added_tokens)
        reasoning = self._reasoning.count()
        return replace(reasoning, content_dropped=dropped, never_read=self._never_read, **spelling)
