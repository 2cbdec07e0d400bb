"""The renders of one template that are known: recorded once, then walked through."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import jinja2

from mtpack.template.chat_template import ChatTemplate
from mtpack.template.markers import IndexedMessage
from mtpack.template.tracing.automaton import Automaton
from mtpack.template.tracing.instrument import RecordingEnvironment, compile_recording
from mtpack.template.tracing.interpreter import RaisedError, UnknownError, Walk
from mtpack.template.tracing.program import Messages, Sheet
from mtpack.template.tracing.recorder import INPUTS, Event, Recorder
from mtpack.template.tracing.tracers import Untraceable

Render = tuple[int, bool]
"""How many of a dialogue's messages are rendered, and whether with a generation prompt."""


@dataclass(slots=True)
class KnownRenders:
    """What is known of one template, for dialogues with tools or for those without."""

    template: ChatTemplate
    name: str
    """Of the one of its sources."""
    asks_before: bool = False
    """Whether finding turns takes renders of what stands before them, without a prompt."""
    missing: list[tuple[Messages, bool]] = field(default_factory=list)
    """Renders of other messages that were asked for and are not known, with or without prompt."""
    most_steps: int = 0
    """Of the recorded renders (`Meter`)."""
    automaton: Automaton = field(default_factory=Automaton)
    _compiled: tuple[RecordingEnvironment, jinja2.Template] | None = None

    def walk(
        self, sheet: Sheet, messages: Messages, tools: Any, wanted: Iterator[Render]
    ) -> dict[Render, Walk | None]:
        """Walk through the whole dialogue and the wanted renders; None for one that raises.

        Raises UnknownError where one is not known, or if the template refuses the dialogue.
        """
        whole = self._walk(sheet, messages, tools, (len(messages), False), None)
        if whole is None:
            raise UnknownError
        walks: dict[Render, Walk | None] = {(len(messages), False): whole}
        for render in wanted:
            if render not in walks:
                walks[render] = self._walk(sheet, messages, tools, render, whole)
            if walks[render] is None and render[1]:  # then it is asked for behind the message
                behind = render[0] + 1, True
                walks[behind] = self._walk(sheet, messages, tools, behind, whole)
        return walks

    def walk_other(self, messages: Messages, tools: Any, prompt: bool) -> tuple[Sheet, Walk | None]:
        """Walk through one render; None if it raises. Raises UnknownError."""
        sheet = Sheet(messages, tools)
        try:
            return sheet, self._walk(sheet, messages, tools, (len(messages), prompt), None)
        except UnknownError:
            self.missing.append((messages, prompt))
            raise

    def is_within_limits(self, num_messages: int, tools: list[Any] | None) -> bool:
        """Return whether no render of so much can meet the limit on what a template does.

        What happens between two steps of a walk has happened in one recorded render, and a
        template goes over the messages four times at most.
        """
        passes = 4 * (num_messages + 1) + len(tools or ())
        return passes * self.most_steps <= self.template.meter.limits.steps

    def learn(self, messages: Messages, tools: Any, wanted: Iterator[Render]) -> None:
        """Record those of the renders that are not known; raise Untraceable where that can't be."""
        sheet = Sheet(messages, tools)
        whole = self._learn(sheet, messages, tools, (len(messages), False), None)
        for render in wanted:
            if self._learn(sheet, messages, tools, render, whole) is None and render[1]:
                self._learn(sheet, messages, tools, (render[0] + 1, True), whole)

    def learn_missing(self, tools: Any) -> None:
        """Record what was asked for and not known; raise Untraceable where that can't be."""
        missing, self.missing = self.missing, []
        for messages, prompt in missing:
            self.automaton.learn(self._record(messages, tools, prompt))

    def _learn(
        self, sheet: Sheet, messages: Messages, tools: Any, render: Render, whole: Walk | None
    ) -> Walk | None:
        try:
            return self._walk(sheet, messages, tools, render, whole)
        except UnknownError:
            number, prompt = render
            self.automaton.learn(self._record(messages[:number], tools, prompt))
        try:
            return self._walk(sheet, messages, tools, render, None)
        except UnknownError as error:
            raise Untraceable("a recording that can't be walked through") from error

    def _walk(
        self, sheet: Sheet, messages: Messages, tools: Any, render: Render, whole: Walk | None
    ) -> Walk | None:
        number, prompt = render
        try:
            walk = None if whole is None else whole.shorter(number, prompt)
            if walk is None:
                walk = Walk(sheet, messages[:number], tools, prompt)
                walk.from_start(self.automaton.root)
        except RaisedError:
            return None
        return walk

    def _record(self, messages: Messages, tools: Any, prompt: bool) -> list[tuple[Event, Any]]:
        if self._compiled is None:
            self._compiled = compile_recording(
                self.template.sources[self.name],
                self.template.environment,
                {"documents", *INPUTS, *self.template.variables},
            )
        environment, template = self._compiled
        environment.recorder = recorder = Recorder()
        indexed = [IndexedMessage(message, index) for index, message in enumerate(messages)]
        given = map(recorder.input, (indexed, tools, prompt))
        variables = {
            **dict(zip(INPUTS, given, strict=True)),
            "documents": None,
            **self.template.variables,
        }
        what = "end"
        try:
            for text in template.root_render_func(template.new_context(variables)):
                recorder.write(text)
        except (jinja2.TemplateRuntimeError, jinja2.TemplateError) as error:
            # Raised by the template itself, or for something that is not there: that hangs on
            # the answers so far, as everything does. Other errors may be the stand-ins'.
            if type(error) not in (jinja2.TemplateError, jinja2.UndefinedError):
                raise Untraceable(str(error)) from error
            what = "raise"
        except Exception as error:
            raise Untraceable(f"{type(error).__name__}: {error}") from error
        recorder.events.append((Event(what), None))
        return recorder.events
