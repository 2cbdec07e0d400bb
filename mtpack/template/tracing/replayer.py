"""Dialogues rendered by replay where that is known to be the same, and for real elsewhere.

For a dialogue of a new shape, its renders are walked through (`walk.py`), and what is the same for
every dialogue of that shape is worked out once (`plan.py`); later ones are filled in. Where the
template's run is not known yet, the dialogue is rendered for real, and recorded (`recorder.py`).
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mtpack.input.dialogue import Dialogue, Message, Reject, TextMessages
from mtpack.sampled_check import Audit
from mtpack.template.chat_template import ChatTemplate, TemplateRaisedError
from mtpack.template.markers import MarkedText, holds_marks
from mtpack.template.tracing import operations
from mtpack.template.tracing.interpreter import UnknownError
from mtpack.template.tracing.known_renders import KnownRenders, Render
from mtpack.template.tracing.plan import DialoguePlan, PlainPlan, plan_dialogue
from mtpack.template.tracing.program import Messages, Sheet
from mtpack.template.tracing.slotted_text import SlottedText, slotted_text_of
from mtpack.template.tracing.tracers import Untraceable
from mtpack.template.tracing.warm_up import warm_up_dialogues
from mtpack.template.turn_spans import RenderedDialogue, render_dialogue
from mtpack.tokenizer.added_tokens import AddedTokens

# Plans are dropped, oldest first, beyond this many shapes; some data has a new one every time.
_MAX_SHAPES = 512
# Plans of one shape; they differ in what the texts answer.
_MAX_PLANS = 8
# Dialogues that may be recorded, beside one for every replayed one: a template that asks each
# dialogue other questions is not worth it.
_RECORDINGS_AHEAD = 256
# How often it is tried to learn all that finding the turns of one dialogue asks for.
_ROUNDS = 8
# Events known of a template at most (an event takes about a kilobyte).
_MAX_EVENTS = 400_000
# Share of the time that audits may take; with the engine's they stay below 3% of a run.
_AUDITED = 0.01
_WARM_UP_SECONDS = 1.0
# Longer dialogues are rendered: a row that meets a limit (`limits.py`) must be refused either way.
_MAX_MESSAGES = 1024
_MAX_CHARACTERS = 2**20


@dataclass(frozen=True, slots=True)
class _Shape:
    """How dialogues of one shape, whose texts give the same answers, are filled in."""

    sheet: Sheet
    outlines: dict[Render, SlottedText | None]
    """Without a plan."""
    plan: PlainPlan | DialoguePlan | None
    """None where turns can't be placed without looking at the texts."""


@dataclass(frozen=True, slots=True)
class _TextShape:
    """How dialogues of texts alone, of the same roles, are filled in, whatever the texts say."""

    plan: PlainPlan
    order: list[int] | None
    """Which text comes in which cell; None for all, one after the other."""

    def filled(self, texts: Sequence[str], row: int) -> RenderedDialogue | None:
        """Return the documents; None where the text has to be rendered for real."""
        ordered = texts if self.order is None else [texts[message] for message in self.order]
        rendered = self.plan.joined(ordered, row)
        text = rendered.merged.text
        return None if len(text) > _MAX_CHARACTERS or holds_marks(text) else rendered


