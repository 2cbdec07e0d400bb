"""Tools and tool calls, as objects or as JSON text."""

from __future__ import annotations

from typing import Any

from mtpack.input.dialogue import Reason
from mtpack.input.row_errors import RowError, kind
from mtpack.input.strict_json import StrictJsonError, parse


def read_tools(tools: Any) -> list[Any] | None:
    """Return a row's tools; text is taken as JSON. Raise RowError."""
    if isinstance(tools, str):  # as datasets with one column type for all tools hold them
        try:
            tools = parse(tools.encode())
        except StrictJsonError as error:
            raise RowError(Reason.INVALID_TOOLS, f'"tools" is text but not JSON: {error}') from None
    if tools is None:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RowError(
            Reason.INVALID_TOOLS, f'"tools" must be a list of objects, found {kind(tools)}'
        )
    return tools


def check_tool_calls(where: str, calls: Any) -> None:
    """Raise RowError where a message's `tool_calls` are not calls."""
    if not isinstance(calls, list):
        raise RowError(
            Reason.INVALID_TOOL_CALLS, f'{where}: "tool_calls" must be a list, found {kind(calls)}'
        )
    for number, call in enumerate(calls):
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RowError(
                Reason.INVALID_TOOL_CALLS,
                f'{where}: tool call {number} needs {{"function": {{"name", "arguments"}}}}',
            )
        if not isinstance(function.get("arguments", {}), dict | str):
            raise RowError(
                Reason.INVALID_TOOL_CALLS,
                f"{where}: the arguments of tool call {number} must be an object or JSON text",
            )


def calls_in_text(where: str, text: Any) -> list[dict[str, Any]]:
    """Return the tool calls that the text of a `function_call` message writes; raise RowError.

    >>> calls_in_text("message 1", '{"name": "add", "arguments": {"a": 1}}')
    [{'type': 'function', 'function': {'name': 'add', 'arguments': {'a': 1}}}]
    """
    if isinstance(text, str):
        try:
            text = parse(text.encode())
        except StrictJsonError as error:
            raise RowError(
                Reason.INVALID_TOOL_CALLS, f"{where}: the call is text but not JSON: {error}"
            ) from None
    calls = text if isinstance(text, list) else [text]
    if not calls:
        raise RowError(Reason.INVALID_TOOL_CALLS, f"{where}: an empty list of calls")
    for number, call in enumerate(calls):
        if not isinstance(call, dict) or not call.keys() >= {"name", "arguments"}:
            raise RowError(
                Reason.INVALID_TOOL_CALLS,
                f'{where}: call {number} must be an object with "name" and "arguments"',
            )
    return [{"type": "function", "function": call} for call in calls]
