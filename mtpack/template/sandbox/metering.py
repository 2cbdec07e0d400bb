"""A sandbox that counts: the Jinja environment that limits what templates may do.

Calls are added to the parsed template. In loops, macros and blocks they count the passes. `~` and
`+` become calls that know the length of their result. Each value is measured before it is written.
Since only the parsed template changes, the text and the white space rules remain those of Jinja.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import update_wrapper
from typing import Any

import jinja2
import jinja2.sandbox
import markupsafe
from jinja2 import nodes
from jinja2.runtime import Context
from jinja2.visitor import NodeTransformer

from mtpack.template.sandbox import guards
from mtpack.template.sandbox.limits import CHARACTERS_PER_STEP, Meter

# No template can use these names: they contain a space.
_STEP = "mtpack step"
_ADD = "mtpack add"
_CONCATENATE = "mtpack concatenate"
_MEASURE = "mtpack measure"
_NEST = "mtpack nest"

_STEPS_PER_CALL = 8  # a macro takes several times as long as a loop pass


class MeteredEnvironment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The sandbox of transformers, with a meter for everything that can grow."""

    intercepted_binops = frozenset(guards.OPERATORS)

    def __init__(self, meter: Meter, **settings: Any) -> None:
        """settings: those of a Jinja environment."""
        # Not optimized: otherwise constant expressions would be computed before they are counted.
        super().__init__(optimized=False, **settings)
        self.meter = meter
        for name in guards.FILTERS:
            self.filters[name] = guards.guard_filter(meter, name, self.filters[name])
        self.filters["join"] = guards.guard_join(meter, self.filters["join"])
        self.filters |= _make_counting_filters(meter)
        self.filters["random"] = self.globals["lipsum"] = _refuse_random

    def concat(self, pieces: Iterable[str]) -> str:
        """Join the pieces that a template, a macro or a block writes."""
        return self.meter.join(pieces)

    def parse(self, source: str, *args: Any, **named: Any) -> nodes.Template:
        """Parse a template and add the calls that count; nodes added later are not counted."""
        tree: nodes.Template = _Counting().visit(super().parse(source, *args, **named))
        tree.set_environment(self)
        return tree

    def from_string(self, source: str | nodes.Template, *args: Any, **named: Any) -> Any:
        """Compile a template from its source or from its parsed tree."""
        tree = self.parse(source) if isinstance(source, str) else source
        return super().from_string(tree, *args, **named)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute `left operator right`; raise TemplateLimitError if the result is too large."""
        guards.OPERATORS[operator](self.meter, left, right)
        return self.binop_table[operator](left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., Any] | None:
        """Return the guarded form of a method, or None if `value` needs no guard."""
        if not isinstance(value, types.BuiltinMethodType | types.MethodType):
            return None
        owner = value.__self__
        if not isinstance(owner, str | bytes | int):
            return None
        if value.__name__ not in ("format", "format_map"):
            return guards.guard_method(self.meter, value)
        return _guard_str_format(self, value) if isinstance(owner, str) else None


def _refuse_random(*args: Any, **named: Any) -> None:
    raise jinja2.TemplateError("the template uses random values, so its output can't be reproduced")


def _make_counting_filters(meter: Meter) -> dict[str, Callable[..., Any]]:
    """Return the filters that `_Counting` adds to a template.

    They run for every pass and every value of every render, so short code is not moved into
    functions. They take a context because Jinja does not run such filters at compile time.
    """

    @jinja2.pass_context
    def step(context: Context, steps: int) -> bool:
        meter.steps_left -= steps
        if meter.steps_left < 0:
            meter.count_steps()
        return True

    @jinja2.pass_context
    def add(context: Context, values: Sequence[Any]) -> Any:
        return guards.add(meter, values)

    @jinja2.pass_context
    def concatenate(context: Context, values: Sequence[Any]) -> str:
        return guards.concatenate(meter, context, values)

    @jinja2.pass_context
    def measure(context: Context, value: Any) -> Any:
        meter.steps_left -= 1
        if type(value) is not str:
            meter.count_text(meter.measure(value))
        elif len(value) >= CHARACTERS_PER_STEP:
            meter.count_text(len(value))
        return value

    @jinja2.pass_context
    def check_nesting(context: Context, container: Any) -> Any:
        meter.check_nesting(container)
        return container

    return {
        _STEP: step,
        _ADD: add,
        _CONCATENATE: concatenate,
        _MEASURE: measure,
        _NEST: check_nesting,
    }


class _Counting(NodeTransformer):
    """Adds the counting filters to a parsed template."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        if node.test is None:
            return _add_step_count(node, 1)
        node.test = nodes.And(_filter(nodes.Const(1), _STEP), node.test)
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return _add_step_count(self.generic_visit(node), _STEPS_PER_CALL)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        return _add_step_count(self.generic_visit(node), _STEPS_PER_CALL)

    def visit_Block(self, node: nodes.Block) -> nodes.Node:
        return _add_step_count(self.generic_visit(node), _STEPS_PER_CALL)

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [
            child if isinstance(child, _CONSTANTS) else _filter(child, _MEASURE)
            for child in node.nodes
        ]
        return node

    def visit_List(self, node: nodes.List) -> nodes.Node:
        return _add_nesting_check(self.generic_visit(node), node.items)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return node if node.ctx == "store" else _add_nesting_check(node, node.items)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        return _add_nesting_check(self.generic_visit(node), [pair.value for pair in node.items])

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filter(nodes.Tuple(node.nodes, "load"), _CONCATENATE)

    def visit_Add(self, node: nodes.Add) -> nodes.Node:
        terms: list[nodes.Expr] = [node.right]
        left = node.left
        while isinstance(left, nodes.Add):  # a + b + c is (a + b) + c
            terms.append(left.right)
            left = left.left
        terms.append(left)
        return _filter(nodes.Tuple([self.visit(term) for term in reversed(terms)], "load"), _ADD)


