"""The accepted row formats: a raw row becomes a `Dialogue` or a `Reject`.

The `messages` format: `{"messages": [...], "tools": [...]}`, as the chat APIs have it. What a
message says reaches the template unchanged, except that keys without a value are dropped and
the reasoning is put under both names that templates read, as transformers does, and that the loss
switches (`train`, `loss`, `weight`), which speak to the trainer, are taken out.
"""

from __future__ import annotations

import json
from typing import Any

from mtpack.dialogue import Dialogue, Message, Origin, Reason, Reject
from mtpack.strict_json import StrictJsonError, parse

ROW_KEYS = ("messages", "tools")
ROLES = ("system", "developer", "user", "assistant", "tool")
_LOSS_SWITCHES = ("train", "loss", "weight")
# The names of a message's reasoning, the standard one first (transformers, `apply_chat_template`).
_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")


class _RowError(Exception):
    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def read_dialogue(
    row: int, origin: Origin, text: bytes | None, line_limit: int
) -> Dialogue | Reject:
    """Read one row; `text` is None where it is longer than `line_limit` bytes."""
    try:
        if text is None:
            raise _RowError(
                Reason.LINE_TOO_LONG, f"longer than {line_limit:,} bytes; is a newline missing?"
            )
        return _from_messages(row, origin, parse(text))
    except (StrictJsonError, _RowError) as error:
        return Reject(row, origin, error.reason, str(error))


def _from_messages(row: int, origin: Origin, value: Any) -> Dialogue:
    if not isinstance(value, dict):
        raise _RowError(Reason.INVALID_ROW, f"expected an object, found {_kind(value)}")
    if "messages" not in value:
        raise _RowError(Reason.INVALID_ROW, 'no "messages"; each row needs a list of messages')
    messages = value["messages"]
    if not isinstance(messages, list) or not messages:
        found = "an empty list" if messages == [] else _kind(messages)
        raise _RowError(Reason.INVALID_ROW, f'"messages" must be a list of messages, found {found}')
    return Dialogue(
        row=row,
        origin=origin,
        messages=tuple(_read_message(index, message) for index, message in enumerate(messages)),
        tools=_read_tools(value.get("tools")),
    )


def _read_message(index: int, message: Any) -> Message:
    where = f"message {index}"
    if not isinstance(message, dict):
        raise _RowError(
            Reason.INVALID_MESSAGE, f"{where}: expected an object, found {_kind(message)}"
        )
    fields = {key: value for key, value in message.items() if value is not None}
    role = fields.get("role")
    if role not in ROLES:
        found = "no role" if role is None else f"role {_quoted(role)}"
        raise _RowError(
            Reason.UNKNOWN_ROLE, f"{where}: {found}; expected one of {', '.join(ROLES)}"
        )
    where = f"{where} ({role})"
    trained = _read_loss_switch(where, role, fields)
    _check_content(where, role, fields)
    if "tool_calls" in fields:
        _check_tool_calls(where, fields["tool_calls"])
    return Message(role, _with_reasoning_aliases(where, fields), trained)


def _read_loss_switch(where: str, role: str, fields: dict[str, Any]) -> bool:
    """Take the loss switches out of `fields` and return whether the message is trained."""
    switches = {key: fields.pop(key) for key in _LOSS_SWITCHES if key in fields}
    for key, value in switches.items():
        if key == "weight":
            if type(value) not in (int, float) or value not in (0, 1):
                raise _RowError(
                    Reason.INVALID_LOSS_SWITCH,
                    f'{where}: "weight" must be 0 or 1; mtpack weighs every trained turn the same',
                )
        elif type(value) is not bool:
            raise _RowError(Reason.INVALID_LOSS_SWITCH, f'{where}: "{key}" must be true or false')
    wanted = {bool(value) for value in switches.values()}
    if len(wanted) > 1:
        raise _RowError(
            Reason.INVALID_LOSS_SWITCH, f"{where}: {' and '.join(switches)} contradict each other"
        )
    if role != "assistant" and True in wanted:
        raise _RowError(
            Reason.INVALID_LOSS_SWITCH, f"{where}: only assistant messages can be trained"
        )
    return role == "assistant" and False not in wanted


def _check_content(where: str, role: str, fields: dict[str, Any]) -> None:
    content = fields.get("content")
    if content is None:
        if role != "assistant":
            raise _RowError(Reason.INVALID_CONTENT, f'{where}: no "content"')
        if not any(key in fields for key in ("tool_calls", *_REASONING_KEYS)):
            raise _RowError(Reason.INVALID_CONTENT, f'{where}: neither "content" nor "tool_calls"')
    elif isinstance(content, list):
        for part in content:
            _check_part(where, part)
    elif not isinstance(content, str):
        raise _RowError(
            Reason.INVALID_CONTENT,
            f"{where}: content must be text or a list of text parts, found {_kind(content)}",
        )


def _check_part(where: str, part: Any) -> None:
    if not isinstance(part, dict):
        detail = f"a content part must be an object, found {_kind(part)}"
    elif (kind := part.get("type", "text")) != "text":
        detail = f"a content part of type {_quoted(kind)}; mtpack packs text only"
    elif not isinstance(part.get("text"), str):
        detail = 'a content part without "text"'
    else:
        return
    raise _RowError(Reason.INVALID_CONTENT, f"{where}: {detail}")


def _check_tool_calls(where: str, calls: Any) -> None:
    if not isinstance(calls, list):
        raise _RowError(
            Reason.INVALID_TOOL_CALLS, f'{where}: "tool_calls" must be a list, found {_kind(calls)}'
        )
    for number, call in enumerate(calls):
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise _RowError(
                Reason.INVALID_TOOL_CALLS,
                f'{where}: tool call {number} needs {{"function": {{"name", "arguments"}}}}',
            )
        if not isinstance(function.get("arguments", {}), dict | str):
            raise _RowError(
                Reason.INVALID_TOOL_CALLS,
                f"{where}: the arguments of tool call {number} must be an object or JSON text",
            )


def _with_reasoning_aliases(where: str, fields: dict[str, Any]) -> dict[str, Any]:
    reasoning = next((fields[key] for key in _REASONING_KEYS if key in fields), None)
    if reasoning is None:
        return fields
    if not isinstance(reasoning, str):
        raise _RowError(
            Reason.INVALID_CONTENT, f"{where}: the reasoning must be text, found {_kind(reasoning)}"
        )
    return {"thinking": reasoning, **fields, "reasoning_content": reasoning}


def _read_tools(tools: Any) -> list[Any] | None:
    if isinstance(tools, str):  # as datasets with one column type for all tools hold them
        try:
            tools = parse(tools.encode())
        except StrictJsonError as error:
            raise _RowError(
                Reason.INVALID_TOOLS, f'"tools" is text but not JSON: {error}'
            ) from None
    if tools is None:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise _RowError(
            Reason.INVALID_TOOLS, f'"tools" must be a list of objects, found {_kind(tools)}'
        )
    return tools


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
    return "null" if value is None else kinds.get(type(value), "a number")


def _quoted(value: Any) -> str:
    """Show a short name from a row; anything longer might be content."""
    if not isinstance(value, str):
        return _kind(value)
    text = json.dumps(value, ensure_ascii=not value.isprintable())
    return text if len(text) <= 32 else f"{text[:29]}..."
