"""Replay the recorded events of a template with the values of another dialogue.

Many values and answers depend only on the dialogue's *shape*: how many messages there are, their
roles, which fields they have and of which kinds. They are computed here, once for the shape. What
depends on the texts is added to a `Program`, as an operation or as a guard. So the result is valid
for every dialogue of the same shape for which the guards of the program hold.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mtpack.template.markers import has_reserved_characters, open_region
from mtpack.template.tracing import operations
from mtpack.template.tracing.automaton import Node
from mtpack.template.tracing.operations import Operation
from mtpack.template.tracing.program import MESSAGES, TOOLS, Argument, Program
from mtpack.template.tracing.recorder import INPUTS, Event, Ref

TextPiece = str | int
"""A piece of a marked text: a string (literal text or a mark), or the program's slot of a string.
"""

_END_OF_DIALOGUE = 2**62  # larger than the index of any message


class UnrecordedError(Exception):
    """No recording contains the run of this dialogue."""


class ReplayRaisedError(Exception):
    """The template raises an error for this dialogue."""


@dataclass(slots=True, eq=False)
class Value:
    """A value in a replay; it is equal to itself only."""

    value: Any
    """The value itself; for `messages` a `range` of indices, for `message` an index."""
    category: str
    """`plain`: the same for the whole shape; `messages`; `message`; `slot`: in the program."""
    last_message_read: int
    """The last message that it depends on; `_END_OF_DIALOGUE` if it depends on where that is.

    -1: it depends on no message, as a range up to the last one until a question is asked about it.
    """
    slot: int = 0
    """The slot of the program that has the value."""
    kind: Any = None
    """The kind of the value in the slot, if it is the same for all dialogues of the shape."""


@dataclass(frozen=True, slots=True)
class _ResumePoint:
    """The state of a replay when the template first asks whether a certain message exists."""

    node: Node
    values: list[Value]
    num_pieces: int
    prompt_read: bool


@dataclass(slots=True)
class Interpreter:
    """Executes recorded events for one dialogue; the result is the `pieces` of its text."""

    program: Program
    num_messages: int
    """The number of the program's messages that are rendered."""
    prompt: bool
    steps_left: int
    """How many steps may follow before the render could exceed a limit (`KnownRenders`)."""
    pieces: list[TextPiece] = field(default_factory=list)
    resume_points: dict[int, _ResumePoint] = field(default_factory=dict)
    """By the index of the message that the template asked for."""
    _last_message_read: int = -1
    """The last message that an answer or the text depended on."""
    _prompt_read: bool = False
    """Whether the template has read `add_generation_prompt`."""
    _prompt_value: Value = field(init=False)

    def __post_init__(self) -> None:
        """Make the value of `add_generation_prompt`."""
        self._prompt_value = Value(self.prompt, "plain", -1)

    def run_from_start(self, root: Node) -> Interpreter:
        """Replay the whole run; raise UnrecordedError or ReplayRaisedError."""
        messages = Value(range(self.num_messages), "messages", -1)
        tools = Value(None, "plain", -1)
        if self.program.tools is not None:
            tools = Value(self.program.tools, "slot", -1, TOOLS, list)
        return self._run(root, [messages, tools, self._prompt_value])

    def resume_at(self, num_messages: int, prompt: bool) -> Interpreter | None:
        """Replay the first `num_messages` messages, from the point where the end matters.

        Up to that point the run is the same, and so is the text. None if no such point is known.
        Raises UnrecordedError, ReplayRaisedError.
        """
        point = self.resume_points.get(num_messages)
        if point is None or (point.prompt_read and prompt != self.prompt):
            return None
        values = [_shorten(value, num_messages) for value in point.values]
        if None in values:
            return None
        interpreter = Interpreter(self.program, num_messages, prompt, self.steps_left)
        interpreter.pieces = self.pieces[: point.num_pieces]
        interpreter._last_message_read = num_messages - 1
        interpreter._prompt_read = point.prompt_read
        live = [value for value in values if value is not None]
        live[2] = interpreter._prompt_value
        return interpreter._run(point.node, live)

    def _run(self, node: Node, values: list[Value]) -> Interpreter:
        while (event := node.event) is not None:
            label: Any = None
            if event.operation is not None:
                arguments = [_read_argument(values, item) for item in event.arguments]
                self._prompt_read |= self._prompt_value in arguments
                if event.operation is operations.HAS_ITEM:
                    self._save_resume_point(node, values, arguments)
                result = self._execute(event, event.operation, arguments)
                if event.kind == "apply":
                    values.append(result)
                else:
                    label = result.value
                    self._last_message_read = max(self._last_message_read, result.last_message_read)
            elif event.kind == "step":
                self.steps_left -= 1
                if self.steps_left < 0:
                    break
                (label,) = node.edges
                values = [*values[: len(INPUTS)], *(values[ref.number] for ref in event.arguments)]
            elif event.kind == "end":
                return self
            else:
                self._emit(event, values)
            if label not in node.edges:
                break
            node = node.edges[label]
        raise UnrecordedError

    def _emit(self, event: Event, values: list[Value]) -> None:
        """Add a piece to the text, or raise ReplayRaisedError."""
        if event.kind == "raise":
            raise ReplayRaisedError
        if event.kind == "mark":
            mark, *refs = event.arguments
            if refs:
                message = values[refs[0].number]
                if message.category != "message":
                    raise UnrecordedError
                mark = open_region(message.value)
            self.pieces.append(mark)
            return
        (written,) = event.arguments
        if not isinstance(written, str):
            value = values[written.number]
            self._last_message_read = max(self._last_message_read, _find_last_message_read(value))
            if value.category != "plain":
                self.pieces.append(value.slot)
                return
            written = str(value.value)
        if has_reserved_characters(written):
            raise UnrecordedError
        self.pieces.append(written)

    def _save_resume_point(self, node: Node, values: list[Value], arguments: list[Value]) -> None:
        target, index = arguments
        if (
            target.category == "messages"
            and index.category == "plain"
            and target.last_message_read == index.last_message_read == -1
        ):
            asked_for = target.value.start + index.value
            if asked_for > self._last_message_read and asked_for not in self.resume_points:
                point = _ResumePoint(node, list(values), len(self.pieces), self._prompt_read)
                self.resume_points[asked_for] = point

    def _execute(self, event: Event, operation: Operation, arguments: list[Value]) -> Value:
        """Return the result of a function, or the answer to a question, as a plain value."""
        last_read = max(map(_find_last_message_read, arguments), default=-1)
        try:
            found = self._compute_from_shape(operation, arguments)
            if found is not None:
                return found
            if all(item.category == "plain" for item in arguments):
                value = operation.call(*(item.value for item in arguments))
                return Value(value, "plain", last_read)
            inputs = tuple(map(self._to_argument, arguments))
            if event.kind == "ask":
                return Value(self.program.guard(operation, inputs), "plain", last_read)
            slot = self.program.compute(operation, inputs)
        except Exception as error:  # it would also have raised in the template
            raise UnrecordedError from error
        kind = str if _returns_text(operation, arguments[0]) else None
        return Value(self.program.values[slot], "slot", last_read, slot, kind)

    def _to_argument(self, value: Value) -> Argument:
        """Return a value as an argument in the program."""
        if value.category == "slot":
            return value.slot
        if value.category == "plain":
            return (value.value,)
        if value.category == "message":
            return self.program.compute(operations.ITEM, (MESSAGES, (value.value,)))
        bounds = value.value or range(0)
        stop = bounds.stop if bounds.stop >= 0 else None
        return self.program.compute(
            operations.SLICE, (MESSAGES, (bounds.start,), (stop,), (bounds.step,))
        )

    # What depends on the shape alone; None for anything else

    def _compute_from_shape(self, operation: Operation, arguments: list[Value]) -> Value | None:
        if not arguments:
            return None
        target, *rest = arguments
        if target.category in ("plain", "slot"):
            return _compute_from_value(operation, target)
        if rest and any(item.category != "plain" for item in rest):
            return None
        if target.category == "message":
            return self._compute_from_message(operation, target, rest)
        return _compute_from_messages(operation, target, rest)

    def _compute_from_message(
        self, operation: Operation, target: Value, rest: list[Value]
    ) -> Value | None:
        message = target.value
        match operation.name:
            case operations.GET.name:
                name = rest[0].value
                value = self.program.messages[message].get(name, operations.MISSING)
                kind = operations.classify(value)
                if name == "role" or kind not in (str, list, dict):
                    return Value(value, "plain", message)
                return Value(value, "slot", message, self.program.load_field(message, name), kind)
            case operations.CONTAINS.name:
                has = rest[0].value in self.program.messages[message]
                return Value(has, "plain", target.last_message_read)
            case operations.TRUTH.name | operations.HOLDS_MESSAGE.name:
                return Value(True, "plain", target.last_message_read)
            case operations.KIND.name:
                return Value(dict, "plain", -1)
        return None


