"""Tools and tool calls, as objects or as JSON text."""

from __future__ import annotations

from typing import Any

from mtpack.input.dialogue import Reason
from mtpack.input.json_value import parse_json_text, parse_nested
from mtpack.input.row_errors import RowError, describe_type

_CALL_KEYS = frozenset(("id", "type", "function", "name", "arguments"))
_FUNCTION_KEYS = frozenset(("name", "arguments"))


def pop_tools(fields: dict[str, Any], given: list[list[Any]]) -> list[Any] | None:
    """Remove the tools from the fields of a row and return them; None if there are none.

    given: the tools that were found in the messages. Raises RowError if they differ.
    """
    found = [*given, *pop_named_tools(fields)]
    if any(tools != found[0] for tools in found):
        raise RowError(Reason.INVALID_TOOLS, "the row has different tools in several places")
    return found[0] if found else None


def pop_named_tools(fields: dict[str, Any]) -> list[list[Any]]:
    """Remove `tools` and `functions` from a row or a system message; return those that are there.

    `functions` is the older name of the chat APIs. Raises RowError.
    """
    tools = _read_list("tools", fields.pop("tools", None))
    functions = _read_list("functions", fields.pop("functions", None))
    found = [] if tools is None else [tools]
    if functions:
        found.append([_wrap_function(function) for function in functions])
    return found


def _wrap_function(function: dict[str, Any]) -> dict[str, Any]:
    """Return a tool or a call as the chat APIs write it."""
    return function if "function" in function else {"type": "function", "function": function}


def _read_list(key: str, tools: Any) -> list[Any] | None:
    """Return a list of objects: itself, one object, or the JSON text of these; None for null."""
    if tools == "":  # tables have the column, with a value or without
        return None
    value = parse_json_text(tools, Reason.INVALID_TOOLS, f'"{key}" is')
    if value is None:
        return None
    listed = [value] if isinstance(value, dict) else value
    if isinstance(listed, list):
        subject = f'an entry of "{key}" is'
        listed = [parse_nested(tool, Reason.INVALID_TOOLS, subject) for tool in listed]
        if all(isinstance(tool, dict) for tool in listed):
            return listed
    found = "a list of other values" if isinstance(value, list) else describe_type(value)
    raise RowError(Reason.INVALID_TOOLS, f'"{key}" must be a list of objects, found {found}')


def read_tool_calls(where: str, calls: Any, *, keeps_text: bool) -> list[dict[str, Any]]:
    """Return a message's `tool_calls` without null keys, arguments that are missing as `{}`.

    keeps_text: whether arguments that are text stay text; otherwise they are parsed as JSON, into
    an object. Raises RowError.
    """
    calls = parse_nested(calls, Reason.INVALID_TOOL_CALLS, f'{where}: "tool_calls" is')
    if isinstance(calls, dict):
        calls = [calls]
    if not isinstance(calls, list):
        raise RowError(
            Reason.INVALID_TOOL_CALLS,
            f'{where}: "tool_calls" must be a list, found {describe_type(calls)}',
        )
    return [_read_tool_call(f"{where}: ", *entry, keeps_text) for entry in enumerate(calls)]


def _read_tool_call(where: str, number: int, call: Any, keeps_text: bool) -> dict[str, Any]:
    call = parse_nested(call, Reason.INVALID_TOOL_CALLS, f"{where}tool call {number} is")
    call = _drop_null_keys(call)
    nested = isinstance(call, dict) and "function" in call
    function = _drop_null_keys(call["function"]) if nested else call
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowError(
            Reason.INVALID_TOOL_CALLS,
            f'{where}tool call {number} must be {{"function": {{"name", "arguments"}}}}',
        )
    arguments = function.get("arguments", {})
    subject = f"{where}the arguments of tool call {number}"
    if not isinstance(arguments, dict | str):
        detail = f"{subject} must be an object or JSON text"
        raise RowError(Reason.INVALID_TOOL_CALLS, detail)
    if isinstance(arguments, str) and not arguments.strip():
        arguments = {}
    if not keeps_text:
        arguments = _parse_arguments(subject, arguments)
    function = {**function, "arguments": arguments}
    return {**call, "function": function} if nested else function


def _parse_arguments(subject: str, arguments: Any) -> dict[str, Any]:
    value = parse_json_text(arguments, Reason.INVALID_TOOL_CALLS, f"{subject} are")
    if not isinstance(value, dict):
        detail = f"{subject} are JSON text of {describe_type(value)}, not of an object"
        raise RowError(Reason.INVALID_TOOL_CALLS, detail)
    return value


def _drop_null_keys(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: item for key, item in value.items() if item is not None}


def parse_function_calls(where: str, value: Any) -> list[dict[str, Any]]:
    """Return the tool calls in the content of a message whose role is a call; raise RowError.

    >>> parse_function_calls("message 1", '{"name": "add", "arguments": {"a": 1}}')
    [{'type': 'function', 'function': {'name': 'add', 'arguments': {'a': 1}}}]
    """
    value = parse_json_text(value, Reason.INVALID_TOOL_CALLS, f"{where}: the call is")
    calls = value if isinstance(value, list) else [value]
    if not calls:
        raise RowError(Reason.INVALID_TOOL_CALLS, f"{where}: the list of calls is empty")
    for number, call in enumerate(calls):
        if not isinstance(call, dict) or ("name" not in call and "function" not in call):
            raise RowError(
                Reason.INVALID_TOOL_CALLS,
                f'{where}: call {number} must be an object with "name" and "arguments"',
            )
    return [_wrap_function(call) for call in calls]


def list_unread_call_keys(calls: list[dict[str, Any]]) -> list[str]:
    """Return the keys of tool calls that have no meaning, those of a function as `function.x`."""
    unread = [key for call in calls for key in call if key not in _CALL_KEYS]
    functions = [call["function"] for call in calls if "function" in call]
    nested = [key for function in functions for key in function if key not in _FUNCTION_KEYS]
    return [*unread, *(f"function.{key}" for key in nested)]
