"""Reads one message: the fields for the template, and whether it is trained.

The fields of a message are passed to the template unchanged, with these exceptions. Keys without a
value are dropped. The reasoning is stored under both names that templates read, as transformers
does. The text of a content part is stored under `text`. The loss switches (`train`, `loss`,
`weight`, `loss_weight`) are removed, since they concern training alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from mtpack.input.dialogue import Message, Reason, TextMessages
from mtpack.input.row_errors import RowError, describe_type, quote_name
from mtpack.input.tools import check_tool_calls

ROLES = ("system", "developer", "user", "assistant", "tool")
_ROLES = frozenset(ROLES)
_LOSS_SWITCHES = ("train", "loss")
_LOSS_WEIGHTS = ("weight", "loss_weight")
# The names of a message's reasoning, the standard one first (transformers, `apply_chat_template`).
_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
# The names of a content part's text: the standard one, and those that other tools write.
_PART_TEXT_KEYS = ("text", "content", "value")


class ParsedRow(NamedTuple):
    """The messages and tools of a row, in whatever format."""

    messages: Sequence[Message]
    tools: list[Any] | None


def read_messages(
    messages: Iterable[Any], first: int = 0, trained: bool = True
) -> list[Message] | TextMessages:
    """Read messages of the chat APIs. Raises RowError.

    first: the index of the first message, for error messages. trained: whether an assistant message
    without a loss switch is trained.
    """
    messages = list(messages)
    return (_read_text_messages(messages) if trained else None) or [
        _read_message(index, message, trained) for index, message in enumerate(messages, first)
    ]


def _read_text_messages(messages: list[Any]) -> TextMessages | None:
    """Return messages that have exactly a role and a text, and so need no change, as columns.

    None if any message is different.
    """
    try:
        return to_text_messages(messages) if set(map(len, messages)) == {2} else None
    except TypeError:  # a message that has no length
        return None


def to_text_messages(messages: list[Any]) -> TextMessages | None:
    """Return messages with a role and a text as columns; None if any message is different.

    The caller has checked that there is no other key. Most rows are like this. Checking all
    messages at once takes 0.2 µs per message; reading one by one takes 2.
    """
    try:
        roles = tuple([message["role"] for message in messages])
        texts = tuple([message["content"] for message in messages])
        return TextMessages(roles, texts, messages) if _ROLES.issuperset(roles) else None
    except (KeyError, TypeError):  # not an object, no role, or no text
        return None


def compact_messages(messages: Sequence[Message]) -> tuple[Message, ...] | TextMessages:
    """Return messages as a dialogue stores them: as columns if each is a role and a text."""
    if isinstance(messages, TextMessages):
        return messages
    fields = [message.fields for message in messages]
    usual = all(message.trained == (message.role == "assistant") for message in messages)
    return (_read_text_messages(fields) if usual else None) or tuple(messages)


def _read_message(index: int, message: Any, trained: bool) -> Message:
    fields = read_fields(index, message)
    role = fields.get("role")
    if role not in ROLES:
        found = "no role" if role is None else f"unknown role {quote_name(role)}"
        raise RowError(
            Reason.UNKNOWN_ROLE, f"message {index}: {found}; expected one of {', '.join(ROLES)}"
        )
    where = f"message {index} ({role})"
    switch = _pop_loss_switches(where, role, fields)
    _read_content(where, role, fields)
    if "tool_calls" in fields:
        check_tool_calls(where, fields["tool_calls"])
    return Message(
        role,
        _add_reasoning_aliases(where, fields),
        trained=role == "assistant" and (trained if switch is None else switch),
    )


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
