"""Tracers: values that record which operations a template applies to them.

A template can use a tracer like the value that it wraps (methods, operators, iteration). Other code
can't: no tracer is a string, a number, a list or a dict, so a function that was not written for
tracers fails on one.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, ValuesView
from typing import Any, NoReturn, Protocol

import jinja2
from markupsafe import Markup

from mtpack.template.tracing import operations
from mtpack.template.tracing.operations import ARITHMETIC, COMPARISONS, Operation


class Untraceable(BaseException):
    """The template does something that the recorder can't record.

    It is not an `Exception`, so that no code in a template's run handles it as an error of its own.
    """


class EventLog(Protocol):
    """Where tracers record their operations: the part of a `Recorder` that they use."""

    epoch: int

    def apply(self, operation: Operation, *arguments: Any, kind: Any = None) -> Any:
        """Apply a function to values and return a tracer of its result."""

    def ask(self, operation: Operation, *arguments: Any) -> Any:
        """Ask a question about values and return its answer, a plain value."""


class Opaque:
    """A part of a tracer, such as a method, that a template can use but not read as a value."""

    def __iter__(self) -> NoReturn:
        raise Untraceable(f"reads a {type(self).__name__} as a value")


class Tracer:
    """A real value, and its number in the recording."""

    __slots__ = ("_epoch", "_number", "recorder", "value")

    def __init__(self, recorder: EventLog, value: Any, number: int | None) -> None:
        self.recorder = recorder
        self.value = value
        self._number = number
        self._epoch: int | None = recorder.epoch

    @property
    def number(self) -> int:
        """The number of the value; raises Untraceable unless the value is live in this step."""
        if self._epoch is not None and self._epoch != self.recorder.epoch:
            raise Untraceable("a value of an earlier step")
        if self._number is None:
            raise Untraceable("a value without a number")
        return self._number

    @property
    def is_input(self) -> bool:
        """Whether this is an input of the template, which has the same number in every step."""
        return self._epoch is None

    def make_input(self) -> None:
        """Make this an input of the template."""
        self._epoch = None

    def renumber(self, number: int) -> None:
        """Give the value a new number in the step that begins."""
        self._number, self._epoch = number, self.recorder.epoch

    def forget_number(self) -> None:
        """Forget the number, so that the value can't be used any more."""
        self._number = None

    def to_parts(self) -> list[Any]:
        """Return the parts that this value adds to a text: plain strings, tracers, marks."""
        return [self.recorder.apply(operations.TEXT, self, kind=str)]

    def __bool__(self) -> bool:
        return bool(self.recorder.ask(operations.TRUTH, self))

    def __hash__(self) -> NoReturn:
        raise Untraceable("a hash")

    def __str__(self) -> NoReturn:
        raise Untraceable("a conversion to text outside of the template")

    __repr__ = __str__


def _record_operator(operation: Operation, *, reflected: bool = False) -> Any:
    """Return the method of an operator that gives another tracer."""

    def call(self: Tracer, other: Any) -> Any:
        arguments = (other, self) if reflected else (self, other)
        return self.recorder.apply(operation, *arguments)

    return call


def _record_comparison(operation: Operation) -> Any:
    """Return the method of an operator that asks a question."""
    return lambda self, other: self.recorder.ask(operation, self, other)


for _name, _operation in ARITHMETIC.items():
    setattr(Tracer, f"__{_name}__", _record_operator(_operation))
    setattr(Tracer, f"__r{_name}__", _record_operator(_operation, reflected=True))
for _name, _operation in COMPARISONS.items():
    setattr(Tracer, f"__{_name}__", _record_comparison(_operation))


class FlagTracer(Tracer):
    """Traces `True` or `False`."""

    __slots__ = ()


class NumberTracer(Tracer):
    """Traces an int or a float."""

    __slots__ = ()


class CollectionTracer(Tracer):
    """Traces a value with a length, elements and iteration."""

    __slots__ = ()

    def __contains__(self, item: Any) -> bool:
        return bool(self.recorder.ask(operations.CONTAINS, self, item))

    def __iter__(self) -> Iterator[Any]:
        index = 0
        while self.has_item(index):
            yield self.get_item(index)
            index += 1

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, slice):
            raise Untraceable("an element that the template does not look up itself")
        return self.recorder.apply(operations.SLICE, self, key.start, key.stop, key.step)

    def has_item(self, index: Any) -> bool:
        """Return whether there is an element at `index`."""
        return bool(self.recorder.ask(operations.HAS_ITEM, self, index))

    def get_item(self, index: Any) -> Any:
        """Return the element at `index`, which must exist."""
        return self.recorder.apply(operations.ITEM, self, index)


