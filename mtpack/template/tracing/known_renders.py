"""The renders of one template that are known: recorded once, then replayed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jinja2

from mtpack.input.dialogue import Messages
from mtpack.template.chat_template import ChatTemplate
from mtpack.template.markers import IndexedMessage
from mtpack.template.tracing.automaton import Automaton
from mtpack.template.tracing.instrument import RecordingEnvironment, compile_recording
from mtpack.template.tracing.recorder import INPUTS, Event, Recorder
from mtpack.template.tracing.tracers import Untraceable


@dataclass(slots=True)
class KnownRenders:
    """The recordings of one template, either for dialogues with tools or for those without."""

    template: ChatTemplate
    name: str
    """The name of the source that is recorded (`ChatTemplate.sources`)."""
    most_steps: int = 0
    """The largest number of steps in a recorded render, as `Meter` counts them."""
    automaton: Automaton = field(default_factory=Automaton)
    _compiled: tuple[RecordingEnvironment, jinja2.Template] | None = None

    @property
    def has_generations(self) -> bool:
        """Whether the template has `generation` tags."""
        return self.name in self.template.tagged

    def is_within_limits(self, num_messages: int, tools: list[Any] | None) -> bool:
        """Return whether no render of so many messages can exceed the limit on steps (`Limits`).

        Everything between two steps of a loop in a replay was recorded in one render, and a
        template iterates over the messages at most four times.
        """
        passes = 4 * (num_messages + 1) + len(tools or ())
        return passes * self.most_steps <= self.template.meter.limits.steps

    def record(self, messages: Messages, tools: Any, prompt: bool) -> None:
        """Record a render; raise Untraceable if that is not possible."""
        if self._compiled is None:
            self._compiled = compile_recording(
                self.template.sources[self.name],
                self.template.environment,
                {"documents", *INPUTS, *self.template.variables},
            )
        environment, template = self._compiled
        environment.recorder = recorder = Recorder()
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
        self.automaton.learn(recorder.events)
