"""Find what a template writes for each message: marks in its loops over the messages.

A chat template writes messages in a `for` loop. In the parsed template, every loop gets two calls:
at the start of its body one that writes a mark if the loop's variable is one of the dialogue's
messages, and at the end of the body (and before `continue` and `break`) one that closes it. In a
loop over indices, the mark stands where the body takes a message out of the list. The
marks travel inside the text, so they are right in macros and `set` blocks as well; taken out, they
must leave exactly what the plain template writes, or the template can't be read this way.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from jinja2 import nodes

from mtpack.template.environment import GENERATION_END, GENERATION_START

_REGION_START = "\ufdd0"
_INDEX_END = "\ufdd1"
_REGION_END = "\ufdd2"
_MARK = re.compile(
    f"{_REGION_START}([0-9]+){_INDEX_END}|[{_REGION_END}{GENERATION_START}{GENERATION_END}]"
)

FILTERS_THAT_READ_TEXT = ("int", "float", "length", "count")
"""Filters that tell of a text what its marks must not change."""

Range = tuple[int, int]


class IndexedMessage(dict[str, Any]):
    """A message that knows its place; to a template it is the dict that it is."""

    __slots__ = ("_mtpack_index",)  # the sandbox hides what starts with an underscore

    def __init__(self, fields: dict[str, Any], index: int) -> None:
        super().__init__(fields)
        self._mtpack_index = index


@dataclass(frozen=True, slots=True)
class MarkedText:
    """A rendered text, and what of it was written for which message."""

    text: str
    regions: dict[int, Range]
    """Characters [start, end) by message; a message written in no or several places is missing."""
    generations: list[Range] | None
    """Characters [start, end) inside `generation` tags; None for a template without such tags."""
    empty_regions: dict[int, int]
    """Where the loops came by a message without writing anything for it."""


def holds_marks(text: str) -> bool:
    """Return whether a text has characters that marks are made of, and so can't be marked."""
    if text.isascii():
        return False
    marks = (_REGION_START, _REGION_END, GENERATION_START, GENERATION_END)
    return any(mark in text for mark in marks)


def install_markers(environment: jinja2.Environment) -> None:
    """Give an environment what marked templates call, and filters that look at no marks."""
    environment.globals["mtpack_enter"] = _enter
    environment.globals["mtpack_leave"] = _leave
    for name in FILTERS_THAT_READ_TEXT:
        environment.filters[name] = _without_marks(environment.filters[name])


def compile_marked(environment: jinja2.Environment, source: str) -> jinja2.Template:
    """Compile `source` with marks in its loops, in an environment that was taught them."""
    return environment.from_string(parse_marked(environment, source))


def _without_marks(function: Callable[..., Any]) -> Callable[..., Any]:
    def look(value: Any = "", *args: Any, **kwargs: Any) -> Any:
        if isinstance(value, str):
            value = type(value)(_MARK.sub("", value))
        return function(value, *args, **kwargs)

    return look


def parse_marked(environment: jinja2.Environment, source: str) -> nodes.Template:
    """Parse `source` and put calls of `mtpack_enter` and `mtpack_leave` into its loops."""
    tree = environment.parse(source)
    for number, loop in enumerate(list(tree.find_all(nodes.For))):
        if isinstance(loop.target, nodes.Name):
            _mark_loop(loop, f"mtpack_region_{number}")
    tree.set_environment(environment)
    return tree


def has_generation_tags(environment: jinja2.Environment, source: str) -> bool:
    """Return whether a template marks what is trained."""
    return environment.parse(source).find(nodes.ExtensionAttribute) is not None


