"""Reads, renders and counts the rows of a split.

Rows that say texts alone stay columns (`TextRows`): the first of each shape are rendered one by
one, until there is a plan of what the template writes for the shape, and all others by their plans
at once. A row that its plan does not decide is rendered like all other rows: one by one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np

from mtpack.counts import Counts
from mtpack.documents.control_tokens import Renderer
from mtpack.documents.overlong import refuse_overlong
from mtpack.input.dialogue import Dialogue, Reject
from mtpack.input.splits import Split
from mtpack.input.text_rows import TextRows
from mtpack.running.pipeline import Pipeline
from mtpack.running.row_counts import RowCounts
from mtpack.running.row_reader import RowReader, set_activity
from mtpack.running.stopwatch import Stopwatch
from mtpack.template.chat_template import ChatTemplate
from mtpack.template.dropped_content import Kind
from mtpack.template.hidden_tools import list_tool_kinds, refuse_hidden_tools
from mtpack.template.markers import MARK_BYTES, has_mark_characters
from mtpack.template.message_forms import TEXT_ARGUMENTS, find_forms
from mtpack.template.rendered_dialogue import RenderedDialogue
from mtpack.template.rendered_documents import RenderedDocuments
from mtpack.template.tracing.planned_rows import PlannedRows
from mtpack.token_batch import Bools, Int32

# Texts per call of the encoder. Documents of single turns repeat their prefixes, so even a small
# split can make a lot of text.
BYTES_PER_BATCH = 4 * 2**20
# Rows whose Python objects are made at a time: they are then still in the processor's cache when
# they are used and freed.
_ROWS_PER_CHUNK = 32
# Templates with arguments of rows whose counts are kept apart.
_MAX_VARIANTS = 64


class RowRenderer:
    """Renders the rows of a split, and counts what the accepted ones have."""

    def __init__(self, pipeline: Pipeline, split: Split, overlong: Collection[int]) -> None:
        """Start with no rows; overlong: the indices of rows to reject."""
        self._pipeline = pipeline
        self._renderer = pipeline.renderer
        self._reader = RowReader(split, pipeline)
        self._overlong = overlong
        self.rejects: list[Reject] = []
        self.row_turns: Int32 = np.full(len(self._reader), -1, np.int32)
        """As in `TokenizedSplit`."""
        self.warnings: set[str] = set()
        self._counts = RowCounts(pipeline.renderer)
        self._variants: dict[ChatTemplate, RowCounts] = {}
        """The counts of rows with arguments, by the template that probes ask for them."""
        self._variants_total: Counts | None = None
        """The sum of those that were dropped."""
        self.units = self._reader.units
        """As in `RowReader`."""
        self._watch = Stopwatch()
        self._rendered: list[RenderedDialogue] = []
        self._num_bytes = 0
        """About those of the texts of `_rendered`."""

    def render(self, watch: Stopwatch) -> Iterator[RenderedDocuments]:
        """Yield the documents of accepted rows, some megabytes of text at a time.

        Each has rows in their order, but the next may have rows between them.
        """
        self._watch = watch
        texts = self._reader.read_texts()
        is_other = np.ones(len(self._reader), np.bool_)
        is_other[texts.rows] = False
        others = np.flatnonzero(is_other)
        found: list[Dialogue] = []
        watch.lap("read")
        for first in range(0, len(others), _ROWS_PER_CHUNK):
            rows = others[first : first + _ROWS_PER_CHUNK].tolist()
            read = [self._reader.read(row) for row in rows]
            watch.lap("read")
            for each in read:
                if isinstance(each, Reject):
                    self.rejects.append(each)
                elif _has_text_columns(each):
                    found.append(each)
                else:
                    yield from self._render_other(each)
            watch.lap("render")
            self._pipeline.heartbeat.end()
        texts = TextRows.join([texts, TextRows.of(found)])
        watch.lap("read")
        yield from self._render_texts(texts, {dialogue.row: dialogue for dialogue in found})
        yield from self._take_rendered()
        watch.lap("render")

    def describe(self, documents: RenderedDocuments) -> str:
        """Return the lines of the rows of documents, for a message."""
        return self._reader.describe(documents.rows)

    def count(self) -> Counts:
        """Return the counts of the accepted rows and their messages."""
        self._drop_variants()
        counts = self._counts.count()
        return counts + self._variants_total if self._variants_total else counts

    def _render_other(self, dialogue: Dialogue) -> Iterator[RenderedDocuments]:
        """Render a dialogue that is not in columns and, unless it is rejected, count it."""
        renderer, counts = self._renderer, self._counts
        if dialogue.template_args is not None:
            set_activity(self._pipeline, dialogue)
            renderer = renderer.of(dialogue)
            counts = self._get_counts(renderer)
        kinds = list_tool_kinds(dialogue)
        if self._render_row(renderer, dialogue, kinds):
            counts.add(dialogue, kinds)
            if _gets_text_arguments(renderer.template, dialogue):
                self.warnings.add(TEXT_ARGUMENTS)
        if self._num_bytes >= BYTES_PER_BATCH:
            yield from self._take_rendered()

    def _render_row(self, renderer: Renderer, dialogue: Dialogue, kinds: list[Kind] | None) -> bool:
        """Render a dialogue and return whether it is accepted; kinds: see `list_tool_kinds`."""
        rendered: RenderedDialogue | Reject | None = None
        if dialogue.row in self._overlong:
            rendered = refuse_overlong(dialogue, self._pipeline.options.seq_len)
        else:
            set_activity(self._pipeline, dialogue)
        if rendered is None and kinds:
            template, added_tokens = renderer.template, renderer.added_tokens
            rendered = refuse_hidden_tools(template, added_tokens, dialogue, kinds)
        if rendered is None:
            rendered = renderer.render(dialogue, self._pipeline.options.merge)
        if isinstance(rendered, Reject):
            self.rejects.append(rendered)
            return False
        self.row_turns[dialogue.row] = rendered.num_turns
        if self.units is not None:
            self.units.add(dialogue)
        self._rendered.append(rendered)
        self._num_bytes += _num_chars(rendered)
        return True

    def _render_texts(
        self, texts: TextRows, made: dict[int, Dialogue]
    ) -> Iterator[RenderedDocuments]:
        """Render rows that say texts alone, and count them; made: dialogues, by row."""
        if not len(texts):
            return

        def read(row: int) -> Dialogue:
            return made[row] if row in made else self._reader.read_text(row)

        def read_to_render(row: int) -> Dialogue:
            dialogue = read(row)
            set_activity(self._pipeline, dialogue)
            return dialogue

        train_turns = self._pipeline.options.train_turns
        plans = PlannedRows(texts, self._renderer.replayer, train_turns)
        needs_render = self._find_undecided(texts)
        is_accepted = np.ones(len(texts), np.bool_)
        for index in np.flatnonzero(needs_render | ~plans.are_known()).tolist():
            if not needs_render[index] and plans.look(index):
                continue  # since a row like it was rendered
            needs_render[index] = True
            dialogue = read(int(texts.rows[index]))
            kinds = list_tool_kinds(dialogue)
            is_accepted[index] = self._render_row(self._renderer, dialogue, kinds)
            self._pipeline.heartbeat.end()
            if self._num_bytes >= BYTES_PER_BATCH:
                yield from self._take_rendered()
        for part in plans.divide(np.flatnonzero(~needs_render), BYTES_PER_BATCH):
            documents, self.row_turns[texts.rows[part]] = plans.fill(part, read_to_render)
            self._pipeline.heartbeat.end()
            yield from self._take_rendered(documents)
        accepted = texts if is_accepted.all() else texts.take(is_accepted)
        self._counts.add_texts(accepted, train_turns, read)

    def _find_undecided(self, texts: TextRows) -> Bools:
        """Return which rows can't be written by a plan, (rows,)."""
        undecided = texts.find_rows_with_role("tool")
        if self._overlong:
            undecided |= np.isin(texts.rows, list(self._overlong))
        if texts.contents.have_pair(MARK_BYTES):
            undecided |= texts.find_rows_where(MARK_BYTES[:1], has_mark_characters)
        if self._renderer.policy != "keep":
            undecided |= self._renderer.spelled.find_rows(texts)
        return undecided

    def _take_rendered(self, *more: RenderedDocuments) -> Iterator[RenderedDocuments]:
        """Yield the documents of what is rendered, and others, in the order of their rows."""
        parts = [RenderedDocuments.of(self._rendered), *more] if self._rendered else more
        self._rendered, self._num_bytes = [], 0
        if parts:
            documents = RenderedDocuments.join(parts)
            self._watch.lap("render")
            yield documents

    def _get_counts(self, renderer: Renderer) -> RowCounts:
        """Return the counts of rows with these arguments."""
        template = renderer.template.made_up
        if template not in self._variants:
            if len(self._variants) >= _MAX_VARIANTS:
                self._drop_variants()
            self._variants[template] = RowCounts(renderer)
        return self._variants[template]

    def _drop_variants(self) -> None:
        for counts in self._variants.values():
            self._variants_total = counts.count() + (self._variants_total or Counts())
        self._variants.clear()


def _has_text_columns(dialogue: Dialogue) -> bool:
    """Return whether a dialogue can become a row of `TextRows`."""
    is_plain = dialogue.template_args is None and dialogue.turn_units is None
    return dialogue.has_only_texts and not dialogue.untrained and is_plain


def _gets_text_arguments(template: ChatTemplate, dialogue: Dialogue) -> bool:
    """Return whether a dialogue has arguments that are text because the template needs it."""
    if template.tool_arguments != "auto":
        return False
    forms = find_forms(template, dialogue.tools)
    return forms.arguments == "text" and any("tool_calls" in m for m in dialogue.messages)


def _num_chars(rendered: RenderedDialogue) -> int:
    return len(rendered.merged.text) + sum([len(document.text) for document in rendered.own])
