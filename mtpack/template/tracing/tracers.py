"""Tracers: values that record which operations a template applies to them.

A template can use a tracer like the value that it wraps (methods, operators, iteration). Other code
can't: no tracer is a string, a number, a list or a dict, so a function that was not written for
tracers fails on one.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, ValuesView
from typing import Any, NoReturn, Protocol

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

    def to_parts(self) -> list[Any]:
        """Return the parts that this value adds to a text: plain strings, tracers, marks."""
        return [self.recorder.apply(operations.TEXT, self, kind="str")]

    def __bool__(self) -> bool:
        return bool(self.recorder.ask(operations.TRUTH, self))

    def __eq__(self, other: object) -> Any:
        return self.recorder.ask(COMPARISONS["eq"], self, other)

    def __ne__(self, other: object) -> Any:
        return not self == other

    def __lt__(self, other: Any) -> Any:
        return self.recorder.ask(COMPARISONS["lt"], self, other)

    def __le__(self, other: Any) -> Any:
        return self.recorder.ask(COMPARISONS["le"], self, other)

    def __gt__(self, other: Any) -> Any:
        return self.recorder.ask(COMPARISONS["gt"], self, other)

    def __ge__(self, other: Any) -> Any:
        return self.recorder.ask(COMPARISONS["ge"], self, other)

    def __hash__(self) -> NoReturn:
        raise Untraceable("a hash")

    def __str__(self) -> NoReturn:
        raise Untraceable("a conversion to text outside of the template")

    __repr__ = __str__

    def __add__(self, other: Any) -> Any:
        return self.recorder.apply(ARITHMETIC["add"], self, other)

    def __radd__(self, other: Any) -> Any:
        return self.recorder.apply(ARITHMETIC["add"], other, self)

    def __mul__(self, other: Any) -> Any:
        return self.recorder.apply(ARITHMETIC["mul"], self, other)

    def __rmul__(self, other: Any) -> Any:
        return self.recorder.apply(ARITHMETIC["mul"], other, self)

    def __mod__(self, other: Any) -> Any:
        return self.recorder.apply(ARITHMETIC["mod"], self, other)

    def __rmod__(self, other: Any) -> Any:
        return self.recorder.apply(ARITHMETIC["mod"], other, self)


class FlagTracer(Tracer):
    """Traces `True` or `False`."""

    __slots__ = ()


class NumberTracer(Tracer):
    """Traces an int or a float."""

    __slots__ = ()

    def __sub__(self, other: Any) -> Any:
        return self.recorder.apply(ARITHMETIC["sub"], self, other)

    def __rsub__(self, other: Any) -> Any:
        return self.recorder.apply(ARITHMETIC["sub"], other, self)

    def __floordiv__(self, other: Any) -> Any:
        return self.recorder.apply(ARITHMETIC["floordiv"], self, other)

    def __truediv__(self, other: Any) -> Any:
        return self.recorder.apply(ARITHMETIC["truediv"], self, other)

    def __neg__(self) -> Any:
        return self.recorder.apply(ARITHMETIC["neg"], self)

    def specialize(self) -> Any:
        """Return the number itself; the recording is then valid for this number only."""
        return self.recorder.ask(operations.VALUE, self)


class CollectionTracer(Tracer):
    """Traces a value with a length, elements and iteration."""

    __slots__ = ()

    def __len__(self) -> int:
        return int(self.recorder.ask(operations.LENGTH, self))

    def __contains__(self, item: Any) -> bool:
        return bool(self.recorder.ask(operations.CONTAINS, self, item))

    def __iter__(self) -> Iterator[Any]:
        index = 0
        while self.has_item(index):
            yield self.get_item(index)
            index += 1

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            bounds = (key.start, key.stop, key.step)
            return self.recorder.apply(operations.SLICE, self, *bounds)
        if isinstance(key, Tracer):
            raise Untraceable("an element whose index depends on the dialogue")
        return self.get_item(key)

    def has_item(self, index: Any) -> bool:
        """Return whether there is an element at `index`."""
        return bool(self.recorder.ask(operations.HAS_ITEM, self, index))

    def get_item(self, index: Any) -> Any:
        """Return the element at `index`, which must exist."""
        return self.recorder.apply(operations.ITEM, self, index)


class ListTracer(CollectionTracer):
    """Traces a list or a range."""

    __slots__ = ()


class ViewTracer(CollectionTracer):
    """Traces a view of a dict: it has a length and can be iterated over, but not indexed."""

    __slots__ = ()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.list_elements())

    def list_elements(self) -> ListTracer:
        """Return the list of its elements."""
        elements: ListTracer = self.recorder.apply(operations.ELEMENTS, self, kind="list")
        return elements


class IterationTracer(ViewTracer):
    """Traces an iterator, which can be iterated over once."""

    __slots__ = ("is_used",)

    def __init__(self, recorder: EventLog, value: Any, number: int | None) -> None:
        super().__init__(recorder, value, number)
        self.is_used = False

    def use(self) -> None:
        """Record that it is iterated over; raise Untraceable for the second time."""
        if self.is_used:
            raise Untraceable("a second iteration over an iterator")
        self.is_used = True

    def __bool__(self) -> bool:
        return True


class TupleTracer(CollectionTracer):
    """Traces a tuple; its length is a part of its kind, so it is no question."""

    __slots__ = ()

    def __len__(self) -> int:
        return len(self.value)

    def has_item(self, index: Any) -> bool:
        """Return whether there is an element at `index`, which asks no question here."""
        return bool(-len(self.value) <= index < len(self.value))


class DictTracer(CollectionTracer):
    """Traces a dict."""

    __slots__ = ()

    def get(self, key: Any, default: Any = None) -> Any:
        """Return the value of a key, or `default`."""
        found = self.look_up(key)
        return default if operations.classify(found) == "missing" else found

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

    def forget_number(self) -> None:
        """Forget the joined text, so that a step carries over the parts only."""
        self._number = None

    def _join_pieces(self) -> Any:
        pieces = _drop_marks_of_empty_regions(self.pieces)
        if any(isinstance(piece, Mark) for piece in pieces):
            raise Untraceable("marks in a text that the template reads")
        return self.recorder.apply(operations.JOIN, *pieces, kind="str")


class Mark:
    """A position in the text: where the output of a message or of a tag starts or ends."""

    def __init__(self, kind: str, message: DictTracer | None = None) -> None:
        self.kind = kind
        """`enter`, `leave`, `generation`, `end_generation`."""
        self.message = message

    def to_parts(self) -> list[Any]:
        """Return the mark itself."""
        return [self]


def _drop_marks_of_empty_regions(pieces: list[Any]) -> list[Any]:
    """Return the pieces without the marks of messages that have no output."""
    kept: list[Any] = []
    for piece in pieces:
        last = kept[-1] if kept else None
        closes_region = isinstance(piece, Mark) and piece.kind == "leave"
        if closes_region and isinstance(last, Mark) and last.kind == "enter":
            kept.pop()
        else:
            kept.append(piece)
    return kept


def _read_text(piece: Any) -> str:
    if isinstance(piece, Mark):
        return ""
    return str(piece.value) if isinstance(piece, Tracer) else str(piece)


TRACERS_BY_KIND: dict[Any, type[Tracer]] = {
    "str": TextTracer,
    "markup": TextTracer,
    "int": NumberTracer,
    "float": NumberTracer,
    "list": ListTracer,
    "range": ListTracer,
    "view": ViewTracer,
    "iteration": IterationTracer,
    "dict": DictTracer,
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
