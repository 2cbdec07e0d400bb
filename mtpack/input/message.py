"""One message: what it says to the template, and whether it is trained.

What a message says reaches the template unchanged, except that keys without a value are dropped and
the reasoning is put under both names that templates read, as transformers does, that the text
of a content part is put under `text`, and that the loss switches (`train`, `loss`, `weight`,
`loss_weight`), which speak to the trainer, are taken out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from mtpack.input.dialogue import Message, Reason, TextMessages
from mtpack.input.row_errors import RowError, kind, quoted
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
    """What a row says, whatever its format."""

    messages: Sequence[Message]
    tools: list[Any] | None


def read_messages(
    messages: Iterable[Any], first: int = 0, trained: bool = True
) -> list[Message] | TextMessages:
    """Read messages of the chat APIs. Raises RowError.

    first: the place of the first, for the words of an error. trained: whether an assistant message
    that does not say so itself is trained.
    """
    messages = list(messages)
    return (_read_texts(messages) if trained else None) or [
        _read_message(index, message, trained) for index, message in enumerate(messages, first)
    ]


def _read_texts(messages: list[Any]) -> TextMessages | None:
    """Read messages that are a role and a text each, of which reading changes nothing.

    None if any is another.
    """
    try:
        return texts_of(messages) if set(map(len, messages)) == {2} else None
    except TypeError:  # a message that has no length
        return None


def texts_of(messages: list[Any]) -> TextMessages | None:
    """Return roles and texts of messages that have no other key; None if any is another.

    Most rows have such, and to see that of all at once takes 0.2 µs a message; to read one takes 2.
    """
    try:
        roles = tuple([message["role"] for message in messages])
        texts = tuple([message["content"] for message in messages])
        return TextMessages(roles, texts, messages) if _ROLES.issuperset(roles) else None
    except (KeyError, TypeError):  # no object, no role, no text
        return None


def settled(messages: Sequence[Message]) -> tuple[Message, ...] | TextMessages:
    """Return messages as a dialogue holds them: as columns where they are texts alone."""
    if isinstance(messages, TextMessages):
        return messages
    fields = [message.fields for message in messages]
    usually = all(message.trained == (message.role == "assistant") for message in messages)
    return (_read_texts(fields) if usually else None) or tuple(messages)


def _read_message(index: int, message: Any, trained: bool) -> Message:
    fields = filled(index, message)
    role = fields.get("role")
    if role not in ROLES:
        found = "no role" if role is None else f"role {quoted(role)}"
        raise RowError(
            Reason.UNKNOWN_ROLE, f"message {index}: {found}; expected one of {', '.join(ROLES)}"
        )
    where = f"message {index} ({role})"
    told = _read_loss_switch(where, role, fields)
    _read_content(where, role, fields)
    if "tool_calls" in fields:
        check_tool_calls(where, fields["tool_calls"])
    return Message(
        role,
        _with_reasoning_aliases(where, fields),
        trained=role == "assistant" and (trained if told is None else told),
    )


def filled(index: int, message: Any) -> dict[str, Any]:
    """Return the keys of a message that have a value; raise RowError where it is no object."""
    if not isinstance(message, dict):
        raise RowError(
            Reason.INVALID_MESSAGE, f"message {index}: expected an object, found {kind(message)}"
        )
    return {key: value for key, value in message.items() if value is not None}


def _read_loss_switch(where: str, role: str, fields: dict[str, Any]) -> bool | None:
    """Take the loss switches out of `fields` and return what they say, None if nothing."""
    switches = {key: fields.pop(key) for key in (*_LOSS_SWITCHES, *_LOSS_WEIGHTS) if key in fields}
    for key, value in switches.items():
        if key in _LOSS_WEIGHTS:
            if type(value) not in (int, float) or value not in (0, 1):
                raise RowError(
                    Reason.INVALID_LOSS_SWITCH,
                    f'{where}: "{key}" must be 0 or 1; mtpack weighs every trained turn the same',
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
            f"{where}: content must be text or a list of text parts, found {kind(content)}",
        )


def _read_part(where: str, part: Any) -> dict[str, Any]:
    if not isinstance(part, dict):
        detail = f"a content part must be an object, found {kind(part)}"
    elif (part_type := part.get("type", "text")) != "text":
        detail = f"a content part of type {quoted(part_type)}; mtpack packs text only"
    else:
        found = next((key for key in _PART_TEXT_KEYS if part.get(key) is not None), "text")
        if isinstance(part.get(found), str):
            others = {key: value for key, value in part.items() if key not in (found, "text")}
            return part if found == "text" else {**others, "text": part[found]}
        detail = 'a content part without "text"'
    raise RowError(Reason.INVALID_CONTENT, f"{where}: {detail}")


def _with_reasoning_aliases(where: str, fields: dict[str, Any]) -> dict[str, Any]:
    reasoning = next((fields[key] for key in _REASONING_KEYS if key in fields), None)
    if reasoning is None:
        return fields
    if not isinstance(reasoning, str):
        raise RowError(
            Reason.INVALID_CONTENT, f"{where}: the reasoning must be text, found {kind(reasoning)}"
        )
    return {"thinking": reasoning, **fields, "reasoning_content": reasoning}
