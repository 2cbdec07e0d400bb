"""Turn the rows of a split into documents of any length: read, render and tokenize."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from mtpack.counts import Counts, RunCounts, limit_names
from mtpack.documents.control_tokens import Renderer
from mtpack.documents.overlong import refuse_overlong
from mtpack.documents.token_spans import encode_dialogues
from mtpack.fast_path import FASTOKENS, REPLAY
from mtpack.input.dialogue import Dialogue, Origin, Reject
from mtpack.input.plain_text import read_plain_text
from mtpack.input.reading import LINE_LIMIT
from mtpack.input.rows import RowOptions, read_dialogue
from mtpack.input.splits import Split
from mtpack.running.pipeline import Pipeline
from mtpack.running.stopwatch import Stopwatch
from mtpack.running.text_rows import TextRows
from mtpack.template.chat_template import ChatTemplate
from mtpack.template.dropped_content import Kind, MessageKinds
from mtpack.template.hidden_tools import list_tool_kinds, refuse_hidden_tools
from mtpack.template.message_forms import TEXT_ARGUMENTS, find_forms
from mtpack.template.reasoning_counts import ReasoningCounts
from mtpack.template.rendered_dialogue import RenderedDialogue
from mtpack.template.turn_probes import TurnProbes
from mtpack.template.unread_keys import find_unread_keys
from mtpack.token_batch import Int32, TokenBatch, concatenate

# Rendered texts per call of the encoder. Documents of single turns repeat their prefixes, so even a
# small split can make a lot of text.
_CHARS_PER_BATCH = 4 * 2**20

_ROWS_PER_CHUNK = 32
# Different keys of rows that are kept until they are counted.
_MAX_KEYS = 1024
# Templates with arguments of rows whose counts are kept apart.
_MAX_VARIANTS = 64
_MESSAGES_IN_TYPICAL_ROW = 60


@dataclass(frozen=True, slots=True)
class TokenizedSplit:
    """The rows of a split as documents of any length, before the overlong policy."""

    batch: TokenBatch
    row_turns: Int32
    """(rows,): the number of trained assistant messages of each; -1 for a rejected row."""
    rejects: list[Reject]
    """In ascending order of rows."""
    counts: Counts
    """The counts that are known before the overlong policy only."""
    run_counts: RunCounts
    warnings: frozenset[str]
    fast_paths: frozenset[str]
    """The fast paths that produced some of it: `REPLAY`, `FASTOKENS`."""


def tokenize(
    pipeline: Pipeline, split: Split, watch: Stopwatch, overlong: Collection[int] = ()
) -> TokenizedSplit:
    """Read, render and tokenize the rows of a split.

    overlong: the indices of rows to reject, because they are too long. Raises FastPathFailedError.
    """
    encoder = pipeline.encoders.reference
    before = pipeline.count_fast_paths()
    batches: list[TokenBatch] = []
    rows: TextRows | _RowRenderer
    is_text = pipeline.sources[split.source].is_text
    if is_text and pipeline.texts is not None:
        rows = TextRows(pipeline.texts, pipeline.options.seq_len, overlong)
        chunks = rows.render(read_rows(split, pipeline), _CHARS_PER_BATCH)
    else:
        rows = _RowRenderer(pipeline, overlong)
        chunks = rows.render(split, watch)
    counts = Counts()
    for where, rendered in chunks:
        pipeline.heartbeat.begin(
            f"{where}: tokenizing with {pipeline.tokenizer.source}",
            effort=1 + sum(map(_num_chars, rendered)) / _CHARS_PER_BATCH,
        )
        if pipeline.options.tokenizer_engine == FASTOKENS:
            encoder = pipeline.encoders.probe_fast(dialogue.merged.text for dialogue in rendered)
        batch, found = encode_dialogues(encoder, rendered, pipeline.options.merge)
        batches.append(batch)
        counts += found
        watch.lap("tokenize")
    pipeline.heartbeat.begin(f"trying the chat template of {pipeline.template_source}")
    counts += rows.count()
    pipeline.heartbeat.end()
    counts += Counts(nulls_dropped=split.count_dropped_nulls())
    made = pipeline.count_fast_paths() - before
    is_fast = {REPLAY: made["replayed"] > 0, FASTOKENS: encoder.engine.name == FASTOKENS}
    num_rendered = 0 if is_text else len(rows.row_turns) - len(rows.rejects) - made["replayed"]
    watch.lap("render")
    return TokenizedSplit(
        batch=concatenate(batches),
        row_turns=np.array(rows.row_turns, dtype=np.int32),
        rejects=rows.rejects,
        counts=counts,
        run_counts=RunCounts(rendered=num_rendered, splits=1, **made),
        warnings=frozenset(rows.warnings),
        fast_paths=frozenset(name for name, was_used in is_fast.items() if was_used),
    )


class _RowRenderer:
    """Reads, renders and counts the rows of a split.

    It handles a few rows at a time, so that their Python objects are still in the processor's cache
    when they are used and freed. All rows of a split at once take 1.5 times as long.
    """

    def __init__(self, pipeline: Pipeline, overlong: Collection[int]) -> None:
        """Start with no rows; overlong: the indices of rows to reject."""
        self._pipeline = pipeline
        self._overlong = overlong
        self.rejects: list[Reject] = []
        self.row_turns: list[int] = []
        """As in `TokenizedSplit`."""
        self.warnings: set[str] = set()
        self._counts = _RowCounts(pipeline.renderer)
        self._variants: dict[ChatTemplate, _RowCounts] = {}
        """The counts of rows with arguments, by the template that probes ask for them."""
        self._variants_total = Counts()
        """The sum of those that were dropped."""

    def render(
        self, split: Split, watch: Stopwatch
    ) -> Iterator[tuple[str, list[RenderedDialogue]]]:
        """Yield (lines of the rows, rendered dialogues), some megabytes of text at a time."""
        first = last = None
        rendered: list[RenderedDialogue] = []
        num_chars = 0
        results = read_rows(split, self._pipeline)
        while chunk := list(islice(results, _ROWS_PER_CHUNK)):
            watch.lap("read")
            for row in chunk:
                result = row if isinstance(row, Reject) else self._render(row)
                if isinstance(result, Reject):
                    self.rejects.append(result)
                    self.row_turns.append(-1)
                    continue
                rendered.append(result)
                num_chars += _num_chars(result)
                last = row.origin
                first = first or last
            watch.lap("render")
            self._pipeline.heartbeat.end()
            if num_chars >= _CHARS_PER_BATCH:
                yield _format_range(first, last), rendered
                first, rendered, num_chars = None, [], 0
        if rendered:
            yield _format_range(first, last), rendered

    def count(self) -> Counts:
        """Return the counts of the accepted rows and their messages."""
        self._drop_variants()
        return self._counts.count() + self._variants_total

    def _drop_variants(self) -> None:
        for counts in self._variants.values():
            self._variants_total += counts.count()
        self._variants.clear()

    def _render(self, dialogue: Dialogue) -> RenderedDialogue | Reject:
        """Render a dialogue and, unless it is rejected, count it."""
        if dialogue.row in self._overlong:
            return refuse_overlong(dialogue, self._pipeline.options.seq_len)
        renderer, counts = self._pipeline.renderer, self._counts
        if dialogue.template_args is not None:
            set_activity(self._pipeline, dialogue)
            renderer = renderer.of(dialogue)
            counts = self._get_counts(renderer)
        kinds = list_tool_kinds(dialogue)
        if kinds:
            set_activity(self._pipeline, dialogue)
            reject = refuse_hidden_tools(renderer.template, renderer.added_tokens, dialogue, kinds)
            if reject is not None:
                return reject
        rendered: RenderedDialogue | Reject | None
        rendered = renderer.replay_texts(dialogue)
        if rendered is None:
            set_activity(self._pipeline, dialogue)
            rendered = renderer.render(dialogue, self._pipeline.options.merge)
        if isinstance(rendered, RenderedDialogue):
            self.row_turns.append(rendered.num_turns)
            counts.add(dialogue, kinds)
            if dialogue.texts is None and _gets_text_arguments(renderer.template, dialogue):
                self.warnings.add(TEXT_ARGUMENTS)
        return rendered

    def _get_counts(self, renderer: Renderer) -> _RowCounts:
        """Return the counts of rows with these arguments."""
        template = renderer.template.made_up
        if template not in self._variants:
            if len(self._variants) >= _MAX_VARIANTS:
                self._drop_variants()
            self._variants[template] = _RowCounts(renderer)
        return self._variants[template]


class _RowCounts:
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
        if dialogue.unread or dialogue.template_args:
            self._keys[dialogue.unread, tuple(dialogue.template_args or ())] += 1
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
        counts = Counts(content_dropped=dropped, never_read=self._never_read, **spelling)
        return counts + self._reasoning.count()


def _gets_text_arguments(template: ChatTemplate, dialogue: Dialogue) -> bool:
    """Return whether a dialogue has arguments that are text because the template needs it."""
    if template.tool_arguments != "auto":
        return False
    forms = find_forms(template, dialogue.tools)
    return forms.arguments == "text" and any("tool_calls" in m for m in dialogue.messages)


def set_activity(pipeline: Pipeline, dialogue: Dialogue) -> None:
    """Report in the heartbeat that this dialogue is being rendered."""
    pipeline.heartbeat.begin(
        f"{dialogue.origin}: rendering with the chat template of {pipeline.template_source}",
        effort=1 + len(dialogue.messages) / _MESSAGES_IN_TYPICAL_ROW,
    )


def _format_range(first: Origin | None, last: Origin | None) -> str:
    return str(first) if first == last else f"{first} to {last}"


def _num_chars(rendered: RenderedDialogue) -> int:
    return len(rendered.merged.text) + sum([len(document.text) for document in rendered.own])


def read_rows(split: Split, pipeline: Pipeline) -> Iterator[Dialogue | Reject]:
    """Read the rows of a split, one at a time, in the forms that the template takes.

    They are numbered within the split. Raises InputError if a file can't be read.
    """
    template, source = pipeline.template, pipeline.sources[split.source]
    if source.is_text:
        for row, raw in enumerate(split.rows()):
            origin = Origin(raw.file, raw.line, raw.after_byte)
            yield read_plain_text(row, origin, raw.text, LINE_LIMIT)
        return
    defaults = pipeline.find_defaults(source)
    options = RowOptions(
        messages_key=source.messages_key,
        keeps_argument_text=template.tool_arguments == "text",
    )
    takes_text = not find_forms(template, None).only_parts
    for row, raw in enumerate(split.rows()):
        origin = Origin(raw.file, raw.line, raw.after_byte)
        read = read_dialogue(row, origin, raw.text, LINE_LIMIT, raw.format, options)
        if isinstance(read, Dialogue):
            if defaults is not None:
                read = defaults.apply(read)
            if read.template_args is not None:
                set_activity(pipeline, read)  # probes of the template with these arguments
                forms = find_forms(template.with_arguments(read.template_args), read.tools)
                read = forms.apply(read)
            elif not (takes_text and read.texts is not None):
                read = find_forms(template, read.tools).apply(read)
            if pipeline.options.train_turns == "last":
                read = read.train_last_turn()
        yield read
