"""Rewrite a parsed template so that it can run on stand-ins.

Where compiled templates use Python's own operators on text (output, `~`, `in`, what a `set` block
gathers), they are made to call a function instead (`mtpack_write`, `mtpack_concat`, `mtpack_in`,
`mtpack_captured`). Loops at the top level of a template become loops of steps (`Recorder.step`):
they iterate over `mtpack_iterate`, and each iteration begins with `mtpack_step`.
"""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import nodes
from jinja2.visitor import NodeTransformer

from mtpack.template.replay.stand_ins import Declined


def rewrite(tree: nodes.Template) -> set[str]:
    """Rewrite a template in place; return the variables of its outermost scope.

    Raises Declined.
    """
    _Rewriter().visit(tree)
    names = _make_steps(tree)
    for node in tree.find_all(nodes.Node):
        if not node.lineno:
            node.lineno = 1
    return names


def _call(function: str, *arguments: nodes.Expr) -> nodes.Call:
    return nodes.Call(nodes.Name(function, "load"), list(arguments), [], None, None)


class _Rewriter(NodeTransformer):
    """Replaces what would join or search text behind the back of stand-ins."""

    def visit_Output(self, node: nodes.Output) -> nodes.Output:
        self.generic_visit(node)
        node.nodes = [
            item if isinstance(item, nodes.TemplateData) else _call("mtpack_write", item)
            for item in node.nodes
        ]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Call:
        self.generic_visit(node)
        return _call("mtpack_concat", *node.nodes)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Expr:
        self.generic_visit(node)
        (first, *more) = node.ops
        if more or first.op not in ("in", "notin"):
            return node
        found = _call("mtpack_in", node.expr, first.expr)
        return nodes.Not(found) if first.op == "notin" else found

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> nodes.AssignBlock:
        self.generic_visit(node)
        node.filter = nodes.Filter(node.filter, "mtpack_captured", [], [], None, None)
        return node


def _make_steps(tree: nodes.Template) -> set[str]:
    """Make the iterations of loops at the top level steps; return the variables of that level."""
    loops: list[nodes.For] = []
    names: set[str] = set()
    _look_through(tree.body, loops, names)
    for number, loop in enumerate(loops):
        if loop.recursive or loop.test is not None:
            continue
        variable = f"mtpack_loop_{number}"
        assert isinstance(loop.iter, nodes.Expr)
        loop.iter = _call("mtpack_iterate", loop.iter)
        loop.target = nodes.Tuple([loop.target, nodes.Name(variable, "store")], "store")
        for node in loop.body:
            _rename_loop(node, variable)
        live = nodes.List([nodes.Name(name, "load") for name in sorted(names)])
        step = _call("mtpack_step", nodes.Name(variable, "load"), nodes.Const(number), live)
        loop.body.insert(0, nodes.Output([step]))
    return names


def _look_through(body: Sequence[nodes.Node], loops: list[nodes.For], names: set[str]) -> None:
    """Collect the loops and the variables of the outermost scope."""
    for node in body:
        if isinstance(node, nodes.For):
            loops.append(node)
        elif isinstance(node, nodes.If):
            for branch in (node.body, node.elif_, node.else_):
                _look_through(branch, loops, names)
        elif isinstance(node, nodes.Assign | nodes.AssignBlock):
            names |= {name.name for name in _names_in(node.target) if name.ctx == "store"}
        elif isinstance(node, nodes.Macro):
            names.add(node.name)
        elif not isinstance(node, nodes.Output | nodes.ExprStmt | nodes.CallBlock):
            raise Declined(f"a {type(node).__name__}")


def _names_in(target: nodes.Expr) -> list[nodes.Name]:
    inside = list(target.find_all(nodes.Name))
    return [target, *inside] if isinstance(target, nodes.Name) else inside


def _rename_loop(node: nodes.Node, variable: str) -> None:
    """Let `loop` mean the stepping one, but in loops inside it."""
    if isinstance(node, nodes.Name) and node.name == "loop":
        node.name = variable
    for name, value in node.iter_fields():
        if isinstance(node, nodes.For) and name in ("body", "else_", "test"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, nodes.Node):
                _rename_loop(child, variable)
