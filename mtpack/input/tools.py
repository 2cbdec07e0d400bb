"""Tools and tool calls, as objects or as JSON text."""

from __future__ import annotations

from typing import Any

from mtpack.input.dialogue import Messages, Reason
from mtpack.input.row_errors import RowError, describe_type
from mtpack.input.strict_json import StrictJsonError, parse


def read_tools(tools: Any) -> list[Any] | None:
    """Return a row's tools; a string is parsed as JSON. Raises RowError."""
    if isinstance(tools, str):  # as in datasets that have one column type for all tools
        tools = _parse_text(tools, Reason.INVALID_TOOLS, '"tools" is')
    if tools is None:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RowError(
            Reason.INVALID_TOOLS, f'"tools" must be a list of objects, found {describe_type(tools)}'
        )
    return tools


def _parse_text(text: str, reason: Reason, subject: str) -> Any:
    try:
        return parse(text.encode())
    except StrictJsonError as error:
        raise RowError(reason, f"{subject} a string but not JSON: {error}") from None


def read_tool_calls(where: str, calls: Any) -> list[dict[str, Any]]:
    """Return a message's `tool_calls` without null keys, arguments that are missing as `{}`.

    Arguments that are text stay text (`parse_arguments`). Raises RowError.
    """
    if not isinstance(calls, list):
        raise RowError(
            Reason.INVALID_TOOL_CALLS,
            f'{where}: "tool_calls" must be a list, found {describe_type(calls)}',
        )
    return [_read_tool_call(where, number, call) for number, call in enumerate(calls)]


def _read_tool_call(where: str, number: int, call: Any) -> dict[str, Any]:
    call = _drop_null_keys(call)
    nested = isinstance(call, dict) and "function" in call
    function = _drop_null_keys(call["function"]) if nested else call
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowError(
            Reason.INVALID_TOOL_CALLS,
            f'{where}: tool call {number} must be {{"function": {{"name", "arguments"}}}}',
        )
    arguments = function.get("arguments", {})
    if not isinstance(arguments, dict | str):
        raise RowError(
            Reason.INVALID_TOOL_CALLS,
            f"{where}: the arguments of tool call {number} must be an object or JSON text",
        )
    if isinstance(arguments, str) and not arguments.strip():
        arguments = {}
    function = {**function, "arguments": arguments}
    return {**call, "function": function} if nested else function


def _drop_null_keys(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: item for key, item in value.items() if item is not None}


def parse_arguments(messages: Messages, num_before: int) -> None:
    """Replace tool-call arguments that are JSON text by their value, an object, in place.

    messages: as `read_tool_calls` returns their calls. num_before: the number of messages that
    an error does not count. Raises RowError.
    """
    for index, message in enumerate(messages):
        for number, call in enumerate(message.get("tool_calls", ())):
            function = call.get("function", call)
            if isinstance(function["arguments"], str):
                where = f"message {index - num_before} ({message['role']})"
                subject = f"{where}: the arguments of tool call {number} are"
                text = function["arguments"]
                value = _parse_text(text, Reason.INVALID_TOOL_CALLS, subject)
                if not isinstance(value, dict):
                    detail = f"{subject} JSON text of {describe_type(value)}, not of an object"
                    raise RowError(Reason.INVALID_TOOL_CALLS, detail)
                function["arguments"] = value


def parse_function_calls(where: str, value: Any) -> list[dict[str, Any]]:
    """Return the tool calls in the value of a `function_call` message; raise RowError.

    >>> parse_function_calls("message 1", '{"name": "add", "arguments": {"a": 1}}')
    [{'type': 'function', 'function': {'name': 'add', 'arguments': {'a': 1}}}]
    """
    if isinstance(value, str):
        value = _parse_text(value, Reason.INVALID_TOOL_CALLS, f"{where}: the call is")
    calls = value if isinstance(value, list) else [value]
    if not calls:
        raise RowError(Reason.INVALID_TOOL_CALLS, f"{where}: the list of calls is empty")
    for number, call in enumerate(calls):
        if not isinstance(call, dict) or not call.keys() >= {"name", "arguments"}:
            raise RowError(
                Reason.INVALID_TOOL_CALLS,
                f'{where}: call {number} must be an object with "name" and "arguments"',
            )
    return [{"type": "function", "function": call} for call in calls]
