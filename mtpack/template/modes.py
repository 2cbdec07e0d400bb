"""The modes of a template: switches such as `enable_thinking`, which a user of a server can set.

A template reads a switch as a free variable. If it is set, the model gets another prompt, which
opens or closes the reasoning.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

import jinja2
from jinja2 import meta, nodes

from mtpack.template.limits import LimitedCodeGenerator

_SWITCH = re.compile("think|reason")


class Mode(NamedTuple):
    """A switch of a template, and the value that it has in a render."""

    name: str
    value: bool

    def __str__(self) -> str:
        return f"{self.name}={str(self.value).lower()}"


@lru_cache(maxsize=16)
def list_possible_modes(
    environment: jinja2.Environment, source: str, known: frozenset[str]
) -> tuple[Mode, ...]:
    """Return the modes that a template may have, in the order in which it reads the switches.

    A switch is a free variable that is named after thinking or reasoning: templates have other free
    variables, which nobody sets. known: the variables that a render sets.
    """
    tree = environment.parse(source)
    variables = _FreeVariables(environment)
    variables.visit(tree)
    free = variables.undeclared_identifiers.difference(known, environment.globals)
    read = (node.name for node in tree.find_all(nodes.Name) if node.name in free)
    names = dict.fromkeys(name for name in read if _SWITCH.search(name))
    return tuple(Mode(name, value) for name in names for value in (True, False))


class _FreeVariables(meta.TrackingCodeGenerator, LimitedCodeGenerator):
    """Finds free variables as Jinja does, but without computing constants (`limits.py`)."""

    def __init__(self, environment: jinja2.Environment) -> None:
        super().__init__(environment)
        self.optimizer = None
