"""The sandbox of chat templates, with limits on what a render may write and how often it may loop.

A chat template is foreign code. Jinja's sandbox, which transformers uses as well, keeps it from
reaching out, but not from computing without end. So each render counts the characters that it
writes and the iterations of its loops. The counts depend on the template and the dialogue alone.
So a row that is rejected on one machine is rejected on every machine.

What happens in one step is not counted, however large the result is (`'x' * 10**10`). So a render
also has limits on time and memory. They stop the run (`running/watchdog.py`), since how much is too
much depends on the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from mtpack.template.texts import guard_filters, guard_method, to_texts

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


class RenderCount(Protocol):
    """Counts renders; `running/heartbeat.py` does so for the process that watches this one."""

    renders: int
    """The number of begins and ends of renders so far."""


class Meter:
    """Counts what one render does, and raises TemplateLimitError if it exceeds a limit."""

    __slots__ = ("_characters_left", "_iterations_left", "count", "limits")

    def __init__(self, limits: Limits) -> None:
        """Start with nothing counted."""
        self.limits = limits
        self.count: RenderCount | None = None
        """Where the begin and the end of each render are counted, if anywhere."""
        self.restart()

    def begin(self) -> None:
        """Begin a render, with nothing counted."""
        self.restart()
        if self.count is not None:
            self.count.renders += 1

    def end(self) -> None:
        """End a render, also one that has failed."""
        if self.count is not None:
            self.count.renders += 1

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

    def join(self, pieces: Iterable[Any]) -> str:
        """Count and join the values that a text is made of; they are made only as they are read."""
        texts: list[str] = []
        remaining = iter(pieces)
        while batch := list(islice(remaining, _PIECES_PER_CHECK)):
            try:
                texts.append(self._join_texts(batch))
            except TypeError:  # not all are texts
                texts.append(self._join_texts(to_texts(batch)))
        return texts[0] if len(texts) == 1 else "".join(texts)

    def _join_texts(self, batch: list[str]) -> str:
        size = sum(map(len, batch))
        if size > self._characters_left:
            raise TemplateLimitError(f"writes more than {self.limits.characters:,} characters")
        text = "".join(batch)
        self._characters_left -= size
        return text


_IMPORTS = "from mtpack.template.texts import check_text, join_texts, refuse_set, to_operand"


class LimitedCodeGenerator(CodeGenerator):
    """Compiles templates without computing their constants: no watchdog runs at that time.

    What becomes text is checked (`texts.py`); for plain texts and numbers that takes no call.
    """

    def visit_Template(self, node: nodes.Template, frame: Frame | None = None) -> None:
        """Compile a template; its code uses the functions of `texts.py`."""
        self.writeline(_IMPORTS)
        super().visit_Template(node, frame)

    def _output_child_pre(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        """Write a value as it is: `Meter.join` makes text of it."""
        if _may_escape(frame):
            super()._output_child_pre(node, frame, finalize)
            self.write("check_text(")
        else:
            self.write("(")

    def _output_child_post(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        if _may_escape(frame):
            self.write(")")
        super()._output_child_post(node, frame, finalize)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        """Compile the operator `~`."""
        if _may_escape(frame):
            volatile = "(markup_join if context.eval_ctx.volatile else str_join)"
            self.write(volatile if frame.eval_ctx.volatile else "markup_join")
            self.write("(check_text((")
        else:
            self.write("join_texts(((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write(")))")

    def visit_Mod(self, node: nodes.BinExpr, frame: Frame) -> None:
        """Compile the operator `%`: of a number, or of a text that it formats."""
        environment: Any = self.environment
        if "%" in environment.intercepted_binops:
            super().visit_Mod(node, frame)
            return
        self.write("((value if type(value := ")
        self.visit(node.left, frame)
        self.write(") is int else to_operand(value)) % ")
        self.visit(node.right, frame)
        self.write(")")

    def visit_Sub(self, node: nodes.BinExpr, frame: Frame) -> None:
        """Compile the operator `-`."""
        self.write("(value if type(value := ")
        super().visit_Sub(node, frame)
        self.write(") is not set else refuse_set(value))")

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
        guard_filters(self.filters)
        self.filters[_COUNT] = meter.count_iteration
        self.filters["random"] = self.globals["lipsum"] = _refuse_random

    def concat(self, pieces: Iterable[Any]) -> str:
        """Join what a template, a macro or a block writes."""
        return self.meter.join(pieces)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Return a function in place of a method of a text that makes text of its arguments."""
        return guard_method(self, value)

    def _generate(self, source: nodes.Template, *args: Any, **named: Any) -> str:
        """Generate the code of a parsed template that counts its iterations."""
        return super()._generate(_Counting().visit(source), *args, **named)


def _may_escape(frame: Frame) -> bool:
    return bool(frame.eval_ctx.volatile or frame.eval_ctx.autoescape)


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
