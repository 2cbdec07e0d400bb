"""Find what a template writes for each message: marks in its loops over the messages.

A chat template writes messages in a `for` loop. Two calls are added to every loop of the parsed
template. One, at the start of the body, writes a mark if the loop's variable is a message of the
dialogue. The other, at the end of the body (and before `continue` and `break`), closes it. In a
loop over indices, the mark is written where the body takes a message out of the list. The marks
are part of the text, so they are also right in macros and `set` blocks. Without its marks, the
text must equal what the plain template writes; otherwise the marks are not used.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import jinja2
from jinja2 import nodes

from mtpack.template.environment import GENERATION_END, GENERATION_START
from mtpack.template.slots import SLOT, has_text_between

REGION_START = "\ufdd0"
_INDEX_END = "\ufdd1"
REGION_END = "\ufdd2"
_MARK = re.compile(
    f"{REGION_START}([0-9]+){_INDEX_END}|[{REGION_END}{GENERATION_START}{GENERATION_END}]"
)

FILTERS_THAT_READ_TEXT = ("int", "float", "length", "count")
"""Filters whose result depends on a text, and must not depend on its marks."""

Range = tuple[int, int]


class IndexedMessage(dict[str, Any]):
    """A message with its index in the dialogue, which the template can't see."""

    __slots__ = ("_mtpack_index",)  # the sandbox hides names that start with "_"

    def __init__(self, fields: dict[str, Any], index: int) -> None:
        super().__init__(fields)
        self._mtpack_index = index


@dataclass(frozen=True, slots=True)
class MarkedText:
    """A rendered text, and the regions that the template wrote for each message.

    Raises UndecidedError where the texts in slots decide whether a region is empty.
    """

    text: str
    marked: dict[int, list[Range]]
    """Characters [start, end) by message index, for every pass of a loop over the messages."""
    generations: list[Range] | None
    """Characters [start, end) in `generation` tags; None for a template without such tags."""
    nested: dict[int, list[Range]] = field(default_factory=dict)
    """Those of `marked` that lie inside another region."""

    @property
    def regions(self) -> dict[int, Range]:
        """The region of each message that is written exactly once."""
        found = ((message, self.find_region(message)) for message in self.marked)
        return {message: region for message, region in found if region is not None}

    def find_region(self, message: int) -> Range | None:
        """Return the region of a message; None unless it is written exactly once.

        A pass for another message may look a message up and write something of it as well: the
        call with the id of a result. If several messages have that id, it finds all of them. So
        where a message is written several times, what is written in other passes does not count.
        """
        written = set(self.find_written(message))
        if len(written) > 1:
            written -= set(self.nested.get(message, ()))
        return written.pop() if len(written) == 1 else None

    def find_empty_region(self, message: int) -> Range | None:
        """Return the empty region of a message for which the loops wrote nothing; else None."""
        is_empty = message in self.marked and not self.find_written(message)
        return self.marked[message][-1] if is_empty else None

    def find_written(self, message: int) -> list[Range]:
        """Return the regions of a message in all passes that wrote something for it."""
        return [
            region
            for region in self.marked.get(message, ())
            if has_text_between(self.text, *region)
        ]


Text = TypeVar("Text", str, MarkedText)
"""A rendered text, without or with its regions."""


MARK_BYTES = REGION_START.encode()[:2]
"""The bytes with which all characters of marks begin, in UTF-8."""


def has_mark_characters(text: str) -> bool:
    """Return whether a text has characters of which marks are made, so that it can't be marked."""
    if text.isascii():
        return False
    marks = (REGION_START, REGION_END, GENERATION_START, GENERATION_END)
    return any(mark in text for mark in marks)


def has_reserved_characters(text: str) -> bool:
    """Return whether a text has characters that stand for marks or slots."""
    return has_mark_characters(text) or (not text.isascii() and SLOT.search(text) is not None)


def install_markers(environment: jinja2.Environment) -> None:
    """Add to an environment the functions of marked templates, and filters that ignore marks."""
    environment.globals["mtpack_enter"] = _enter
    environment.globals["mtpack_leave"] = _leave
    for name in FILTERS_THAT_READ_TEXT:
        environment.filters[name] = _ignore_marks(environment.filters[name])


def _ignore_marks(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(value: Any = "", *args: Any, **kwargs: Any) -> Any:
        if isinstance(value, str):
            value = type(value)(_MARK.sub("", value))
        return function(value, *args, **kwargs)

    return call


def parse_marked(environment: jinja2.Environment, source: str) -> nodes.Template:
    """Parse `source` and add calls of `mtpack_enter` and `mtpack_leave` to its loops."""
    tree = environment.parse(source)
    for number, loop in enumerate(list(tree.find_all(nodes.For))):
        if isinstance(loop.target, nodes.Name):
            _mark_loop(loop, f"mtpack_region_{number}")
    tree.set_environment(environment)
    return tree


def has_generation_tags(environment: jinja2.Environment, source: str) -> bool:
    """Return whether a template has `generation` tags."""
    return environment.parse(source).find(nodes.ExtensionAttribute) is not None


def read_marks(marked: str, *, has_generations: bool) -> MarkedText:
    """Remove the marks from a text, and return it with the regions that they mark."""
    pieces: list[str] = []
    open_regions: list[Range] = []  # message, start
    regions: dict[int, list[Range]] = defaultdict(list)
    nested: dict[int, list[Range]] = defaultdict(list)
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
            regions[message].append((start, position))
            if open_regions:
                nested[message].append((start, position))
    pieces.append(marked[copied:])
    tagged = generations if has_generations else None
    return MarkedText("".join(pieces), dict(regions), tagged, dict(nested))


def open_region(message: int) -> str:
    """Return the mark at the start of the output of a message."""
    return f"{REGION_START}{message}{_INDEX_END}"


def _enter(value: Any, entered: str = "") -> str:
    return open_region(value._mtpack_index) if not entered and type(value) is IndexedMessage else ""


def _leave(entered: str) -> str:
    return REGION_END if entered else ""


def _mark_loop(loop: nodes.For, variable: str) -> None:
    """Write marks around the body of `loop`; `variable` stores whether a mark was opened.

    The loop's own variable can't be used for that, since the body may set it to something else.
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
    """Open the mark after each `set` that takes the element of a list at the loop's `index`."""
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
    """Close the mark before each `continue` and `break` of this loop, not of loops inside it."""
    result: list[nodes.Node] = []
    for node in body:
        if isinstance(node, nodes.Continue | nodes.Break):
            result.append(leave())
        elif isinstance(node, nodes.For):  # jumps in its `else` belong to the outer loop
            node.else_ = _leave_before_jumps(node.else_, leave)
        else:
            for name, value in node.iter_fields():
                if isinstance(value, list) and any(isinstance(item, nodes.Stmt) for item in value):
                    setattr(node, name, _leave_before_jumps(value, leave))
        result.append(node)
    return result
