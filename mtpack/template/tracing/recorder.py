"""Run a template on tracers, and record its events.

A template is a program, and its output depends on a dialogue only through its operations on it.
The recorder runs the template itself, but on tracers: a `Tracer` has the real value and a number.
A template can do three things with tracers, and each is one event:

    apply   a pure function of tracers gives another tracer (`content.strip()`)
    ask     a question has a plain value as its answer, and the template can branch on it
            (`message.role == 'user'`; is there one more message; which type a value has)
    write   a value is added to the text

It can't do anything else: a tracer is no string and no number, so any operation that the recorder
does not support (a C function, an unknown filter) fails on it, and the recording is `Untraceable`.
The next event depends only on the template's own text, on plain values, and on the answers so far.
So **two dialogues with the same answers have the same events**, and to execute these events with
the values of the second dialogue gives the same text as rendering it. That is why a replay is
exact; `automaton.py` has the other half of the proof.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import jinja2

from mtpack.template.environment import GENERATION_END, GENERATION_START
from mtpack.template.limits import Meter
from mtpack.template.tracing import operations
from mtpack.template.tracing.operations import Operation
from mtpack.template.tracing.tracers import (
    TRACERS_BY_KIND,
    CompositeTracer,
    FlagTracer,
    IterationTracer,
    Mark,
    Tracer,
    TupleTracer,
    Untraceable,
    holds_tracer,
)

# Where Jinja joins strings, placeholders in the string represent tracers and marks. They are made
# of Unicode noncharacters.
_OPEN, _CLOSE = "\ufdd6", "\ufdd7"

_PLACEHOLDER = re.compile(f"({_OPEN}[0-9]+{_CLOSE}|[{GENERATION_START}{GENERATION_END}])")
_TAGS = {tag: Mark(tag) for tag in (GENERATION_START, GENERATION_END)}

# A text of more parts is one part in the description of a step. Otherwise a text that grows with
# every step would have a new description in every step.
_MAX_PARTS = 8

INPUTS = ("messages", "tools", "add_generation_prompt")


@dataclass(frozen=True, slots=True)
class Ref:
    """A reference to the value with this number."""

    number: int


@dataclass(frozen=True, slots=True)
class Event:
    """One action of a template."""

    kind: str
    """`apply`, `ask`, `write`, `mark`, `step`, `raise` or `end`."""
    operation: Operation | None = None
    arguments: tuple[Any, ...] = ()
    """Plain values and `Ref`s."""


@dataclass(slots=True)
class Recorder:
    """Records the events of one render."""

    meter: Meter
    """Counts the iterations of the render since the last step."""
    most_iterations: int = 0
    """The largest number of iterations between two steps, before the first or after the last."""
    events: list[tuple[Event, Any]] = field(default_factory=list)
    """Each with its label: the answer of a question, the description of a step, else None."""
    epoch: int = 0
    """The number of steps so far. A tracer that this step did not carry over can't be used."""
    next_number: int = 0
    _placeholder_values: list[Any] = field(default_factory=list)
    _inputs: list[Any] = field(default_factory=list)

    def trace_input(self, value: Any) -> Any:
        """Return the tracer of an input of the template."""
        if isinstance(value, bool):  # most templates ask for it last; until then, runs are the same
            tracer: Any = FlagTracer(self, value, self._take_number())
        else:
            tracer = self._make_tracer(value, self._take_number(), None)
        if isinstance(tracer, Tracer):
            tracer.make_input()
        self._inputs.append(tracer)
        return tracer

    def apply(self, operation: Operation, *arguments: Any, kind: Any = None) -> Any:
        """Apply a function to values and return a tracer of its result.

        kind: the kind of the result, if it is always the same; otherwise it is a question.
        """
        refs, value = self._apply_to_values(operation, arguments)
        self.events.append((Event("apply", operation, refs), None))
        return self._make_tracer(value, self._take_number(), kind)

    def ask(self, operation: Operation, *arguments: Any) -> Any:
        """Ask a question about values and return its answer, a plain value."""
        refs, answer = self._apply_to_values(operation, arguments)
        if not isinstance(answer, str | int | float | None):
            raise Untraceable(f"{operation.name} gives {type(answer).__name__}")
        self.events.append((Event("ask", operation, refs), answer))
        return answer

    def trace_constant(self, value: Any) -> Any:
        """Return a tracer of a plain value."""
        return self.apply(operations.VALUE, value, kind=operations.classify(value))

    def _take_number(self) -> int:
        self.next_number += 1
        return self.next_number - 1

    def _apply_to_values(self, operation: Operation, arguments: tuple[Any, ...]) -> tuple[Any, Any]:
        refs = tuple(map(self._make_ref, arguments))
        for argument in arguments:
            if not operations.is_applicable(operation, unwrap(argument)):
                raise Untraceable(f"{operation.name} of a view or an iterator")
            if isinstance(argument, IterationTracer):  # the template can't use it a second time
                argument.forget_number()
        try:
            return refs, operation.call(*map(unwrap, arguments))
        except Exception as error:
            raise Untraceable(f"{operation.name}: {type(error).__name__} {error}") from error

    def _make_tracer(self, value: Any, number: int, kind: Any) -> Any:
        if kind is None:
            kind = operations.classify(value)
            self.events.append((Event("ask", operations.KIND, (Ref(number),)), kind))
        if kind in (None, True, False):
            return kind
        if kind is jinja2.Undefined:
            return jinja2.Undefined()
        if isinstance(kind, tuple):
            return TupleTracer(self, value, number)
        if kind not in TRACERS_BY_KIND:
            raise Untraceable(f"a value of type {kind}")
        return TRACERS_BY_KIND[kind](self, value, number)

    def _make_ref(self, value: Any) -> Any:
        """Return a value as an argument of an event: a `Ref` or a plain value."""
        if isinstance(value, Tracer):
            return Ref(value.number)
        if holds_tracer(value):
            if not isinstance(value, list):
                raise Untraceable(f"a {type(value).__name__} that holds a tracer")
            return Ref(self.apply(operations.LIST, *value, kind=list).number)
        if isinstance(value, jinja2.Undefined):
            return operations.MISSING
        if isinstance(value, str | int | float | list | tuple | dict | None):
            return value
        raise Untraceable(f"an argument of type {type(value).__name__}")

    # Text

    def make_placeholder(self, value: Tracer | Mark) -> str:
        """Return a placeholder for a tracer or mark, which can be joined with other text."""
        self._placeholder_values.append(value)
        return f"{_OPEN}{len(self._placeholder_values) - 1}{_CLOSE}"

    def resolve_placeholders(self, text: str) -> str | CompositeTracer:
        """Return the text that a text with placeholders represents."""
        pieces = _PLACEHOLDER.split(text)
        if len(pieces) == 1:
            return text
        parts: list[Any] = []
        for piece in filter(None, pieces):
            if piece[0] == _OPEN:
                parts += self._placeholder_values[int(piece[1:-1])].to_parts()
            else:
                parts.append(_TAGS.get(piece, piece))
        return CompositeTracer(self, parts)

    def write(self, text: Any) -> None:
        """Record the output of the template."""
        value = self.resolve_placeholders(text) if isinstance(text, str) else text
        for part in [value] if isinstance(value, str) else value.to_parts():
            if isinstance(part, Mark):
                message = () if part.message is None else (self._make_ref(part.message),)
                self.events.append((Event("mark", None, (part.kind, *message)), None))
            else:
                self._write(self._make_ref(part))

    def _write(self, part: Any) -> None:
        last = self.events[-1][0] if self.events else None
        if isinstance(part, str) and last is not None and last.kind == "write":
            (before,) = last.arguments
            if isinstance(before, str):
                self.events.pop()
                part = before + part
        self.events.append((Event("write", None, (part,)), None))

    # Steps

    def count_iterations(self) -> None:
        """Update `most_iterations` at a step, or at the end."""
        self.most_iterations = max(self.most_iterations, self.meter.iterations)
        self.meter.restart()

    def begin_step(self, loop: int, live: list[Any]) -> None:
        """Begin an iteration of a loop in which only inputs and `live` values can be used.

        Iterations of the same loop whose live values have the same description have the same
        future, whatever came before. The values get new numbers, so that they can share it.
        """
        self.count_iterations()
        step = _StepDescription(self)
        described = tuple(_identify_macro(value) or step.describe(value) for value in live)
        label = (loop, *map(type, self._inputs), described)
        refs = tuple(Ref(tracer.number) for tracer in step.live_tracers)
        self.events.append((Event("step", None, refs), label))
        self.epoch += 1
        for number, tracer in enumerate(step.live_tracers, start=len(INPUTS)):
            tracer.renumber(number)
        self.next_number = len(INPUTS) + len(refs)


