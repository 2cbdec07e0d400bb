"""The renders of one template that are known: recorded once, then replayed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import jinja2

from mtpack.template.chat_template import ChatTemplate
from mtpack.template.markers import IndexedMessage
from mtpack.template.tracing.automaton import Automaton
from mtpack.template.tracing.instrument import RecordingEnvironment, compile_recording
from mtpack.template.tracing.interpreter import Interpreter, ReplayRaisedError, UnrecordedError
from mtpack.template.tracing.program import Messages, Program
from mtpack.template.tracing.recorder import INPUTS, Event, Recorder
from mtpack.template.tracing.tracers import Untraceable

Render = tuple[int, bool]
"""The number of a dialogue's messages that are rendered, and whether with a generation prompt."""


@dataclass(slots=True)
class KnownRenders:
    """The recordings of one template, either for dialogues with tools or for those without."""

    template: ChatTemplate
    name: str
    """The name of the source that is recorded (`ChatTemplate.sources`)."""
    needs_text_before_turns: bool = False
    """Whether turns are found only with renders of the messages before them, without a prompt."""
    missing_renders: list[tuple[Messages, bool]] = field(default_factory=list)
    """Other renders that were needed and are not known: the messages, and whether with a prompt."""
    most_steps: int = 0
    """The largest number of steps in a recorded render, as `Meter` counts them."""
    automaton: Automaton = field(default_factory=Automaton)
    _compiled: tuple[RecordingEnvironment, jinja2.Template] | None = None

    def interpret(
        self, program: Program, wanted: Iterator[Render]
    ) -> dict[Render, Interpreter | None]:
        """Replay the whole dialogue and the wanted renders; None for a render that raises.

        Raises UnrecordedError if a render is not known, or if the template refuses the dialogue.
        """
        return self._interpret_all(program, wanted, record=False)

    def interpret_other(
        self, messages: Messages, tools: Any, prompt: bool
    ) -> tuple[Program, Interpreter | None]:
        """Replay one render of other messages; None if it raises. Raises UnrecordedError."""
        program = Program(messages, tools)
        try:
            return program, self._interpret(program, (len(messages), prompt), None, record=False)
        except UnrecordedError:
            self.missing_renders.append((messages, prompt))
            raise

    def is_within_limits(self, num_messages: int, tools: list[Any] | None) -> bool:
        """Return whether no render of so many messages can exceed the limit on steps (`Limits`).

        Everything between two steps of a loop in a replay was recorded in one render, and a
        template iterates over the messages at most four times.
        """
        passes = 4 * (num_messages + 1) + len(tools or ())
        return passes * self.most_steps <= self.template.meter.limits.steps

    def learn(self, messages: Messages, tools: Any, wanted: Iterator[Render]) -> None:
        """Record the renders that are not known; raise Untraceable if one can't be recorded."""
        try:
            self._interpret_all(Program(messages, tools), wanted, record=True)
        except UnrecordedError as error:
            raise Untraceable("a recording that can't be replayed") from error

    def learn_missing(self, tools: Any) -> None:
        """Record the missing renders; raise Untraceable if one can't be recorded."""
        missing_renders, self.missing_renders = self.missing_renders, []
        for messages, prompt in missing_renders:
            self.automaton.learn(self._record(messages, tools, prompt))

    def _interpret_all(
        self, program: Program, wanted: Iterator[Render], *, record: bool
    ) -> dict[Render, Interpreter | None]:
        render = (len(program.messages), False)
        whole = self._interpret(program, render, None, record=record)
        if whole is None:
            raise UnrecordedError
        found: dict[Render, Interpreter | None] = {render: whole}
        for render in wanted:
            if render not in found:
                found[render] = self._interpret(program, render, whole, record=record)
            if found[render] is None and render[1]:  # then the prompt after it is needed
                after = render[0] + 1, True
                found[after] = self._interpret(program, after, whole, record=record)
        return found

    def _interpret(
        self, program: Program, render: Render, whole: Interpreter | None, *, record: bool
    ) -> Interpreter | None:
        """Replay one render; `record`: whether to record it first if it is not known."""
        try:
            interpreter = None if whole is None else whole.resume_at(*render)
            if interpreter is None:
                interpreter = Interpreter(program, *render)
                interpreter.run_from_start(self.automaton.root)
        except ReplayRaisedError:
            return None
        except UnrecordedError:
            if not record:
                raise
            num_messages, prompt = render
            messages = program.messages[:num_messages]
            self.automaton.learn(self._record(messages, program.tools, prompt))
            return self._interpret(program, render, None, record=False)
        return interpreter

    def _record(self, messages: Messages, tools: Any, prompt: bool) -> list[tuple[Event, Any]]:
        recorder = Recorder()
        indexed = [IndexedMessage(message, index) for index, message in enumerate(messages)]
        inputs = map(recorder.trace_input, (indexed, tools, prompt))
        variables = {
            **dict(zip(INPUTS, inputs, strict=True)),
            "documents": None,
            **self.template.variables,
        }
        if self._compiled is None:
            source = self.template.sources[self.name]
            self._compiled = compile_recording(source, self.template.environment, set(variables))
        environment, template = self._compiled
        environment.recorder = recorder
        last = "end"
        try:
            for text in template.root_render_func(template.new_context(variables)):
                recorder.write(text)
        except (jinja2.TemplateRuntimeError, jinja2.TemplateError) as error:
            # The template itself raised, or used an undefined value. This depends only on the
            # answers so far, like any event. Other errors may come from the tracers.
            if type(error) not in (jinja2.TemplateError, jinja2.UndefinedError):
                raise Untraceable(str(error)) from error
            last = "raise"
        except Exception as error:
            raise Untraceable(f"{type(error).__name__}: {error}") from error
        recorder.events.append((Event(last), None))
        return recorder.events
