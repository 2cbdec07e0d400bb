"""The data model of the input: messages, dialogues, where they stand, why one is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple


# What is made once a message or a row is a named tuple: a frozen data class takes twice as long.
class Origin(NamedTuple):
    """Where a row stands: a file as the user named it, and its line (or row), counted from 1."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file} line {self.line}"


class Message(NamedTuple):
    """One message as the chat template gets it, and whether its turn carries loss."""

    role: str
    fields: dict[str, Any]
    """What the template sees: `role`, `content`, `tool_calls` and whatever else the row gave."""
    trained: bool


class Dialogue(NamedTuple):
    """One accepted input row."""

    row: int
    """The row's index over all inputs, from 0; blank lines are not rows."""
    origin: Origin
    messages: tuple[Message, ...]
    tools: list[Any] | None
    texts: list[str] | None = None
    """The contents of all messages if each is known to be a role, a text and nothing else.

    Most dialogues are, and who knows it from here need not look at every message again.
    """

    def trained_messages(self) -> list[int]:
        """Return the indices of the messages that carry loss."""
        return [index for index, message in enumerate(self.messages) if message.trained]


def texts_of(messages: Sequence[dict[str, Any]]) -> list[str] | None:
    """Return the contents of messages, all with a role, that have a text beside it and no more.

    messages: their fields. None if any is another.
    """
    contents = [fields.get("content") for fields in messages]
    if set(map(len, messages)) == {2} and set(map(type, contents)) == {str}:
        return contents  # type: ignore[return-value]  # mypy does not follow such a proof
    return None


class Reason(StrEnum):
    """Why a row is refused; the values stand in `rejects.jsonl` and in the counts."""

    INVALID_JSON = "invalid_json"
    NOT_UTF8 = "not_utf8"
    DUPLICATE_KEY = "duplicate_key"
    NOT_A_NUMBER = "not_a_number"
    LONE_SURROGATE = "lone_surrogate"
    TOO_DEEP = "too_deep"
    LINE_TOO_LONG = "line_too_long"
    OTHER_FORMAT = "other_format"
    INVALID_ROW = "invalid_row"
    INVALID_MESSAGE = "invalid_message"
    UNKNOWN_ROLE = "unknown_role"
    INVALID_CONTENT = "invalid_content"
    INVALID_TOOLS = "invalid_tools"
    INVALID_TOOL_CALLS = "invalid_tool_calls"
    INVALID_LOSS_SWITCH = "invalid_loss_switch"
    TEMPLATE_RAISED = "template_raised"
    TEMPLATE_LIMIT = "template_limit"
    TURN_NOT_FOUND = "turn_not_found"
    CONTROL_TOKEN = "control_token"
    NOT_LITERAL = "not_literal"
    OVERLONG = "overlong"


@dataclass(frozen=True, slots=True)
class Reject:
    """A refused row: which one, why, and what to do. It holds none of the row's content."""

    row: int
    origin: Origin
    reason: Reason
    detail: str

    def __str__(self) -> str:
        return f"{self.origin}: {self.reason}: {self.detail}"

    def as_record(self) -> dict[str, str | int]:
        """Return the object that stands in `rejects.jsonl`."""
        return {
            "row": self.row,
            "file": self.origin.file,
            "line": self.origin.line,
            "reason": self.reason.value,
            "detail": self.detail,
        }
