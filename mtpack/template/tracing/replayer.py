"""Render dialogues by replay where the result is known to be exact, and with Jinja elsewhere.

For the first dialogue of a shape, the recorded events are replayed (`interpreter.py`), and a plan
for all dialogues of the shape is made (`dialogue_plan.py`). For later ones, only slots are filled.
Where the template's run is not known yet, the dialogue is rendered with Jinja, and recorded
(`recorder.py`).
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mtpack.input.dialogue import Dialogue, Message, Reject, TextMessages
from mtpack.sampled_check import Audit
from mtpack.template.chat_template import ChatTemplate, TemplateRaisedError
from mtpack.template.markers import MarkedText, has_mark_characters
from mtpack.template.tracing import operations
from mtpack.template.tracing.dialogue_plan import DialoguePlan, OneDocumentPlan, plan_dialogue
from mtpack.template.tracing.interpreter import UnrecordedError
from mtpack.template.tracing.known_renders import KnownRenders, Render
from mtpack.template.tracing.program import Messages, Program
from mtpack.template.tracing.slotted_text import SlottedText, make_slotted_text
from mtpack.template.tracing.tracers import Untraceable
from mtpack.template.tracing.warm_up import warm_up_dialogues
from mtpack.template.turn_spans import RenderedDialogue, render_dialogue
from mtpack.tokenizer.added_tokens import AddedTokens

# Shapes to keep; the oldest is dropped first. In some data, every dialogue has a new shape.
_MAX_SHAPES = 512
# Plans to keep for one shape; they differ in the answers that depend on texts.
_MAX_PLANS = 8
# Recordings allowed in addition to one for every replayed dialogue. Where each dialogue has a new
# run, recording costs more than it saves.
_RECORDINGS_AHEAD = 256
# Attempts to record all renders that are needed to find the turns of one dialogue.
_MAX_ROUNDS = 8
# Events to record of one template (an event takes about 1 kB).
_MAX_EVENTS = 400_000
# Share of the time for audits. With those of the tokenizer's engine, they take below 3% of a run.
_AUDIT_SHARE = 0.01
_WARM_UP_SECONDS = 1.0
# Longer dialogues are rendered with Jinja, so that a row above a limit (`limits.py`) is rejected.
_MAX_MESSAGES = 1024
_MAX_CHARACTERS = 2**20


@dataclass(frozen=True, slots=True)
class _ShapeReplay:
    """Replays dialogues of one shape whose texts give the same answers."""

    program: Program
    slotted_texts: dict[Render, SlottedText | None]
    """Empty where there is a plan."""
    plan: DialoguePlan | None
    """None where the positions of turns depend on the texts."""


@dataclass(frozen=True, slots=True)
class _TextShapeReplay:
    """Replays dialogues of the same roles that have text contents only, whatever the texts are."""

    plan: OneDocumentPlan
    order: list[int] | None
    """The message whose text fills each slot; None for all messages in order."""

    def fill(self, texts: Sequence[str], row: int) -> RenderedDialogue | None:
        """Return the documents; None where the dialogue must be rendered with Jinja."""
        ordered = texts if self.order is None else [texts[message] for message in self.order]
        rendered = self.plan.fill_texts(ordered, row)
        text = rendered.merged.text
        return None if len(text) > _MAX_CHARACTERS or has_mark_characters(text) else rendered


class Replayer:
    """Renders dialogues and finds their turns, by replay where possible."""

    def __init__(
        self, template: ChatTemplate, added_tokens: AddedTokens, merge: str, seed: int = 0
    ) -> None:
        """Take the template; merge: `auto`, `always` or `never`; seed: selects the audited rows."""
        self.replayed = 0
        self.rendered = 0
        self.audited = 0
        self.audit_mismatches = 0
        """Audited dialogues whose replay differed from their render with Jinja."""
        self._audit = Audit(seed, share=_AUDIT_SHARE)
        self._template = template
        self._added_tokens = added_tokens
        self.merge = merge
        self._known_renders: dict[tuple[str, bool], KnownRenders] = {}
        self._shape_replays: dict[Hashable, list[_ShapeReplay]] = {}
        self._text_shape_replays: dict[tuple[str, ...], _TextShapeReplay] = {}
        """By roles, for dialogues without tools."""
        self._recorded = 0

    def replay_texts(self, dialogue: Dialogue) -> RenderedDialogue | None:
        """Return the same as `render_dialogue` if that takes only a few µs, else None.

        It does for nearly all dialogues that have text contents only, after the first of a shape.
        """
        if self._audit.is_due(dialogue.row):
            return None
        replayed = self._fill_texts(dialogue)
        self.replayed += replayed is not None
        return replayed

    def _fill_texts(self, dialogue: Dialogue) -> RenderedDialogue | None:
        messages = dialogue.text_messages
        shape = None if messages is None else self._text_shape_replays.get(messages.roles)
        if messages is None or shape is None:
            return None
        return shape.fill(messages.texts, dialogue.row)

    def render_dialogue(self, dialogue: Dialogue) -> RenderedDialogue | Reject:
        """Return the same as `render_dialogue` of `turn_spans.py`."""
        replayed = self._fill_texts(dialogue)
        if replayed is not None:
            self.replayed += 1
            return self._audit_replay(dialogue, replayed)
        shape = _describe_shape(dialogue)
        if shape is None:  # content in parts, which the template may or may not read
            joined = self._template.join_text_parts(dialogue.messages)
            shape = _describe_fields(dialogue, joined)
            messages = [message.fields for message in joined]
        else:
            messages = [message.fields for message in dialogue.messages]
        if len(messages) > _MAX_MESSAGES:
            self.rendered += 1
            return self.render_without_replay(dialogue)
        replayed = self._replay(dialogue, messages, shape)
        if replayed is not None and len(replayed.merged.text) <= _MAX_CHARACTERS:
            self.replayed += 1
            return self._audit_replay(dialogue, replayed)
        self.rendered += 1
        self._template.meter.take_most_steps()
        rendered = self.render_without_replay(dialogue)
        if isinstance(rendered, RenderedDialogue):
            self._record(dialogue, messages, shape, rendered)
        return rendered

    def warm_up(self) -> None:
        """Record the template on made-up dialogues; only the count of recordings includes them.

        It stops after a second: for a template that reads earlier messages again (as Qwen3's does,
        for reasoning), a shape costs more the longer it is, up to 100 ms.
        """
        begun = time.perf_counter()
        for dialogue in warm_up_dialogues():
            self.render_dialogue(dialogue)
            if time.perf_counter() - begun > _WARM_UP_SECONDS:
                break
        if self.audit_mismatches:  # record again on real data, where a mismatch is reported
            self._known_renders.clear()
            self._forget_shape_replays()
        self.replayed = self.rendered = self.audited = self.audit_mismatches = 0
        self._audit = Audit(self._audit.seed, share=_AUDIT_SHARE)  # its time starts with the data

    def render_without_replay(self, dialogue: Dialogue) -> RenderedDialogue | Reject:
        """Return the same as `render_dialogue`, rendered with Jinja."""
        return render_dialogue(self._template, self._added_tokens, dialogue, self.merge)

    def _audit_replay(
        self, dialogue: Dialogue, replayed: RenderedDialogue
    ) -> RenderedDialogue | Reject:
        if not self._audit.is_due(dialogue.row):
            return replayed
        with self._audit.measure():
            rendered = self.render_without_replay(dialogue)
        self.audited += 1
        self.audit_mismatches += rendered != replayed
        return rendered

    def _replay(
        self, dialogue: Dialogue, messages: Messages, shape: Hashable
    ) -> RenderedDialogue | None:
        if not self._get_known_renders(dialogue).is_within_limits(len(messages), dialogue.tools):
            return None
        self._template.meter.restart()  # filters count steps as in a render
        for shape_replay in self._shape_replays.get(shape, ()):
            values = shape_replay.program.run(messages, dialogue.tools)
            if values is not None:
                self._keep_text_shape_replay(dialogue, shape_replay)
                return self._fill(shape_replay, values, dialogue)
        program = Program(messages, dialogue.tools)
        try:
            shape_replay = self._make_shape_replay(dialogue, program)
        except UnrecordedError:
            return None
        filled = self._fill(shape_replay, program.values, dialogue)
        if filled is not None:
            self._keep_shape_replay(shape, shape_replay)
            self._keep_text_shape_replay(dialogue, shape_replay)
        return filled

    def _make_shape_replay(self, dialogue: Dialogue, program: Program) -> _ShapeReplay:
        known = self._get_known_renders(dialogue)

        def slotted_texts(wanted: Iterator[Render]) -> dict[Render, SlottedText | None]:
            interpreters = known.interpret(program, wanted)
            return {
                render: None if interpreter is None else make_slotted_text(interpreter.pieces)
                for render, interpreter in interpreters.items()
            }

        found = slotted_texts(_list_renders(dialogue))
        tagged = known.name in self._template.tagged
        plan = plan_dialogue(self._added_tokens, dialogue, found, self.merge, tagged)
        if plan is not None:
            return _ShapeReplay(program, {}, plan)
        if known.needs_text_before_turns:
            found |= slotted_texts(_list_renders_before(dialogue))
        return _ShapeReplay(program, found, None)

    def _keep_shape_replay(self, shape: Hashable, shape_replay: _ShapeReplay) -> None:
        alike = self._shape_replays.setdefault(shape, [])
        if len(alike) < _MAX_PLANS:
            alike.append(shape_replay)
        if len(self._shape_replays) > _MAX_SHAPES:
            del self._shape_replays[next(iter(self._shape_replays))]

    def _keep_text_shape_replay(self, dialogue: Dialogue, shape_replay: _ShapeReplay) -> None:
        messages = dialogue.text_messages
        if messages is None or not isinstance(shape_replay.plan, OneDocumentPlan):
            return
        order = shape_replay.program.find_content_messages(shape_replay.plan.full.slots)
        if order is None:
            return
        if len(self._text_shape_replays) >= _MAX_SHAPES:
            self._text_shape_replays.clear()
        in_order = order == list(range(len(messages)))
        self._text_shape_replays[messages.roles] = _TextShapeReplay(
            shape_replay.plan, None if in_order else order
        )

    def _forget_shape_replays(self) -> None:
        self._shape_replays.clear()
        self._text_shape_replays.clear()

    def _fill(
        self, shape_replay: _ShapeReplay, values: Sequence[Any], dialogue: Dialogue
    ) -> RenderedDialogue | None:
        if isinstance(shape_replay.plan, OneDocumentPlan):  # its text has all values that matter
            replayed = shape_replay.plan.fill(values, dialogue.row)
            return None if has_mark_characters(replayed.merged.text) else replayed
        if _have_mark_characters(values):
            return None
        if shape_replay.plan is not None:
            return shape_replay.plan.fill(values, dialogue.row)
        known = self._get_known_renders(dialogue)
        filled = _ReplayedTemplate(
            self._template, known, shape_replay.slotted_texts, values, tuple(dialogue.messages)
        )
        try:
            rendered = render_dialogue(filled, self._added_tokens, dialogue, self.merge)
        except UnrecordedError:
            return None
        return rendered if isinstance(rendered, RenderedDialogue) else None

    def _record(
        self, dialogue: Dialogue, messages: Messages, shape: Hashable, rendered: RenderedDialogue
    ) -> None:
        """Record what is needed to replay a dialogue; then audit its replay."""
        known = self._get_known_renders(dialogue)
        if self._recorded > self.replayed + _RECORDINGS_AHEAD:
            return
        if known.automaton.size > _MAX_EVENTS:
            return
        self._recorded += 1
        self._text_shape_replays.clear()  # `is_within_limits` may change now
        known.most_steps = max(known.most_steps, self._template.meter.take_most_steps())
        try:
            for _ in range(_MAX_ROUNDS):  # one round may show that more renders are needed
                known.learn(messages, dialogue.tools, _list_renders(dialogue))
                if known.needs_text_before_turns:
                    known.learn(messages, dialogue.tools, _list_renders_before(dialogue))
                known.learn_missing(dialogue.tools)
                replayed = self._replay(dialogue, messages, shape)
                if replayed is not None:
                    self.audited += 1
                    self.audit_mismatches += replayed != rendered
                    return
        except Untraceable:
            self._recorded += 1
            if known.automaton.is_contradicted:
                self._forget_shape_replays()

    def _get_known_renders(self, dialogue: Dialogue) -> KnownRenders:
        name = self._template.choose_name(dialogue.tools)
        key = (name, dialogue.tools is not None)
        if key not in self._known_renders:
            self._known_renders[key] = KnownRenders(self._template, name)
        return self._known_renders[key]


@dataclass(frozen=True, slots=True)
class _ReplayedTemplate:
    """Gives `render_dialogue` the renders of one dialogue by replay, in place of a template."""

    template: ChatTemplate
    known: KnownRenders
    slotted_texts: dict[Render, SlottedText | None]
    values: Sequence[Any]
    messages: tuple[Message, ...]

    def render(
        self, messages: Sequence[Message], tools: list[Any] | None, *, prompt: bool = False
    ) -> str:
        slotted_text, values = self._find_slotted_text(messages, tools, prompt)
        return slotted_text.fill(values)[0]

    def render_marked(
        self, messages: Sequence[Message], tools: list[Any] | None, *, prompt: bool = False
    ) -> MarkedText:
        slotted_text, values = self._find_slotted_text(messages, tools, prompt)
        return slotted_text.fill_marked(values, self.known.name in self.template.tagged)

    def _find_slotted_text(
        self, messages: Sequence[Message], tools: list[Any] | None, prompt: bool
    ) -> tuple[SlottedText, Sequence[Any]]:
        if not messages:
            raise TemplateRaisedError("no messages")
        render = len(messages), prompt
        if messages != self.messages[: len(messages)]:  # a question follows the last turn
            fields = [message.fields for message in self.template.join_text_parts(messages)]
            program, interpreter = self.known.interpret_other(fields, tools, prompt)
            slotted_text = None if interpreter is None else make_slotted_text(interpreter.pieces)
            values: Sequence[Any] = program.values
        elif render in self.slotted_texts:
            slotted_text, values = self.slotted_texts[render], self.values
        else:
            self.known.needs_text_before_turns = True
            raise UnrecordedError
        if slotted_text is None:
            raise TemplateRaisedError
        return slotted_text, values


def _have_mark_characters(values: Sequence[Any]) -> bool:
    """Return whether a text has characters of marks, which change what Jinja's render finds."""
    return any(
        type(value) is str and not value.isascii() and has_mark_characters(value)
        for value in values
    )