def _identify_macro(value: Any) -> Any:
    """Return the code that identifies a macro of the outermost scope; the name does not.

    Only for a macro that is a live value itself: one inside another value may use variables of an
    earlier step.
    """
    return value._func.__code__ if isinstance(value, jinja2.runtime.Macro) else None


@dataclass(slots=True)
class _StepDescription:
    """Describes the live values of a step, and collects the tracers among them."""

    recorder: Recorder
    live_tracers: list[Tracer] = field(default_factory=list)
    _numbers_by_id: dict[int, int] = field(default_factory=dict)

    def describe(self, value: Any) -> Any:
        if isinstance(value, Tracer):
            return self._describe_tracer(value)
        if isinstance(value, jinja2.utils.Namespace):
            return self._describe_namespace(value)
        if isinstance(value, list | tuple):
            return (type(value).__name__, *map(self.describe, value))
        if isinstance(value, dict):
            return ("dict", self.describe(list(value)), self.describe(list(value.values())))
        if isinstance(value, jinja2.Undefined):
            return "missing"
        if value is None or isinstance(value, str | int | float):
            return (type(value).__name__, value)
        raise Untraceable(f"a variable of type {type(value).__name__}")

    def _describe_tracer(self, value: Tracer) -> Any:
        if isinstance(value, CompositeTracer):
            if len(value.to_parts()) > _MAX_PARTS:
                value.collapse()
            value.forget_number()
            return ("text", *map(self.describe, value.to_parts()))
        if value.is_input:
            return ("input", value.number)
        if id(value) not in self._numbers_by_id:
            self._numbers_by_id[id(value)] = len(self._numbers_by_id)
            self.live_tracers.append(value)
        return (operations.classify(value.value), self._numbers_by_id[id(value)])

    def _describe_namespace(self, value: Any) -> Any:
        if id(value) in self._numbers_by_id:
            return ("namespace", self._numbers_by_id[id(value)])
        self._numbers_by_id[id(value)] = len(self._numbers_by_id)
        attributes = value._Namespace__attrs
        for name, item in attributes.items():
            if type(item) is int:  # a counter would have a new description in every step
                attributes[name] = self.recorder.trace_constant(item)
        return (
            "namespace",
            *((name, self.describe(attributes[name])) for name in sorted(attributes)),
        )


def unwrap(value: Any) -> Any:
    """Replace tracers by their values, in lists as well."""
    if isinstance(value, Tracer):
        return value.value
    return list(map(unwrap, value)) if isinstance(value, list) else value
