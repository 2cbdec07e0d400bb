"""Guards for all that can make a large value in one step: operators, methods, filters.

Each guard computes from the arguments how large the result would be, and counts that with the
meter. Then the original does the work. Values that can't grow are not counted, nor is a call that
the original refuses.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Sequence
from functools import update_wrapper
from typing import Any

from jinja2.runtime import Context, markup_join

from mtpack.template.sandbox.limits import CHARACTERS_PER_STEP, Meter

Guard = Callable[..., None]
"""(meter, value, *arguments): counts the result; raises TemplateLimitError."""

_NUMBER = re.compile(r"[0-9]{1,20}")


# Operators


def add(meter: Meter, values: Sequence[Any]) -> Any:
    """Return `values[0] + values[1] + ...`."""
    characters = 0
    for value in values:
        if type(value) is not str:
            return _add_one_by_one(meter, values)
        characters += len(value)
    if characters >= CHARACTERS_PER_STEP:
        meter.count_text(characters)
    return "".join(values)


def _add_one_by_one(meter: Meter, values: Sequence[Any]) -> Any:
    total = values[0]
    for value in values[1:]:
        if isinstance(total, str) and isinstance(value, str):
            meter.count_text(str.__len__(total) + str.__len__(value))
        elif isinstance(total, bytes | list | tuple) and isinstance(value, type(total)):
            meter.count_steps(len(total) + len(value))
        total = total + value
    return total


def concatenate(meter: Meter, context: Context, values: Sequence[Any]) -> str:
    """Return `values[0] ~ values[1] ~ ...`."""
    characters = 0
    for value in values:
        characters += len(value) if type(value) is str else meter.measure(value)
    meter.count_text(characters)
    if context.eval_ctx.autoescape:
        return markup_join(values)
    return "".join(map(str, values))


def guard_times(meter: Meter, left: Any, right: Any) -> None:
    """Guard `left * right`."""
    if isinstance(left, int):
        left, right = right, left
    if not isinstance(right, int):
        return
    if isinstance(left, int):
        meter.check_number(left.bit_length() + right.bit_length())
    elif isinstance(left, str | bytes):
        meter.count_text(_size(left) * right)
    elif isinstance(left, list | tuple):
        meter.count_steps(len(left) * max(right, 0))


def guard_power(meter: Meter, left: Any, right: Any) -> None:
    """Guard `left ** right`."""
    if isinstance(left, int) and isinstance(right, int) and right > 0:
        meter.check_number(left.bit_length() * right)


def guard_percent(meter: Meter, left: Any, right: Any) -> None:
    """Guard `left % right` if `left` is a format."""
    if not isinstance(left, str | bytes):
        return
    text = left if isinstance(left, str) else left.decode("latin-1")
    filled = meter.measure(right)
    if isinstance(right, dict):  # the format may use a value many times
        filled *= str.count(text, "%")
    widths = sum_widths(text)
    if "*" in text and isinstance(right, tuple):  # a `*` takes its width from the values
        widths += sum(abs(value) for value in right if isinstance(value, int))
    meter.count_text(_size(text) + filled + widths)


def sum_widths(text: str) -> int:
    """Return the sum of all numbers in a format, which include its widths and precisions."""
    return sum(map(int, _NUMBER.findall(text)))


OPERATORS: dict[str, Guard] = {"*": guard_times, "**": guard_power, "%": guard_percent}


# Methods


def _guard_width(meter: Meter, text: Any, width: Any = 80, *rest: Any) -> None:
    if isinstance(width, int):
        meter.count_text(max(meter.measure(text), width))


def _guard_tabs(meter: Meter, text: Any, tabsize: Any = 8) -> None:
    if isinstance(tabsize, int):
        tabs = str.count(text, "\t") if isinstance(text, str) else bytes.count(text, b"\t")
        meter.count_text(_size(text) + tabs * tabsize)


def _guard_replace(meter: Meter, text: Any, old: Any, new: Any, *rest: Any, **named: Any) -> None:
    kind: Any = str if isinstance(text, str) else bytes
    if isinstance(old, kind) and isinstance(new, kind):
        meter.count_text(_size(text) + kind.count(text, old) * _size(new))


def _guard_translate(meter: Meter, text: Any, table: Any, *rest: Any, **named: Any) -> None:
    if isinstance(text, str):
        values = table.values() if isinstance(table, dict) else table
        longest = max((_size(value) for value in values if isinstance(value, str)), default=1)
        meter.count_text(_size(text) * longest)


def _guard_bytes(meter: Meter, number: int, length: Any = 1, *rest: Any, **named: Any) -> None:
    if isinstance(length, int):
        meter.count_text(length)


METHODS: dict[str, Guard] = {
    "center": _guard_width,
    "expandtabs": _guard_tabs,
    "ljust": _guard_width,
    "replace": _guard_replace,
    "rjust": _guard_width,
    "to_bytes": _guard_bytes,
    "translate": _guard_translate,
    "zfill": _guard_width,
}


def guard_method(meter: Meter, method: Any) -> Callable[..., Any]:
    """Return a method of a text or a number, guarded if its result can be large."""
    owner, name = method.__self__, method.__name__
    if name == "join":

        def join(values: Any) -> Any:
            values = list(values)
            meter.count_text(_measure_join(meter, owner, values))
            return method(values)

        return update_wrapper(join, method)
    guard = METHODS.get(name)
    if guard is None:
        return method  # type: ignore[no-any-return]  # a built-in has no type

    def guarded(*args: Any, **named: Any) -> Any:
        guard(meter, owner, *args, **named)
        return method(*args, **named)

    return update_wrapper(guarded, method)


# Filters


def _guard_items(meter: Meter, values: Any, *rest: Any, **named: Any) -> None:
    if hasattr(values, "__len__"):  # an iterator is counted while it is read
        meter.count_steps(len(values))


def _guard_written(meter: Meter, value: Any, *rest: Any, **named: Any) -> None:
    meter.count_text(meter.measure(value))


def guard_json(meter: Meter, value: Any, indent: Any, separators: Any) -> None:
    """Guard `value` written as JSON."""
    characters = meter.measure(value)
    meter.count_text(characters)
    values = characters // 2  # at most, since `measure` adds two for each
    if separators is not None:
        meter.count_text(values * sum(map(_size, separators)))
    if isinstance(indent, int | str):
        width = indent if isinstance(indent, int) else _size(indent)
        meter.count_text(values * width * _depth(value))


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list | tuple)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return depth


def _guard_batch(
    meter: Meter, values: Any, linecount: Any, fill_with: Any = None, **named: Any
) -> None:
    _guard_items(meter, values)
    if isinstance(linecount, int) and fill_with is not None:
        meter.count_steps(max(linecount, 0))
        meter.check_nesting([fill_with, fill_with])


def _guard_format(meter: Meter, value: Any, *args: Any, **named: Any) -> None:
    guard_percent(meter, value, named or args)


def _guard_indent(meter: Meter, s: Any, width: Any = 4, *rest: Any, **named: Any) -> None:
    if isinstance(s, str) and isinstance(width, int | str):
        indent = width if isinstance(width, int) else _size(width)
        meter.count_text(_size(s) + (len(str.splitlines(s)) + 1) * max(indent, 0))


def _guard_replaced(meter: Meter, s: Any, old: Any, new: Any, *rest: Any, **named: Any) -> None:
    _guard_written(meter, s)
    _guard_replace(meter, str(s), str(old), str(new))


def _guard_round(meter: Meter, value: Any, precision: Any = 0, *rest: Any, **named: Any) -> None:
    if isinstance(precision, int):
        meter.check_number(4 * abs(precision))  # 10 ** precision is computed


def _guard_each_piece(meter: Meter, s: Any, *args: Any, **named: Any) -> None:
    """Guard a filter that adds its arguments between the words of `s`."""
    if isinstance(s, str):
        added = sum(_size(value) for value in (*args, *named.values()) if isinstance(value, str))
        words = len(str.split(s)) + _size(s) // 79
        meter.count_text(_size(s) + words * added)


FILTERS: dict[str, Guard] = {
    "batch": _guard_batch,
    "center": _guard_width,
    "dictsort": _guard_items,
    "format": _guard_format,
    "groupby": _guard_items,
    "indent": _guard_indent,
    "list": _guard_items,
    "map": _guard_items,
    "max": _guard_items,
    "min": _guard_items,
    "pprint": _guard_written,
    "reject": _guard_items,
    "rejectattr": _guard_items,
    "replace": _guard_replaced,
    "round": _guard_round,
    "select": _guard_items,
    "selectattr": _guard_items,
    "slice": _guard_items,
    "sort": _guard_items,
    "string": _guard_written,
    "sum": _guard_items,
    "unique": _guard_items,
    "urlize": _guard_each_piece,
    "wordwrap": _guard_each_piece,
    "xmlattr": _guard_written,
}


def guard_filter(meter: Meter, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter, guarded; the items that it yields are counted."""
    guard = FILTERS[name]
    skipped = 1 if hasattr(function, "jinja_pass_arg") else 0  # the context comes before the value

    def guarded(*args: Any, **named: Any) -> Any:
        guard(meter, *args[skipped:], **named)
        result = function(*args, **named)
        return meter.count_each(result) if isinstance(result, types.GeneratorType) else result

    return update_wrapper(guarded, function)


def guard_join(meter: Meter, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the filter `join`, guarded."""

    def join(context: Any, value: Any, d: Any = "", attribute: Any = None) -> Any:
        values = list(value)  # they may come from an iterator, and are needed twice
        meter.count_text(_measure_join(meter, d, values))
        return function(context, values, d, attribute)

    return update_wrapper(join, function)


def _measure_join(meter: Meter, separator: Any, values: list[Any]) -> int:
    return meter.measure(values) + meter.measure(separator) * len(values)


def _size(text: str | bytes) -> int:
    """Return the length of a text, without calling methods of a subclass."""
    return str.__len__(text) if isinstance(text, str) else bytes.__len__(text)
