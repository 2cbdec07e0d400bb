"""Render dialogues by replay where the result is known to be exact, and with Jinja elsewhere.

For the first dialogue of a shape, the recorded events are replayed (`interpreter.py`), and the
turns of all dialogues of the shape are found. For later ones, only slots are filled.
Where the template's run is not known yet, the dialogue is rendered with Jinja, and recorded
(`recorder.py`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from mtpack.fast_path import REPLAY, Audit, FastPathFailedError
from mtpack.input.dialogue import Dialogue, Reject
from mtpack.input.reasoning import has_reasoning
from mtpack.input.text_rows import TextRows
from mtpack.template.chat_template import ChatTemplate, TemplateRaisedError
from mtpack.template.markers import has_reserved_characters
from mtpack.template.message_regions import TurnNotFoundError
from mtpack.template.render_dialogue import render_dialogue
from mtpack.template.rendered_dialogue import RenderedDialogue
from mtpack.template.rendered_documents import RenderedDocuments
from mtpack.template.slots import UndecidedError
from mtpack.template.tracing import operations
from mtpack.template.tracing.budget import LearningBudget
from mtpack.template.tracing.interpreter import UnrecordedError
from mtpack.template.tracing.known_renders import KnownRenders
from mtpack.template.tracing.slotted_dialogue import SlottedDialogue, SlottedLocatedTurns
from mtpack.template.tracing.slotted_renders import FilledRenders, SlottedRenders
from mtpack.template.tracing.text_plans import TextPlan, fill_plans
from mtpack.template.tracing.tracers import Untraceable
from mtpack.template.turn_probes import TurnProbes
from mtpack.template.turn_spans import TurnFinder
from mtpack.token_batch import Int64
from mtpack.tokenizer.added_tokens import AddedTokens

# Shapes to keep; the one that was not used for longest is dropped first. In some data, every
# dialogue has a new shape.
_MAX_SHAPES = 512
# Replays to keep for one shape; they differ in the answers that depend on texts.
_MAX_REPLAYS = 8
# Recordings allowed in addition to one for every replayed dialogue. Where each dialogue has a new
# run, recordings save nothing.
_RECORDINGS_AHEAD = 256
# Events to record of one template (an event takes about 1 kB).
_MAX_EVENTS = 400_000
# Estimates of the time to learn from a dialogue, in times of its render, and to compile a template
# for it, in seconds for each character.
_RENDERS_PER_RECORDING = 5
_SECONDS_PER_CHARACTER = 4e-6
# Share of the time for audits. With those of the tokenizer's engine, they take below 3% of a run.
_AUDIT_SHARE = 0.01
# Longer dialogues are rendered with Jinja, so that a row above a limit (`limits.py`) is rejected;
# see `KnownRenders.max_steps`.
_MAX_MESSAGES = 1024
MAX_CHARACTERS = 2**20


@dataclass(slots=True)
class _ShapeReplay:
    """Replays dialogues of one shape whose texts give the same answers."""

    renders: SlottedRenders
    located: SlottedLocatedTurns | None = None
    """The turns, where their positions do not depend on the texts in the slots, but merging does.
    """
    divided: SlottedDialogue | None = None
    """The documents, where nothing depends on the texts in the slots."""
    text_plan: TextPlan | None = None
    """The same as `divided`, filled with the contents of messages of text alone; None where it
    needs other values."""


class Replayer:
    """Renders dialogues and finds their turns, by replay where possible."""

    def __init__(
        self,
        template: ChatTemplate,
        added_tokens: AddedTokens,
        merge: str,
        seed: int = 0,
        budget: LearningBudget | None = None,
    ) -> None:
        """Take the template.

        merge: `auto`, `always` or `never`; seed: selects the audited rows; budget: the time that
        recording may take; by default, all that is possible is recorded.
        """
        self.budget = budget or LearningBudget(share=None)
        self.replayed = 0
        self.audited = 0
        self.audit = Audit(seed, share=_AUDIT_SHARE)
        self._template = template
        self._added_tokens = added_tokens
        self._probes = TurnProbes(template, added_tokens)
        self.merge = merge
        self._known_renders: dict[tuple[str, bool], KnownRenders] = {}
        self._compiled: dict[Any, Any] = {}
        """`KnownRenders.compiled` of all of them."""
        self._shape_replays: dict[Hashable, list[_ShapeReplay]] = {}
        """By shape; the shape that was used last is the last one."""
        self._recorded = 0

    def for_variant(self, template: ChatTemplate) -> Replayer:
        """Return a replayer of a variant of the template, which has its own recordings.

        Both share what limits the time that replays take.
        """
        variant = copy.copy(self)
        variant.replayed = variant.audited = variant._recorded = 0
        variant._template = template
        variant._probes = TurnProbes(template, self._added_tokens)
        variant._known_renders = {}
        variant._shape_replays = {}
        return variant

    def find_text_plan(self, roles: tuple[str, ...], untrained: frozenset[int]) -> TextPlan | None:
        """Return the plan that writes all dialogues of texts with these roles and turns.

        untrained: as in `Dialogue`. None if the template has to decide for each of them, or if it
        is not known yet what it writes.
        """
        plans = (replay.text_plan for replay in self._find_replays((roles, untrained)))
        return next((plan for plan in plans if plan is not None), None)

    def fill_plans(
        self,
        plans: Sequence[TextPlan],
        chosen: Int64,
        rows: TextRows,
        make_dialogue: Callable[[int], Dialogue],
    ) -> RenderedDocuments:
        """Write the documents of rows by their plans, and audit some.

        chosen: the index of the plan of each row, (rows,). make_dialogue: returns the dialogue of a
        row, by `TextRows.rows`. Raises FastPathFailedError.
        """
        documents = fill_plans(plans, chosen, rows)
        self.replayed += len(rows)
        for index in self.audit.draw(rows.rows):
            row = int(rows.rows[index])
            with self.audit.measure():
                rendered = self.render_without_replay(make_dialogue(row))
            expected = None if isinstance(rendered, Reject) else RenderedDocuments.of([rendered])
            self._compare(documents.of_row(row), expected)
        return documents

    def _find_replays(self, shape: Hashable) -> list[_ShapeReplay]:
        replays = self._shape_replays.pop(shape, [])
        if replays:
            self._shape_replays[shape] = replays
        return replays

    def render_dialogue(self, dialogue: Dialogue) -> RenderedDialogue | Reject:
        """Return the same as `render_dialogue`, in most cases much faster."""
        if len(dialogue.messages) > _MAX_MESSAGES:
            return self._render(dialogue)[0]
        shape = _describe_shape(dialogue)
        replayed = self._replay(dialogue, shape)
        if replayed is not None and self._is_within_limits(replayed):
            self.replayed += 1
            return self._audit_replay(dialogue, replayed)
        rendered, seconds = self._render(dialogue)
        if replayed is None and isinstance(rendered, RenderedDialogue):
            self._record(dialogue, shape, rendered, seconds)
        return rendered

    def _is_within_limits(self, replayed: RenderedDialogue) -> bool:
        """Return whether the renders of a replayed dialogue can't exceed a limit."""
        meter = self._template.meter  # closed macros have counted their iterations
        is_short = len(replayed.merged.text) <= MAX_CHARACTERS
        return is_short and 2 * meter.iterations <= meter.limits.iterations

    def _render(self, dialogue: Dialogue) -> tuple[RenderedDialogue | Reject, float]:
        """Render a dialogue with Jinja, and return the result and the seconds that it took."""
        started = self.budget.clock()
        rendered = self.render_without_replay(dialogue)
        return rendered, self.budget.add_render(started)

    def render_without_replay(self, dialogue: Dialogue) -> RenderedDialogue | Reject:
        """Return the same as `render_dialogue`, rendered with Jinja."""
        return render_dialogue(self._template, self._added_tokens, dialogue, self.merge)

    def _audit_replay(
        self, dialogue: Dialogue, replayed: RenderedDialogue
    ) -> RenderedDialogue | Reject:
        if not self.audit.is_due(dialogue.row):
            return replayed
        with self.audit.measure():
            rendered = self.render_without_replay(dialogue)
        self._compare(replayed, rendered)
        return rendered

    def _compare(self, replayed: object, rendered: object) -> None:
        """Count an audit; raise FastPathFailedError if the replay differs from the render."""
        self.audited += 1
        if replayed != rendered:
            raise FastPathFailedError(REPLAY, "a replayed dialogue differs from its render")

    def _replay(self, dialogue: Dialogue, shape: Hashable) -> RenderedDialogue | None:
        self._template.meter.restart()  # closed macros count their iterations
        for replay in self._find_replays(shape):
            values = replay.renders.program.run(dialogue.messages, dialogue.tools)
            filled = None if values is None else self._fill(replay, values, dialogue)
            if filled is not None:
                return filled
        if not self._get_known_renders(dialogue).size or not self.budget.affords(0, self.replayed):
            return None
        started = self.budget.clock()
        replayed = self._replay_shape(dialogue, shape, learn=False)
        self.budget.add_learning(started, replayed=replayed is not None)
        return replayed

    def _replay_shape(
        self, dialogue: Dialogue, shape: Hashable, *, learn: bool
    ) -> RenderedDialogue | None:
        """Replay the first dialogue of a shape, and keep what the others need.

        learn: whether renders that are not known are recorded; raises Untraceable.
        """
        known = self._get_known_renders(dialogue)
        renders = SlottedRenders(known, dialogue.messages, dialogue.tools, learn=learn)
        replay = _ShapeReplay(renders)
        finder = TurnFinder(renders, self._probes, dialogue)
        try:
            with suppress(UndecidedError):
                located = finder.locate_turns()
                try:
                    divided = finder.divide(located, self.merge)
                except UndecidedError:
                    replay.located = SlottedLocatedTurns.of(located, renders.value_indices)
                    raise
                replay.divided = SlottedDialogue.of(divided, renders.value_indices)
                contents = renders.program.find_content_messages(renders.value_indices)
                if contents is not None and dialogue.has_only_texts:
                    replay.text_plan = TextPlan.of(divided, contents)
        except (UnrecordedError, TemplateRaisedError, TurnNotFoundError):
            return None
        filled = self._fill(replay, renders.program.values, dialogue)
        if filled is not None:
            renders.complete(
                forget_texts=replay.divided is not None
                or (replay.located is not None and self.merge != "always")
            )
            self._keep_replay(shape, replay)
        return filled

    def _keep_replay(self, shape: Hashable, replay: _ShapeReplay) -> None:
        alike = self._shape_replays.setdefault(shape, [])
        if len(alike) < _MAX_REPLAYS:
            alike.append(replay)
        if len(self._shape_replays) > _MAX_SHAPES:
            del self._shape_replays[next(iter(self._shape_replays))]

    def _fill(
        self, replay: _ShapeReplay, values: Sequence[Any], dialogue: Dialogue
    ) -> RenderedDialogue | None:
        if any(type(value) is str and has_reserved_characters(value) for value in values):
            return None
        if replay.divided is not None:
            return replay.divided.fill(values, dialogue.row)
        filled = FilledRenders(replay.renders, values, dialogue)
        finder = TurnFinder(filled, self._probes, dialogue)
        try:
            slotted = replay.located
            located = finder.locate_turns() if slotted is None else slotted.fill(values)
            return finder.divide(located, self.merge)
        except (UnrecordedError, UndecidedError, TemplateRaisedError, TurnNotFoundError):
            return None

    def _record(
        self, dialogue: Dialogue, shape: Hashable, rendered: RenderedDialogue, seconds: float
    ) -> None:
        """Record what is needed to replay a dialogue, if there is time; then audit its replay.

        seconds: the time to render it.
        """
        known = self._get_known_renders(dialogue)
        if self._recorded > self.replayed + _RECORDINGS_AHEAD or known.size > _MAX_EVENTS:
            return
        expected = seconds * _RENDERS_PER_RECORDING
        if not known.compiled:
            expected += len(self._template.sources[known.name]) * _SECONDS_PER_CHARACTER
        if not self.budget.affords(expected, self.replayed):
            return
        started = self.budget.clock()
        replayed = self._learn(dialogue, shape, known)
        self.budget.add_learning(started, replayed=False)
        if replayed is not None:
            self._compare(replayed, rendered)

    def _learn(
        self, dialogue: Dialogue, shape: Hashable, known: KnownRenders
    ) -> RenderedDialogue | None:
        """Record the renders of a dialogue that are not known, and return its replay."""
        self._recorded += 1
        try:
            return self._replay_shape(dialogue, shape, learn=True)
        except Untraceable:
            self._recorded += 1
            if known.is_contradicted:
                self._shape_replays.clear()
            return None

    def _get_known_renders(self, dialogue: Dialogue) -> KnownRenders:
        name = self._template.choose_name(dialogue.tools)
        key = (name, dialogue.tools is not None)
        if key not in self._known_renders:
            self._known_renders[key] = KnownRenders(self._template, name, compiled=self._compiled)
        return self._known_renders[key]


def _describe_shape(dialogue: Dialogue) -> Hashable:
    """Return the shape of a dialogue: its roles, its turns, and its fields with their kinds."""
    if dialogue.has_only_texts:
        return (dialogue.roles, dialogue.untrained)
    return (dialogue.tools is None, dialogue.untrained, *map(_describe_message, dialogue.messages))


def _describe_message(message: dict[str, Any]) -> Hashable:
    kinds = []
    for name, value in message.items():
        kind = operations.classify(value)
        kinds.append((name, kind if kind in (str, list, dict) else repr(value)))
    role = message["role"]
    if role != "assistant":
        return (role, *sorted(kinds))
    # Probes find how the template writes these kinds of turns.
    return (role, bool(message.get("tool_calls")), has_reasoning(message), *sorted(kinds))
