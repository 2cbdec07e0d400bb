"""Stand-ins for what a template is given: they write down what is done with them.

To a template they look like the values they stand for (methods, operators, iteration). To anything
else they don't: none is a string, a number, a list or a dict, so a function that is not meant for
them fails.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, ValuesView
from typing import Any, NoReturn, Protocol

from mtpack.template.tracing import operations
from mtpack.template.tracing.operations import ARITHMETIC, COMPARISONS, Operation


class Untraceable(BaseException):
    """The template does something that the recorder does not understand.

    No `Exception`, so that nothing in a template's run takes it for an error of its own.
    """


class EventLog(Protocol):
    """What stand-ins are written down in: a `Recorder`."""

    epoch: int

    def apply(self, operation: Operation, *arguments: Any, kind: Any = None) -> Any:
        """Apply a function to values and return the outcome's stand-in."""

    def ask(self, operation: Operation, *arguments: Any) -> Any:
        """Ask something of values; the answer is a plain one."""


class Opaque:
    """What belongs to a stand-in and is of no use alone: a template can't look at it."""

    def __iter__(self) -> NoReturn:
        raise Untraceable(f"a look at a {type(self).__name__}")


class Tracer:
    """A stand-in: the real value, and its number among the events."""

    __slots__ = ("_epoch", "_number", "recorder", "value")

    def __init__(self, recorder: EventLog, value: Any, number: int | None) -> None:
        self.recorder = recorder
        self.value = value
        self._number = number
        self._epoch: int | None = recorder.epoch

    @property
    def number(self) -> int:
        """The number; only for values of this step."""
        if self._epoch is not None and self._epoch != self.recorder.epoch:
            raise Untraceable("a value of an earlier step")
        if self._number is None:
            raise Untraceable("a value without a number")
        return self._number

    @property
    def is_input(self) -> bool:
        """Whether this is something that the template is given, with the same number always."""
        return self._epoch is None

    def keep(self) -> None:
        """Make this an input."""
        self._epoch = None

    def renumber(self, number: int) -> None:
        """Hand the value on to the step that begins."""
        self._number, self._epoch = number, self.recorder.epoch

    def parts(self) -> list[Any]:
        """Return what a text with this value in it is made of."""
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
        raise Untraceable("text made outside of the template")

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


class Flag(Tracer):
    """Stands for true or false."""

    __slots__ = ()


class Number(Tracer):
    """Stands for a whole or a floating-point number."""

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

    def settled(self) -> Any:
        """Return the number itself; the recording holds for this number only."""
        return self.recorder.ask(operations.VALUE, self)


class Collection(Tracer):
    """What can be counted, iterated over and asked for elements."""

    __slots__ = ()

    def __len__(self) -> int:
        return int(self.recorder.ask(operations.LENGTH, self))

    def __contains__(self, item: Any) -> bool:
        return bool(self.recorder.ask(operations.CONTAINS, self, item))

    def __iter__(self) -> Iterator[Any]:
        index = 0
        while self.has(index):
            yield self.item(index)
            index += 1

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            bounds = (key.start, key.stop, key.step)
            return self.recorder.apply(operations.SLICE, self, *bounds)
        if isinstance(key, Tracer):
            raise Untraceable("an element whose place depends on the dialogue")
        return self.item(key)

    def has(self, index: Any) -> bool:
        """Return whether there is an element at `index`."""
        return bool(self.recorder.ask(operations.HAS_ITEM, self, index))

    def item(self, index: Any) -> Any:
        """Return the element at `index`, which must be there."""
        return self.recorder.apply(operations.ITEM, self, index)


class Listing(Collection):
    """Stands for a list or a range."""

    __slots__ = ()


class View(Collection):
    """Stands for what can be iterated over and counted, but has no elements by number."""

    __slots__ = ()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.elements())

    def elements(self) -> Listing:
        """Return what it iterates over."""
        elements: Listing = self.recorder.apply(operations.ELEMENTS, self, kind="list")
        return elements


class Iteration(View):
    """Stands for what can be iterated over once."""

    __slots__ = ("is_used",)

    def __init__(self, recorder: EventLog, value: Any, number: int | None) -> None:
        super().__init__(recorder, value, number)
        self.is_used = False

    def use(self) -> None:
        """Note that it is iterated over."""
        if self.is_used:
            raise Untraceable("a second iteration over what can be iterated over once")
        self.is_used = True

    def __bool__(self) -> bool:
        return True