_CONSTANTS = (nodes.TemplateData, nodes.Const)


def _filter(value: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(value, name, [], [], None, None)


def _add_step_count(node: Any, steps: int) -> nodes.Node:
    count = _filter(nodes.Const(steps), _STEP)
    node.body.insert(0, nodes.ExprStmt(count, lineno=node.lineno))
    return node  # type: ignore[no-any-return]  # visitors are untyped


def _add_nesting_check(node: Any, items: Sequence[nodes.Node]) -> nodes.Node:
    if all(isinstance(item, nodes.Const) for item in items):
        return node  # type: ignore[no-any-return]  # visitors are untyped
    return _filter(node, _NEST)


class _Formatter(jinja2.sandbox.SandboxedFormatter):
    """Fills in the fields of `str.format`, with their widths checked."""

    def __init__(self, meter: Meter, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._meter = meter
        self._characters = 0

    def convert_field(self, value: Any, conversion: Any) -> Any:
        self._meter.count_text(self._meter.measure(value))
        return super().convert_field(value, conversion)

    def format_field(self, value: Any, format_spec: str) -> Any:
        characters = self._meter.measure(value) + guards.sum_widths(format_spec)
        self._meter.count_text(characters)
        self._characters += characters
        self._meter.check_text(self._characters)
        return super().format_field(value, format_spec)


class _EscapeFormatter(_Formatter, jinja2.sandbox.SandboxedEscapeFormatter):
    """The same for text that is marked as safe (Markup)."""


def _guard_str_format(environment: MeteredEnvironment, method: Any) -> Callable[..., str]:
    """Return the sandbox's `str.format` or `str.format_map`, with guarded fields."""
    text = method.__self__
    takes_mapping = method.__name__ == "format_map"

    def fill_in(*args: Any, **named: Any) -> str:
        values: Mapping[str, Any] = named
        if takes_mapping:
            (values,), args = args, ()
            if named:
                raise TypeError("format_map() takes no keyword arguments")
        formatter: _Formatter
        if isinstance(text, markupsafe.Markup):
            formatter = _EscapeFormatter(environment.meter, environment, escape=text.escape)
        else:
            formatter = _Formatter(environment.meter, environment)
        filled: str = type(text)(formatter.vformat(text, args, values))
        return filled

    return update_wrapper(fill_in, method)
