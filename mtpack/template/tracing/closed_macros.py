"""Macros that depend on nothing but their arguments, to be called as one operation.

A macro that writes the schema of a tool asks a hundred questions of it, and every tool answers in
its own way. Followed through, each dialogue would be a new run. Called for real, as one pure
function of the tool, it is one cell of a sheet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jinja2
import jinja2.meta
from jinja2 import nodes


def closed_macros(
    plain: jinja2.Environment, source: str, outside: set[str]
) -> dict[str, Callable[..., str]]:
    """Return the macros of a template that use no variable but their own.

    outside: the variables around them. Should a macro use one after all, it fails.
    """
    tree = plain.parse(source)
    macros = {
        node.name: node
        for node in tree.body
        if isinstance(node, nodes.Macro) and node.find(nodes.CallBlock) is None
    }
    all_macros = [node.name for node in tree.find_all(nodes.Macro)]
    free = {
        name: _taken_from(plain, macro) & outside - {name}
        for name, macro in macros.items()
        if all_macros.count(name) == 1
    }
    while open_still := [name for name, used in free.items() if not used <= free.keys()]:
        for name in open_still:
            del free[name]
    alone = nodes.Template([macros[name] for name in free])
    alone.set_environment(plain)
    hidden = {name: _Hidden(name=name) for name in outside - free.keys()}
    module = plain.from_string(alone).make_module(hidden)
    return {name: getattr(module, name) for name in free}


class _Hidden(jinja2.StrictUndefined):
    """A variable that is not to be used."""

    def __getattr__(self, name: str) -> Any:
        return self._fail_with_undefined_error()


def _taken_from(plain: jinja2.Environment, macro: nodes.Macro) -> set[str]:
    """Return the names that a macro surely takes from outside."""
    alone = nodes.Template([macro])
    alone.set_environment(plain)
    stored = {name.name for name in macro.find_all(nodes.Name) if name.ctx == "store"}
    return set(jinja2.meta.find_undeclared_variables(alone)) - stored
