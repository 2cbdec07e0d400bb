"""The modes of a template: switches such as `enable_thinking`, which a user of a server can set.

A template reads a switch as a free variable. If it is set, the model gets another prompt, which
opens or closes the reasoning.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

_SWITCH = re.compile("think|reason")


class Mode(NamedTuple):
    """A switch of a template, and the value that it has in a render."""

    name: str
    value: bool

    def __str__(self) -> str:
        return f"{self.name}={str(self.value).lower()}"


def list_possible_modes(free_variables: Iterable[str]) -> tuple[Mode, ...]:
    """Return the modes that a template may have, in the order in which it reads the switches.

    A switch is a free variable that is named after thinking or reasoning: templates have other free
    variables, which nobody sets. free_variables: those that neither a render nor the environment
    sets.
    """
    switches = [name for name in free_variables if _SWITCH.search(name)]
    return tuple(Mode(name, value) for name in switches for value in (True, False))
