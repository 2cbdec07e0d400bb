"""A straight-line program that computes the texts of a shape from a dialogue, with guards.

It runs from the first instruction to the last. A slot holds a field of a message, or the result of
an operation on earlier slots. A guard is a question whose answer must be the same as for the
dialogue that the program was made from. If one guard fails, the program is not valid for the
dialogue.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mtpack.input.dialogue import Messages
from mtpack.template.tracing.operations import Operation

Argument = int | tuple[Any]
"""An argument of an operation: the number of an earlier slot, or a constant in a 1-tuple."""

MESSAGES, TOOLS = 0, 1
"""The slots of the inputs: the messages and the tools of a dialogue."""


class Program:
    """Instructions, and the values of the slots for the dialogue that the program is made from."""

    def __init__(self, messages: Messages, tools: Any) -> None:
        """Make a program without instructions; messages: the fields that the template can see."""
        self.messages = messages
        self.tools = tools
        self.values: list[Any] = [messages, tools]
        self._fields: list[tuple[int, int, str]] = []
        # Slot to fill (None for a guard), function, arguments, expected answer (of a guard).
        self._instructions: list[
            tuple[int | None, Callable[..., Any], tuple[Argument, ...], Any]
        ] = []
        self._results: dict[Any, Any] = {}

    def load_field(self, message: int, name: str) -> int:
        """Return the slot of the field `name` of a message."""
        key = (message, name)
        if key not in self._results:
            self._results[key] = len(self.values)
            self._fields.append((len(self.values), message, name))
            self.values.append(self.messages[message][name])
        return int(self._results[key])

    def compute(self, operation: Operation, arguments: tuple[Argument, ...]) -> int:
        """Return the slot of an operation's result; raises what the operation raises."""
        key = (operation.name, *map(_describe_argument, arguments))
        if key not in self._results:
            value = operation.call(*_read_arguments(self.values, arguments))
            self._results[key] = len(self.values)
            self._instructions.append((len(self.values), operation.call, arguments, None))
            self.values.append(value)
        return int(self._results[key])

    def guard(self, operation: Operation, arguments: tuple[Argument, ...]) -> Any:
        """Add a guard and return its answer, which other dialogues must have as well."""
        key = ("guard", operation.name, *map(_describe_argument, arguments))
        if key not in self._results:
            answer = operation.call(*_read_arguments(self.values, arguments))
            self._results[key] = answer
            self._instructions.append((None, operation.call, arguments, answer))
        return self._results[key]

    def find_content_messages(self, slots: Sequence[int]) -> list[int] | None:
        """Return the message whose content each slot holds.

        None if the program has guards or operations, or if a slot holds something else.
        """
        contents = {slot: message for slot, message, name in self._fields if name == "content"}
        if self._instructions or not contents.keys() >= set(slots):
            return None
        return [contents[slot] for slot in slots]

    def forget_dialogue(self) -> None:
        """Forget the dialogue that the program is made from; nothing can be added any more."""
        self.messages, self.tools, self._results = [], None, {}
        self.values = [None] * len(self.values)

    def run(self, messages: Messages, tools: Any) -> list[Any] | None:
        """Return the values of the slots for a dialogue, or None if a guard fails."""
        if not self._instructions:  # then all slots after the inputs are fields, in order
            fields = [messages[message][name] for _, message, name in self._fields]
            return [messages, tools, *fields]
        values: list[Any] = [None] * len(self.values)
        values[MESSAGES], values[TOOLS] = messages, tools
        for slot, message, name in self._fields:
            values[slot] = messages[message][name]
        try:
            for target, call, arguments, answer in self._instructions:
                found = call(*_read_arguments(values, arguments))
                if target is not None:
                    values[target] = found
                elif found != answer or type(found) is not type(answer):
                    return None
        except Exception:  # a value that the template itself would not have computed
            return None
        return values


def _read_arguments(values: list[Any], arguments: tuple[Argument, ...]) -> list[Any]:
    # mypy does not narrow by `type(...) is`, which is the fastest test here.
    return [values[item] if type(item) is int else item[0] for item in arguments]  # type: ignore[index]


def _describe_argument(argument: Argument) -> Any:
    return argument if type(argument) is int else repr(argument)
