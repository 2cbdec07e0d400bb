"""Run a template on values that write down what is done with them.

A template is a program, and what it writes depends on a dialogue only through what it asks of it.
The recorder has the template itself run, but on stand-ins: a `Tracer` value knows the real one and
has a number. A template can do three things with stand-ins, and each is one event:

    apply   a pure function of them gives another value (`content.strip()`)
    ask     a question gets a plain value as its answer, and the template can branch on that
            (`message.role == 'user'`; is there one more message; what type has a value)
    write   a value goes into the text

It can't do anything else: a stand-in is no string and no number, so whatever the recorder does not
know (a C function, an unknown filter) fails on it, and the recording is `Untraceable`. What a
template does next depends on nothing but its own text, plain values, and the answers. So **two
dialogues that give the same answers go through the same events**, and doing these events again
with the values of the second dialogue gives what rendering it would. That is why a replay is exact;
`automaton.py` has the other half.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import jinja2

from mtpack.template.environment import GENERATION_END, GENERATION_START
from mtpack.template.tracing import operations
from mtpack.template.tracing.operations import Operation
from mtpack.template.tracing.tracers import (
    TRACERS,
    Composite,
    Flag,
    Iteration,
    Mark,
    Pieces,
    Tracer,
    Untraceable,
    holds_tracer,
)

# Placeholders carry stand-ins and marks through places where Jinja joins strings; they are made of
# Unicode noncharacters.
_OPEN, _CLOSE = "\ufdd6", "\ufdd7"

_PLACEHOLDER = re.compile(f"({_OPEN}[0-9]+{_CLOSE}|[{GENERATION_START}{GENERATION_END}])")
_TAGS = {GENERATION_START: Mark("generation"), GENERATION_END: Mark("end_generation")}

# Parts of a text that are told apart when a step begins; a text that grows with every step would
# otherwise have no end of descriptions.
_MAX_PARTS = 8

INPUTS = ("messages", "tools", "add_generation_prompt")


@dataclass(frozen=True, slots=True)
class Ref:
    """The value with this number."""

    number: int


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that a template does: `apply`, `ask`, `write`, `mark`, `step`, `raise`, `end`."""

    what: str
    operation: Operation | None = None
    arguments: tuple[Any, ...] = ()
    """Plain values and `Ref`s."""


@dataclass(slots=True)
class Recorder:
    """The events of one render, each with what it led to: an answer, or the place of a step."""

    events: list[tuple[Event, Any]] = field(default_factory=list)
    epoch: int = 0
    """Counts the steps: a stand-in that was not handed on to this one can't be used."""
    next_number: int = 0
    _held: list[Any] = field(default_factory=list)
    _given: list[Any] = field(default_factory=list)

    def input(self, value: Any) -> Any:
        """Return the stand-in of something that the template is given."""
        if isinstance(value, bool):  # mostly asked for at the end, so the runs are one up to there
            stand_in: Any = Flag(self, value, self._number())
        else:
            stand_in = self._tracer(value, self._number(), None)
        if isinstance(stand_in, Tracer):
            stand_in.keep()
        self._given.append(stand_in)
        return stand_in

    def apply(self, operation: Operation, *arguments: Any, kind: Any = None) -> Any:
        """Apply a function to values and return the outcome's stand-in.

        kind: of the outcome, where the function always gives that; asked for otherwise.
        """
        refs, value = self._call(operation, arguments)
        self.events.append((Event("apply", operation, refs), None))
        return self._tracer(value, self._number(), kind)

    def ask(self, operation: Operation, *arguments: Any) -> Any:
        """Ask something of values; the answer is a plain one."""
        refs, answer = self._call(operation, arguments)
        if not isinstance(answer, str | int | float | None):
            raise Untraceable(f"{operation.name} gives {type(answer).__name__}")
        self.events.append((Event("ask", operation, refs), answer))
        return answer

    def constant(self, value: Any) -> Any:
        """Return a stand-in for a plain value."""
        return self.apply(operations.VALUE, value, kind=operations.kind(value))

    def _number(self) -> int:
        self.next_number += 1
        return self.next_number - 1

    def _call(self, operation: Operation, arguments: tuple[Any, ...]) -> tuple[Any, Any]:
        refs = tuple(map(self._ref, arguments))
        for argument in arguments:
            if not operations.may_take(operation, real(argument)):
                raise Untraceable(f"{operation.name} of what can only be iterated over")
            if isinstance(argument, Iteration):
                argument.use()
        try:
            return refs, operation.call(*map(real, arguments))
        except Exception as error:
            raise Untraceable(f"{operation.name}: {type(error).__name__} {error}") from error

    def _tracer(self, value: Any, number: int, kind: Any) -> Any:
        if kind is None:
            kind = operations.kind(value)
            self.events.append((Event("ask", operations.KIND, (Ref(number),)), kind))
        if kind in (None, True, False):
            return kind
        if kind == "missing":
            return jinja2.Undefined()
        if isinstance(kind, tuple):
            return Pieces(self, value, number)
        if kind not in TRACERS:
            raise Untraceable(f"a value of type {kind}")
        return TRACERS[kind](self, value, number)

    def _ref(self, value: Any) -> Any:
        """Return what stands for a value among the arguments of an event."""
        if isinstance(value, Tracer):
            return Ref(value.number)
        if holds_tracer(value):
            if isinstance(value, dict):
                made = self.apply(operations.DICT, tuple(value), *value.values(), kind="dict")
            else:
                make = operations.LIST if isinstance(value, list) else operations.TUPLE
                made = self.apply(make, *value, kind="list")
            return Ref(made.number)
        if isinstance(value, jinja2.Undefined):
            return operations.MISSING
        if isinstance(value, str | int | float | list | tuple | dict | None):
            return value
        raise Untraceable(f"an argument of type {type(value).__name__}")

    # Text

    def hold(self, value: Tracer | Mark) -> str:
        """Return a placeholder, to be joined with other text."""
        self._held.append(value)
        return f"{_OPEN}{len(self._held) - 1}{_CLOSE}"

    def captured(self, text: str) -> str | Composite:
        """Return what a text with placeholders stands for."""
        pieces = _PLACEHOLDER.split(text)
        if len(pieces) == 1:
            return text
        parts: list[Any] = []
        for piece in filter(None, pieces):
            if piece[0] == _OPEN:
                parts += self._held[int(piece[1:-1])].parts()
            else:
                parts.append(_TAGS.get(piece, piece))
        return Composite(self, parts)

    def write(self, text: Any) -> None:
        """Note what the template yields."""
        value = self.captured(text) if isinstance(text, str) else text
        for part in [value] if isinstance(value, str) else value.parts():
            if isinstance(part, Mark):
                message = () if part.message is None else (self._ref(part.message),)
                self.events.append((Event("mark", None, (part.kind, *message)), None))
            else:
                self._write(self._ref(part))

    def _write(self, part: Any) -> None:
        last = self.events[-1][0] if self.events else None
        if isinstance(part, str) and last is not None and last.what == "write":
            (before,) = last.arguments
            if isinstance(before, str):
                self.events.pop()
                part = before + part
        self.events.append((Event("write", None, (part,)), None))

    # Steps

    def step(self, loop: int, live: list[Any]) -> None:
        """Begin an iteration of a loop in which only inputs and `live` values can be used.

        Iterations of the same loop whose live values are described alike have the same future,
        whatever came before them. The values are numbered anew, so that they can share it.
        """
        arguments: list[Any] = []
        handed_on: list[Tracer] = []
        describe = _Description(self, arguments, handed_on)
        described = tuple(_macro(value) or describe.of(value) for value in live)
        place = (loop, *map(type, self._given), described)
        self.events.append((Event("step", None, tuple(arguments)), place))
        self.epoch += 1
        for number, stand_in in enumerate(handed_on, start=len(INPUTS)):
            stand_in.renumber(number)
        self.next_number = len(INPUTS) + len(arguments)


