"""The sandbox of chat templates, with limits on what a render may write and how often it may loop.

A chat template is foreign code. Jinja's sandbox, which transformers uses as well, keeps it from
reaching out, but not from computing without end. So each render counts the characters that it
writes and the iterations of its loops. The counts depend on the template and the dialogue alone.
So a row that is rejected on one machine is rejected on every machine.

What happens in one step is not counted, however large the result is (`'x' * 10**10`). Too much of
that stops the run (`running/watchdog.py`), since how much is too much depends on the machine.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

_COUNT = "mtpack count"  # no template can use this name: it contains a space
_PIECES_PER_CHECK = 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that one render may do; far more than the templates of real models need."""

    characters: int = 2**27
    """All text that is written, also in macros and blocks: twice the longest row that is read."""
    iterations: int = 10_000_000
    """Iterations of loops and calls of macros and blocks: some seconds."""


class TemplateLimitError(Exception):
    """A render exceeds a limit; the text says which one."""


class Meter:
    """Counts what one render does, and raises TemplateLimitError if it exceeds a limit."""

    __slots__ = ("_characters_left", "_iterations_left", "limits")

    def __init__(self, limits: Limits) -> None:
        """Start with nothing counted."""
        self.limits = limits
        self.restart()

    def restart(self) -> None:
        """Start the count of another render."""
        self._characters_left = self.limits.characters
        self._iterations_left = self.limits.iterations

    @property
    def iterations(self) -> int:
        """The iterations that have been counted."""
        return self.limits.iterations - self._iterations_left

    def count_iteration(self, value: Any) -> Any:
        """Count one iteration; return `value`."""
        self._iterations_left -= 1
        if self._iterations_left < 0:
            raise TemplateLimitError(
                f"makes more than {self.limits.iterations:,} loop iterations and macro calls"
            )
        return value

    def join(self, pieces: Iterable[str]) -> str:
        """Count and join the pieces of a text; they are made only as they are read."""
        texts: list[str] = []
        remaining = iter(pieces)
        while batch := list(islice(remaining, _PIECES_PER_CHECK)):
            self._characters_left -= sum(map(len, batch))
            if self._characters_left < 0:
                raise TemplateLimitError(f"writes more than {self.limits.characters:,} characters")
            texts += batch
        return "".join(texts)


class LimitedCodeGenerator(CodeGenerator):
    """Compiles templates without computing their constants: no watchdog runs at that time."""

    def _output_child_to_const(self, node: nodes.Expr, frame: Frame, finalize: Any) -> str:
        if not isinstance(node, nodes.TemplateData | nodes.Const):
            raise nodes.Impossible
        return super()._output_child_to_const(node, frame, finalize)

    def visit_EvalContextModifier(self, node: nodes.EvalContextModifier, frame: Frame) -> None:
        """Compile the tag `autoescape`, whose value Jinja would compute."""
        if not all(isinstance(option.value, nodes.Const) for option in node.options):
            self.fail("autoescape takes true or false", node.lineno)
        super().visit_EvalContextModifier(node, frame)


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox of transformers, whose renders count with a meter."""

    code_generator_class = LimitedCodeGenerator

    def __init__(self, meter: Meter, **settings: Any) -> None:
        """meter: may be shared with other environments. settings: those of Jinja."""
        # Not optimized: the optimizer computes constants, as the code generator of Jinja does.
        super().__init__(optimized=False, **settings)
        self.meter = meter
        self.filters[_COUNT] = meter.count_iteration
        self.filters["random"] = self.globals["lipsum"] = _refuse_random

    def concat(self, pieces: Iterable[str]) -> str:
        """Join what a template, a macro or a block writes."""
        return self.meter.join(pieces)

    def _generate(self, source: nodes.Template, *args: Any, **named: Any) -> str:
        """Generate the code of a parsed template that counts its iterations."""
        return super()._generate(_Counting().visit(source), *args, **named)


def _refuse_random(*args: Any, **named: Any) -> None:
    raise jinja2.TemplateError("the template uses random values, so its output can't be reproduced")


class _Counting(NodeTransformer):
    """Adds counts to a parsed template: of iterations, and of calls, since macros can recur."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        if node.test is None:
            return self._count_at_start(node)
        self.generic_visit(node)
        node.test = nodes.And(_count(), node.test)  # items that it skips count too
        return node

    def _count_at_start(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_count(), lineno=node.lineno))
        return node  # type: ignore[no-any-return]  # visitors are untyped

    visit_Macro = visit_CallBlock = visit_Block = _count_at_start


def _count() -> nodes.Expr:
    return nodes.Filter(nodes.Const(True), _COUNT, [], [], None, None)
