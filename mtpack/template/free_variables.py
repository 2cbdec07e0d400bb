"""The free variables of a template: those that it reads and a render may set."""

from __future__ import annotations

from functools import lru_cache

import jinja2
from jinja2 import meta, nodes

from mtpack.template.limits import LimitedCodeGenerator

_ASKS_FOR_VALUE = ("defined", "undefined", "default", "d")


@lru_cache(maxsize=16)
def list_free_variables(environment: jinja2.Environment, source: str) -> tuple[str, ...]:
    """Return the free variables of a template, in the order in which it reads them.

    The functions that the environment offers are among them: a variable of the same name replaces
    such a function.
    """
    tree = environment.parse(source)
    finder = _FreeVariables(environment)
    finder.visit(tree)
    free = finder.undeclared_identifiers.union(environment.globals)
    read = (node.name for node in tree.find_all(nodes.Name) if node.name in free)
    return tuple(dict.fromkeys(read))


def list_optional_variables(environment: jinja2.Environment, source: str) -> list[str]:
    """Return the free variables that a template lets its caller set, in the order of reading.

    A variable that the template also sets itself is not meant for the caller, unless the template
    asks whether it is defined, or has a default for it.
    """
    tree = environment.parse(source)
    set_here = {node.name for node in tree.find_all(nodes.Name) if node.ctx == "store"}
    asked = {
        node.node.name
        for node in tree.find_all((nodes.Test, nodes.Filter))
        if node.name in _ASKS_FOR_VALUE and isinstance(node.node, nodes.Name)
    }
    free = list_free_variables(environment, source)
    return [name for name in free if name not in set_here or name in asked]


class _FreeVariables(meta.TrackingCodeGenerator, LimitedCodeGenerator):
    """Finds free variables as Jinja does, but without computing constants (`limits.py`)."""

    def __init__(self, environment: jinja2.Environment) -> None:
        super().__init__(environment)
        self.optimizer = None
