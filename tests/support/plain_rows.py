"""Random rows, apart from how they are written, and what the dialogue of each must be.

A `PlainRow` holds what a row says. `plain_rows` draws them, `write_plainly` writes one as in the
chat APIs (`row_forms.py` has all other forms), and `describe` says what is read from any form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from mtpack.input.dialogue import Dialogue

Row = dict[str, Any]


@dataclass(frozen=True)
class PlainMessage:
    """A message of the user, the assistant or a tool."""

    role: str
    text: str
    reasoning: str = ""
    calls: tuple[Row, ...] = ()
    """Tool calls, each a name and arguments."""
    trained: bool | None = None
    """The loss switch of an assistant message, None without one."""


@dataclass(frozen=True)
class PlainRow:
    """What a row says."""

    messages: tuple[PlainMessage, ...]
    system: str | None = None
    functions: tuple[Row, ...] = ()
    enable_thinking: bool | None = None


# Random rows. All functions of a vocabulary have the same arguments, since a column of a table has
# one type and would otherwise be filled with nulls.

_texts = st.text(min_size=1, max_size=8)
_names = st.text("abcdefgh_", min_size=1, max_size=4)
_values = {
    "string": st.text(max_size=5),
    "integer": st.integers(-(2**53), 2**53),
    "boolean": st.booleans(),
    "array": st.lists(st.text(max_size=3), min_size=1, max_size=2),
    "object": st.tuples(st.integers(0, 9), st.text(max_size=3)).map(
        lambda values: dict(zip("ab", values, strict=True))
    ),
}
_arguments = st.dictionaries(_names, st.sampled_from(sorted(_values)), min_size=1, max_size=3)


@st.composite
def _functions(draw) -> tuple[dict[str, str], tuple[Row, ...]]:
    """Draw the types of arguments by name, and functions that take them."""
    types = draw(_arguments)
    parameters = {
        "type": "object",
        "properties": {name: {"type": kind} for name, kind in types.items()},
        "required": [next(iter(types))],
    }
    names = draw(st.lists(_names, min_size=1, max_size=2, unique=True))
    return types, tuple(
        {"name": name, "description": draw(_texts), "parameters": parameters} for name in names
    )


@st.composite
def _exchanges(draw, types: dict[str, str], functions: tuple[Row, ...]) -> list[PlainMessage]:
    """Draw a question, perhaps calls with their results, and an answer."""
    switches = st.sampled_from((None, None, True, False))
    reasonings = st.just("") | _texts
    messages = [PlainMessage("user", draw(_texts))]
    for _ in range(draw(st.sampled_from((0, 0, 1, 2)))):
        calls = tuple(
            {
                "name": draw(st.sampled_from(functions))["name"],
                "arguments": {name: draw(_values[kind]) for name, kind in types.items()},
            }
            for _ in range(draw(st.integers(1, 2)))
        )
        text = draw(st.just("") | _texts)
        call = PlainMessage("assistant", text, draw(reasonings), calls, draw(switches))
        messages += [call, *(PlainMessage("tool", draw(_texts)) for _ in calls)]
    answer = PlainMessage("assistant", draw(_texts), draw(reasonings), (), draw(switches))
    return [*messages, answer]


@st.composite
def plain_rows(draw, max_size: int = 3) -> list[PlainRow]:
    """Draw rows with the same functions, which one table can hold."""
    types, functions = draw(_functions())
    rows = []
    for _ in range(draw(st.integers(1, max_size))):
        if draw(st.booleans()):  # the plainest rows have forms that others have not
            texts = draw(st.lists(_texts, min_size=1, max_size=3))
            messages = [
                PlainMessage(role, text) for text in texts for role in ("user", "assistant")
            ]
        else:
            exchanges = draw(st.lists(_exchanges(types, functions), min_size=1, max_size=2))
            messages = [message for exchange in exchanges for message in exchange]
        calls = any(message.calls for message in messages)
        rows.append(
            PlainRow(
                tuple(messages),
                draw(st.none() | _texts),
                functions if calls or draw(st.booleans()) else (),
                draw(st.sampled_from((None, None, True, False))),
            )
        )
    return rows


# What a row means


def describe(row: PlainRow) -> Row:
    """Return what the dialogue of a row must be, in the form of `describe_dialogue`."""
    system = [] if row.system is None else [PlainMessage("system", row.system)]
    messages = [*system, *row.messages]
    return {
        "messages": [
            (message.role, message.text, message.reasoning, list(message.calls))
            for message in messages
        ],
        "trained": [
            index
            for index, message in enumerate(messages)
            if message.role == "assistant" and message.trained is not False
        ],
        "tools": wrap(row.functions) or None,
        "template_args": variables_of(row) or None,
        "unread": (),
    }


def describe_dialogue(dialogue: Dialogue) -> Row:
    """Return what a dialogue means, apart from forms that templates do not tell apart."""
    return {
        "messages": [
            (
                message["role"],
                _join_parts(message["content"]),
                message.get("reasoning_content", ""),
                [
                    {"name": function["name"], "arguments": function["arguments"]}
                    for call in message.get("tool_calls", [])
                    for function in [call.get("function", call)]
                ],
            )
            for message in dialogue.messages
        ],
        "trained": dialogue.trained_messages(),
        "tools": dialogue.tools or None,
        "template_args": dialogue.template_args,
        "unread": dialogue.unread,
    }


def _join_parts(content: Any) -> str:
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)


def wrap(functions: Sequence[Row]) -> list[Row]:
    return [{"type": "function", "function": function} for function in functions]


def variables_of(row: PlainRow) -> Row:
    return {} if row.enable_thinking is None else {"enable_thinking": row.enable_thinking}


# The plain form


def write_plainly(row: PlainRow) -> Row:
    """Write a row as in the chat APIs."""
    system = [] if row.system is None else [{"role": "system", "content": row.system}]
    written: Row = {"messages": [*system, *map(_write_message, row.messages)]}
    if row.functions:
        written["tools"] = wrap(row.functions)
    if row.enable_thinking is not None:
        written["chat_template_kwargs"] = variables_of(row)
    return written


def _write_message(message: PlainMessage) -> Row:
    written: Row = {"role": message.role, "content": message.text}
    if message.reasoning:
        written["reasoning_content"] = message.reasoning
    if message.calls:
        written["tool_calls"] = wrap(message.calls)
    if message.trained is not None:
        written["train"] = message.trained
    return written