def read_marks(marked: str, *, has_generations: bool) -> MarkedText:
    """Take the marks out of a text, and tell what they said."""
    pieces: list[str] = []
    open_regions: list[Range] = []  # message, start
    regions: dict[int, list[Range]] = defaultdict(list)
    empty_regions: dict[int, int] = {}
    generations: list[Range] = []
    generation_start = position = copied = 0
    for mark in _MARK.finditer(marked):
        pieces.append(marked[copied : mark.start()])
        position += mark.start() - copied
        copied = mark.end()
        if mark[1] is not None:
            open_regions.append((int(mark[1]), position))
        elif mark[0] == GENERATION_START:
            generation_start = position
        elif mark[0] == GENERATION_END:
            generations.append((generation_start, position))
        elif open_regions:
            message, start = open_regions.pop()
            if start < position:
                regions[message].append((start, position))
            else:
                empty_regions[message] = position
    pieces.append(marked[copied:])
    return MarkedText(
        text="".join(pieces),
        regions={message: found[0] for message, found in regions.items() if len(found) == 1},
        generations=generations if has_generations else None,
        empty_regions={
            message: place for message, place in empty_regions.items() if message not in regions
        },
    )


def _enter(value: Any, entered: str = "") -> str:
    if not entered and type(value) is IndexedMessage:
        return f"{_REGION_START}{value._mtpack_index}{_INDEX_END}"
    return ""


def _leave(entered: str) -> str:
    return _REGION_END if entered else ""


def _mark_loop(loop: nodes.For, variable: str) -> None:
    """Write marks around the body of `loop`; `variable` remembers whether one was opened.

    The loop's own variable can't tell at the end of the body, since the body may set it anew.
    """
    target = loop.target
    assert isinstance(target, nodes.Name)
    enter: list[nodes.Node] = [
        nodes.Assign(nodes.Name(variable, "store"), _call("mtpack_enter", target.name)),
        nodes.Output([nodes.Name(variable, "load")]),
    ]

    def leave() -> nodes.Output:
        return nodes.Output([_call("mtpack_leave", variable)])

    body = _enter_by_index(_leave_before_jumps(loop.body, leave), target.name, variable)
    loop.body = [*enter, *body, leave()]
    for node in loop.body:
        for added in (node, *node.find_all(nodes.Node)):
            if not added.lineno:
                added.lineno = loop.lineno


def _enter_by_index(body: Sequence[nodes.Node], index: str, variable: str) -> list[nodes.Node]:
    """Open the mark behind each `set` that takes an element of a list at the loop's `index`."""
    late = f"{variable}_late"
    result: list[nodes.Node] = []
    for node in body:
        result.append(node)
        match node:
            case nodes.If():
                node.body = _enter_by_index(node.body, index, variable)
                node.else_ = _enter_by_index(node.else_, index, variable)
                _enter_by_index(node.elif_, index, variable)
            case nodes.Assign(
                target=nodes.Name(name=taken), node=nodes.Getitem(arg=nodes.Name(name=used))
            ) if used == index:
                opened = nodes.Or(nodes.Name(variable, "load"), nodes.Name(late, "load"))
                result += [
                    nodes.Assign(nodes.Name(late, "store"), _call("mtpack_enter", taken, variable)),
                    nodes.Output([nodes.Name(late, "load")]),
                    nodes.Assign(nodes.Name(variable, "store"), opened),
                ]
    return result


def _call(function: str, *arguments: str) -> nodes.Call:
    names: list[nodes.Expr] = [nodes.Name(argument, "load") for argument in arguments]
    return nodes.Call(nodes.Name(function, "load"), names, [], None, None)


def _leave_before_jumps(body: list[nodes.Node], leave: Any) -> list[nodes.Node]:
    """Close the mark before each `continue` and `break` of this loop (not of loops inside it)."""
    result: list[nodes.Node] = []
    for node in body:
        if isinstance(node, nodes.Continue | nodes.Break):
            result.append(leave())
        elif isinstance(node, nodes.For):  # jumps in its `else` are this loop's again
            node.else_ = _leave_before_jumps(node.else_, leave)
        else:
            for name, value in node.iter_fields():
                if isinstance(value, list) and any(isinstance(item, nodes.Stmt) for item in value):
                    setattr(node, name, _leave_before_jumps(value, leave))
        result.append(node)
    return result
