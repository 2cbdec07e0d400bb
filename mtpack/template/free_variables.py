"""The free variables of a template: those that it reads and a render may set."""

from __future__ import annotations

from functools import lru_cache

import jinja2
from jinja2 import meta, nodes

from mtpack.template.limits import LimitedCodeGenerator


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


class _FreeVariables(meta.TrackingCodeGenerator, LimitedCodeGenerator):
    """Finds free variables as Jinja does, but without computing constants (`limits.py`)."""

    def __init__(self, environment: jinja2.Environment) -> None:
        super().__init__(environment)
        self.optimizer = None
