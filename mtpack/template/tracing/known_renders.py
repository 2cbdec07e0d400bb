"""The renders of one template that are known: recorded once, then replayed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jinja2

from mtpack.input.dialogue import Messages
from mtpack.template.chat_template import ChatTemplate
from mtpack.template.markers import IndexedMessage
from mtpack.template.modes import Mode
from mtpack.template.tracing.automaton import Automaton
from mtpack.template.tracing.instrument import RecordingEnvironment, compile_recording
from mtpack.template.tracing.recorder import Event, Recorder
from mtpack.template.tracing.tracers import Untraceable

_MAX_COMPILED = 16


@dataclass(slots=True)
class KnownRenders:
    """The recordings of one template, either for dialogues with tools or for those without."""

    template: ChatTemplate
    name: str
    """The name of the source that is recorded (`ChatTemplate.sources`)."""
    mode: Mode | None = None
    most_iterations: int = 0
    """The largest `Recorder.most_iterations` of all recordings."""
    automaton: Automaton = field(default_factory=Automaton)
    compiled: dict[Any, tuple[RecordingEnvironment, jinja2.Template]] = field(default_factory=dict)
    """The templates that run on tracers, by their name and the names of their variables."""
    _other_modes: dict[Mode | None, KnownRenders] = field(default_factory=dict)

    def in_mode(self, mode: Mode | None) -> KnownRenders:
        """Return the recordings of the template in a mode."""
        if mode == self.mode:
            return self
        if mode not in self._other_modes:
            self._other_modes[mode] = KnownRenders(
                self.template, self.name, mode, compiled=self.compiled
            )
        return self._other_modes[mode]

    @property
    def size(self) -> int:
        """The number of recorded events, in all modes."""
        return sum(known.automaton.size for known in (self, *self._other_modes.values()))

    @property
    def is_contradicted(self) -> bool:
        """Whether recordings contradict each other, in any mode."""
        return any(known.automaton.is_contradicted for known in (self, *self._other_modes.values()))

    @property
    def max_steps(self) -> int:
        """The most steps of a replay for which the render can't exceed a limit (`limits.py`).

        A replay counts nothing. But all that it does before, between and after its steps was
        recorded, and took at most `most_iterations` each time. Closed macros count their own
        iterations, so each side gets half of the limit. Two things are bounded only by the length
        of the dialogues that are replayed (`replayer.py`): a loop that skips the characters of a
        content makes as many iterations as there are characters, at most a tenth of the limit; and
        to exceed the limit on characters, a template must make a hundred times as much text in
        macros and blocks as it writes.
        """
        return self.template.meter.limits.iterations // 2 // max(1, self.most_iterations) - 1

    def record(self, messages: Messages, tools: Any, prompt: bool) -> None:
        """Record a render; raise Untraceable if that is not possible."""
        recorder = Recorder(self.template.meter)
        indexed = [IndexedMessage(message, index) for index, message in enumerate(messages)]
        inputs = [recorder.trace_input(value) for value in (indexed, tools, prompt)]
        variables = self.template.make_variables(*inputs, mode=self.mode)
        environment, template = self._compile(set(variables), tools)
        environment.recorder = recorder
        environment.meter.begin()
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
        finally:
            environment.meter.end()
        recorder.events.append((Event(last), None))
        recorder.count_iterations()
        self.most_iterations = max(self.most_iterations, recorder.most_iterations)
        self.automaton.learn(recorder.events)

    def _compile(
        self, variables: set[str], tools: Any
    ) -> tuple[RecordingEnvironment, jinja2.Template]:
        """Return the template that runs on tracers, the same one in all modes."""
        modes = self.template.list_possible_modes(tools)
        inputs = frozenset(variables.union(mode.name for mode in modes))
        key = (self.name, inputs)
        if key not in self.compiled:
            if len(self.compiled) >= _MAX_COMPILED:  # rows may set any of the variables
                self.compiled.clear()
            source = self.template.sources[self.name]
            self.compiled[key] = compile_recording(source, self.template.environment, set(inputs))
        return self.compiled[key]
