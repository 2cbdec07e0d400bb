"""Walk through what is known of a template with another dialogue: its text, without rendering it.

What a walk meets is sorted by what it depends on. Much is settled by the dialogue's *shape*: how
many messages there are, their roles, which fields they have and of which kinds. Questions about
that are answered here, once for the shape. What depends on the texts goes to a `Sheet`, as a
formula or as a guard. So a walk is good for every dialogue of its shape that fills the sheet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from mtpack.template.tracing import operations
from mtpack.template.tracing.automaton import Node
from mtpack.template.tracing.operations import Operation
from mtpack.template.tracing.program import MESSAGES, TOOLS, Argument, Messages, Sheet
from mtpack.template.tracing.recorder import INPUTS, Event, Ref

Piece = str | int | tuple[Any, ...]
"""Of a text: a plain string, the cell that holds a string, or a mark: its kind and its message."""

_WHOLE = 2**62


class UnknownError(Exception):
    """The automaton does not know the run of this dialogue."""


class RaisedError(Exception):
    """The template raises."""


@dataclass(frozen=True, slots=True)
class Known:
    """A value in a walk."""

    value: Any
    """The value itself, or a `range` of messages, or a message's index."""
    sort: str
    """`plain`: settled by the shape; `messages`, `message`; `cell`: of the sheet."""
    reach: int
    """The last message that it depends on, or `_WHOLE` where the dialogue's end plays a part.

    Messages from some place up to the last one depend on none as long as nothing is asked of them.
    """
    cell: int = 0
    kind: Any = None
    """Of a cell, where it is the same for all dialogues of the shape."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a walk was when it asked for the first time whether there is a further message."""

    node: Node
    values: list[Known]
    num_pieces: int
    prompted: bool