class Replayer:
    """Renders dialogues and finds their turns."""

    def __init__(
        self, template: ChatTemplate, added_tokens: AddedTokens, merge: str, seed: int = 0
    ) -> None:
        """Take the template; merge: `auto`, `always` or `never`; seed: of the audit."""
        self.replayed = 0
        self.rendered = 0
        self.audited = 0
        self.audit_mismatches = 0
        """Replayed dialogues that were found to differ from their real render."""
        self._audit = Audit(seed, share=_AUDITED)
        self._template = template
        self._added_tokens = added_tokens
        self.merge = merge
        self._known: dict[tuple[str, bool], KnownRenders] = {}
        self._shapes: dict[Hashable, list[_Shape]] = {}
        self._text_shapes: dict[tuple[str, ...], _TextShape] = {}
        """By roles; of dialogues without tools."""
        self._recorded = 0

    def replay_texts(self, dialogue: Dialogue) -> RenderedDialogue | None:
        """Return what `render_dialogue` does, if that runs no template and takes a few µs.

        That is how nearly all dialogues of texts alone go, behind the first of their shape.
        """
        if self._audit.is_due(dialogue.row):
            return None
        replayed = self._fill_texts(dialogue)
        self.replayed += replayed is not None
        return replayed

    def _fill_texts(self, dialogue: Dialogue) -> RenderedDialogue | None:
        messages = dialogue.texts_alone
        shape = None if messages is None else self._text_shapes.get(messages.roles)
        if messages is None or shape is None:
            return None
        return shape.filled(messages.texts, dialogue.row)

    def render_dialogue(self, dialogue: Dialogue) -> RenderedDialogue | Reject:
        """Return what `render_dialogue` of `spans.py` does."""
        replayed = self._fill_texts(dialogue)
        if replayed is not None:
            self.replayed += 1
            return self._audited(dialogue, replayed)
        shape = _shape_of(dialogue)
        if shape is None:  # content in parts, which the template may or may not read
            joined = self._template.readable(dialogue.messages)
            shape = _detailed_shape_of(dialogue, joined)
            messages = [message.fields for message in joined]
        else:
            messages = [message.fields for message in dialogue.messages]
        if len(messages) > _MAX_MESSAGES:
            self.rendered += 1
            return self.render_for_real(dialogue)
        replayed = self._replay(dialogue, messages, shape)
        if replayed is not None and len(replayed.merged.text) <= _MAX_CHARACTERS:
            self.replayed += 1
            return self._audited(dialogue, replayed)
        self.rendered += 1
        self._template.meter.most_steps()
        rendered = self.render_for_real(dialogue)
        if isinstance(rendered, RenderedDialogue):
            self._record(dialogue, messages, shape, rendered)
        return rendered

    def warm_up(self) -> None:
        """Learn the template from made-up dialogues, which are in no count but of recordings.

        It ends after a second: shapes of a template that looks back at what was said (Qwen3's, for
        what was thought) cost more the longer they are, 100 ms at last.
        """
        begun = time.perf_counter()
        for dialogue in warm_up_dialogues():
            self.render_dialogue(dialogue)
            if time.perf_counter() - begun > _WARM_UP_SECONDS:
                break
        if self.audit_mismatches:  # then let the data show it, where it is told of
            self._known.clear()
            self._forget_shapes()
        self.replayed = self.rendered = self.audited = self.audit_mismatches = 0
        self._audit = Audit(self._audit.seed, share=_AUDITED)  # whose time begins with the data

    def render_for_real(self, dialogue: Dialogue) -> RenderedDialogue | Reject:
        """Render without replay."""
        return render_dialogue(self._template, self._added_tokens, dialogue, self.merge)

    def _audited(self, dialogue: Dialogue, replayed: RenderedDialogue) -> RenderedDialogue | Reject:
        if not self._audit.is_due(dialogue.row):
            return replayed
        with self._audit.timed():
            rendered = self.render_for_real(dialogue)
        self.audited += 1
        self.audit_mismatches += rendered != replayed
        return rendered

    def _replay(
        self, dialogue: Dialogue, messages: Messages, shape: Hashable
    ) -> RenderedDialogue | None:
        if not self._known_renders(dialogue).is_within_limits(len(messages), dialogue.tools):
            return None
        self._template.meter.restart()  # filters count as in a render
        for known in self._shapes.get(shape, ()):
            values = known.sheet.filled(messages, dialogue.tools)
            if values is not None:
                self._keep_text_shape(dialogue, known)
                return self._fill(known, values, dialogue)
        sheet = Sheet(messages, dialogue.tools)
        try:
            known = self._new_shape(dialogue, messages, sheet)
        except UnknownError:
            return None
        filled = self._fill(known, sheet.values, dialogue)
        if filled is not None:
            self._keep(shape, known)
            self._keep_text_shape(dialogue, known)
        return filled

    def _new_shape(self, dialogue: Dialogue, messages: Messages, sheet: Sheet) -> _Shape:
        known = self._known_renders(dialogue)

        def outlines(wanted: Iterator[Render]) -> dict[Render, SlottedText | None]:
            walks = known.walk(sheet, messages, dialogue.tools, wanted)
            return {
                render: None if walk is None else slotted_text_of(walk.pieces)
                for render, walk in walks.items()
            }

        found = outlines(_renders(dialogue))
        tagged = known.name in self._template.tagged
        plan = plan_dialogue(self._added_tokens, dialogue, found, self.merge, tagged)
        if plan is not None:
            return _Shape(sheet, {}, plan)
        if known.asks_before:
            found |= outlines(_renders_before(dialogue))
        return _Shape(sheet, found, None)

    def _keep(self, shape: Hashable, known: _Shape) -> None:
        alike = self._shapes.setdefault(shape, [])
        if len(alike) < _MAX_PLANS:
            alike.append(known)
        if len(self._shapes) > _MAX_SHAPES:
            del self._shapes[next(iter(self._shapes))]

    def _keep_text_shape(self, dialogue: Dialogue, known: _Shape) -> None:
        messages = dialogue.texts_alone
        if messages is None or not isinstance(known.plan, PlainPlan):
            return
        order = known.sheet.texts_of(known.plan.full.cells)
        if order is None:
            return
        if len(self._text_shapes) >= _MAX_SHAPES:
            self._text_shapes.clear()
        in_order = order == list(range(len(messages)))
        self._text_shapes[messages.roles] = _TextShape(known.plan, None if in_order else order)

    def _forget_shapes(self) -> None:
        self._shapes.clear()
        self._text_shapes.clear()

    def _fill(
        self, shape: _Shape, values: Sequence[Any], dialogue: Dialogue
    ) -> RenderedDialogue | None:
        if isinstance(shape.plan, PlainPlan):  # whose text holds all values that matter
            replayed = shape.plan.filled(values, dialogue.row)
            return None if holds_marks(replayed.merged.text) else replayed
        if _hold_marks(values):
            return None
        if shape.plan is not None:
            return shape.plan.filled(values, dialogue.row)
        known = self._known_renders(dialogue)
        filled = _FilledTemplate(
            self._template, known, shape.outlines, values, tuple(dialogue.messages)
        )
        try:
            rendered = render_dialogue(filled, self._added_tokens, dialogue, self.merge)
        except UnknownError:
            return None
        return rendered if isinstance(rendered, RenderedDialogue) else None

    def _record(
        self, dialogue: Dialogue, messages: Messages, shape: Hashable, rendered: RenderedDialogue
    ) -> None:
        """Learn from a dialogue, until it can be replayed; then its replay is audited."""
        known = self._known_renders(dialogue)
        if self._recorded > self.replayed + _RECORDINGS_AHEAD:
            return
        if known.automaton.size > _MAX_EVENTS:
            return
        self._recorded += 1
        self._text_shapes.clear()  # what is within limits may be another matter now
        known.most_steps = max(known.most_steps, self._template.meter.most_steps())
        try:
            for _ in range(_ROUNDS):  # what is asked for next may hang on what is known now
                known.learn(messages, dialogue.tools, _renders(dialogue))
                if known.asks_before:
                    known.learn(messages, dialogue.tools, _renders_before(dialogue))
                known.learn_missing(dialogue.tools)
                replayed = self._replay(dialogue, messages, shape)
                if replayed is not None:
                    self.audited += 1
                    self.audit_mismatches += replayed != rendered
                    return
        except Untraceable:
            self._recorded += 1
            if known.automaton.is_contradicted:
                self._forget_shapes()

    def _known_renders(self, dialogue: Dialogue) -> KnownRenders:
        name = self._template.name_for(dialogue.tools)
        key = (name, dialogue.tools is not None)
        if key not in self._known:
            self._known[key] = KnownRenders(self._template, name)
        return self._known[key]