def _compute_from_value(operation: Operation, target: Value) -> Value | None:
    match operation.name:
        case operations.KIND.name if target.kind is not None:
            return Value(target.kind, "plain", target.last_message_read)
        case operations.TEXT.name if target.kind is str:
            return target
        case operations.VALUE.name:
            return target
        case operations.HOLDS_MESSAGE.name:
            if target.last_message_read == _END_OF_DIALOGUE:  # it may come from the messages
                raise UnrecordedError
            return Value(False, "plain", target.last_message_read)
    return None


def _compute_from_messages(operation: Operation, target: Value, rest: list[Value]) -> Value | None:
    indices = target.value
    match operation.name:
        case operations.ITEM.name:
            found = indices[rest[0].value]
            is_early = _is_independent_of_end(target, rest[0])
            return Value(found, "message", found if is_early else _END_OF_DIALOGUE)
        case operations.HAS_ITEM.name:
            return _has_message(target, rest[0])
        case operations.TRUTH.name | operations.HOLDS_MESSAGE.name:
            return _has_message(target, Value(0, "plain", -1))
        case operations.KIND.name:
            return Value(list, "plain", -1)
        case operations.LENGTH.name:
            return Value(len(indices), "plain", _END_OF_DIALOGUE)
        case operations.ELEMENTS.name:
            return target
        case operations.SLICE.name:
            start, stop, step = (bound.value for bound in rest)
            to_the_end = stop is None and step in (None, 1) and (start is None or start >= 0)
            is_open = to_the_end and all(item.last_message_read == -1 for item in [target, *rest])
            last_read = -1 if is_open else _END_OF_DIALOGUE
            return Value(indices[start:stop:step], "messages", last_read)
    return None


