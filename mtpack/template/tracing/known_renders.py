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
    most_iterations: int = 0
    """The largest `Recorder.most_iterations` of all recordings."""
    automaton: Automaton = field(default_factory=Automaton)
    _compiled: tuple[RecordingEnvironment, jinja2.Template] | None = None

    def interpret(
        self, program: Program, messages: Messages, tools: Any, wanted: Iterator[Render]
    ) -> dict[Render, Interpreter | None]:
        """Replay the whole dialogue and the wanted renders; None for a render that raises.

        Raises UnrecordedError if a render is not known, or if the template refuses the dialogue.
        """
        whole = self._interpret(program, messages, tools, (len(messages), False), None)
        if whole is None:
            raise UnrecordedError
        interpreters: dict[Render, Interpreter | None] = {(len(messages), False): whole}
        for render in wanted:
            if render not in interpreters:
                interpreters[render] = self._interpret(program, messages, tools, render, whole)
            if interpreters[render] is None and render[1]:  # then the prompt after it is needed
                after = render[0] + 1, True
                interpreters[after] = self._interpret(program, messages, tools, after, whole)
        return interpreters

    def interpret_other(
        self, messages: Messages, tools: Any, prompt: bool
    ) -> tuple[Program, Interpreter | None]:
        """Replay one render of other messages; None if it raises. Raises UnrecordedError."""
        program = Program(messages, tools)
        try:
            return program, self._interpret(program, messages, tools, (len(messages), prompt), None)
        except UnrecordedError:
            self.missing_renders.append((messages, prompt))
            raise

    @property
    def max_steps(self) -> int:
        """The most steps of a replay for which the render can't exceed a limit (`limits.py`).

        A replay counts nothing. But all that it does before, between and after its steps was
        recorded, and took at most `most_iterations` each time. Closed macros count their own
        iterations. Two things are bounded only by the length of the dialogues that are replayed
        (`replayer.py`): a loop that skips the characters of a content makes as many iterations as
        there are characters, at most a tenth of the limit; and to exceed the limit on characters,
        a template must make a hundred times as much text in macros and blocks as it writes.
        """
        return self.template.meter.limits.iterations // max(1, self.most_iterations) - 1

    def learn(self, messages: Messages, tools: Any, wanted: Iterator[Render]) -> None:
        """Record the renders that are not known; raise Untraceable if one can't be recorded."""
        program = Program(messages, tools)
        whole = self._learn(program, messages, tools, (len(messages), False), None)
        for render in wanted:
            if self._learn(program, messages, tools, render, whole) is None and render[1]:
                self._learn(program, messages, tools, (render[0] + 1, True), whole)

    def learn_missing(self, tools: Any) -> None:
        """Record the missing renders; raise Untraceable if one can't be recorded."""
        missing_renders, self.missing_renders = self.missing_renders, []
        for messages, prompt in missing_renders:
            self.automaton.learn(self._record(messages, tools, prompt))

    def _learn(
        self,
        program: Program,
        messages: Messages,
        tools: Any,
        render: Render,
        whole: Interpreter | None,
    ) -> Interpreter | None:
        try:
            return self._interpret(program, messages, tools, render, whole)
        except UnrecordedError:
            num_messages, prompt = render
            self.automaton.learn(self._record(messages[:num_messages], tools, prompt))
        try:
            return self._interpret(program, messages, tools, render, None)
        except UnrecordedError as error:
            raise Untraceable("a recording that can't be replayed") from error

    def _interpret(
        self,
        program: Program,
        messages: Messages,
        tools: Any,
        render: Render,
        whole: Interpreter | None,
    ) -> Interpreter | None:
        num_messages, prompt = render
        try:
            interpreter = None if whole is None else whole.resume_at(num_messages, prompt)
            if interpreter is None:
                interpreter = Interpreter(
                    program, messages[:num_messages], tools, prompt, self.max_steps
                )
                interpreter.run_from_start(self.automaton.root)
        except ReplayRaisedError:
            return None
        return interpreter

    def _record(self, messages: Messages, tools: Any, prompt: bool) -> list[tuple[Event, Any]]:
        if self._compiled is None:
            self._compiled = compile_recording(
                self.template.sources[self.name],
                self.template.environment,
                {"documents", *INPUTS, *self.template.variables},
            )
        environment, template = self._compiled
        environment.recorder = recorder = Recorder(environment.meter)
        environment.meter.restart()
        indexed = [IndexedMessage(message, index) for index, message in enumerate(messages)]
        inputs = map(recorder.trace_input, (indexed, tools, prompt))
        variables = {
            **dict(zip(INPUTS, inputs, strict=True)),
            "documents": None,
            **self.template.variables,
        }
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
        recorder.count_iterations()
        self.most_iterations = max(self.most_iterations, recorder.most_iterations)
        return recorder.events