@dataclass(frozen=True, slots=True)
class _FilledTemplate:
    """What a template gives for one dialogue, filled in: all that `render_dialogue` asks for."""

    template: ChatTemplate
    known: KnownRenders
    outlines: dict[Render, SlottedText | None]
    values: Sequence[Any]
    messages: tuple[Message, ...]

    def render(
        self, messages: Sequence[Message], tools: list[Any] | None, *, prompt: bool = False
    ) -> str:
        outline, values = self._outline(messages, tools, prompt)
        return outline.filled(values)[0]

    def render_marked(
        self, messages: Sequence[Message], tools: list[Any] | None, *, prompt: bool = False
    ) -> MarkedText:
        outline, values = self._outline(messages, tools, prompt)
        return outline.marked(values, self.known.name in self.template.tagged)

    def _outline(
        self, messages: Sequence[Message], tools: list[Any] | None, prompt: bool
    ) -> tuple[SlottedText, Sequence[Any]]:
        if not messages:
            raise TemplateRaisedError("no messages")
        render = len(messages), prompt
        if messages != self.messages[: len(messages)]:  # it goes on with a question
            fields = [message.fields for message in self.template.readable(messages)]
            sheet, walk = self.known.walk_other(fields, tools, prompt)
            outline = None if walk is None else slotted_text_of(walk.pieces)
            values: Sequence[Any] = sheet.values
        elif render in self.outlines:
            outline, values = self.outlines[render], self.values
        else:
            self.known.asks_before = True
            raise UnknownError
        if outline is None:
            raise TemplateRaisedError
        return outline, values


def _hold_marks(values: Sequence[Any]) -> bool:
    """Return whether a dialogue's texts have characters that mislead its real render."""
    return any(
        type(value) is str and not value.isascii() and holds_marks(value) for value in values
    )


def _renders(dialogue: Dialogue) -> Iterator[Render]:
    """Yield what it takes to find the turns: the dialogue up to each, and its prompt."""
    for message in dialogue.trained_messages():
        yield message + 1, False
        yield max(message, 1), True


def _renders_before(dialogue: Dialogue) -> Iterator[Render]:
    """Yield what `spans.py` asks for beside, where a prompt is not how a turn begins."""
    for message in dialogue.trained_messages():
        if message:
            yield message, False


def _shape_of(dialogue: Dialogue) -> Hashable | None:
    """Return what tells shapes apart: roles, and which fields of which kinds there are.

    None where the content of a message comes in parts.
    """
    messages = dialogue.messages
    if isinstance(messages, TextMessages):
        return (dialogue.tools is None, *messages.roles)
    if any(isinstance(message.fields.get("content"), list) for message in messages):
        return None
    return _detailed_shape_of(dialogue, messages)


def _detailed_shape_of(dialogue: Dialogue, messages: Sequence[Message]) -> Hashable:
    return (dialogue.tools is None, *map(_detailed, messages))


def _detailed(message: Message) -> Hashable:
    kinds = []
    for name, value in message.fields.items():
        kind = operations.kind(value)
        kinds.append((name, kind if kind in ("str", "list", "dict") else repr(value)))
    return (message.role, message.trained, *sorted(kinds))
