"""The limits of one render, and the meter that enforces them.

A chat template is foreign code. Jinja's sandbox keeps it from doing harm, but not from doing too
much. So its work is counted in steps. One step is: a pass of a loop, a value that is written, an
item that a filter processes, or a KiB of text that is made. The call of a macro is eight steps.
The count depends on what the template does, not on time. So a row that is rejected on one machine
is rejected on every machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

CHARACTERS_PER_STEP = 1024
_PIECES_PER_CHECK = 1024
_EMPTY: dict[str, str] = {}
_DICT_VIEWS = (type(_EMPTY.keys()), type(_EMPTY.values()), type(_EMPTY.items()))
_NESTING = (dict, list, tuple)
_CONTAINERS = (list, tuple, set, frozenset, *_DICT_VIEWS)


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that one render may do; far more than the templates of real models need."""

    characters: int = 2**27
    """The length of any text that is made: twice the longest row that is read."""
    steps: int = 10_000_000
    """The work in steps (see the module's docstring): some seconds."""
    bits: int = 2**16
    """The size of any whole number."""


class TemplateLimitError(Exception):
    """A render exceeds a limit; the text says which one."""


class Meter:
    """Counts the work of one render, and raises TemplateLimitError if it exceeds a limit."""

    __slots__ = ("_most_steps", "limits", "steps_left")

    def __init__(self, limits: Limits) -> None:
        """Start with no steps used."""
        self.limits = limits
        self._most_steps = 0
        self.steps_left = limits.steps

    def restart(self) -> None:
        """Start the count of another render."""
        self._most_steps = max(self._most_steps, self.limits.steps - self.steps_left)
        self.steps_left = self.limits.steps

    def take_most_steps(self) -> int:
        """Return the steps of the longest render since the last call."""
        self.restart()
        most, self._most_steps = self._most_steps, 0
        return most

    def count_steps(self, steps: int = 1) -> None:
        """Count steps; raise TemplateLimitError if there are too many."""
        self.steps_left -= steps
        if self.steps_left < 0:
            raise TemplateLimitError(
                f"takes more than {self.limits.steps:,} steps (passes of loops, values "
                "written, macro calls, KiB of text made)"
            )

    def count_text(self, characters: int) -> None:
        """Count a text before it is made, and check its length."""
        if characters >= CHARACTERS_PER_STEP:
            self.check_text(characters)
            self.count_steps(characters // CHARACTERS_PER_STEP)

    def check_text(self, characters: int) -> None:
        """Check the length of a text whose parts have been counted one by one."""
        if characters > self.limits.characters:
            raise TemplateLimitError(
                f"makes a text of more than {self.limits.characters:,} characters"
            )

    def check_number(self, bits: int) -> None:
        """Check the size of a whole number before it is computed."""
        if bits > self.limits.bits:
            raise TemplateLimitError(
                f"computes a whole number of more than {self.limits.bits:,} bits"
            )

    def measure(self, value: Any) -> int:
        """Return about the least number of characters that `value` has as text.

        A container may contain the same container many times, which its size in memory does not
        show. So each occurrence is counted. Stops soon after the limit is exceeded.
        """
        if isinstance(value, str):
            return str.__len__(value)
        characters = 0
        waiting = [value]
        while waiting:
            nested = waiting.pop()
            if isinstance(nested, str):
                characters += str.__len__(nested)
            elif isinstance(nested, dict):
                self.count_steps(len(nested))
                waiting += nested
                waiting += nested.values()
            elif isinstance(nested, _CONTAINERS):
                self.count_steps(len(nested))
                waiting += nested
            elif isinstance(nested, int):
                characters += nested.bit_length() // 3
            characters += 2
            if characters > self.limits.characters:
                break
        return characters

    def check_nesting(self, container: Any) -> None:
        """Check the number of values in a container, each occurrence counted.

        A list that contains a list twice, which contains a list twice, and so on, has exponentially
        many values: to hash or to compare it never ends. Each list is visited only once here.
        """
        sizes: dict[int, int] = {}
        waiting = [container]
        while waiting:
            outer = waiting[-1]
            inner = [value for value in _values_in(outer) if isinstance(value, _NESTING)]
            unknown = [value for value in inner if id(value) not in sizes]
            if unknown:
                waiting += unknown
                continue
            sizes[id(outer)] = len(outer) + sum(sizes[id(value)] for value in inner)
            waiting.pop()
            self.count_steps(len(outer))
        if sizes[id(container)] > self.limits.steps:
            self.count_steps(sizes[id(container)])

    def count_each(self, values: Iterable[Any]) -> Iterator[Any]:
        """Yield `values`, and count one step for each."""
        for value in values:
            self.count_steps()
            yield value

    def join(self, pieces: Iterable[str]) -> str:
        """Join the pieces of a text; they are made only as they are read, so check in between."""
        taken: list[str] = []
        characters = 0
        remaining = iter(pieces)
        while batch := list(islice(remaining, _PIECES_PER_CHECK)):
            characters += sum(map(len, batch))
            self.check_text(characters)
            taken += batch
        self.count_text(characters)
        return "".join(taken)


def _values_in(container: Any) -> Iterable[Any]:
    return (*container, *container.values()) if isinstance(container, dict) else container
