"""The pure functions that templates apply to what they are given, by name."""

from __future__ import annotations

import operator
from collections.abc import Callable, ItemsView, Iterable, KeysView, ValuesView
from dataclasses import dataclass
from itertools import islice
from typing import Any

import jinja2
from jinja2.sandbox import safe_range
from markupsafe import Markup

MISSING = jinja2.Undefined()
"""What a template gets where there is nothing."""


@dataclass(frozen=True, slots=True)
class Operation:
    """A function of plain values; the name tells operations apart."""

    name: str
    call: Callable[..., Any]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Operation) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)


class View(list[Any]):
    """The elements of what can be iterated over and counted, and is no list: a dict's keys."""


class Iteration(list[Any]):
    """The elements of what can be iterated over once, such as most filters give."""


_KINDS: dict[type, Any] = {
    str: "str",
    Markup: "markup",
    int: "int",
    float: "float",
    list: "list",
    range: "range",
    View: "view",
    Iteration: "iteration",
    jinja2.Undefined: "missing",
}


def kind(value: Any) -> Any:
    """Return what sort of value this is, as far as templates can tell without looking into it.

    `None`, `True` and `False` are their own kind, and a tuple's has its length.
    """
    if value is None or value is True or value is False:
        return value
    found = _KINDS.get(type(value))
    if found is not None:
        return found
    if isinstance(value, dict):
        return "dict"
    if type(value) is tuple:  # others have names for their elements
        return ("tuple", len(value))
    return type(value).__name__


def _item(values: Any, index: int) -> Any:
    """Return the element at `index`, in the order of iteration."""
    if isinstance(values, dict):
        return next(islice(values, index, None))
    return values[index]


def _has_item(values: Any, index: int) -> bool:
    return bool(-len(values) <= index < len(values))


def _get(values: Any, key: Any) -> Any:
    """Return the value of a key, or `MISSING`."""
    return values.get(key, MISSING)


def _plain(value: Any) -> Any:
    """Turn what is left to be iterated over into a list that knows what it was."""
    if isinstance(value, str | int | float | list | range | tuple | dict | jinja2.Undefined | None):
        return value
    if isinstance(value, KeysView | ValuesView | ItemsView):
        return View(value)
    return Iteration(value) if isinstance(value, Iterable) else value


def method(name: str) -> Operation:
    """Return the method `name` of the first argument."""
    return Operation(f".{name}", lambda value, *rest: _plain(getattr(value, name)(*rest)))


def filtered(name: str, function: Callable[..., Any], keywords: tuple[str, ...] = ()) -> Operation:
    """Return the filter or test `name`; the last arguments are those of `keywords`."""

    def call(*arguments: Any) -> Any:
        cut = len(arguments) - len(keywords)
        named = dict(zip(keywords, arguments[cut:], strict=True))
        return _plain(function(*arguments[:cut], **named))

    return Operation(f"|{name}({','.join(keywords)})", call)


KIND = Operation("kind", kind)
GET = Operation("get", _get)
ITEM = Operation("item", _item)
HAS_ITEM = Operation("has item", _has_item)
LENGTH = Operation("length", len)
TRUTH = Operation("truth", bool)
VALUE = Operation("value", lambda value: value)
SLICE = Operation("slice", lambda values, *bounds: values[slice(*bounds)])
CONTAINS = Operation("contains", operator.contains)
TEXT = Operation("text", str)
JOIN = Operation("join", lambda *parts: "".join(parts))
LIST = Operation("list", lambda *items: list(items))
TUPLE = Operation("tuple", lambda *items: items)
DICT = Operation("dict", lambda keys, *values: dict(zip(keys, values, strict=True)))
RANGE = Operation("range", safe_range)
ELEMENTS = Operation("elements", list)
REVERSED = Operation("reversed", lambda values: Iteration(values[::-1]))


def _is_message(value: Any) -> bool:
    return type(value).__name__ == "IndexedMessage"


def _holds_message(value: Any) -> bool:
    return _is_message(value) or (isinstance(value, list) and any(map(_holds_message, value)))


IS_MESSAGE = Operation("is message", _is_message)
HOLDS_MESSAGE = Operation("holds message", _holds_message)

ARITHMETIC = {
    name: Operation(name, getattr(operator, name))
    for name in ("add", "sub", "mul", "floordiv", "mod", "truediv", "neg")
}
_FOR_VIEWS = {
    *("elements", "length", "truth", "contains"),
    *("|join", "|first", "|list", "|map", "|sort", "|unique", "|sum", "|min", "|max", "|batch"),
    *("|slice", "|select", "|reject", "|selectattr", "|rejectattr", "|groupby"),
}
_FOR_ITERATIONS = _FOR_VIEWS - {"length", "truth", "contains"}


def may_take(operation: Operation, value: Any) -> bool:
    """Return whether an operation makes the same of a list as of what the list stands for."""
    name = operation.name.partition("(")[0]
    if isinstance(value, View):
        return name in _FOR_VIEWS
    return not isinstance(value, Iteration) or name in _FOR_ITERATIONS


COMPARISONS = {
    name: Operation(name, getattr(operator, name)) for name in ("eq", "lt", "le", "gt", "ge")
}
