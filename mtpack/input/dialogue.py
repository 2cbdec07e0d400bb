"""The data model of the input: messages, dialogues, where they stand, why one is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple, overload


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


class TextMessages(Sequence[Message]):
    """Messages that are a role and a text each, as columns; those of assistants are trained.

    Most dialogues are like this, and to make a `Message` of each would take longer than to render
    and encode them.
    """

    __slots__ = ("_fields", "roles", "searched", "texts")
    __hash__ = None  # type: ignore[assignment]  # equal to a tuple, whose hash it hasn't

    def __init__(
        self, roles: tuple[str, ...], texts: tuple[str, ...], fields: Sequence[dict[str, Any]]
    ) -> None:
        """Take the columns, one element a message; fields: the same as the template sees it.

        Raises TypeError where not all texts are texts.
        """
        self.roles = roles
        self.texts = texts
        self.searched = "\0".join(texts)
        """All texts with a NUL between two: to look at once for what any of them may hold."""
        self._fields = fields

    @classmethod
    def of(cls, roles: tuple[str, ...], texts: tuple[str, ...]) -> TextMessages:
        """Return what was never read from a row."""
        said = zip(roles, texts, strict=True)
        return cls(roles, texts, [{"role": role, "content": text} for role, text in said])

    def __len__(self) -> int:
        return len(self.roles)

    @overload
    def __getitem__(self, index: int) -> Message: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Message, ...]: ...
    def __getitem__(self, index: int | slice) -> Message | tuple[Message, ...]:
        if isinstance(index, slice):
            return tuple(map(self.__getitem__, range(*index.indices(len(self)))))
        role = self.roles[index]
        return Message(role, self._fields[index], trained=role == "assistant")

    def __eq__(self, other: object) -> bool:
        return tuple(self) == (tuple(other) if isinstance(other, TextMessages) else other)


class Dialogue(NamedTuple):
    """One accepted input row."""

    row: int
    """The row's index over all inputs, from 0; blank lines are not rows."""
    origin: Origin
    messages: tuple[Message, ...] | TextMessages
    tools: list[Any] | None

    @property
    def texts_alone(self) -> TextMessages | None:
        """The messages, if they are nothing but texts and there are no tools; else None."""
        if type(self.messages) is TextMessages and self.tools is None:
            return self.messages
        return None

    def trained_messages(self) -> list[int]:
        """Return the indices of the messages that carry loss."""
        return [index for index, message in enumerate(self.messages) if message.trained]


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
