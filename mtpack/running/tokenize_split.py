"""Turn the rows of a split into documents of any length: read, render and tokenize."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from mtpack.counts import Counts, RunCounts
from mtpack.documents.token_spans import encode_dialogues
from mtpack.fast_path import FASTOKENS, REPLAY
from mtpack.input.dialogue import Dialogue, Origin, Reason, Reject
from mtpack.input.reading import LINE_LIMIT
from mtpack.input.rows import read_dialogue
from mtpack.input.splits import Split
from mtpack.running.pipeline import Pipeline
from mtpack.running.stopwatch import Stopwatch
from mtpack.template.chat_template import ChatTemplate
from mtpack.template.dropped_content import Kind, MessageKinds
from mtpack.template.hidden_tools import list_tool_kinds, refuse_hidden_tools
from mtpack.template.message_forms import TEXT_ARGUMENTS, find_forms
from mtpack.template.reasoning_counts import ReasoningCounts
from mtpack.template.rendered_dialogue import RenderedDialogue
from mtpack.template.turn_probes import TurnProbes
from mtpack.token_batch import Int32, TokenBatch, concatenate

# Rendered texts per call of the encoder. Documents of single turns repeat their prefixes, so even a
# small split can make a lot of text.
_CHARS_PER_BATCH = 4 * 2**20

_ROWS_PER_CHUNK = 32
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
    rows = _RowRenderer(pipeline, overlong)
    counts = Counts()
    for where, rendered in rows.render(split, watch):
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
    pipeline.heartbeat.end()
    added_tokens = pipeline.tokenizer.added_tokens
    counts += Counts(content_dropped=rows.kinds.count_dropped(pipeline.template, added_tokens))
    counts += rows.reasoning.count()
    counts += rows.count_spelling()
    counts += Counts(nulls_dropped=split.count_dropped_nulls())
    made = pipeline.count_fast_paths() - before
    is_fast = {REPLAY: made["replayed"] > 0, FASTOKENS: encoder.engine.name == FASTOKENS}
    num_accepted = len(rows.row_turns) - len(rows.rejects)
    watch.lap("render")
    return TokenizedSplit(
        batch=concatenate(batches),
        row_turns=np.array(rows.row_turns, dtype=np.int32),
        rejects=rows.rejects,
        counts=counts,
        run_counts=RunCounts(rendered=num_accepted - made["replayed"], **made),
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
        self.kinds = MessageKinds()
        self.reasoning = ReasoningCounts(
            TurnProbes(pipeline.template, pipeline.tokenizer.added_tokens)
        )
        self._spelling: Counter[str] = Counter()
        self.warnings: set[str] = set()

    def render(
        self, split: Split, watch: Stopwatch
    ) -> Iterator[tuple[str, list[RenderedDialogue]]]:
        """Yield (lines of the rows, rendered dialogues), some megabytes of text at a time."""
        first = last = None
        rendered: list[RenderedDialogue] = []
        num_chars = 0
        results = read_rows(split, self._pipeline.template)
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
            if num_chars >= _CHARS_PER_BATCH:
                yield _format_range(first, last), rendered
                first, rendered, num_chars = None, [], 0
        if rendered:
            yield _format_range(first, last), rendered

    def count_spelling(self) -> Counts:
        """Return the counts of the accepted rows whose texts spell a control token."""
        numbers: dict[str, Any] = dict(self._spelling)
        return Counts(**numbers)

    def _render(self, dialogue: Dialogue) -> RenderedDialogue | Reject:
        """Render a dialogue and, unless it is rejected, count it."""
        if dialogue.row in self._overlong:
            return dialogue.reject(
                Reason.OVERLONG,
                f"longer than {self._pipeline.options.seq_len:,} tokens; "
                "choose a larger --seq-len or another --overlong",
            )
        kinds = list_tool_kinds(dialogue)
        if kinds:
            set_activity(self._pipeline, dialogue)
            reject = refuse_hidden_tools(
                self._pipeline.template, self._pipeline.tokenizer.added_tokens, dialogue, kinds
            )
            if reject is not None:
                return reject
        rendered: RenderedDialogue | Reject | None
        rendered = self._pipeline.renderer.replay_texts(dialogue)
        if rendered is None:
            set_activity(self._pipeline, dialogue)
            rendered = self._pipeline.renderer.render(dialogue, self._pipeline.options.merge)
        if isinstance(rendered, RenderedDialogue):
            self._count(dialogue, rendered, kinds)
        return rendered

    def _count(
        self, dialogue: Dialogue, rendered: RenderedDialogue, kinds: list[Kind] | None
    ) -> None:
        self.row_turns.append(rendered.num_turns)
        self.kinds.add(dialogue, kinds)
        self.reasoning.add(dialogue)
        if names := self._pipeline.renderer.name_counts(dialogue):
            self._spelling.update(names)
        if dialogue.texts is None and self._gets_text_arguments(dialogue):
            self.warnings.add(TEXT_ARGUMENTS)

    def _gets_text_arguments(self, dialogue: Dialogue) -> bool:
        """Return whether a dialogue has arguments that are text because the template needs it."""
        if self._pipeline.template.tool_arguments != "auto":
            return False
        forms = find_forms(self._pipeline.template, dialogue.tools)
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


def read_rows(split: Split, template: ChatTemplate) -> Iterator[Dialogue | Reject]:
    """Read the rows of a split, one at a time, in the forms that the template takes.

    Raises InputError if a file can't be read.
    """
    keeps_text = template.tool_arguments == "text"
    takes_text = not find_forms(template, None).only_parts
    for row, raw in enumerate(split.rows(), split.first_row):
        read = read_dialogue(
            row,
            Origin(raw.file, raw.line),
            raw.text,
            LINE_LIMIT,
            raw.format,
            keeps_argument_text=keeps_text,
        )
        if isinstance(read, Dialogue) and not (takes_text and read.texts is not None):
            read = find_forms(template, read.tools).apply(read)
        yield read
