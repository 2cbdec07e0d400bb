"""Have Jinja run a template on stand-ins: an environment that knows them, and a rewritten template.

The environment is that of real renders, with its look-ups, calls, filters and tests taught about
stand-ins. Compiled templates also use Python's own operators, so they are rewritten to call
functions of this module instead (`rewriting.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jinja2
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mtpack.template.environment import settings
from mtpack.template.markers import parse_marked
from mtpack.template.tracing import operations
from mtpack.template.tracing.closed_macros import closed_macros
from mtpack.template.tracing.filters import traced_filter, traced_test
from mtpack.template.tracing.operations import ARITHMETIC, filtered, method
from mtpack.template.tracing.recorder import Recorder
from mtpack.template.tracing.rewriting import rewrite
from mtpack.template.tracing.tracers import (
    Collection,
    Listing,
    Mapping,
    Mark,
    Number,
    Opaque,
    Text,
    Tracer,
    Untraceable,
    View,
    holds_tracer,
)

_ANSWERS = {"startswith", "endswith", "isdigit", "isspace", "isalpha", "isalnum", "isupper"}
_METHODS: dict[type, set[str]] = {
    str: _ANSWERS
    | {"strip", "lstrip", "rstrip", "split", "rsplit", "splitlines", "replace", "upper", "lower"}
    | {"title", "capitalize", "find", "rfind", "index", "count", "partition", "rpartition"}
    | {"removeprefix", "removesuffix", "join"},
    dict: {"items", "keys", "values", "get"},
    list: {"index", "count"},
}


class _Method(Opaque):
    """A method of a stand-in, ready to be called."""

    def __init__(self, owner: Tracer, name: str) -> None:
        self.owner = owner
        self.name = name

    def __call__(self, *arguments: Any) -> Any:
        if isinstance(self.owner, Mapping) and self.name == "get":
            return self.owner.get(*arguments)
        operate = self.owner.recorder.ask if self.name in _ANSWERS else self.owner.recorder.apply
        return operate(method(self.name), self.owner, *arguments)


class Loop(Opaque):
    """What `loop` is in a loop whose iterations are steps."""

    def __init__(self, over: Any, index: Any) -> None:
        self.over = over
        self.index = index
        self.item = over.item(index)

    def attribute(self, name: str) -> Any:
        """Return `loop.name`."""
        if name not in _LOOP_ATTRIBUTES:
            raise Untraceable(f"loop.{name}")
        return _LOOP_ATTRIBUTES[name](self)

    def _at(self, distance: int) -> Any:
        return self.index.recorder.apply(ARITHMETIC["add"], self.index, distance, kind="int")

    def _first(self) -> bool:
        return bool(self.index == 0)

    def _last(self) -> bool:
        return not self.over.has(self._at(1))

    def _length(self) -> Any:
        return self.index.recorder.apply(operations.LENGTH, self.over, kind="int")

    def _previous(self) -> Any:
        return jinja2.Undefined() if self._first() else self.over.item(self._at(-1))

    def _next(self) -> Any:
        return jinja2.Undefined() if self._last() else self.over.item(self._at(1))


_LOOP_ATTRIBUTES: dict[str, Callable[[Loop], Any]] = {
    "index0": lambda loop: loop.index,
    "index": lambda loop: loop._at(1),
    "first": Loop._first,
    "last": Loop._last,
    "length": Loop._length,
    "revindex": lambda loop: loop._length() - loop.index,
    "revindex0": lambda loop: loop._length() - loop._at(1),
    "previtem": Loop._previous,
    "nextitem": Loop._next,
}


class RecordingEnvironment(ImmutableSandboxedEnvironment):
    """The environment of chat templates, for stand-ins as well."""

    intercepted_binops = frozenset({"%"})
    recorder: Recorder
    of_rewriting: tuple[Callable[..., Any], ...]
    """The functions that rewritten templates call."""
    closed: dict[str, Callable[..., str]]
    """Macros that depend on nothing but their arguments, as real renders have them."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Return `obj.attribute` as a template has it: a method, or else an element."""
        if isinstance(obj, Loop):
            return obj.attribute(attribute)
        if isinstance(obj, Opaque):
            raise Untraceable(f".{attribute}")
        if not isinstance(obj, Tracer):
            return super().getattr(obj, attribute)
        kind = dict if isinstance(obj, Mapping) else type(obj.value)
        if hasattr(kind, attribute):
            if attribute not in _METHODS.get(kind, ()):
                raise Untraceable(f".{attribute}")
            return _Method(obj, attribute)
        return obj.lookup(attribute) if isinstance(obj, Mapping) else jinja2.Undefined()

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Return `obj[argument]` as a template has it: an element, or else a method."""
        if isinstance(obj, Loop):
            return obj.attribute(argument)
        if isinstance(obj, Mapping):
            return self._element(obj, argument)
        if isinstance(obj, View):
            raise Untraceable("an element of what can only be iterated over")
        if isinstance(obj, Tracer | Opaque) and isinstance(argument, str):
            return self.getattr(obj, argument)
        if isinstance(obj, Collection) and isinstance(argument, int | Number):
            return obj.item(argument) if obj.has(argument) else jinja2.Undefined()
        if isinstance(obj, Tracer):
            raise Untraceable("an element of another type")
        if isinstance(argument, Number):
            return super().getitem(obj, argument.settled())
        if isinstance(argument, Tracer):
            return self._choice(obj, argument)
        return super().getitem(obj, argument)

    def _element(self, obj: Mapping, argument: Any) -> Any:
        found = obj.lookup(argument)
        if operations.kind(found) == "missing":
            named = argument
            if isinstance(argument, Tracer):
                named = self.recorder.ask(_NAMES_A_METHOD, argument)
            if named is True or (isinstance(named, str) and hasattr(dict, named)):
                raise Untraceable("a method under the name of a key")
        return found

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Return `left % right`, which Python would have the stand-in's text for."""
        if holds_tracer([left, right]):
            return self.recorder.apply(ARITHMETIC["mod"], left, right)
        return super().call_binop(context, operator, left, right)

    def _choice(self, obj: Any, key: Tracer) -> Any:
        """Look a stand-in up in a dict of the template."""
        if not isinstance(obj, dict):
            raise Untraceable("an element whose name depends on the dialogue")
        for name, value in obj.items():
            if key == name:
                return value
        if self.recorder.ask(_NAMES_A_METHOD, key):
            raise Untraceable("a method under the name of a key")
        return jinja2.Undefined()

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call what a template calls."""
        for name in ("_loop_vars", "_block_vars"):  # for functions that ask for the context
            kwargs.pop(name, None)
        if isinstance(obj, _Method) or obj in self.of_rewriting:
            return obj(*args, **kwargs)
        if isinstance(obj, Macro) and self._is_of_its_own(obj, [*args, *kwargs.values()]):
            operation = filtered(f"macro {obj.name}", self.closed[obj.name], tuple(kwargs))
            return self.recorder.apply(operation, *args, *kwargs.values(), kind="str")
        if not isinstance(obj, Macro) and (holds_tracer(args) or holds_tracer(kwargs)):
            return self._call_with_tracers(context, obj, args, kwargs)
        result = super().call(context, obj, *args, **kwargs)
        if type(result) is not str or "caller" in kwargs:  # a call block yields it as it is
            return result
        return self.recorder.captured(result)

    def _is_of_its_own(self, macro: Macro, arguments: list[Any]) -> bool:
        """Return whether a macro is best called as it is, as one operation.

        One that writes a tool or the arguments of a call may ask many questions, each dialogue
        others; one that writes messages or texts is better followed.
        """
        if macro.name not in self.closed:
            return False
        given = [argument for argument in arguments if isinstance(argument, Listing | Mapping)]
        return bool(given) and not any(
            self.recorder.ask(operations.HOLDS_MESSAGE, argument) for argument in given
        )

    def _call_with_tracers(
        self, context: Any, obj: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        owner = getattr(obj, "__self__", None)
        name = getattr(obj, "__name__", "")
        if type(owner) is str and name in _METHODS[str] and not kwargs:
            operate = self.recorder.ask if name in _ANSWERS else self.recorder.apply
            return operate(method(name), owner, *args)
        if obj is self.globals["range"]:
            return self.recorder.apply(operations.RANGE, *args, kind="range")
        if obj in (self.globals["namespace"], self.globals["raise_exception"]) or (
            obj is self.globals["dict"] and not args
        ):
            return super().call(context, obj, *args, **kwargs)
        if type(owner) is dict and name == "get":
            for key, value in owner.items():
                if args[0] == key:
                    return value
            return args[1] if len(args) > 1 else None
        raise Untraceable(f"a call of {name or type(obj).__name__}")


_NAMES_A_METHOD = operations.Operation(
    "names a method", lambda key: isinstance(key, str) and hasattr(dict, key)
)


def compile_recording(
    source: str, plain: jinja2.Environment, given: set[str]
) -> tuple[RecordingEnvironment, jinja2.Template]:
    """Compile a template so that it runs on stand-ins.

    plain: the environment of real renders, whose filters and tests are what is applied. given: the
    names of what the template is given. Raises Untraceable.
    """
    # Unoptimized: no constant is made that a real render would not come to, however large.
    environment = RecordingEnvironment(optimized=False, **settings(marked=True))
    write = _Writer(environment)
    functions: dict[str, Callable[..., Any]] = {
        "mtpack_enter": write.enter,
        "mtpack_leave": write.leave,
        "mtpack_write": write.text,
        "mtpack_concat": write.concat,
        "mtpack_in": _contains,
        "mtpack_parts": _parts,
        "mtpack_iterate": partial(_iterate, environment),
        "mtpack_step": write.step,
    }
    environment.globals = plain.globals | functions
    environment.of_rewriting = tuple(functions.values())
    environment.filters = {
        name: traced_filter(lambda: environment.recorder, plain, name, function)
        for name, function in plain.filters.items()
    }
    environment.filters["mtpack_captured"] = write.captured
    tests: dict[str, Any] = dict(plain.tests)
    environment.tests = {
        name: traced_test(lambda: environment.recorder, plain, name, function)
        for name, function in tests.items()
    }
    tree = parse_marked(environment, source)
    variables = rewrite(tree)
    environment.closed = closed_macros(plain, source, given | variables)
    tree.set_environment(environment)
    return environment, environment.from_string(tree)


class _Writer:
    """What rewritten templates call to make text."""

    def __init__(self, environment: RecordingEnvironment) -> None:
        self._environment = environment

    def text(self, value: Any) -> str:
        """Return what `{{ value }}` yields: text, or a placeholder for it."""
        recorder = self._environment.recorder
        if isinstance(value, Tracer | Mark):
            return recorder.hold(value)
        if holds_tracer(value):
            return recorder.hold(recorder.apply(operations.TEXT, value, kind="str"))
        return str(value)

    def concat(self, *values: Any) -> Any:
        """Return what `~` gives."""
        return self.captured("".join(map(self.text, values)))

    def captured(self, text: str) -> Any:
        """Return what a block has gathered."""
        return self._environment.recorder.captured(text)

    def enter(self, value: Any, entered: Any = "") -> Any:
        """Return the mark that opens a message's output, or nothing for another value."""
        if isinstance(entered, Mark):
            return ""
        if isinstance(value, Mapping) and self._environment.recorder.ask(
            operations.IS_MESSAGE, value
        ):
            return Mark("enter", value)
        return ""

    def leave(self, entered: Any) -> Any:
        """Return the mark that closes it."""
        return Mark("leave") if isinstance(entered, Mark) else ""

    def step(self, loop: Any, number: int, live: list[Any]) -> str:
        """Begin a step, if this is a loop over something given."""
        if isinstance(loop, Loop):
            self._environment.recorder.step(number, [loop.over, loop.index, loop.item, *live])
        return ""


def _iterate(environment: RecordingEnvironment, values: Any) -> Iterator[tuple[Any, Any]]:
    """Yield what is iterated over, each with its `loop`."""
    recorder = environment.recorder
    if isinstance(values, View):
        values = values.elements()
    if not isinstance(values, Listing | Mapping):
        context = jinja2.runtime.LoopContext(iter(values), jinja2.Undefined)
        context._iterable = values
        yield from context
        return
    index = recorder.constant(0)
    while values.has(index):
        yield (loop := Loop(values, index)).item, loop
        index = recorder.apply(ARITHMETIC["add"], index, 1, kind="int")


def _parts(values: Any) -> Any:
    return () if isinstance(values, Text | str) else values


def _contains(item: Any, values: Any) -> bool:
    if isinstance(values, Tracer):
        return item in values  # type: ignore[operator]  # one that has no items declines
    if isinstance(item, Tracer) and isinstance(values, str):
        return bool(item.recorder.ask(operations.CONTAINS, values, item))
    if isinstance(item, Tracer):
        return any(item == value for value in values)
    return item in values