@dataclass(slots=True)
class Walk:
    """A walk, and the text that it gave."""

    sheet: Sheet
    messages: Messages
    """Those that are rendered."""
    tools: Any
    prompt: bool
    pieces: list[Piece] = field(default_factory=list)
    places: dict[int, _Place] = field(default_factory=dict)
    """By the number of messages that had been asked for."""
    _reach: int = -1
    """The last message that an answer depended on."""
    _prompted: bool = False
    """Whether it was asked if there is to be a generation prompt."""
    _flag: Known = field(init=False)

    def __post_init__(self) -> None:
        """Make the value that tells whether there is to be a generation prompt."""
        self._flag = Known(self.prompt, "plain", -1)

    def from_start(self, root: Node) -> Walk:
        """Walk the whole way; raise UnknownError, RaisedError."""
        whole = range(len(self.messages))
        tools = Known(self.tools, "cell", -1, TOOLS, "list")
        if self.tools is None:
            tools = Known(None, "plain", -1)
        return self._on(root, [Known(whole, "messages", -1), tools, self._flag])

    def shorter(self, num_messages: int, prompt: bool) -> Walk | None:
        """Walk as if the dialogue ended earlier, from where that makes a difference on.

        Up to there the run was the same, and so is the text. None where no such place is known.
        """
        place = self.places.get(num_messages)
        if place is None or (place.prompted and prompt != self.prompt):
            return None
        values = [_shortened(value, num_messages) for value in place.values]
        if None in values:
            return None
        walk = Walk(self.sheet, self.messages[:num_messages], self.tools, prompt)
        walk.pieces = self.pieces[: place.num_pieces]
        walk._reach, walk._prompted = num_messages - 1, place.prompted
        known = [value for value in values if value is not None]
        known[2] = walk._flag
        return walk._on(place.node, known)

    def _on(self, node: Node, values: list[Known]) -> Walk:
        while (event := node.event) is not None:
            led_to: Any = None
            if event.operation is not None:
                arguments = [_argument(values, item) for item in event.arguments]
                self._prompted |= any(item is self._flag for item in arguments)
                if event.what == "apply":
                    values.append(self._apply(event.operation, arguments))
                else:
                    if event.operation is operations.HAS_ITEM:
                        self._note_place(node, values, arguments)
                    led_to = self._ask(event.operation, arguments)
            elif event.what == "step":
                (led_to,) = node.edges
                values = [*values[: len(INPUTS)], *_handed_on(values, event.arguments)]
            elif event.what == "end":
                return self
            else:
                self._note(event, values)
            if led_to not in node.edges:
                break
            node = node.edges[led_to]
        raise UnknownError

    def _note(self, event: Event, values: list[Known]) -> None:
        if event.what == "raise":
            raise RaisedError
        if event.what == "mark":
            self._mark(event.arguments, values)
        else:
            (written,) = event.arguments
            self._write(written if isinstance(written, str) else values[written.number])

    def _note_place(self, node: Node, values: list[Known], arguments: list[Known]) -> None:
        of, index = arguments
        if of.sort == "messages" and index.sort == "plain" and of.reach == index.reach == -1:
            asked_for = of.value.start + index.value
            if asked_for > self._reach and asked_for not in self.places:
                place = _Place(node, list(values), len(self.pieces), self._prompted)
                self.places[asked_for] = place

    def _apply(self, operation: Operation, arguments: list[Known]) -> Known:
        if operation.name in _FOLLOWED:
            found = _FOLLOWED[operation.name](self, arguments)
            if found is not None:
                return found
        reach = max((_reach_of(item) for item in arguments), default=-1)
        try:
            if all(item.sort == "plain" for item in arguments):
                value = operation.call(*(item.value for item in arguments))
                return Known(value, "plain", reach)
            cell = self.sheet.compute(operation, tuple(map(self._cell, arguments)))
        except Exception as error:  # it would have raised in the template, too
            raise UnknownError from error
        kind = "str" if _gives_text(operation, arguments[0]) else None
        return Known(self.sheet.values[cell], "cell", reach, cell, kind)

    def _ask(self, operation: Operation, arguments: list[Known]) -> Any:
        settled = None
        if operation.name in _SETTLED:
            settled = _SETTLED[operation.name](self, arguments)
        if settled is not None:
            answer, reach = settled
        else:
            reach = max(map(_reach_of, arguments))
            try:
                if all(item.sort == "plain" for item in arguments):
                    answer = operation.call(*(item.value for item in arguments))
                else:
                    answer = self.sheet.guard(operation, tuple(map(self._cell, arguments)))
            except Exception as error:
                raise UnknownError from error
        self._reach = max(self._reach, reach)
        return answer

    def _write(self, written: str | Known) -> None:
        if isinstance(written, str):
            self.pieces.append(written)
            return
        self._reach = max(self._reach, _reach_of(written))
        self.pieces.append(str(written.value) if written.sort == "plain" else written.cell)

    def _mark(self, arguments: tuple[Any, ...], values: list[Known]) -> None:
        kind, *of = arguments
        if not of:
            self.pieces.append((kind,))
            return
        message = values[of[0].number]
        if message.sort != "message":
            raise UnknownError
        self.pieces.append((kind, message.value))

    def _cell(self, known: Known) -> Argument:
        """Return what stands for a value in the sheet."""
        if known.sort == "cell":
            return known.cell
        if known.sort == "plain":
            return (known.value,)
        if known.sort == "message":
            return self.sheet.compute(operations.ITEM, (MESSAGES, (known.value,)))
        bounds = known.value or range(0)
        stop = bounds.stop if bounds.stop >= 0 else None
        return self.sheet.compute(
            operations.SLICE, (MESSAGES, (bounds.start,), (stop,), (bounds.step,))
        )

    # What the shape settles

    def _get(self, arguments: list[Known]) -> Known | None:
        of, name = arguments
        if of.sort != "message" or name.sort != "plain":
            return None
        value = self.messages[of.value].get(name.value, operations.MISSING)
        kind = operations.kind(value)
        if name.value == "role" or kind not in ("str", "list", "dict"):
            return Known(value, "plain", of.value)
        return Known(value, "cell", of.value, self.sheet.field(of.value, name.value), kind)

    def _item(self, arguments: list[Known]) -> Known | None:
        of, index = arguments
        if of.sort != "messages" or index.sort != "plain":
            return None
        found = of.value[index.value]
        return Known(found, "message", found if _from_start(of, index) else _WHOLE)

    def _slice(self, arguments: list[Known]) -> Known | None:
        of, *bounds = arguments
        if of.sort != "messages" or any(bound.sort != "plain" for bound in bounds):
            return None
        start, stop, step = (bound.value for bound in bounds)
        to_the_end = stop is None and step in (None, 1) and (start is None or start >= 0)
        open_still = to_the_end and all(item.reach == -1 for item in arguments)
        return Known(of.value[start:stop:step], "messages", -1 if open_still else _WHOLE)

    def _length(self, arguments: list[Known]) -> Known | None:
        (of,) = arguments
        return Known(len(of.value), "plain", _WHOLE) if of.sort == "messages" else None

    def _same(self, arguments: list[Known]) -> Known | None:
        return arguments[0]

    def _elements(self, arguments: list[Known]) -> Known | None:
        return arguments[0] if arguments[0].sort == "messages" else None

    def _reversed(self, arguments: list[Known]) -> Known | None:
        (of,) = arguments
        return Known(of.value[::-1], "messages", _WHOLE) if of.sort == "messages" else None

    def _text(self, arguments: list[Known]) -> Known | None:
        return arguments[0] if arguments[0].kind == "str" else None

    def _kind(self, arguments: list[Known]) -> tuple[Any, int] | None:
        (of,) = arguments
        if of.sort == "plain":
            return operations.kind(of.value), of.reach
        if of.sort != "cell":
            return {"messages": "list", "message": "dict"}[of.sort], -1
        return (of.kind, of.reach) if of.kind is not None else None

    def _has_item(self, arguments: list[Known]) -> tuple[Any, int] | None:
        of, index = arguments
        if of.sort != "messages" or index.sort != "plain":
            return None
        has = -len(of.value) <= index.value < len(of.value)
        return has, of.value[index.value] if has and _from_start(of, index) else _WHOLE

    def _truth(self, arguments: list[Known]) -> tuple[Any, int] | None:
        (of,) = arguments
        if of.sort == "messages":
            return self._has_item([of, Known(0, "plain", -1)])
        return (True, of.reach) if of.sort == "message" else None

    def _contains(self, arguments: list[Known]) -> tuple[Any, int] | None:
        of, name = arguments
        if of.sort != "message" or name.sort != "plain":
            return None
        return name.value in self.messages[of.value], of.reach

    def _holds_message(self, arguments: list[Known]) -> tuple[Any, int] | None:
        (of,) = arguments
        if of.sort == "messages":
            return self._truth(arguments)
        return self._is_message(arguments)

    def _is_message(self, arguments: list[Known]) -> tuple[Any, int] | None:
        (of,) = arguments
        if of.sort == "message":
            return True, of.reach
        if of.reach == _WHOLE:  # it may come from what was made of the messages
            raise UnknownError
        return False, of.reach


