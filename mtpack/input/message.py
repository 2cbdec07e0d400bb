"""Reads one message: the fields for the template, and whether it is trained.

The fields of a message are passed to the template as inference servers pass them (vLLM,
`parse_chat_messages`; SGLang, `serving_chat.py`). Keys without a value are dropped, and so is an
empty `tool_calls`. A missing `content` is `""`. The reasoning is stored under both names that
templates read, as transformers does. The text of a content part is stored under `text`. The loss
switches (`train`, `loss`, `weight`, `loss_weight`) are removed, since they concern training alone.
All other fields are unchanged. What a certain template can't take in this form is changed later
(`template/message_forms.py`).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

from mtpack.input.dialogue import ROLES, Messages, Reason
from mtpack.input.row_errors import RowError, describe_type, quote_name
from mtpack.input.tools import read_tool_calls

_LOSS_SWITCHES = ("train", "loss")
_LOSS_WEIGHTS = ("weight", "loss_weight")
# The names of a message's reasoning, the standard one first (transformers, `apply_chat_template`).
_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
# The names of a content part's text: the standard one, and those that other tools write.
_PART_TEXT_KEYS = ("text", "content", "value")
THINK, END_OF_THINK = "<think>", "</think>"
"""The tags around a reasoning in a content, and in most templates."""
# The types of parts that are not text, in the chat APIs and in the processors of transformers.
_MEDIA_TYPES = frozenset(
    f"{prefix}{medium}{suffix}"
    for medium in ("image", "audio", "video", "file")
    for prefix in ("", "input_")
    for suffix in ("", "_url")
)


class ParsedRow(NamedTuple):
    """The messages and tools of a row, in whatever format."""

    messages: Messages
    tools: list[Any] | None
    untrained: Collection[int] = ()
    """Indices of messages whose loss is switched off."""
    num_before: int = 0
    """The number of messages before the first one of the row's own list of messages."""


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
    if "tool_calls" in fields:
        fields["tool_calls"] = read_tool_calls(where, fields["tool_calls"])
        if not fields["tool_calls"]:
            del fields["tool_calls"]
    _read_content(where, role, fields)
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
        if role == "assistant":
            if not any(key in fields for key in ("tool_calls", *_REASONING_KEYS)):
                detail = f'{where}: neither "content" nor "tool_calls"'
                raise RowError(Reason.INVALID_CONTENT, detail)
        elif role != "tool":
            raise RowError(Reason.INVALID_CONTENT, f'{where}: no "content"')
        fields["content"] = ""
    elif isinstance(content, list) and (role != "tool" or _has_parts(content)):
        fields["content"] = [_read_part(where, part) for part in content]
    elif not isinstance(content, str) and role != "tool":
        raise RowError(
            Reason.INVALID_CONTENT,
            f'{where}: "content" must be a string or a list of text parts, '
            f"found {describe_type(content)}",
        )


def is_text_parts(role: str, content: Any) -> bool:
    """Return whether the content of a message is a list of text parts.

    The result of a tool may be any other list. A part of a tool's content has the type `text`, or
    a text alone.
    """
    if role != "tool" or not isinstance(content, list):
        return isinstance(content, list)
    return all(
        isinstance(part, dict)
        and isinstance(part.get("text"), str)
        and (part.get("type") == "text" or len(part) == 1)
        for part in content
    )


def make_text_parts(*texts: str) -> list[dict[str, Any]]:
    """Return a content that is a list of text parts."""
    return [{"type": "text", "text": text} for text in texts]


def has_reasoning(message: dict[str, Any]) -> bool:
    """Return whether a message has a reasoning in its field."""
    return bool(message.get("reasoning_content", "").strip())


def _has_parts(content: list[Any]) -> bool:
    """Return whether the content of a tool's message is a list of parts, of text or of others."""
    return all(
        isinstance(part, dict)
        and (
            part.get("type") == "text"
            or (isinstance(part.get("type"), str) and part["type"] in _MEDIA_TYPES)
            or (len(part) == 1 and "text" in part)
        )
        for part in content
    )


def _read_part(where: str, part: Any) -> dict[str, Any]:
    if not isinstance(part, dict):
        detail = f"a content part must be an object, found {describe_type(part)}"
    elif (part_type := part.get("type", "text")) != "text":
        detail = f"a content part has the type {quote_name(part_type)}; mtpack packs text only"
    else:
        fields = {key: value for key, value in part.items() if value is not None}
        found = next((key for key in _PART_TEXT_KEYS if key in fields), "text")
        if isinstance(fields.get(found), str):
            if found != "text":
                fields["text"] = fields.pop(found)
            return fields
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