def _list_renders(dialogue: Dialogue) -> Iterator[Render]:
    """Yield the renders that finding turns needs: the dialogue up to each, and its prompt."""
    for message in dialogue.trained_messages():
        yield message + 1, False
        yield max(message, 1), True


def _list_renders_before(dialogue: Dialogue) -> Iterator[Render]:
    """Yield what `turn_spans.py` needs in addition where a turn does not start with its prompt."""
    for message in dialogue.trained_messages():
        if message:
            yield message, False


def _describe_shape(dialogue: Dialogue) -> Hashable | None:
    """Return the shape of a dialogue: its roles, and its fields with their kinds.

    None where the content of a message is a list of parts.
    """
    messages = dialogue.messages
    if isinstance(messages, TextMessages):
        return (dialogue.tools is None, *messages.roles)
    if any(isinstance(message.fields.get("content"), list) for message in messages):
        return None
    return _describe_fields(dialogue, messages)


def _describe_fields(dialogue: Dialogue, messages: Sequence[Message]) -> Hashable:
    return (dialogue.tools is None, *map(_describe_message, messages))


def _describe_message(message: Message) -> Hashable:
    kinds = []
    for name, value in message.fields.items():
        kind = operations.classify(value)
        kinds.append((name, kind if kind in (str, list, dict) else repr(value)))
    return (message.role, message.trained, *sorted(kinds))
