"""The deterministic limits of a render, and the meter that holds a template to them.

A chat template is foreign code, and Jinja's sandbox keeps it from doing harm but not from doing too
much. So what it does is counted in steps: a pass of a loop, a value that is written, an item that a
filter goes through and a KiB of text made on the way are one each, the call of a macro is eight.
The count is of what the template does, not of how long it takes, so a row that is refused is
refused on every machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

CHARACTERS_PER_STEP = 1024
_PIECES_AT_A_TIME = 1024
_NOTHING: dict[str, str] = {}
_DICT_VIEWS = (type(_NOTHING.keys()), type(_NOTHING.values()), type(_NOTHING.items()))
_NESTING = (dict, list, tuple)
_CONTAINERS = (list, tuple, set, frozenset, *_DICT_VIEWS)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one render may do; far more than any model's own template does with any dialogue."""

    characters: int = 2**27
    """In any text that is written or made on the way: twice the longest row that is read."""
    steps: int = 10_000_000
    """Seconds of work; the module says what is a step."""
    bits: int = 2**16
    """In any whole number."""


class TemplateLimitError(Exception):
    """A render does more than any may; the text says which limit it meets."""


class Meter:
    """Counts what one render does, and raises TemplateLimitError where that is too much."""

    __slots__ = ("_most_steps", "limits", "steps_left")

    def __init__(self, limits: Limits) -> None:
        """Start with a fresh count."""
        self.limits = limits
        self._most_steps = 0
        self.steps_left = limits.steps

    def restart(self) -> None:
        """Begin another render."""
        self._most_steps = max(self._most_steps, self.limits.steps - self.steps_left)
        self.steps_left = self.limits.steps

    def most_steps(self) -> int:
        """Return the steps of the longest render since this was asked last."""
        self.restart()
        most, self._most_steps = self._most_steps, 0
        return most

    def step(self, steps: int = 1) -> None:
        """Count steps."""
        self.steps_left -= steps
        if self.steps_left < 0:
            raise TemplateLimitError(
                f"takes more than {self.limits.steps:,} steps (passes of loops, values "
                "written, macro calls, KiB of text made)"
            )

    def text(self, characters: int) -> None:
        """Count a text before it is made."""
        if characters >= CHARACTERS_PER_STEP:
            self.check_text(characters)
            self.step(characters // CHARACTERS_PER_STEP)

    def check_text(self, characters: int) -> None:
        """Check a text whose parts are counted one by one."""
        if characters > self.limits.characters:
            raise TemplateLimitError(
                f"makes a text of more than {self.limits.characters:,} characters"
            )

    def number(self, bits: int) -> None:
        """Check a whole number before it is computed."""
        if bits > self.limits.bits:
            raise TemplateLimitError(
                f"computes a whole number of more than {self.limits.bits:,} bits"
            )

    def length(self, value: Any) -> int:
        """Return at least about how many characters `value` has when it is written as text.

        A container may hold another many times over, which the size in memory does not show, so
        everything in it is counted where it stands.
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
                self.step(len(nested))
                waiting += nested
                waiting += nested.values()
            elif isinstance(nested, _CONTAINERS):
                self.step(len(nested))
                waiting += nested
            elif isinstance(nested, int):
                characters += nested.bit_length() // 3
            characters += 2
            if characters > self.limits.characters:
                break
        return characters

    def nest(self, container: Any) -> None:
        """Check how much a container holds, counting everything as often as it stands in it.

        To go through a list that holds a list twice that holds a list twice, and so on, takes
        forever, be it to hash it or to compare it. Each list is looked at once here.
        """
        held: dict[int, int] = {}
        waiting = [container]
        while waiting:
            outer = waiting[-1]
            inner = [value for value in _values_in(outer) if isinstance(value, _NESTING)]
            unknown = [value for value in inner if id(value) not in held]
            if unknown:
                waiting += unknown
                continue
            held[id(outer)] = len(outer) + sum(held[id(value)] for value in inner)
            waiting.pop()
            self.step(len(outer))
        if held[id(container)] > self.limits.steps:
            self.step(held[id(container)])

    def counted(self, values: Iterable[Any]) -> Iterator[Any]:
        """Yield `values`, each a step."""
        for value in values:
            self.step()
            yield value

    def joined(self, pieces: Iterable[str]) -> str:
        """Join the pieces of a text, which are made while they are taken."""
        taken: list[str] = []
        characters = 0
        remaining = iter(pieces)
        while some := list(islice(remaining, _PIECES_AT_A_TIME)):
            characters += sum(map(len, some))
            self.check_text(characters)
            taken += some
        self.text(characters)
        return "".join(taken)


def _values_in(container: Any) -> Iterable[Any]:
    return (*container, *container.values()) if isinstance(container, dict) else container
