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
    IterationTracer,
    TextTracer,
    Tracer,
    Untraceable,
    holds_tracer,
)


def _bind(plain: jinja2.Environment, function: Callable[..., Any]) -> Callable[..., Any]:
    """Bind a filter or test to the Jinja object that it needs, such as the context, if any.

    The object is the one of real renders.
    """
    wanted = jinja2.utils._PassArg.from_obj(function)
    if wanted is None:
        return function
    if wanted is jinja2.utils._PassArg.context:
        return partial(function, plain.from_string("").new_context())
    if wanted is jinja2.utils._PassArg.eval_context:
        return partial(function, nodes.EvalContext(plain))
    return partial(function, plain)


def trace_function(
    get_recorder: Callable[[], Recorder],
    plain: jinja2.Environment,
    name: str,
    function: Callable[..., Any],
) -> Callable[..., Any]:
    """Return a filter or a test that is applied to plain values, and recorded for tracers.

    name: the name of a filter, or `is` and the name of a test.
    """
    bound = _bind(plain, function)

    def call(value: Any, *args: Any, **kwargs: Any) -> Any:
        recorder = get_recorder()
        if type(value) is str:
            value = recorder.resolve_placeholders(value)
        if isinstance(value, CompositeTracer) and name in FILTERS_THAT_READ_TEXT:
            value = value.drop_marks()
        if name in ("default", "d") or not holds_tracer([value, args, kwargs]):
            return bound(value, *args, **kwargs)
        if name in _KIND_TESTS and not isinstance(value, IterationTracer):
            return bound(value.value if isinstance(value, Tracer) else value)
        if name in ("length", "count") and isinstance(value, Tracer):
            return recorder.apply(operations.LENGTH, value, kind=int)
        if name == "list" and isinstance(value, Tracer):
            return recorder.apply(operations.ELEMENTS, value, kind=list)
        if name == "string" and isinstance(value, TextTracer) and type(value.value) is str:
            return value
        if name == "is sameas" and not any(args[0] is one for one in (None, True, False)):
            raise Untraceable("whether two values are one object")
        operation = make_function(name, bound, tuple(kwargs))
        operate = recorder.ask if name.startswith("is ") else recorder.apply
        return operate(operation, value, *args, *kwargs.values())

    return call


# Tests of the kind of a value, which was recorded when the template got the value.
_KIND_TESTS = {
    *("is defined", "is undefined", "is none", "is string", "is mapping", "is iterable"),
    *("is sequence", "is boolean", "is number", "is integer", "is float"),
}
