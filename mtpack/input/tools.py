"""Tools and tool calls, as objects or as JSON text."""

from __future__ import annotations

from typing import Any

from mtpack.input.dialogue import Reason
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


def check_tool_calls(where: str, calls: Any) -> None:
    """Raise RowError if a message's `tool_calls` are not a list of calls."""
    if not isinstance(calls, list):
        raise RowError(
            Reason.INVALID_TOOL_CALLS,
            f'{where}: "tool_calls" must be a list, found {describe_type(calls)}',
        )
    for number, call in enumerate(calls):
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RowError(
                Reason.INVALID_TOOL_CALLS,
                f'{where}: tool call {number} must be {{"function": {{"name", "arguments"}}}}',
            )
        if not isinstance(function.get("arguments", {}), dict | str):
            raise RowError(
                Reason.INVALID_TOOL_CALLS,
                f"{where}: the arguments of tool call {number} must be an object or JSON text",
            )


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
