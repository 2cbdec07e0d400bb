"""The pure functions that templates apply to their inputs; each has a name."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import jinja2
from jinja2.sandbox import safe_range

from mtpack.template.markers import IndexedMessage

MISSING = jinja2.Undefined()
"""The value that a template gets for a missing key or element."""


@dataclass(frozen=True, slots=True)
class Operation:
    """A function of plain values. Operations of the same name are equal."""

    name: str
    call: Callable[..., Any]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Operation) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)


class Iteration(list[Any]):
    """The elements of an iterator, which most filters return, or of a view of a dict."""


def classify(value: Any) -> Any:
    """Return the kind of a value: what a template can detect without reading its content.

    It is the type, but `None`, `True` and `False` are their own kinds, and the kind of a tuple
    includes its length.
    """
    if value is None or value is True or value is False:
        return value
    if isinstance(value, dict):
        return dict
    if type(value) is tuple:  # not a named tuple, whose elements have names
        return (tuple, len(value))
    return type(value)


def _get_item(values: Any, index: int) -> Any:
    """Return the element at `index`, in the order of iteration."""
    if isinstance(values, dict):
        return next(islice(values, index, None))
    return values[index]


def _has_item(values: Any, index: int) -> bool:
    return bool(-len(values) <= index < len(values))


def _get_value(values: Any, key: Any) -> Any:
    """Return the value of a key, or `MISSING`."""
    return values.get(key, MISSING)


def _to_plain(value: Any) -> Any:
    """Replace a view or an iterator by its elements."""
    if isinstance(value, str | int | float | list | range | tuple | dict | jinja2.Undefined | None):
        return value
    return Iteration(value) if isinstance(value, Iterable) else value


def make_method(name: str) -> Operation:
    """Make the operation that calls the method `name` of its first argument."""
    return Operation(f".{name}", lambda value, *rest: _to_plain(getattr(value, name)(*rest)))


def make_function(
    name: str, function: Callable[..., Any], keywords: tuple[str, ...] = ()
) -> Operation:
    """Make the operation of a filter, test or macro; its last arguments are those of `keywords`."""

    def call(*arguments: Any) -> Any:
        cut = len(arguments) - len(keywords)
        named = dict(zip(keywords, arguments[cut:], strict=True))
        return _to_plain(function(*arguments[:cut], **named))

    return Operation(f"|{name}({','.join(keywords)})", call)


KIND = Operation("kind", classify)
GET = Operation("get", _get_value)
ITEM = Operation("item", _get_item)
HAS_ITEM = Operation("has item", _has_item)
LENGTH = Operation("length", len)
TRUTH = Operation("truth", bool)
VALUE = Operation("value", lambda value: value)
SLICE = Operation("slice", lambda values, *bounds: values[slice(*bounds)])
CONTAINS = Operation("contains", operator.contains)
TEXT = Operation("text", str)
JOIN = Operation("join", lambda *parts: "".join(parts))
LIST = Operation("list", lambda *items: list(items))
RANGE = Operation("range", safe_range)
ELEMENTS = Operation("elements", list)


def _holds_message(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_holds_message, value))
    return type(value) is IndexedMessage


HOLDS_MESSAGE = Operation("holds message", _holds_message)
"""Whether a value is a message of the dialogue or a list with one."""

ARITHMETIC = {
    name: Operation(name, getattr(operator, name))
    for name in ("add", "sub", "mul", "floordiv", "mod", "truediv")
}
COMPARISONS = {
    name: Operation(name, getattr(operator, name)) for name in ("eq", "lt", "le", "gt", "ge")
}
_FOR_ITERATIONS = {
    *("elements", "|join", "|first", "|map", "|sort", "|unique", "|sum", "|min", "|max", "|batch"),
    *("|slice", "|select", "|reject", "|selectattr", "|rejectattr", "|groupby"),
}


def is_applicable(operation: Operation, value: Any) -> bool:
    """Return whether an operation gives the same for an `Iteration` as for what it replaces."""
    name = operation.name.partition("(")[0]
    return not isinstance(value, Iteration) or name in _FOR_ITERATIONS
