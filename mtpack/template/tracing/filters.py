"""Filters and tests of templates, for stand-ins as well."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jinja2
from jinja2 import nodes

from mtpack.template.markers import FILTERS_THAT_READ_TEXT
from mtpack.template.tracing import operations
from mtpack.template.tracing.operations import filtered
from mtpack.template.tracing.recorder import Recorder
from mtpack.template.tracing.tracers import (
    Composite,
    Flag,
    Iteration,
    Listing,
    Mapping,
    Number,
    Text,
    Tracer,
    Untraceable,
    View,
    holds_tracer,
)


def _bound(plain: jinja2.Environment, function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a filter or test the context, or whatever it asks Jinja for, of real renders."""
    asked = jinja2.utils._PassArg.from_obj(function)
    if asked is None:
        return function
    leads = {
        jinja2.utils._PassArg.context: plain.from_string("").new_context(),
        jinja2.utils._PassArg.eval_context: nodes.EvalContext(plain),
        jinja2.utils._PassArg.environment: plain,
    }
    return partial(function, leads[asked])


def traced_filter(
    recorder: Callable[[], Recorder],
    plain: jinja2.Environment,
    name: str,
    function: Callable[..., Any],
) -> Callable[..., Any]:
    """Return a filter that is applied to plain values, and noted down for stand-ins."""
    bound = _bound(plain, function)

    def call(value: Any = operations.MISSING, *args: Any, **kwargs: Any) -> Any:
        if type(value) is str:
            value = recorder().captured(value)
        if isinstance(value, Composite) and name in FILTERS_THAT_READ_TEXT:
            value = value.without_marks()
        if name in _STRUCTURAL:
            found = _STRUCTURAL[name](value, *args)
            if found is not None:
                return found
        if name in ("default", "d") or not holds_tracer([value, args, kwargs]):
            return bound(value, *args, **kwargs)
        if name in ("first", "last", "length", "count", "list") and not isinstance(value, Tracer):
            return bound(value)  # these don't look at the elements
        operation = filtered(name, bound, tuple(kwargs))
        return recorder().apply(operation, value, *args, *kwargs.values())

    return call


def _first(value: Any) -> Any:
    if not isinstance(value, Listing):
        return None
    return value.item(0) if value.has(0) else jinja2.Undefined()


def _last(value: Any) -> Any:
    if not isinstance(value, Listing):
        return None
    return value.item(-1) if value.has(-1) else jinja2.Undefined()


def _length(value: Any) -> Any:
    if not isinstance(value, Tracer):
        return None
    return value.recorder.apply(operations.LENGTH, value, kind="int")


def _list(value: Any) -> Any:
    if isinstance(value, View):
        return value.elements()
    if isinstance(value, Listing):  # of a range, too
        return value.recorder.apply(operations.ELEMENTS, value, kind="list")
    return None


def _reverse(value: Any) -> Any:
    if not isinstance(value, Listing):
        return None
    return value.recorder.apply(operations.REVERSED, value, kind="iteration")


# Filters that can be followed into what they are given; None where they can't.
_STRUCTURAL: dict[str, Callable[..., Any]] = {
    "first": _first,
    "last": _last,
    "length": _length,
    "count": _length,
    "list": _list,
    "reverse": _reverse,
    "string": lambda value: value if isinstance(value, Text) and type(value.value) is str else None,
}

_TESTS: dict[str, Callable[[Tracer], bool]] = {
    "defined": lambda value: True,
    "undefined": lambda value: False,
    "none": lambda value: False,
    "boolean": lambda value: isinstance(value, Flag),
    "true": lambda value: isinstance(value, Flag) and bool(value),
    "false": lambda value: isinstance(value, Flag) and not value,
    "string": lambda value: isinstance(value, Text),
    "mapping": lambda value: isinstance(value, Mapping),
    "iterable": lambda value: not isinstance(value, Number | Flag),
    "sequence": lambda value: not isinstance(value, Number | Flag | View | Iteration),
    "number": lambda value: isinstance(value, Number | Flag),
    "integer": lambda value: type(value.value) is int,
    "float": lambda value: type(value.value) is float,
}


def traced_test(
    recorder: Callable[[], Recorder],
    plain: jinja2.Environment,
    name: str,
    function: Callable[..., Any],
) -> Callable[..., Any]:
    """Return a test that is made of plain values, and asked of stand-ins."""
    bound = _bound(plain, function)

    def call(value: Any, *args: Any) -> Any:
        if type(value) is str:
            value = recorder().captured(value)
        if isinstance(value, Tracer) and name in _TESTS:
            return _TESTS[name](value)
        if name in _TESTS or not holds_tracer([value, args]):
            return bound(value, *args)
        if name == "sameas" and not any(args[0] is one for one in (None, True, False)):
            raise Untraceable("whether two values are one object")
        return recorder().ask(filtered(f"is {name}", bound), value, *args)

    return call
