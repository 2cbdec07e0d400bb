"""Rewrite a parsed template so that it can run on tracers.

Compiled templates use Python's own operators on text: for output, `~`, `in`, and the text of a
`set` block. The rewritten template calls a function instead (`mtpack_write`, `mtpack_concat`,
`mtpack_in`, `mtpack_captured`). Loops at the top level become loops of steps: they iterate over
`mtpack_iterate`, and each iteration begins with `mtpack_step` (`Recorder.begin_step`). Loops that
search the parts of a content do not iterate over the characters of a text (`mtpack_parts`).
"""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import nodes
from jinja2.visitor import NodeTransformer

from mtpack.template.tracing.tracers import Untraceable


def rewrite(tree: nodes.Template) -> set[str]:
    """Rewrite a template in place; return the variables of its outermost scope.

    Raises Untraceable.
    """
    _Rewriter().visit(tree)
    names = _make_steps(tree)
    for node in tree.find_all(nodes.Node):
        if not node.lineno:
            node.lineno = 1
    return names


def _call(function: str, *arguments: nodes.Expr) -> nodes.Call:
    return nodes.Call(nodes.Name(function, "load"), list(arguments), [], None, None)


def skip_characters(tree: nodes.Template) -> None:
    """Let loops over the parts of a content skip the characters of a content that is a text.

    `{% for part in content %}{% if part.type == 'image' %}...` does nothing for a character, since
    it has no `type`. Without this, each character would be a question. Call it before marks are
    added: they write nothing for a character.
    """
    for loop in tree.find_all(nodes.For):
        target = loop.target
        if not isinstance(target, nodes.Name) or loop.else_ or loop.test:
            continue
        if all(_only_tests_keys(node, target.name) for node in loop.body):
            assert isinstance(loop.iter, nodes.Expr)
            loop.iter = _call("mtpack_parts", loop.iter)


def _only_tests_keys(node: nodes.Node, name: str) -> bool:
    """Return whether a node is an `if` without `else` that only compares keys of `name`."""
    if not isinstance(node, nodes.If) or node.else_:
        return False
    return _tests_a_key(node.test, name) and all(
        _only_tests_keys(branch, name) for branch in node.elif_
    )


def _tests_a_key(test: nodes.Node, name: str) -> bool:
    """Return whether a test compares a key of `name`, which no character has, to a text."""
    match test:
        case nodes.Or():
            return _tests_a_key(test.left, name) and _tests_a_key(test.right, name)
        case nodes.Compare(expr=asked, ops=[nodes.Operand(op="eq", expr=nodes.Const(value=str()))]):
            key = _read_key(asked, name)
            return key is not None and not hasattr(str, key)
    return False


def _read_key(asked: nodes.Node, name: str) -> str | None:
    """Return the key of `name` that an expression reads, or None if it is another expression."""
    match asked:
        case nodes.Getattr(node=nodes.Name(name=of), attr=key) if of == name:
            return str(key)
        case nodes.Getitem(node=nodes.Name(name=of), arg=nodes.Const(value=str() as key)) if (
            of == name
        ):
            return key
    return None


class _Rewriter(NodeTransformer):
    """Replaces operators that would join or search text without calling a tracer."""

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
    """Make each iteration of a top-level loop a step; return the variables of the top level."""
    loops: list[nodes.For] = []
    names: set[str] = set()
    _collect_loops_and_names(tree.body, loops, names)
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


def _collect_loops_and_names(
    body: Sequence[nodes.Node], loops: list[nodes.For], names: set[str]
) -> None:
    """Collect the loops and the variables of the outermost scope."""
    for node in body:
        if isinstance(node, nodes.For):
            loops.append(node)
        elif isinstance(node, nodes.If):
            for branch in (node.body, node.elif_, node.else_):
                _collect_loops_and_names(branch, loops, names)
        elif isinstance(node, nodes.Assign | nodes.AssignBlock):
            names |= {name.name for name in _find_names(node.target) if name.ctx == "store"}
        elif isinstance(node, nodes.Macro):
            names.add(node.name)
        elif not isinstance(node, nodes.Output | nodes.ExprStmt | nodes.CallBlock):
            raise Untraceable(f"a {type(node).__name__}")


def _find_names(target: nodes.Expr) -> list[nodes.Name]:
    inside = list(target.find_all(nodes.Name))
    return [target, *inside] if isinstance(target, nodes.Name) else inside


def _rename_loop(node: nodes.Node, variable: str) -> None:
    """Replace `loop` by `variable` in the body of a loop, but not inside nested loops."""
    if isinstance(node, nodes.Name) and node.name == "loop":
        node.name = variable
    for name, value in node.iter_fields():
        if isinstance(node, nodes.For) and name in ("body", "else_", "test"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, nodes.Node):
                _rename_loop(child, variable)
