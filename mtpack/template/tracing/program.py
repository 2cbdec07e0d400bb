"""The values that the replays of one shape need, as formulas of a dialogue.

A sheet is filled from top to bottom: a cell is a field of a message, or an operation on cells above
it. Between the cells stand guards: questions whose answers must be those of the dialogue that the
sheet was made from. Where one is not, the sheet is not for that dialogue.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mtpack.template.tracing.operations import Operation

Messages = Sequence[dict[str, Any]]

Argument = int | tuple[Any]
"""Of an operation: the number of a cell above, or a plain value, alone in a tuple."""

MESSAGES, TOOLS = 0, 1
"""The cells that a dialogue itself fills."""


class Sheet:
    """Formulas, and the values that they have for the dialogue that the sheet is made from."""

    def __init__(self, messages: Messages, tools: Any) -> None:
        """Begin a sheet; messages: what the template sees of each."""
        self.values: list[Any] = [messages, tools]
        self._fields: list[tuple[int, int, str]] = []
        # Cell to fill (None for a guard), function, arguments, answer (of a guard).
        self._steps: list[tuple[int | None, Callable[..., Any], tuple[Argument, ...], Any]] = []
        self._known: dict[Any, Any] = {}

    def field(self, message: int, name: str) -> int:
        """Return the cell of a message's field."""
        key = (message, name)
        if key not in self._known:
            self._known[key] = len(self.values)
            self._fields.append((len(self.values), message, name))
            self.values.append(self.values[MESSAGES][message][name])
        return int(self._known[key])

    def compute(self, operation: Operation, arguments: tuple[Argument, ...]) -> int:
        """Return the cell of an operation's outcome; raises what the operation raises."""
        key = (operation.name, *map(_described, arguments))
        if key not in self._known:
            value = operation.call(*_values(self.values, arguments))
            self._known[key] = len(self.values)
            self._steps.append((len(self.values), operation.call, arguments, None))
            self.values.append(value)
        return int(self._known[key])

    def guard(self, operation: Operation, arguments: tuple[Argument, ...]) -> Any:
        """Return the answer to a question, which a dialogue must share to use this sheet."""
        key = ("guard", operation.name, *map(_described, arguments))
        if key not in self._known:
            answer = operation.call(*_values(self.values, arguments))
            self._known[key] = answer
            self._steps.append((None, operation.call, arguments, answer))
        return self._known[key]

    def texts_of(self, cells: Sequence[int]) -> list[int] | None:
        """Return whose content each cell is; None where a guard or another cell matters."""
        contents = {cell: message for cell, message, name in self._fields if name == "content"}
        if self._steps or not contents.keys() >= set(cells):
            return None
        return [contents[cell] for cell in cells]

    def filled(self, messages: Messages, tools: Any) -> list[Any] | None:
        """Return what the cells hold for a dialogue, or None where a guard fails."""
        if not self._steps:  # then the fields stand in their order behind the first two cells
            fields = [messages[message][name] for _, message, name in self._fields]
            return [messages, tools, *fields]
        values: list[Any] = [None] * len(self.values)
        values[MESSAGES], values[TOOLS] = messages, tools
        for cell, message, name in self._fields:
            values[cell] = messages[message][name]
        try:
            for target, call, arguments, answer in self._steps:
                found = call(*_values(values, arguments))
                if target is not None:
                    values[target] = found
                elif found != answer or type(found) is not type(answer):
                    return None
        except Exception:  # it met a value that the template would not have come to
            return None
        return values


def _values(values: list[Any], arguments: tuple[Argument, ...]) -> list[Any]:
    # mypy does not narrow by `type(...) is`, which is what is quick here.
    return [values[item] if type(item) is int else item[0] for item in arguments]  # type: ignore[index]


def _described(argument: Argument) -> Any:
    return argument if type(argument) is int else repr(argument)
