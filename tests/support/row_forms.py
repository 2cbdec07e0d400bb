"""Random dialogues, and every form in which people write them.

A `PlainRow` holds what a row says, apart from how it is written. `plain_rows` draws them,
`write_plainly` writes one as in the chat APIs, and `FORMS` in all other ways. `describe` says what
a dialogue must be, whatever its form was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from hypothesis import strategies as st

from mtpack.input.dialogue import Dialogue

Row = dict[str, Any]
T = TypeVar("T")
Pick = Callable[[Sequence[T]], T]
"""Picks one of several ways to write the same."""


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
        "tools": _wrap(row.functions) or None,
        "template_args": _thinking(row) or None,
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


def _wrap(functions: Sequence[Row]) -> list[Row]:
    return [{"type": "function", "function": function} for function in functions]


def _thinking(row: PlainRow) -> Row:
    return {} if row.enable_thinking is None else {"enable_thinking": row.enable_thinking}


# The plain form


def write_plainly(row: PlainRow) -> Row:
    """Write a row as in the chat APIs."""
    system = [] if row.system is None else [{"role": "system", "content": row.system}]
    written: Row = {"messages": [*system, *map(_write_message, row.messages)]}
    if row.functions:
        written["tools"] = _wrap(row.functions)
    if row.enable_thinking is not None:
        written["chat_template_kwargs"] = _thinking(row)
    return written


def _write_message(message: PlainMessage) -> Row:
    written: Row = {"role": message.role, "content": message.text}
    if message.reasoning:
        written["reasoning_content"] = message.reasoning
    if message.calls:
        written["tool_calls"] = _wrap(message.calls)
    if message.trained is not None:
        written["train"] = message.trained
    return written


# Other forms. Each returns None for a row that it can't say.

ROLE_NAMES = {
    "user": ("user", "human"),
    "assistant": ("assistant", "gpt", "model"),
    "tool": ("tool", "observation", "tool_response", "function", "function_response"),
    "system": ("system",),
}
CALL_ROLES = ("function_call", "tool_call")
SWITCHES = {
    **dict.fromkeys(("train", "loss", "trainable", "training", "loss_mask"), (True, False)),
    **dict.fromkeys(("step_loss_mask", "weight", "loss_weight"), (1, 0)),
    "masked": (False, True),
}
"""The names of loss switches, each with its values for a trained message and for another one."""
WEIGHTS = ("weight", "loss_weight")
"""Switches that have a number."""


def write_switch(name: str, trained: bool, pick: Pick) -> Any:
    """Return the value of a loss switch, as a boolean or an integer."""
    value = SWITCHES[name][0 if trained else 1]
    return int(value) if name in WEIGHTS else pick((bool(value), int(value)))


def _any_case(text: str, pick: Pick) -> str:
    return pick((text, text.upper(), text.capitalize()))


def _change_messages(row: PlainRow, change: Callable[[Row], Any]) -> Row:
    written = write_plainly(row)
    return written | {"messages": [change(message) for message in written["messages"]]}


def _bare_list(row: PlainRow, pick: Pick) -> list[Row] | None:
    written = write_plainly(row)
    return written["messages"] if len(written) == 1 else None


def _role_names(row: PlainRow, pick: Pick) -> Row:
    return _change_messages(
        row,
        lambda message: message | {"role": _any_case(pick(ROLE_NAMES[message["role"]]), pick)},
    )


def _from_and_value(row: PlainRow, pick: Pick) -> Row:
    return _change_messages(row, lambda message: _as_sharegpt(message, pick))


def _as_sharegpt(message: Row, pick: Pick) -> Row:
    """Rename the keys of a message, and perhaps its role."""
    rest = {key: value for key, value in message.items() if key not in ("role", "content")}
    names = {**ROLE_NAMES, **{name: (name,) for name in CALL_ROLES}}[message["role"]]
    return {"from": _any_case(pick(names), pick), "value": message["content"], **rest}


def _split_calls(message: Row, pick: Pick) -> list[Row]:
    """Write calls as messages of their own, after the text of their message."""
    if "tool_calls" not in message:
        return [message]
    calls = [call["function"] for call in message["tool_calls"]]
    switch = {key: value for key, value in message.items() if key == "train"}
    reasoning = {key: value for key, value in message.items() if key == "reasoning_content"}
    role = pick(CALL_ROLES)
    contents = pick((calls, [calls])) if len(calls) > 1 else calls
    messages = [{"role": role, "content": json.dumps(content), **switch} for content in contents]
    if message["content"]:
        text = {"role": "assistant", "content": message["content"], **switch}
        messages.insert(0, text)
    return [messages[0] | reasoning, *messages[1:]]


def _call_messages(row: PlainRow, pick: Pick) -> Row:
    written = write_plainly(row)
    split = [_split_calls(message, pick) for message in written["messages"]]
    return written | {"messages": [message for messages in split for message in messages]}


def _sharegpt(row: PlainRow, pick: Pick) -> Row:
    written = _call_messages(replace(row, system=None), pick)
    conversation = [_as_sharegpt(message, pick) for message in written.pop("messages")]
    if row.system is not None:
        if pick((True, False)):
            written["system"] = row.system
        else:
            conversation.insert(0, {"from": "system", "value": row.system})
    if "tools" in written:
        written["tools"] = json.dumps(written["tools"])
    return {pick(("conversations", "conversation")): conversation, **written}


def _alpaca(row: PlainRow, pick: Pick) -> Row | None:
    texts = [message.text for message in row.messages]
    roles = ["user", "assistant"] * (len(texts) // 2)
    if any(
        message != PlainMessage(role, message.text)
        for role, message in zip(roles, row.messages, strict=False)
    ) or len(roles) != len(texts):
        return None
    *before, question, answer = texts
    written: Row = {"instruction": question, "output": answer}
    if "\n" in question and all(question.split("\n", 1)) and pick((True, False)):
        written["instruction"], written["input"] = question.split("\n", 1)
    if before:
        written["history"] = [before[index : index + 2] for index in range(0, len(before), 2)]
    if row.system is not None:
        written["system"] = row.system
    if row.functions:
        written["tools"] = pick((_wrap(row.functions), json.dumps(_wrap(row.functions))))
    return written | _thinking(row)


def _json_text(row: PlainRow, pick: Pick) -> Row:
    """Write messages and tools as JSON text: all of them, or each."""
    written = write_plainly(row)
    for key in ("messages", "tools"):
        if key in written and pick((True, True, False)):
            whole = pick((True, False))
            values = written[key]
            written[key] = json.dumps(values) if whole else [json.dumps(value) for value in values]
    return written


def _json_text_of_calls(row: PlainRow, pick: Pick) -> Row:
    """Write the calls of a message as JSON text, or each call, or the arguments of each."""

    def change(message: Row) -> Row:
        if "tool_calls" not in message:
            return message
        calls = [
            {
                "type": "function",
                "function": function
                | {"arguments": pick((function["arguments"], json.dumps(function["arguments"])))},
            }
            for call in message["tool_calls"]
            for function in [call["function"]]
        ]
        return message | {
            "tool_calls": pick((calls, json.dumps(calls), [json.dumps(call) for call in calls]))
        }

    return _change_messages(row, change)


def _system_of_the_row(row: PlainRow, pick: Pick) -> Row | None:
    if row.system is None:
        return None
    return {"system": row.system, **write_plainly(replace(row, system=None))}


def _functions_key(row: PlainRow, pick: Pick) -> Row | None:
    written = write_plainly(row)
    if written.pop("tools", None) is None:
        return None
    functions = list(row.functions)
    return written | {"functions": pick((functions, json.dumps(functions)))}


def _tools_of_the_system_message(row: PlainRow, pick: Pick) -> Row | None:
    written = write_plainly(row)
    if row.system is None or not row.functions:
        return None
    tools = written.pop("tools")
    opening, *others = written["messages"]
    opening = opening | {"tools": pick((tools, json.dumps(tools)))}
    return written | {"messages": [opening, *others]}


def _one_tool(row: PlainRow, pick: Pick) -> Row | None:
    written = write_plainly(row)
    if len(row.functions) != 1:
        return None
    (tool,) = written["tools"]
    return written | {"tools": pick((tool, json.dumps(tool)))}


def _names_of_switches(row: PlainRow, pick: Pick) -> Row:
    def change(message: Row) -> Row:
        if message["role"] != "assistant":
            return message
        trained = message.get("train", True)
        names = [pick(list(SWITCHES)) for _ in range(pick((1, 1, 2)))]
        rest = {key: value for key, value in message.items() if key != "train"}
        return rest | {name: write_switch(name, trained, pick) for name in names}

    return _change_messages(row, change)


def _forms_of_reasoning(row: PlainRow, pick: Pick) -> Row:
    def change(message: Row) -> Row:
        if "reasoning_content" not in message:
            return message
        written = dict(message)
        reasoning = written.pop("reasoning_content")
        form = pick(("thinking", "reasoning", "part", "details"))
        if form in ("thinking", "reasoning"):
            written[form] = reasoning
        elif form == "details":
            written["reasoning_details"] = [{"type": "reasoning.text", "text": reasoning}]
        else:
            parts = [{"type": "thinking", "thinking": reasoning}]
            if written["content"]:
                parts.append({"type": "text", "text": written["content"]})
            written["content"] = parts
        return written

    return _change_messages(row, change)


def _text_parts(row: PlainRow, pick: Pick) -> Row:
    return _change_messages(
        row, lambda message: message | {"content": [{"type": "text", "text": message["content"]}]}
    )


def _nulls(row: PlainRow, pick: Pick) -> Row:
    """Fill every message with the keys that others have, as tables do."""
    empty = dict.fromkeys(("name", "tool_calls", "reasoning_content", "train", "source"))
    written = _change_messages(row, lambda message: empty | message)
    return {"tools": None, "system": None, "source": None} | written


def _older_call(row: PlainRow, pick: Pick) -> Row:
    """Write a single call under the older name of the chat APIs, with its arguments as text."""

    def change(message: Row) -> Row:
        if len(message.get("tool_calls", [])) != 1:
            return message
        written = dict(message)
        (call,) = written.pop("tool_calls")
        function = call["function"]
        arguments = json.dumps(function["arguments"])
        return written | {"function_call": function | {"arguments": arguments}}

    return _change_messages(row, change)


def _variables_of_the_row(row: PlainRow, pick: Pick) -> Row | None:
    written = write_plainly(row)
    if written.pop("chat_template_kwargs", None) is None:
        return None
    return written | _thinking(row)


FORMS: dict[str, Callable[[PlainRow, Pick], Any]] = {
    "a bare list": _bare_list,
    "names of roles": _role_names,
    "from and value in messages": _from_and_value,
    "calls as messages": _call_messages,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "JSON text": _json_text,
    "JSON text of calls": _json_text_of_calls,
    "older calls": _older_call,
    "system of the row": _system_of_the_row,
    "functions": _functions_key,
    "tools of the system message": _tools_of_the_system_message,
    "one tool": _one_tool,
    "names of loss switches": _names_of_switches,
    "forms of reasoning": _forms_of_reasoning,
    "text parts": _text_parts,
    "nulls": _nulls,
    "variables of the row": _variables_of_the_row,
}