class Pieces(Collection):
    """Stands for a tuple; its length is known without asking."""

    __slots__ = ()

    def __len__(self) -> int:
        return len(self.value)

    def has(self, index: Any) -> bool:
        """Return whether there is an element at `index`."""
        return bool(-len(self.value) <= index < len(self.value))


class Mapping(Collection):
    """Stands for a dict."""

    __slots__ = ()

    def get(self, key: Any, default: Any = None) -> Any:
        """Return the value of a key, or `default`."""
        found = self.lookup(key)
        return default if operations.kind(found) == "missing" else found

    def lookup(self, key: Any) -> Any:
        """Return the value of a key, or what stands for nothing."""
        return self.recorder.apply(operations.GET, self, key)


class Text(Collection):
    """Stands for a string."""

    __slots__ = ()

    def parts(self) -> list[Any]:
        """Return the text itself."""
        return [self]

    def __add__(self, other: Any) -> Any:
        return self._joined(self, other, other)

    def __radd__(self, other: Any) -> Any:
        return self._joined(other, self, other)

    def _joined(self, first: Any, second: Any, other: Any) -> Any:
        # Markup escapes what it is joined with, so that is left to its own operator.
        if type(self.value) is not str or type(getattr(other, "value", other)) is not str:
            return self.recorder.apply(ARITHMETIC["add"], first, second)
        parts = [[text] if isinstance(text, str) else text.parts() for text in (first, second)]
        return Composite(self.recorder, [*parts[0], *parts[1]])


class Composite(Text):
    """A text of several parts: plain strings, stand-ins, marks. It has no number until asked."""

    __slots__ = ("pieces",)

    def __init__(self, recorder: EventLog, pieces: list[Any]) -> None:
        super().__init__(recorder, "".join(_shown(piece) for piece in pieces), None)
        self.pieces = pieces

    def parts(self) -> list[Any]:
        """Return the parts."""
        return self.pieces

    @property
    def number(self) -> int:
        """The number of the joined text."""
        if self._number is None:
            self.renumber(self._joined_pieces().number)
        return super().number

    def without_marks(self) -> Composite:
        """Return the text alone."""
        pieces = [piece for piece in self.pieces if not isinstance(piece, Mark)]
        return Composite(self.recorder, pieces)

    def settle(self) -> None:
        """Make this a text of one part."""
        self.pieces = [self._joined_pieces()]

    def forget_number(self) -> None:
        """Hand the parts on, but not the joined text."""
        self._number = None

    def _joined_pieces(self) -> Any:
        pieces = _without_silent_marks(self.pieces)
        if any(isinstance(piece, Mark) for piece in pieces):
            raise Untraceable("marks in a text that is looked at")
        return self.recorder.apply(operations.JOIN, *pieces, kind="str")


class Mark:
    """A place in the text: where the output for a message, or of a tag, starts or ends."""

    def __init__(self, kind: str, message: Mapping | None = None) -> None:
        self.kind = kind
        """`enter`, `leave`, `generation`, `end_generation`."""
        self.message = message

    def parts(self) -> list[Any]:
        """Return the mark itself."""
        return [self]


def _without_silent_marks(pieces: list[Any]) -> list[Any]:
    """Return the pieces without marks of messages that nothing is written for."""
    kept: list[Any] = []
    for piece in pieces:
        last = kept[-1] if kept else None
        silent = isinstance(piece, Mark) and piece.kind == "leave"
        if silent and isinstance(last, Mark) and last.kind == "enter":
            kept.pop()
        else:
            kept.append(piece)
    return kept


def _shown(piece: Any) -> str:
    if isinstance(piece, Mark):
        return ""
    return str(piece.value) if isinstance(piece, Tracer) else str(piece)


TRACERS: dict[Any, type[Tracer]] = {
    "str": Text,
    "markup": Text,
    "int": Number,
    "float": Number,
    "list": Listing,
    "range": Listing,
    "view": View,
    "iteration": Iteration,
    "dict": Mapping,
}


def holds_tracer(value: Any) -> bool:
    """Return whether a value is a stand-in or has one in it."""
    if isinstance(value, Tracer | Opaque):
        return True
    if isinstance(value, dict):
        return any(map(holds_tracer, value.values()))
    return isinstance(value, list | tuple | ValuesView | ItemsView) and any(
        map(holds_tracer, value)
    )
