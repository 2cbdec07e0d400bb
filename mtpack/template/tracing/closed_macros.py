"""Closed macros: they depend on nothing but their arguments, so a call can be one operation.

A macro that writes the schema of a tool asks about a hundred questions, and every tool has other
answers. If each question were an event, nearly every dialogue would be a new run. As one pure
function of the tool, the macro is one slot of a program.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jinja2
import jinja2.meta
from jinja2 import nodes


def find_closed_macros(
    plain: jinja2.Environment, source: str, outside: set[str]
) -> dict[str, Callable[..., str]]:
    """Return the macros of a template that use no variables from outside, by name.

    outside: the names of the variables outside. A macro that uses one after all raises
    jinja2.UndefinedError.
    """
    tree = plain.parse(source)
    macros = {
        node.name: node
        for node in tree.body
        if isinstance(node, nodes.Macro) and node.find(nodes.CallBlock) is None
    }
    all_macros = [node.name for node in tree.find_all(nodes.Macro)]
    free = {
        name: _find_free_names(plain, macro) & outside - {name}
        for name, macro in macros.items()
        if all_macros.count(name) == 1
    }
    while not_closed := [name for name, used in free.items() if not used <= free.keys()]:
        for name in not_closed:
            del free[name]
    alone = nodes.Template([macros[name] for name in free])
    alone.set_environment(plain)
    hidden = {name: _HiddenVariable(name=name) for name in outside - free.keys()}
    module = plain.from_string(alone).make_module(hidden)
    return {name: getattr(module, name) for name in free}


class _HiddenVariable(jinja2.StrictUndefined):
    """A variable from outside, which a closed macro must not use."""

    def __getattr__(self, name: str) -> Any:
        return self._fail_with_undefined_error()


def _find_free_names(plain: jinja2.Environment, macro: nodes.Macro) -> set[str]:
    """Return the names that a macro certainly takes from outside."""
    alone = nodes.Template([macro])
    alone.set_environment(plain)
    stored = {name.name for name in macro.find_all(nodes.Name) if name.ctx == "store"}
    return set(jinja2.meta.find_undeclared_variables(alone)) - stored
