"""What a template may make text of: values whose text is the same in every run.

These are texts, numbers, true, false, none, undefined values, and lists, dicts, their views and
ranges of them. The text of other objects may have an address in it (a generator, a function, a
method), or depends on Jinja's version (a macro, `loop`), and a set has another order in every
process. So a render fails where such an object becomes text. It is known by its type; no text is
searched. A value becomes text at `{{ }}`, `~`, `%`, `format`, in the filters below
and in methods of `Markup`; no other operation turns an object into text.
"""

from __future__ import annotations

import string
from collections.abc import Callable, ItemsView, Iterable, KeysView, Mapping, ValuesView
from functools import wraps
from types import BuiltinMethodType, MethodType
from typing import Any

import jinja2
from jinja2.filters import make_attrgetter
from jinja2.sandbox import SandboxedEscapeFormatter, SandboxedFormatter
from markupsafe import Markup

_PLAIN = frozenset(
    {str, int, float, bool, complex, bytes, type(None), range, Markup, jinja2.Undefined}
)
"""Types whose text depends on the value alone."""
_LISTS = (list, tuple, KeysView, ValuesView, ItemsView)

_MAKE_TEXT = (
    *("capitalize", "center", "e", "escape", "forceescape", "format", "lower", "pprint", "replace"),
    *("safe", "striptags", "title", "upper", "urlencode", "urlize", "wordcount", "xmlattr"),
)
"""Filters that make text of their arguments, apart from those below. `tojson` takes no object."""


class UnstableTextError(Exception):
    """A template makes text of an object whose text differs from run to run."""


def to_text(value: Any) -> str:
    """Return `str(value)`; raise UnstableTextError if it could differ from run to run."""
    if type(value) not in _PLAIN:
        check_text(value)
    return str(value)


def join_texts(values: tuple[Any, ...]) -> str:
    """Return the texts of values, joined."""
    try:
        return "".join(values)
    except TypeError:  # not all are texts
        return "".join(to_texts(values))


def to_texts(values: Iterable[Any]) -> list[str]:
    """Return the texts of values."""
    return [value if type(value) is str else to_text(value) for value in values]


def check_text(value: Any) -> Any:
    """Return a value; raise UnstableTextError if its text could differ from run to run."""
    if type(value) in _PLAIN:
        return value
    left, seen = [value], {id(value)}  # a value may hold another many times, or itself
    while left:
        held = left.pop()
        if type(held) in _PLAIN:
            continue
        if isinstance(held, Mapping):
            items = [*held.keys(), *held.values()]
        elif isinstance(held, _LISTS):
            items = list(held)
        else:
            name = type(held).__name__.lstrip("_")
            raise UnstableTextError(f"writes an object of type {name}, which has no fixed text")
        new = [item for item in items if id(item) not in seen]
        seen.update(map(id, new))
        left += new
    return value


def refuse_set(value: Any) -> Any:
    """Refuse a set, which a template can make of views of dicts."""
    raise UnstableTextError("makes a set, which has no fixed order")


def to_operand(left: Any) -> Any:
    """Return a value to use on the left of `%`: a text checks what it formats."""
    return _Format(left) if isinstance(left, str | bytes) else left


class _Format:
    """A text with fields for `%`."""

    def __init__(self, text: Any) -> None:
        self._text = text

    def __mod__(self, values: Any) -> Any:
        return self._text % check_text(values)


def guard_filters(filters: dict[str, Any]) -> None:
    """Replace the filters of Jinja that make text of objects."""
    for name in _MAKE_TEXT:
        filters[name] = _guard(filters[name])
    filters["join"] = _guard_join(filters["join"])
    filters["trim"], filters["string"] = _trim, _string  # as fast as Jinja has them


def _guard(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function check its arguments, apart from the context that Jinja may pass it."""
    passed = 0 if jinja2.utils._PassArg.from_obj(function) is None else 1

    @wraps(function)
    def call(*args: Any, **named: Any) -> Any:
        for value in (*args[passed:], *named.values()):
            check_text(value)
        return function(*args, **named)

    @wraps(function)
    def call_quickly(value: Any, *args: Any, **named: Any) -> Any:
        if type(value) is str and not args and not named:
            return function(value)
        return call(value, *args, **named)

    return call if passed else call_quickly


def _trim(value: Any, chars: str | None = None) -> str:
    return (value if isinstance(value, str) else to_text(value)).strip(chars)


def _string(value: Any) -> str:
    if isinstance(value, str):  # `Markup` stays as it is
        return value
    return to_text(value)


def _guard_join(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def join(
        context: jinja2.nodes.EvalContext, value: Iterable[Any], d: Any = "", attribute: Any = None
    ) -> Any:
        if attribute is not None:
            value = map(make_attrgetter(context.environment, attribute), value)
        return function(context, [check_text(item) for item in value], check_text(d))

    return join


class _CheckedFields(string.Formatter):
    """Checks the values that a format writes; it can also reach into the arguments."""

    def format_field(self, value: Any, format_spec: str) -> Any:
        """Return the text of a value."""
        return super().format_field(check_text(value), format_spec)

    def convert_field(self, value: Any, conversion: Any) -> Any:
        """Return the value, or its text for `!s`, `!r` and `!a`."""
        return super().convert_field(check_text(value) if conversion else value, conversion)


class _Formatter(_CheckedFields, SandboxedFormatter):
    pass


class _EscapeFormatter(_CheckedFields, SandboxedEscapeFormatter):
    pass


def guard_method(environment: Any, value: Any) -> Callable[..., str] | None:
    """Return a function in place of a method of a text that makes text of its arguments.

    These are `format` and `format_map`, which also have to stay in the sandbox (Jinja's
    `SandboxedEnvironment.wrap_str_format`), and all methods of `Markup`. None for another value.
    """
    if not isinstance(value, MethodType | BuiltinMethodType):
        return None
    owner: Any = value.__self__
    if not isinstance(owner, str):
        return None
    if value.__name__ not in ("format", "format_map"):
        return _guard(value) if isinstance(owner, Markup) else None
    formatter: SandboxedFormatter = _Formatter(environment)
    if isinstance(owner, Markup):
        formatter = _EscapeFormatter(environment, escape=owner.escape)

    def format_values(*args: Any, **named: Any) -> str:
        return type(owner)(formatter.vformat(owner, args, named))

    def format_map(values: Mapping[str, Any]) -> str:
        return type(owner)(formatter.vformat(owner, (), values))

    return format_map if value.__name__ == "format_map" else format_values
