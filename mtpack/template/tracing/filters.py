"""Filters and tests of templates that accept tracers as well as plain values."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jinja2
from jinja2 import nodes

from mtpack.template.markers import FILTERS_THAT_READ_TEXT
from mtpack.template.tracing import operations
from mtpack.template.tracing.operations import make_function
from mtpack.template.tracing.recorder import Recorder
from mtpack.template.tracing.tracers import (
    CompositeTracer,
    DictTracer,
    FlagTracer,
    IterationTracer,
    ListTracer,
    NumberTracer,
    TextTracer,
    Tracer,
    Untraceable,
    ViewTracer,
    holds_tracer,
)


def _bind(plain: jinja2.Environment, function: Callable[..., Any]) -> Callable[..., Any]:
    """Bind a filter or test to the Jinja object that it needs, such as the context, if any.

    The object is the one of real renders.
    """
    wanted = jinja2.utils._PassArg.from_obj(function)
    if wanted is None:
        return function
    first_arguments = {
        jinja2.utils._PassArg.context: plain.from_string("").new_context(),
        jinja2.utils._PassArg.eval_context: nodes.EvalContext(plain),
        jinja2.utils._PassArg.environment: plain,
    }
    return partial(function, first_arguments[wanted])


def trace_filter(
    recorder: Callable[[], Recorder],
    plain: jinja2.Environment,
    name: str,
    function: Callable[..., Any],
) -> Callable[..., Any]:
    """Return a filter that is applied to plain values, and recorded for tracers."""
    bound = _bind(plain, function)

    def call(value: Any = operations.MISSING, *args: Any, **kwargs: Any) -> Any:
        if type(value) is str:
            value = recorder().resolve_placeholders(value)
        if isinstance(value, CompositeTracer) and name in FILTERS_THAT_READ_TEXT:
            value = value.drop_marks()
        if name in _TRACED_FILTERS:
            found = _TRACED_FILTERS[name](value, *args)
            if found is not None:
                return found
        if name in ("default", "d") or not holds_tracer([value, args, kwargs]):
            return bound(value, *args, **kwargs)
        if name in ("first", "last", "length", "count", "list") and not isinstance(value, Tracer):
            return bound(value)  # these don't read the elements
        operation = make_function(name, bound, tuple(kwargs))
        return recorder().apply(operation, value, *args, *kwargs.values())

    return call


def _trace_first(value: Any) -> Any:
    if not isinstance(value, ListTracer):
        return None
    return value.get_item(0) if value.has_item(0) else jinja2.Undefined()


def _trace_last(value: Any) -> Any:
    if not isinstance(value, ListTracer):
        return None
    return value.get_item(-1) if value.has_item(-1) else jinja2.Undefined()


def _trace_length(value: Any) -> Any:
    if not isinstance(value, Tracer):
        return None
    return value.recorder.apply(operations.LENGTH, value, kind="int")


def _trace_list(value: Any) -> Any:
    if isinstance(value, ViewTracer):
        return value.list_elements()
    if isinstance(value, ListTracer):  # it may trace a range
        return value.recorder.apply(operations.ELEMENTS, value, kind="list")
    return None


def _trace_reverse(value: Any) -> Any:
    if not isinstance(value, ListTracer):
        return None
    return value.recorder.apply(operations.REVERSED, value, kind="iteration")


# Filters that need not be one opaque operation; each returns None for a value that it can't trace.
_TRACED_FILTERS: dict[str, Callable[..., Any]] = {
    "first": _trace_first,
    "last": _trace_last,
    "length": _trace_length,
    "count": _trace_length,
    "list": _trace_list,
    "reverse": _trace_reverse,
    "string": lambda value: (
        value if isinstance(value, TextTracer) and type(value.value) is str else None
    ),
}

_TRACED_TESTS: dict[str, Callable[[Tracer], bool]] = {
    "defined": lambda value: True,
    "undefined": lambda value: False,
    "none": lambda value: False,
    "boolean": lambda value: isinstance(value, FlagTracer),
    "true": lambda value: isinstance(value, FlagTracer) and bool(value),
    "false": lambda value: isinstance(value, FlagTracer) and not value,
    "string": lambda value: isinstance(value, TextTracer),
    "mapping": lambda value: isinstance(value, DictTracer),
    "iterable": lambda value: not isinstance(value, NumberTracer | FlagTracer),
    "sequence": lambda value: (
        not isinstance(value, NumberTracer | FlagTracer | ViewTracer | IterationTracer)
    ),
    "number": lambda value: isinstance(value, NumberTracer | FlagTracer),
    "integer": lambda value: type(value.value) is int,
    "float": lambda value: type(value.value) is float,
}


def trace_test(
    recorder: Callable[[], Recorder],
    plain: jinja2.Environment,
    name: str,
    function: Callable[..., Any],
) -> Callable[..., Any]:
    """Return a test that is applied to plain values, and recorded as a question for tracers."""
    bound = _bind(plain, function)

    def call(value: Any, *args: Any) -> Any:
        if type(value) is str:
            value = recorder().resolve_placeholders(value)
        if isinstance(value, Tracer) and name in _TRACED_TESTS:
            return _TRACED_TESTS[name](value)
        if name in _TRACED_TESTS or not holds_tracer([value, args]):
            return bound(value, *args)
        if name == "sameas" and not any(args[0] is one for one in (None, True, False)):
            raise Untraceable("whether two values are one object")
        return recorder().ask(make_function(f"is {name}", bound), value, *args)

    return call
