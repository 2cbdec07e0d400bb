"""One split from rows to documents, as they are before any of them is made to fit a sequence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from mtpack.dialogue import Dialogue, Origin, Reason, Reject
from mtpack.encoding import encode_dialogues
from mtpack.formats.rows import read_dialogue
from mtpack.pipeline import Pipeline
from mtpack.reading import LINE_LIMIT
from mtpack.splits import Split
from mtpack.stopwatch import Stopwatch
from mtpack.template.chat_template import ChatTemplate
from mtpack.template.dropped import count_dropped
from mtpack.template.spans import RenderedDialogue
from mtpack.turns import Int32, TokenBatch, concatenate

REPLAY = "replay"
FASTOKENS = "fastokens"

# Texts that are rendered before they are encoded: documents of their own repeat what came before,
# so a small split can make many.
_CHARS_AT_A_TIME = 4 * 2**20

_MESSAGES_OF_A_USUAL_ROW = 60


@dataclass(frozen=True, slots=True)
class TokenizedSplit:
    """The rows of a split as documents of any length."""

    batch: TokenBatch
    row_turns: Int32
    """(rows,): how many assistant messages are trained in each; -1 for a refused row."""
    rejects: list[Reject]
    """Ascending by row."""
    counts: Counter[str]
    """What is counted before documents are made to fit."""
    warnings: frozenset[str]
    short_cuts: frozenset[str]
    """Those that had a part in it."""

    @property
    def num_accepted(self) -> int:
        """The rows that were not refused."""
        return int(np.count_nonzero(self.row_turns >= 0))


def tokenize(
    pipeline: Pipeline,
    split: Split,
    watch: Stopwatch,
    *,
    distrusted: Collection[str] = (),
    overlong: Collection[int] = (),
) -> TokenizedSplit:
    """Read, render and tokenize the rows of a split.

    distrusted: short cuts (`REPLAY`, `FASTOKENS`) that may not be taken. overlong: rows to refuse,
    because they turned out to be too long. Raises EngineFailedError where `FASTOKENS` fails.
    """
    dialogues, rejects = read_dialogues(split)
    rejects += [_overlong(pipeline, dialogue) for dialogue in dialogues if dialogue.row in overlong]
    watch.lap("read")
    if REPLAY in distrusted:
        pipeline = replace(pipeline, renderer=pipeline.renderer.without_replay())
    encoder = pipeline.encoders.reference
    replays_before = pipeline.renderer.replay_counts()
    audited_before = pipeline.encoders.audited
    batches: list[TokenBatch] = []
    accepted: list[Dialogue] = []
    num_turns: list[int] = []
    counts: Counter[str] = Counter()
    wanted = (dialogue for dialogue in dialogues if dialogue.row not in overlong)
    for rendered in _rendered(pipeline, wanted, rejects):
        watch.lap("render")
        _say_tokenizing(pipeline, rendered)
        own_texts = (dialogue.merged.text for dialogue in rendered)
        encoder = pipeline.encoders.choose(own_texts, fast=FASTOKENS not in distrusted)
        batch, found = encode_dialogues(encoder, rendered, pipeline.options.merge)
        batches.append(batch)
        accepted += [item.dialogue for item in rendered]
        num_turns += [len(item.merged.turns) + len(item.own) for item in rendered]
        counts += found
        watch.lap("tokenize")
    pipeline.activity.end()
    for part, number in count_dropped(pipeline.template, accepted).items():
        counts[f"content_dropped.{part}"] = number
    counts += pipeline.renderer.count_spelling(accepted)
    counts += pipeline.renderer.replay_counts() - replays_before
    counts["audited"] += pipeline.encoders.audited - audited_before
    counts["rendered"] = len(accepted) - counts["replayed"]
    short_cuts = {REPLAY: counts["replayed"], FASTOKENS: encoder is not pipeline.encoders.reference}
    row_turns = np.full(split.num_rows, -1, dtype=np.int32)
    row_turns[[dialogue.row - split.first_row for dialogue in accepted]] = num_turns
    watch.lap("render")
    return TokenizedSplit(
        batch=concatenate(batches),
        row_turns=row_turns,
        rejects=sorted(rejects, key=lambda reject: reject.row),
        counts=counts,
        warnings=_warnings(pipeline.template, accepted),
        short_cuts=frozenset(name for name, taken in short_cuts.items() if taken),
    )


def _rendered(
    pipeline: Pipeline, dialogues: Iterable[Dialogue], rejects: list[Reject]
) -> Iterator[list[RenderedDialogue]]:
    """Yield rendered dialogues, some at a time; add those that can't be rendered to `rejects`."""
    rendered: list[RenderedDialogue] = []
    num_chars = 0
    for dialogue in dialogues:
        say_rendering(pipeline, dialogue)
        result = pipeline.renderer.render(dialogue, pipeline.options.merge)
        if isinstance(result, Reject):
            rejects.append(result)
            continue
        rendered.append(result)
        num_chars += _num_chars(result)
        if num_chars >= _CHARS_AT_A_TIME:
            yield rendered
            rendered, num_chars = [], 0
    yield rendered


def say_rendering(pipeline: Pipeline, dialogue: Dialogue) -> None:
    """Say that a dialogue is about to be rendered."""
    pipeline.activity.begin(
        f"{dialogue.origin}: rendering with the chat template of {pipeline.template_source}",
        effort=1 + len(dialogue.messages) / _MESSAGES_OF_A_USUAL_ROW,
    )


def _say_tokenizing(pipeline: Pipeline, rendered: list[RenderedDialogue]) -> None:
    if rendered:
        first, last = rendered[0].dialogue.origin, rendered[-1].dialogue.origin
        rows = str(first) if first == last else f"{first} to {last}"
        pipeline.activity.begin(
            f"{rows}: tokenizing with {pipeline.tokenizer.source}",
            effort=1 + sum(map(_num_chars, rendered)) / _CHARS_AT_A_TIME,
        )


def _num_chars(rendered: RenderedDialogue) -> int:
    return sum(len(document.text) for document in (rendered.merged, *rendered.own))


def read_dialogues(split: Split) -> tuple[list[Dialogue], list[Reject]]:
    """Read the rows of a split, accepted ones and refused ones."""
    dialogues: list[Dialogue] = []
    rejects: list[Reject] = []
    for row, raw in enumerate(split.rows(), split.first_row):
        result = read_dialogue(row, Origin(raw.file, raw.line), raw.text, LINE_LIMIT, raw.format)
        if isinstance(result, Reject):
            rejects.append(result)
        else:
            dialogues.append(result)
    return dialogues, rejects


def _overlong(pipeline: Pipeline, dialogue: Dialogue) -> Reject:
    return Reject(
        dialogue.row,
        dialogue.origin,
        Reason.OVERLONG,
        f"longer than {pipeline.options.seq_len:,} tokens; "
        "choose a larger --seq-len or another --overlong",
    )


def _warnings(template: ChatTemplate, dialogues: list[Dialogue]) -> frozenset[str]:
    if not template.encodes_text_twice or not any(map(_has_text_arguments, dialogues)):
        return frozenset()
    return frozenset(
        {
            "the chat template encodes tool-call arguments as JSON, and in some rows they are JSON "
            "text already, so they come out quoted twice; give them as objects"
        }
    )


def _has_text_arguments(dialogue: Dialogue) -> bool:
    return any(
        isinstance(call.get("function", call).get("arguments"), str)
        for message in dialogue.messages
        if len(message.fields) > 2  # the most have a role and a content alone
        for call in message.fields.get("tool_calls", ())
    )
