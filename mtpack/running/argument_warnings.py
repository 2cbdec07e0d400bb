"""Warn of template arguments that the chat template never reads: most are misspelled."""

from __future__ import annotations

from collections.abc import Iterable

from mtpack.options import flag
from mtpack.template.chat_template import ChatTemplate

_MOST_LISTED = 8


def list_argument_warnings(
    template: ChatTemplate, arguments: Iterable[str], where: str = flag("template_arg")
) -> list[str]:
    """Return a warning for each argument (KEY=VALUE) whose variable the template never reads.

    where: what the warnings call the place of the arguments.
    """
    names = dict.fromkeys(argument.partition("=")[0] for argument in arguments)
    if not names:
        return []  # to list the variables of a long template takes 10 ms
    readable = template.list_settable_variables()
    return [
        f'{where}: the chat template never reads "{name}"; ' + _suggest_variable(name, readable)
        for name in names
        if not template.reads_variable(name)
    ]


def _suggest_variable(name: str, readable: list[str]) -> str:
    """Return the question for the variable that was meant, or else which ones there are."""
    from difflib import get_close_matches  # takes 5 ms, and few runs need it

    if similar := get_close_matches(name, readable, n=1):
        return f"did you mean {similar[0]}?"
    if not readable:
        return "it has no variables to set"
    more = ", ..." if len(readable) > _MOST_LISTED else ""
    return f"it reads {', '.join(readable[:_MOST_LISTED])}{more}"