class ListTracer(CollectionTracer):
    """Traces a list or a range."""

    __slots__ = ()


class IterationTracer(Tracer):
    """Traces an iterator or a view of a dict, which the template can iterate over once."""

    __slots__ = ()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.recorder.apply(operations.ELEMENTS, self, kind=list))


class TupleTracer(CollectionTracer):
    """Traces a tuple; its length is a part of its kind, so it is no question."""

    __slots__ = ()

    def has_item(self, index: Any) -> bool:
        """Return whether there is an element at `index`, which asks no question here."""
        return bool(-len(self.value) <= index < len(self.value))


class DictTracer(CollectionTracer):
    """Traces a dict."""

    __slots__ = ()

    def get(self, key: Any, default: Any = None) -> Any:
        """Return the value of a key, or `default`."""
        found = self.look_up(key)
        return default if isinstance(found, jinja2.Undefined) else found

    def look_up(self, key: Any) -> Any:
        """Return the value of a key, or an undefined value where the key is missing."""
        return self.recorder.apply(operations.GET, self, key)


class TextTracer(CollectionTracer):
    """Traces a string."""

    __slots__ = ()

    def to_parts(self) -> list[Any]:
        """Return the text itself."""
        return [self]

    def __add__(self, other: Any) -> Any:
        return self._concatenate(self, other, other)

    def __radd__(self, other: Any) -> Any:
        return self._concatenate(other, self, other)

    def _concatenate(self, first: Any, second: Any, other: Any) -> Any:
        # Markup escapes what is added to it, so its own operator does that.
        if type(self.value) is not str or type(getattr(other, "value", other)) is not str:
            return self.recorder.apply(ARITHMETIC["add"], first, second)
        parts = [[text] if isinstance(text, str) else text.to_parts() for text in (first, second)]
        return CompositeTracer(self.recorder, [*parts[0], *parts[1]])


class CompositeTracer(TextTracer):
    """Traces a text of several parts: plain strings, tracers, marks.

    The parts are joined, as an event, only when the number of the joined text is needed.
    """

    __slots__ = ("pieces",)

    def __init__(self, recorder: EventLog, pieces: list[Any]) -> None:
        super().__init__(recorder, "".join(_read_text(piece) for piece in pieces), None)
        self.pieces = pieces

    def to_parts(self) -> list[Any]:
        """Return the parts of the text."""
        return self.pieces

    @property
    def number(self) -> int:
        """The number of the joined text; joins the parts if that was not done yet."""
        if self._number is None:
            self.renumber(self._join_pieces().number)
        return super().number

    def drop_marks(self) -> CompositeTracer:
        """Return the text without its marks."""
        pieces = [piece for piece in self.pieces if not isinstance(piece, Mark)]
        return CompositeTracer(self.recorder, pieces)

    def collapse(self) -> None:
        """Join the parts, so that this is a text of one part."""
        self.pieces = [self._join_pieces()]

    def _join_pieces(self) -> Any:
        if any(isinstance(piece, Mark) for piece in self.pieces):
            raise Untraceable("marks in a text that the template reads")
        return self.recorder.apply(operations.JOIN, *self.pieces, kind=str)


class Mark:
    """A position in the text: where the output of a message or of a tag starts or ends."""

    def __init__(self, kind: str, message: DictTracer | None = None) -> None:
        self.kind = kind
        """The character that marks it in a text (`markers.py`)."""
        self.message = message

    def to_parts(self) -> list[Any]:
        """Return the mark itself."""
        return [self]


def _read_text(piece: Any) -> str:
    if isinstance(piece, Mark):
        return ""
    return str(piece.value) if isinstance(piece, Tracer) else str(piece)


TRACERS_BY_KIND: dict[Any, type[Tracer]] = {
    str: TextTracer,
    Markup: TextTracer,
    int: NumberTracer,
    float: NumberTracer,
    list: ListTracer,
    range: ListTracer,
    operations.Iteration: IterationTracer,
    dict: DictTracer,
}


def holds_tracer(value: Any) -> bool:
    """Return whether a value is a tracer or contains one."""
    if isinstance(value, Tracer | Opaque):
        return True
    if isinstance(value, dict):
        return any(map(holds_tracer, value.values()))
    return isinstance(value, list | tuple | ValuesView | ItemsView) and any(
        map(holds_tracer, value)
    )
