"""A sandbox that counts: the environment of Jinja in which templates do no more than they may.

Loops, macros and blocks get a call that counts their passes, `~` and `+` become calls that know
how long their result will be, and what is written is looked at first. All of it is done in the
parsed template, so the text and the rules of white space are those of Jinja.
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

# No template can name them: a name has no space.
_STEP = "mtpack step"
_ADD = "mtpack add"
_CONCATENATE = "mtpack concatenate"
_LOOK = "mtpack look"
_NEST = "mtpack nest"

_STEPS_OF_A_CALL = 8  # a macro takes several times as long as a pass of a loop


class MeteredEnvironment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The sandbox of transformers, with a meter in everything that can grow."""

    intercepted_binops = frozenset(guards.OPERATORS)

    def __init__(self, meter: Meter, **settings: Any) -> None:
        """settings: of a Jinja environment."""
        # Unoptimized: constants that are made of constants would be made before anyone counts.
        super().__init__(optimized=False, **settings)
        self.meter = meter
        for name in guards.FILTERS:
            self.filters[name] = guards.guarded_filter(meter, name, self.filters[name])
        self.filters["join"] = guards.guarded_join(meter, self.filters["join"])
        self.filters |= _counting_filters(meter)
        self.filters["random"] = self.globals["lipsum"] = _refuse_to_draw

    def concat(self, pieces: Iterable[str]) -> str:
        """Join what a template, a macro or a block has written."""
        return self.meter.joined(pieces)

    def parse(self, source: str, *args: Any, **named: Any) -> nodes.Template:
        """Parse a template, so that it is counted what it does; what is added later is not."""
        tree: nodes.Template = _Counting().visit(super().parse(source, *args, **named))
        tree.set_environment(self)
        return tree

    def from_string(self, source: str | nodes.Template, *args: Any, **named: Any) -> Any:
        """Compile a template, or one that has been parsed."""
        tree = self.parse(source) if isinstance(source, str) else source
        return super().from_string(tree, *args, **named)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute `left operator right`, if it is not too much."""
        guards.OPERATORS[operator](self.meter, left, right)
        return self.binop_table[operator](left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., Any] | None:
        """Return what stands for a method that is not safe as it is, or None."""
        if not isinstance(value, types.BuiltinMethodType | types.MethodType):
            return None
        owner = value.__self__
        if not isinstance(owner, str | bytes | int):
            return None
        if value.__name__ not in ("format", "format_map"):
            return guards.guarded_method(self.meter, value)
        return _guarded_format(self, value) if isinstance(owner, str) else None


def _refuse_to_draw(*args: Any, **named: Any) -> None:
    raise jinja2.TemplateError("the template draws at random, so no run could be repeated")


def _counting_filters(meter: Meter) -> dict[str, Callable[..., Any]]:
    """Return what `_Counting` puts into a template.

    They run for every pass and every value of every render, so what is short is not worth a call.
    They ask for a context because such filters are not run at compile time.
    """

    @jinja2.pass_context
    def step(context: Context, steps: int) -> bool:
        meter.steps_left -= steps
        if meter.steps_left < 0:
            meter.step()
        return True

    @jinja2.pass_context
    def add(context: Context, values: Sequence[Any]) -> Any:
        return guards.add(meter, values)

    @jinja2.pass_context
    def concatenate(context: Context, values: Sequence[Any]) -> str:
        return guards.concatenate(meter, context, values)

    @jinja2.pass_context
    def look(context: Context, value: Any) -> Any:
        meter.steps_left -= 1
        if type(value) is not str:
            meter.text(meter.length(value))
        elif len(value) >= CHARACTERS_PER_STEP:
            meter.text(len(value))
        return value

    @jinja2.pass_context
    def nest(context: Context, container: Any) -> Any:
        meter.nest(container)
        return container

    return {_STEP: step, _ADD: add, _CONCATENATE: concatenate, _LOOK: look, _NEST: nest}


class _Counting(NodeTransformer):
    """Puts the counting filters into a parsed template."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        if node.test is None:
            return _counted_body(node, 1)
        node.test = nodes.And(_filtered(nodes.Const(1), _STEP), node.test)
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return _counted_body(self.generic_visit(node), _STEPS_OF_A_CALL)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        return _counted_body(self.generic_visit(node), _STEPS_OF_A_CALL)

    def visit_Block(self, node: nodes.Block) -> nodes.Node:
        return _counted_body(self.generic_visit(node), _STEPS_OF_A_CALL)

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [
            child if isinstance(child, _LOOKED_AT) else _filtered(child, _LOOK)
            for child in node.nodes
        ]
        return node

    def visit_List(self, node: nodes.List) -> nodes.Node:
        return _counted_container(self.generic_visit(node), node.items)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return node if node.ctx == "store" else _counted_container(node, node.items)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        return _counted_container(self.generic_visit(node), [pair.value for pair in node.items])

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(nodes.Tuple(node.nodes, "load"), _CONCATENATE)

    def visit_Add(self, node: nodes.Add) -> nodes.Node:
        terms: list[nodes.Expr] = [node.right]
        left = node.left
        while isinstance(left, nodes.Add):  # a + b + c is (a + b) + c
            terms.append(left.right)
            left = left.left
        terms.append(left)
        return _filtered(nodes.Tuple([self.visit(term) for term in reversed(terms)], "load"), _ADD)


_LOOKED_AT = (nodes.TemplateData, nodes.Const)


def _filtered(value: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(value, name, [], [], None, None)


def _counted_body(node: Any, steps: int) -> nodes.Node:
    count = _filtered(nodes.Const(steps), _STEP)
    node.body.insert(0, nodes.ExprStmt(count, lineno=node.lineno))
    return node  # type: ignore[no-any-return]  # visitors are untyped


def _counted_container(node: Any, items: Sequence[nodes.Node]) -> nodes.Node:
    if all(isinstance(item, nodes.Const) for item in items):
        return node  # type: ignore[no-any-return]  # visitors are untyped
    return _filtered(node, _NEST)


class _Formatter(jinja2.sandbox.SandboxedFormatter):
    """Fills in the fields of `str.format`, none wider than a text may be."""

    def __init__(self, meter: Meter, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._meter = meter
        self._characters = 0

    def convert_field(self, value: Any, conversion: Any) -> Any:
        self._meter.text(self._meter.length(value))
        return super().convert_field(value, conversion)

    def format_field(self, value: Any, format_spec: str) -> Any:
        characters = self._meter.length(value) + guards.widths_in(format_spec)
        self._meter.text(characters)
        self._characters += characters
        self._meter.check_text(self._characters)
        return super().format_field(value, format_spec)


class _EscapeFormatter(_Formatter, jinja2.sandbox.SandboxedEscapeFormatter):
    """The same for text that is marked as safe."""


def _guarded_format(environment: MeteredEnvironment, method: Any) -> Callable[..., str]:
    """Return `str.format` or `str.format_map`, as the sandbox has them, with guarded fields."""
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
