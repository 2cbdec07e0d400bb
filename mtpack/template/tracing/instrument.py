"""Make Jinja run a template on tracers: an environment that supports them, a rewritten template.

The environment is the one of real renders, but its look-ups, calls, filters and tests support
tracers. Compiled templates also use Python's own operators, so templates are rewritten to call
functions of this module instead (`rewriting.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.runtime import LoopContext, Macro

from mtpack.template.environment import make_settings
from mtpack.template.limits import LimitedEnvironment
from mtpack.template.markers import REGION_END, REGION_START, parse_marked
from mtpack.template.texts import to_operand, to_text
from mtpack.template.tracing import operations
from mtpack.template.tracing.closed_macros import find_closed_macros
from mtpack.template.tracing.filters import trace_function
from mtpack.template.tracing.operations import ARITHMETIC, make_function, make_method
from mtpack.template.tracing.recorder import Recorder
from mtpack.template.tracing.rewriting import rewrite, skip_characters
from mtpack.template.tracing.tracers import (
    CollectionTracer,
    DictTracer,
    IterationTracer,
    ListTracer,
    Mark,
    NumberTracer,
    Opaque,
    TextTracer,
    Tracer,
    Untraceable,
    holds_tracer,
)

_QUESTIONS = {
    "startswith",
    "endswith",
    "isdigit",
    "isspace",
    "isalpha",
    "isalnum",
    "isupper",
}
_METHODS: dict[type, set[str]] = {
    str: _QUESTIONS
    | {"strip", "lstrip", "rstrip", "split", "rsplit", "splitlines", "replace", "upper", "lower"}
    | {"title", "capitalize", "find", "rfind", "index", "count", "partition", "rpartition"}
    | {"removeprefix", "removesuffix", "join"},
    dict: {"items", "keys", "values", "get"},
}


class _BoundMethod(Opaque):
    """A method of a traced value, which the template may call."""

    def __init__(self, owner: Tracer, name: str) -> None:
        self.owner = owner
        self.name = name

    def __call__(self, *arguments: Any) -> Any:
        if isinstance(self.owner, DictTracer) and self.name == "get":
            return self.owner.get(*arguments)
        recorder = self.owner.recorder
        operate = recorder.ask if self.name in _QUESTIONS else recorder.apply
        return operate(make_method(self.name), self.owner, *arguments)


class SteppedLoop(Opaque):
    """The variable `loop` in a loop whose iterations are steps."""

    def __init__(self, over: Any, index: Any) -> None:
        self.over = over
        self.index = index
        self.item = over.get_item(index)

    def read_attribute(self, name: str) -> Any:
        """Return `loop.name`."""
        match name:
            case "index0":
                return self.index
            case "index":
                return self._offset_index(1)
            case "first":
                return bool(self.index == 0)
            case "last":
                return not self.over.has_item(self._offset_index(1))
            case "previtem" if self.index != 0:
                return self.over.get_item(self._offset_index(-1))
            case "nextitem" if self.over.has_item(self._offset_index(1)):
                return self.over.get_item(self._offset_index(1))
            case "previtem" | "nextitem":
                return jinja2.Undefined()
        raise Untraceable(f"loop.{name}")

    def _offset_index(self, distance: int) -> Any:
        return self.index.recorder.apply(ARITHMETIC["add"], self.index, distance, kind=int)


class RecordingEnvironment(LimitedEnvironment):
    """The environment of chat templates, extended to tracers."""

    intercepted_binops = frozenset({"%"})
    recorder: Recorder
    rewrite_functions: tuple[Callable[..., Any], ...]
    """The functions that rewritten templates call."""
    find_closed_macros: Callable[[], dict[str, Callable[..., str]]]
    """Returns the closed macros of the template, as compiled for real renders, by name. The first
    call compiles them, which takes as long as to compile the template."""

    def parse(
        self, source: str, name: str | None = None, filename: str | None = None
    ) -> nodes.Template:
        """Parse a template, and let its loops over the parts of a content skip characters."""
        tree = super().parse(source, name, filename)
        skip_characters(tree)
        return tree

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Return `obj.attribute` by the rules of Jinja: a method, or else an element."""
        if isinstance(obj, SteppedLoop):
            return obj.read_attribute(attribute)
        if isinstance(obj, Opaque | IterationTracer):
            raise Untraceable(f".{attribute}")
        if not isinstance(obj, Tracer):
            return super().getattr(obj, attribute)
        kind = dict if isinstance(obj, DictTracer) else type(obj.value)
        if hasattr(kind, attribute):
            if attribute not in _METHODS.get(kind, ()):
                raise Untraceable(f".{attribute}")
            return _BoundMethod(obj, attribute)
        return obj.look_up(attribute) if isinstance(obj, DictTracer) else jinja2.Undefined()

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Return `obj[argument]` by the rules of Jinja: an element, or else a method."""
        if isinstance(obj, DictTracer):
            found = obj.look_up(argument)
        elif isinstance(obj, dict) and isinstance(argument, Tracer):
            found = next((obj[key] for key in obj if argument == key), jinja2.Undefined())
        elif isinstance(obj, Tracer | Opaque) and isinstance(argument, str):
            return self.getattr(obj, argument)
        elif isinstance(obj, CollectionTracer) and isinstance(argument, int | NumberTracer):
            return obj.get_item(argument) if obj.has_item(argument) else jinja2.Undefined()
        elif isinstance(obj, Tracer) or isinstance(argument, Tracer):
            raise Untraceable("an element of another type")
        else:
            return super().getitem(obj, argument)
        if isinstance(found, jinja2.Undefined) and self._names_method(argument):
            raise Untraceable("a method under the name of a key")
        return found

    def _names_method(self, key: Any) -> bool:
        """Return whether a key is the name of a method of a dict."""
        if isinstance(key, Tracer):
            return bool(self.recorder.ask(_NAMES_A_METHOD, key))
        return bool(_NAMES_A_METHOD.call(key))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Return `left % right`, for which Python would read the text of a tracer."""
        if holds_tracer([left, right]):
            return self.recorder.apply(ARITHMETIC["mod"], left, right)
        return to_operand(left) % right

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call what a template calls: a method, a macro or another function."""
        for name in ("_loop_vars", "_block_vars"):  # for functions that take the context
            kwargs.pop(name, None)
        if isinstance(obj, _BoundMethod) or obj in self.rewrite_functions:
            return obj(*args, **kwargs)
        if isinstance(obj, Macro) and self._is_single_operation(obj, [*args, *kwargs.values()]):
            operation = make_function(
                f"macro {obj.name}", self.find_closed_macros()[obj.name], tuple(kwargs)
            )
            return self.recorder.apply(operation, *args, *kwargs.values(), kind=str)
        if not isinstance(obj, Macro) and (holds_tracer(args) or holds_tracer(kwargs)):
            if obj is self.globals["range"]:
                return self.recorder.apply(operations.RANGE, *args, kind=range)
            if obj not in (self.globals["namespace"], self.globals["raise_exception"]):
                raise Untraceable("a call of a function that does not support tracers")
        result = super().call(context, obj, *args, **kwargs)
        if type(result) is not str or "caller" in kwargs:  # a call block yields it unchanged
            return result
        return self.recorder.resolve_placeholders(result)

    def _is_single_operation(self, macro: Macro, arguments: list[Any]) -> bool:
        """Return whether a call of a macro is best recorded as one operation.

        A macro that writes a tool or the arguments of a call may ask many questions, with other
        answers in each dialogue. Of a macro that writes messages or texts, the events are recorded.
        """
        traced = [value for value in arguments if isinstance(value, ListTracer | DictTracer)]
        if not traced or macro.name not in self.find_closed_macros():
            return False
        return not any(self.recorder.ask(operations.HOLDS_MESSAGE, value) for value in traced)


_NAMES_A_METHOD = operations.Operation(
    "names a method", lambda key: isinstance(key, str) and hasattr(dict, key)
)


def compile_recording(
    source: str, plain: LimitedEnvironment, inputs: set[str]
) -> tuple[RecordingEnvironment, jinja2.Template]:
    """Compile a template so that it runs on tracers.

    plain: the environment of real renders; its filters and tests compute the values. inputs: the
    names of the template's inputs. Raises Untraceable.
    """
    environment = RecordingEnvironment(plain.meter, **make_settings(marked=True))
    write = _Writer(environment)
    functions: dict[str, Callable[..., Any]] = {
        "mtpack_enter": write.open_region,
        "mtpack_leave": write.close_region,
        "mtpack_write": write.write,
        "mtpack_concat": write.concatenate,
        "mtpack_in": _contains,
        "mtpack_parts": _iterate_parts,
        "mtpack_iterate": partial(_iterate, environment),
        "mtpack_step": write.begin_step,
    }
    environment.globals = plain.globals | functions
    environment.rewrite_functions = tuple(functions.values())
    trace = partial(trace_function, lambda: environment.recorder, plain)
    filters, tests = dict[str, Any](plain.filters), dict[str, Any](plain.tests)
    environment.filters = {name: trace(name, function) for name, function in filters.items()}
    environment.filters["mtpack_captured"] = write.capture
    environment.tests = {name: trace(f"is {name}", function) for name, function in tests.items()}
    tree = parse_marked(environment, source)
    variables = rewrite(tree)
    environment.find_closed_macros = cache(
        partial(find_closed_macros, plain, source, inputs | variables)
    )
    tree.set_environment(environment)
    return environment, environment.from_string(tree)


class _Writer:
    """The functions that rewritten templates call to make text."""

    def __init__(self, environment: RecordingEnvironment) -> None:
        self._environment = environment

    def write(self, value: Any) -> str:
        """Return the output of `{{ value }}`: text, or a placeholder for it."""
        recorder = self._environment.recorder
        if isinstance(value, Tracer | Mark):
            return recorder.make_placeholder(value)
        if holds_tracer(value):
            return recorder.make_placeholder(recorder.apply(operations.TEXT, value, kind=str))
        return to_text(value)

    def concatenate(self, *values: Any) -> Any:
        """Return the result of `~`."""
        return self.capture("".join(map(self.write, values)))

    def capture(self, text: str) -> Any:
        """Return the text of a block, as a tracer where it has placeholders."""
        return self._environment.recorder.resolve_placeholders(text)

    def open_region(self, value: Any, entered: Any = "") -> Any:
        """Return the mark that opens a message's output, or `""` if the value is no message.

        entered: the mark that the loop's body has opened already, if any.
        """
        if isinstance(entered, Mark):
            return ""
        if isinstance(value, DictTracer) and self._environment.recorder.ask(
            operations.HOLDS_MESSAGE, value
        ):
            return Mark(REGION_START, value)
        return ""

    def close_region(self, entered: Any) -> Any:
        """Return the mark that closes what `entered` opened, or `""` if it is no mark."""
        return Mark(REGION_END) if isinstance(entered, Mark) else ""

    def begin_step(self, loop: Any, number: int, live: list[Any]) -> str:
        """Begin a step if the loop iterates over a traced value."""
        if isinstance(loop, SteppedLoop):
            self._environment.recorder.begin_step(number, [loop.over, loop.index, loop.item, *live])
        return ""


def _iterate(environment: RecordingEnvironment, values: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each element of `values` with the loop variable `loop`."""
    recorder = environment.recorder
    if not isinstance(values, ListTracer | DictTracer):
        yield from LoopContext(values, jinja2.Undefined)
        return
    index = recorder.trace_constant(0)
    while values.has_item(index):
        yield (loop := SteppedLoop(values, index)).item, loop
        index = recorder.apply(ARITHMETIC["add"], index, 1, kind=int)


def _iterate_parts(values: Any) -> Any:
    """Return the parts of a content; a text has none."""
    return () if isinstance(values, TextTracer | str) else values


def _contains(item: Any, values: Any) -> bool:
    if isinstance(values, Tracer):
        return item in values  # type: ignore[operator]  # without items: TypeError
    if isinstance(item, Tracer) and isinstance(values, str):
        return bool(item.recorder.ask(operations.CONTAINS, values, item))
    if isinstance(item, Tracer):
        return any(item == value for value in values)
    return item in values
