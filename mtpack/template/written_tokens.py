"""Find the added tokens that a chat template writes, and those that open or end its messages.

Both are decided once for a template, from its source and from small made-up dialogues. So they
depend on no row.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from jinja2 import nodes

from mtpack.input.dialogue import ROLES, Messages
from mtpack.input.reasoning import END_OF_THINK, THINK
from mtpack.template.chat_template import ChatTemplate
from mtpack.template.made_up import ANSWER, NAME, QUESTION, REASONING, SYSTEM, WORDS
from mtpack.template.made_up_renders import MadeUpRenders, make_turns
from mtpack.tokenizer.added_tokens import compile_alternation

# `<think>`, `[INST]`, `<|user|>`: no white space and no word, which some tokenizers add as well.
_MARKUP = re.compile(r"[^\w\s].*\w.*[^\w\s]", re.DOTALL)
_THINK = frozenset({THINK, END_OF_THINK})  # some templates write them around no reasoning
_PLAIN: Messages = [QUESTION, ANSWER, QUESTION, ANSWER]


def find_written_tokens(template: ChatTemplate, contents: Iterable[str]) -> frozenset[str]:
    """Return the added tokens that stand in the literal texts of a template.

    contents: the texts of added tokens. A literal text is a string of the source, or text outside
    of its tags. Where the template joins texts with something else, the name of each role stands
    for that, so `'<|' + message.role + '|>'` writes `<|user|>`. All templates of a tokenizer count
    together. Tokens that are words or white space never count.
    """
    possible = [content for content in contents if _MARKUP.fullmatch(content)]
    if not possible:
        return frozenset()
    trees = [template.environment.parse(source) for source in template.sources.values()]
    written = "\0".join(
        text for tree in trees for role in ROLES for text in _list_texts(tree, role)
    )
    return frozenset(content for content in possible if content in written)


def _list_texts(tree: nodes.Node, inserted: str) -> list[str]:
    """Return the literal texts of a template; inserted: stands for what is joined with them."""
    texts: list[str] = []
    pending = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, nodes.Output | nodes.Concat | nodes.Add | nodes.Literal):
            pieces, others = _join_texts(node, inserted)
            texts.append("".join(pieces))
            pending += others
        else:
            pending += node.iter_child_nodes()
    return texts


def _join_texts(node: nodes.Node, inserted: str) -> tuple[list[str], list[nodes.Node]]:
    """Return the texts that a node joins, and the nodes in it that are no literal text."""
    pieces: list[str] = []
    others: list[nodes.Node] = []
    pending = [node]
    while pending:
        part = pending.pop()
        if isinstance(part, nodes.Output | nodes.Concat | nodes.Add):
            pending += reversed(list(part.iter_child_nodes()))
        elif isinstance(part, nodes.TemplateData):
            pieces.append(part.data)
        elif isinstance(part, nodes.Const):
            pieces.append(part.value if isinstance(part.value, str) else "")
        else:
            pieces.append(inserted)
            others += part.iter_child_nodes() if isinstance(part, nodes.Literal) else [part]
    return pieces, others


def find_turn_tokens(
    template: ChatTemplate, control: Collection[str], stops: Iterable[str]
) -> frozenset[str]:
    """Return the control tokens that open or end a turn.

    control: the texts of all control tokens. stops: those that end generation. The others are what
    the template writes around the texts of plain messages, apart from the tokens of a reasoning or
    a call: these are a part of what the model says. Some templates write them in every dialogue,
    around an empty reasoning or in a system message.
    """
    renders = MadeUpRenders(template)
    any_token = compile_alternation(control)
    plain: set[str] = set()
    own: set[str] = set()
    tool_lists: tuple[list[object] | None, ...] = (None, [])  # the templates default and tool_use
    for tools in tool_lists:
        text = _render_first(renders, [[SYSTEM, *_PLAIN], _PLAIN], tools)
        plain.update(any_token.findall(text))
        _, _, later = text.partition(WORDS["assistant"])
        header, _, rest = later.partition(WORDS["user"])
        of_questions = {*any_token.findall(header), *any_token.findall(rest)[:1]}
        for has_calls, word in ((False, REASONING), (True, NAME)):
            answers = make_turns(has_calls, "" if has_calls else REASONING)
            text = _render_first(renders, ([QUESTION, answer] for answer in answers), tools)
            before, _, after = text.partition(word)
            closing = frozenset(any_token.findall(after)[:1]) - of_questions
            if closing:  # otherwise the turn ends there, and what is before it is its header
                own |= closing.union(any_token.findall(before)[-1:]) - of_questions
    return (frozenset(plain) - own - _THINK) | frozenset(stops).intersection(control)


def _render_first(
    renders: MadeUpRenders, dialogues: Iterable[Messages], tools: list[object] | None
) -> str:
    """Return the text of the first dialogue whose last message the template writes; "" if none."""
    for messages in dialogues:
        text = renders.text(messages, tools) or ""
        if "mtpack" in text.rpartition(WORDS["user"])[2]:
            return text
    return ""
