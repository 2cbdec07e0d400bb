"""Every form in which people write a row, apart from the plain one (`plain_rows.py`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from tests.support.plain_rows import (
    PlainMessage,
    PlainRow,
    Row,
    variables_of,
    wrap,
    write_plainly,
)

T = TypeVar("T")
Pick = Callable[[Sequence[T]], T]
"""Picks one of several ways to write the same."""

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
        written["tools"] = pick((wrap(row.functions), json.dumps(wrap(row.functions))))
    return written | variables_of(row)


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
    return written | variables_of(row)


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
"""By name, what writes a row in a form; it returns None for a row that the form can't say."""