_FOLLOWED: dict[str, Callable[[Walk, list[Known]], Known | None]] = {
    operations.GET.name: Walk._get,
    operations.ITEM.name: Walk._item,
    operations.SLICE.name: Walk._slice,
    operations.LENGTH.name: Walk._length,
    operations.VALUE.name: Walk._same,
    operations.ELEMENTS.name: Walk._elements,
    operations.REVERSED.name: Walk._reversed,
    operations.TEXT.name: Walk._text,
}
_SETTLED: dict[str, Callable[[Walk, list[Known]], tuple[Any, int] | None]] = {
    operations.KIND.name: Walk._kind,
    operations.HAS_ITEM.name: Walk._has_item,
    operations.TRUTH.name: Walk._truth,
    operations.CONTAINS.name: Walk._contains,
    operations.IS_MESSAGE.name: Walk._is_message,
    operations.HOLDS_MESSAGE.name: Walk._holds_message,
}

_FROM_TEXT_TO_TEXT = {
    *(".strip", ".lstrip", ".rstrip", ".replace", ".upper", ".lower", ".title", ".capitalize"),
    *("|trim()", "|upper()", "|lower()", "|replace()", "|capitalize()", "|title()", "slice"),
}


def _gives_text(operation: Operation, first: Known) -> bool:
    if operation.name in _FROM_TEXT_TO_TEXT:
        return bool(first.kind == "str")
    return operation.name.startswith("|tojson(") or operation.name in ("join", "text")


def _handed_on(values: list[Known], arguments: tuple[Any, ...]) -> Iterator[Known]:
    return (values[item.number] for item in arguments)


def _reach_of(known: Known) -> int:
    return _WHOLE if known.sort == "messages" else known.reach


def _argument(values: list[Known], item: Any) -> Known:
    return values[item.number] if type(item) is Ref else Known(item, "plain", -1)


def _from_start(of: Known, index: Known) -> bool:
    """Return whether an element is the same however many messages follow it."""
    is_early: bool = of.reach == index.reach == -1 and index.value >= 0
    return is_early


def _shortened(value: Known, num_messages: int) -> Known | None:
    """Return a value as it is when the dialogue ends earlier, or None where that is unknown."""
    if value.sort == "messages" and value.reach == -1:
        return Known(range(value.value.start, num_messages), "messages", -1)
    return value if value.reach < num_messages else None