def _macro(value: Any) -> Any:
    """Return what tells macros of the outermost scope apart: not the name, but the code.

    A macro that is kept elsewhere may see variables of an earlier step.
    """
    return value._func.__code__ if isinstance(value, jinja2.runtime.Macro) else None


@dataclass(slots=True)
class _Description:
    """Describes the values that are handed on to a step, and collects the stand-ins among them."""

    recorder: Recorder
    arguments: list[Any]
    handed_on: list[Tracer]
    _places: dict[int, int] = field(default_factory=dict)

    def of(self, value: Any) -> Any:
        if isinstance(value, Tracer):
            return self._of_tracer(value)
        if isinstance(value, Mark):
            return (value.kind, self.of(value.message))
        if isinstance(value, jinja2.utils.Namespace):
            return self._of_namespace(value)
        if isinstance(value, list | tuple):
            return (type(value).__name__, *map(self.of, value))
        if isinstance(value, dict):
            return ("dict", *((self.of(key), self.of(item)) for key, item in value.items()))
        if isinstance(value, jinja2.Undefined):
            return "missing"
        if value is None or isinstance(value, str | int | float):
            return (type(value).__name__, value)
        raise Untraceable(f"a variable of type {type(value).__name__}")

    def _of_tracer(self, value: Tracer) -> Any:
        if isinstance(value, Composite):
            if len(value.parts()) > _MAX_PARTS:
                value.settle()
            value.forget_number()
            return ("text", *map(self.of, value.parts()))
        if value.is_input:
            return ("input", value.number)
        if id(value) not in self._places:
            self._places[id(value)] = len(self.arguments)
            self.arguments.append(Ref(value.number))
            self.handed_on.append(value)
        is_used = isinstance(value, Iteration) and value.is_used
        return (operations.kind(value.value), self._places[id(value)], is_used)

    def _of_namespace(self, value: Any) -> Any:
        if id(value) in self._places:
            return ("namespace", self._places[id(value)])
        self._places[id(value)] = -len(self._places)
        attributes = value._Namespace__attrs
        for name, item in attributes.items():
            if type(item) is int:  # counts that go on would have no end of descriptions
                attributes[name] = self.recorder.constant(item)
        return ("namespace", *((name, self.of(attributes[name])) for name in sorted(attributes)))


def real(value: Any) -> Any:
    """Return the value itself for a stand-in, or for what has stand-ins in it."""
    if isinstance(value, Tracer):
        return value.value
    if isinstance(value, dict):
        return {key: real(item) for key, item in value.items()}
    if isinstance(value, list):
        return [real(item) for item in value]
    return tuple(map(real, value)) if isinstance(value, tuple) else value