def _has_message(target: Value, index: Value) -> Value:
    has = -len(target.value) <= index.value < len(target.value)
    is_early = has and _is_independent_of_end(target, index)
    return Value(has, "plain", target.value[index.value] if is_early else _END_OF_DIALOGUE)


_TEXT_TO_TEXT = {
    *(".strip", ".lstrip", ".rstrip", ".replace", ".upper", ".lower", ".title", ".capitalize"),
    *("|trim()", "|upper()", "|lower()", "|replace()", "|capitalize()", "|title()", "slice"),
}


def _returns_text(operation: Operation, first: Value) -> bool:
    if operation.name in _TEXT_TO_TEXT:
        return bool(first.kind is str)
    return operation.name.startswith("|tojson(") or operation.name in ("join", "text")


def _find_last_message_read(value: Value) -> int:
    return _END_OF_DIALOGUE if value.category == "messages" else value.last_message_read


def _read_argument(values: list[Value], item: Any) -> Value:
    return values[item.number] if type(item) is Ref else Value(item, "plain", -1)


def _is_independent_of_end(target: Value, index: Value) -> bool:
    """Return whether an element is the same, however many messages follow it."""
    is_early: bool = target.last_message_read == index.last_message_read == -1 and index.value >= 0
    return is_early


def _shorten(value: Value, num_messages: int) -> Value | None:
    """Return a value for a dialogue that ends earlier, or None if it is not known."""
    if value.category == "messages" and value.last_message_read == -1:
        return Value(range(value.value.start, num_messages), "messages", -1)
    return value if value.last_message_read < num_messages else None
