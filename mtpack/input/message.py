"""Reads one message: the fields for the template, and whether it is trained.

The fields of a message are passed to the template unchanged, with these exceptions. Keys without a
value are dropped. The reasoning is stored under both names that templates read, as transformers
does. The text of a content part is stored under `text`. The loss switches (`train`, `loss`,
`weight`, `loss_weight`) are removed, since they concern training alone.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

from mtpack.input.dialogue import ROLES, Messages, Reason
from mtpack.input.row_errors import RowError, describe_type, quote_name
from mtpack.input.tools import check_tool_calls

_LOSS_SWITCHES = ("train", "loss")
_LOSS_WEIGHTS = ("weight", "loss_weight")
# The names of a message's reasoning, the standard one first (transformers, `apply_chat_template`).
_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
# The names of a content part's text: the standard one, and those that other tools write.
_PART_TEXT_KEYS = ("text", "content", "value")


class ParsedRow(NamedTuple):
    """The messages and tools of a row, in whatever format."""

    messages: Messages
    tools: list[Any] | None
    untrained: Collection[int] = ()
    """Indices of messages whose loss is switched off."""


def read_messages(messages: list[Any], num_context: int = 0) -> tuple[Messages, set[int]]:
    """Read messages of the chat APIs; return them and the indices of those without loss.

    num_context: so many first messages have no loss, unless they have a loss switch that says so.
    Raises RowError.
    """
    untrained = set(range(num_context))
    fields = [
        message if _is_role_and_text(message) else _read_message(index, message, untrained)
        for index, message in enumerate(messages)
    ]
    return fields, untrained


def _is_role_and_text(message: Any) -> bool:
    """Return whether a message has exactly a role and a text, so that nothing is to be read."""
    return (
        type(message) is dict
        and len(message) == 2
        and type(message.get("content")) is str
        and message.get("role") in ROLES
    )


def _read_message(index: int, message: Any, untrained: set[int]) -> dict[str, Any]:
    """Return the fields of a message; a loss switch adds it to `untrained`, or removes it."""
    fields = read_fields(index, message)
    role = fields.get("role")
    if role not in ROLES:
        found = "no role" if role is None else f"unknown role {quote_name(role)}"
        raise RowError(
            Reason.UNKNOWN_ROLE, f"message {index}: {found}; expected one of {', '.join(ROLES)}"
        )
    where = f"message {index} ({role})"
    switch = _pop_loss_switches(where, role, fields)
    if switch is not None:
        (untrained.discard if switch else untrained.add)(index)
    _read_content(where, role, fields)
    if "tool_calls" in fields:
        check_tool_calls(where, fields["tool_calls"])
    return _add_reasoning_aliases(where, fields)


def read_fields(index: int, message: Any) -> dict[str, Any]:
    """Return the keys of a message that have a value; raise RowError if it is not an object."""
    if not isinstance(message, dict):
        raise RowError(
            Reason.INVALID_MESSAGE,
            f"message {index}: must be an object, found {describe_type(message)}",
        )
    return {key: value for key, value in message.items() if value is not None}


def _pop_loss_switches(where: str, role: str, fields: dict[str, Any]) -> bool | None:
    """Remove the loss switches from `fields` and return their value, None if there is none."""
    switches = {key: fields.pop(key) for key in (*_LOSS_SWITCHES, *_LOSS_WEIGHTS) if key in fields}
    for key, value in switches.items():
        if key in _LOSS_WEIGHTS:
            if type(value) not in (int, float) or value not in (0, 1):
                raise RowError(
                    Reason.INVALID_LOSS_SWITCH,
                    f'{where}: "{key}" must be 0 or 1; all trained turns have the same weight',
                )
        elif type(value) is not bool:
            raise RowError(Reason.INVALID_LOSS_SWITCH, f'{where}: "{key}" must be true or false')
    wanted = {bool(value) for value in switches.values()}
    if len(wanted) > 1:
        raise RowError(
            Reason.INVALID_LOSS_SWITCH, f"{where}: {' and '.join(switches)} contradict each other"
        )
    if role != "assistant" and True in wanted:
        raise RowError(
            Reason.INVALID_LOSS_SWITCH, f"{where}: only assistant messages can be trained"
        )
    return wanted.pop() if wanted else None


def _read_content(where: str, role: str, fields: dict[str, Any]) -> None:
    content = fields.get("content")
    if content is None:
        if role != "assistant":
            raise RowError(Reason.INVALID_CONTENT, f'{where}: no "content"')
        if not any(key in fields for key in ("tool_calls", *_REASONING_KEYS)):
            raise RowError(Reason.INVALID_CONTENT, f'{where}: neither "content" nor "tool_calls"')
    elif isinstance(content, list):
        fields["content"] = [_read_part(where, part) for part in content]
    elif not isinstance(content, str):
        raise RowError(
            Reason.INVALID_CONTENT,
            f'{where}: "content" must be a string or a list of text parts, '
            f"found {describe_type(content)}",
        )


def _read_part(where: str, part: Any) -> dict[str, Any]:
    if not isinstance(part, dict):
        detail = f"a content part must be an object, found {describe_type(part)}"
    elif (part_type := part.get("type", "text")) != "text":
        detail = f"a content part has the type {quote_name(part_type)}; mtpack packs text only"
    else:
        found = next((key for key in _PART_TEXT_KEYS if part.get(key) is not None), "text")
        if isinstance(part.get(found), str):
            others = {key: value for key, value in part.items() if key not in (found, "text")}
            return part if found == "text" else {**others, "text": part[found]}
        detail = 'a content part has no "text"'
    raise RowError(Reason.INVALID_CONTENT, f"{where}: {detail}")


def _add_reasoning_aliases(where: str, fields: dict[str, Any]) -> dict[str, Any]:
    reasoning = next((fields[key] for key in _REASONING_KEYS if key in fields), None)
    if reasoning is None:
        return fields
    if not isinstance(reasoning, str):
        raise RowError(
            Reason.INVALID_CONTENT,
            f"{where}: the reasoning must be a string, found {describe_type(reasoning)}",
        )
    return {"thinking": reasoning, **fields, "reasoning_content": reasoning}
