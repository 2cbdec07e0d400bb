"""Reads messages: their fields for the template, and which of them are trained.

Messages may have the keys of the chat APIs (`role`, `content`) or those of ShareGPT (`from`,
`value`), in every format, and any of the role names of `ROLE_NAMES`, in any case. The template gets
the keys of the chat APIs, as inference servers pass them (vLLM, `parse_chat_messages`; SGLang,
`serving_chat.py`). Keys without a value are dropped, and so is an empty `tool_calls`. A missing
`content` is `""`. The reasoning is stored under both names that templates read, as transformers
does. The text of a content part is stored under `text`. Loss switches are removed, since they
concern training alone, and so are the tools in a system message, which are the row's. All other
fields are unchanged. What a certain template can't take in this form is changed later
(`template/message_forms.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mtpack.input.content import list_unread_part_keys, read_content
from mtpack.input.dialogue import ROLES, SYSTEM_ROLES, Messages, Reason
from mtpack.input.json_value import parse_nested
from mtpack.input.loss_switches import pop_loss_switch
from mtpack.input.reasoning import REASONING_DETAILS, REASONING_KEYS, has_reasoning, read_reasoning
from mtpack.input.row_errors import RowError, describe_type, quote_name
from mtpack.input.tools import (
    list_unread_call_keys,
    parse_function_calls,
    pop_named_tools,
    read_tool_calls,
)
from mtpack.turn_weight import MAX_WEIGHT, round_weight

_CALLS = ("function_call", "tool_call")
"""Role names of messages whose content is a tool call or a list of them."""
ROLE_NAMES = {
    **{role: role for role in ROLES},
    "human": "user",
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "claude", "model", *_CALLS), "assistant"),
    **dict.fromkeys(("observation", "function", "function_response", "tool_response"), "tool"),
}
"""The role of the chat APIs that each name stands for."""
_KNOWN_KEYS = frozenset(
    ("role", "content", "name", "tool_calls", "tool_call_id", "id", "type", *REASONING_KEYS)
)


@dataclass(slots=True)
class MessageReader:
    """Reads the messages of one row, in order."""

    keeps_argument_text: bool
    """Whether tool-call arguments that are text stay text."""
    source_weight: float | None = None
    """The factor of the weights of messages; None if they may be 0 or 1 alone."""
    messages: Messages = field(default_factory=list)
    """What was read, as the template gets it."""
    untrained: set[int] = field(default_factory=set)
    """Indices of those that carry no loss."""
    turn_units: dict[int, int] = field(default_factory=dict)
    """The weights that are not that of the source (`Dialogue.turn_units`)."""
    tools: list[list[Any]] = field(default_factory=list)
    """The tools of each system message that has some."""
    unread: dict[str, None] = field(default_factory=dict)
    """The keys that have no meaning (`Dialogue.unread`), in order."""
    _may_join: bool = False
    """Whether a message that calls tools belongs to the message before it."""

    def read(self, messages: list[Any], num_context: int = 0) -> None:
        """Read messages; raise RowError.

        num_context: so many first messages have no loss, unless they have a loss switch that says
        so.
        """
        for index, message in enumerate(messages):
            is_context = index < num_context
            if not _is_role_and_text(message):
                self._read_message(index, message, is_context=is_context)
                continue
            if is_context:
                self.untrained.add(len(self.messages))
            self.messages.append(message)
            self._may_join = message["role"] == "assistant"

    def _read_message(self, index: int, message: Any, *, is_context: bool) -> None:
        fields = _read_fields(index, message)
        name, fields = _read_names(index, fields)
        role = fields["role"]
        where = f"message {index} ({name})"
        takes_weights = self.source_weight is not None
        weight = pop_loss_switch(where, role, fields, takes_weights=takes_weights)
        units = None
        if weight is None:
            weight = 0.0 if is_context else 1.0
        elif weight not in (0, 1):
            weight = units = self._round_weight(where, weight)
        if role in SYSTEM_ROLES:
            self.tools += pop_named_tools(fields)
        self._read_calls(where, name, fields)
        _complete_content(where, fields)
        unread: list[str] = []
        fields = read_reasoning(where, role, fields, unread)
        fields["content"] = read_content(where, role, fields["content"])
        self._note_unread(fields, unread)
        if self._may_join and name in _CALLS:
            self._join(where, fields, is_trained=weight != 0, units=units)
            return
        if weight == 0:
            self.untrained.add(len(self.messages))
        if units is not None:
            self.turn_units[len(self.messages)] = units
        self.messages.append(fields)
        self._may_join = role == "assistant"

    def _round_weight(self, where: str, weight: float) -> int:
        """Return a weight times that of the source, in units; raise RowError."""
        try:
            return round_weight(weight, self.source_weight or 1.0)
        except ValueError:
            detail = f"{where}: its weight, times that of its source, is above {MAX_WEIGHT:,}"
            raise RowError(Reason.INVALID_LOSS_SWITCH, detail) from None

    def _read_calls(self, where: str, name: str, fields: dict[str, Any]) -> None:
        """Read the tool calls of a message: those of its content, if its role is a call."""
        given = None
        if name in _CALLS:
            given = [fields.pop("content", None)]
        elif fields["role"] == "assistant" and "function_call" in fields:
            given = [fields.pop("function_call")]  # the older name of the chat APIs
        if given is not None:
            if "tool_calls" in fields:
                detail = f"{where}: tool calls in two places; keep one of them"
                raise RowError(Reason.INVALID_TOOL_CALLS, detail)
            fields["tool_calls"] = parse_function_calls(where, given[0])
        if "tool_calls" in fields:
            keeps_text = self.keeps_argument_text
            calls = read_tool_calls(where, fields["tool_calls"], keeps_text=keeps_text)
            fields["tool_calls"] = calls
            if not calls:
                del fields["tool_calls"]

    def _note_unread(self, fields: dict[str, Any], names: list[str]) -> None:
        """Add the keys of a message that have no meaning; names: those that are known already."""
        if not _KNOWN_KEYS.issuperset(fields):
            names += [key for key in fields if key not in _KNOWN_KEYS]
        if not isinstance(fields["content"], str):
            keys = list_unread_part_keys(fields["role"], fields["content"])
            names += [f"content.{key}" for key in keys]
        if "tool_calls" in fields:
            keys = list_unread_call_keys(fields["tool_calls"])
            names += [f"tool_calls.{key}" for key in keys]
        self.unread.update(dict.fromkeys([f"messages.{name}" for name in names]))

    def _join(
        self, where: str, fields: dict[str, Any], *, is_trained: bool, units: int | None
    ) -> None:
        """Add the tool calls of a message to the assistant message before it; raise RowError."""
        one_message = f"{where}: it is one message with the assistant message before it"
        if is_trained != (len(self.messages) - 1 not in self.untrained):
            detail = f"{one_message}, but one of them is trained and the other is not"
            raise RowError(Reason.INVALID_LOSS_SWITCH, detail)
        if units != self.turn_units.get(len(self.messages) - 1):
            detail = f"{one_message}, but they have different weights"
            raise RowError(Reason.INVALID_LOSS_SWITCH, detail)
        before = self.messages[-1]
        if has_reasoning(before) and has_reasoning(fields):
            detail = f"{one_message}, but each has a reasoning; keep one of them"
            raise RowError(Reason.INVALID_CONTENT, detail)
        added = {key: value for key, value in fields.items() if key not in before}
        calls = [*before.get("tool_calls", []), *fields["tool_calls"]]
        self.messages[-1] = {**before, **added, "tool_calls": calls}


def _is_role_and_text(message: Any) -> bool:
    """Return whether a message has exactly a role and a text, so that nothing is to be read."""
    return (
        type(message) is dict
        and len(message) == 2
        and type(message.get("content")) is str
        and message.get("role") in ROLES
    )


def _read_fields(index: int, message: Any) -> dict[str, Any]:
    """Return the keys of a message that have a value; raise RowError if it is not an object."""
    message = parse_nested(message, Reason.INVALID_MESSAGE, f"message {index} is")
    if not isinstance(message, dict):
        raise RowError(
            Reason.INVALID_MESSAGE,
            f"message {index}: must be an object, found {describe_type(message)}",
        )
    return {key: value for key, value in message.items() if value is not None}


def _read_names(index: int, fields: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the name of a message's role, in lower case, and its fields as in the chat APIs.

    Where `role` and `from` are both there, or `content` and `value`, they must not contradict each
    other, unless the second of them has another meaning. Raises RowError.
    """
    given = fields.get("role", fields.get("from"))
    if given in ROLES and "from" not in fields and "value" not in fields:  # the usual case
        return given, fields
    if not isinstance(given, str) or given.lower() not in ROLE_NAMES:
        found = "no role" if given is None else f"unknown role {quote_name(given)}"
        raise RowError(
            Reason.UNKNOWN_ROLE, f"message {index}: {found}; expected one of {', '.join(ROLES)}"
        )
    name = given.lower()
    role = ROLE_NAMES[name]
    second = ROLE_NAMES.get(str(fields.get("from")).lower())
    if second is not None:
        del fields["from"]
    if second not in (None, role):
        raise _make_contradiction(index, "from", "role")
    if fields.get("content") == fields.get("value"):
        fields.pop("value", None)
    elif "content" in fields and "value" in fields and second is not None:
        raise _make_contradiction(index, "value", "content")
    if "role" in fields:
        fields["role"] = role
        if "content" not in fields and isinstance(fields.get("value"), str | list | dict):
            fields["content"] = fields.pop("value")
        return name, fields
    text_key = "value" if "value" in fields else "content"
    text = {"content": fields.pop(text_key)} if text_key in fields else {}
    return name, {"role": role, **text, **fields}


def _make_contradiction(index: int, key: str, other: str) -> RowError:
    detail = f'message {index}: "{key}" and "{other}" have different values; keep one of them'
    return RowError(Reason.INVALID_MESSAGE, detail)


def _complete_content(where: str, fields: dict[str, Any]) -> None:
    """Add a missing content, which is empty; raise RowError where a message needs one."""
    if "content" in fields:
        return
    role = fields["role"]
    if role == "assistant":
        if not any(key in fields for key in ("tool_calls", *REASONING_KEYS, REASONING_DETAILS)):
            detail = f'{where}: none of "content", "tool_calls" and "reasoning_content"'
            raise RowError(Reason.INVALID_CONTENT, detail)
    elif role != "tool":
        raise RowError(Reason.INVALID_CONTENT, f'{where}: no "content"')
    fields["content"] = ""
