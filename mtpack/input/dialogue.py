"""The data model of the input: messages, dialogues, their origin, and rejected rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple, overload


# Types with one instance per message or row are named tuples: creating a frozen data class takes
# twice as long.
class Origin(NamedTuple):
    """The position of a row: the file as the user named it, and the line (or row) from 1."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file} line {self.line}"


class Message(NamedTuple):
    """One message as it is passed to the chat template, and whether its turn carries loss."""

    role: str
    fields: dict[str, Any]
    """What the template sees: `role`, `content`, `tool_calls` and all other keys of the row."""
    trained: bool


class TextMessages(Sequence[Message]):
    """Messages that have a role and a text each, as columns; those of assistants are trained.

    Most dialogues are like this. Creating a `Message` for each would take longer than rendering
    and encoding them.
    """

    __slots__ = ("_fields", "joined_texts", "roles", "texts")
    __hash__ = None  # type: ignore[assignment]  # it equals a tuple but has no such hash

    def __init__(
        self, roles: tuple[str, ...], texts: tuple[str, ...], fields: Sequence[dict[str, Any]]
    ) -> None:
        """Store the columns, one element per message; fields: what the template sees of each.

        Raises TypeError if an element of `texts` is not a string.
        """
        self.roles = roles
        self.texts = texts
        self.joined_texts = "\0".join(texts)
        """All texts, separated by NUL: one search covers them all."""
        self._fields = fields

    @classmethod
    def of(cls, roles: tuple[str, ...], texts: tuple[str, ...]) -> TextMessages:
        """Create messages that do not come from a row."""
        pairs = zip(roles, texts, strict=True)
        return cls(roles, texts, [{"role": role, "content": text} for role, text in pairs])

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
    def text_messages(self) -> TextMessages | None:
        """The messages, if each is a role and a text and there are no tools; else None."""
        if type(self.messages) is TextMessages and self.tools is None:
            return self.messages
        return None

    def trained_messages(self) -> list[int]:
        """Return the indices of the messages that carry loss."""
        return [index for index, message in enumerate(self.messages) if message.trained]


class Reason(StrEnum):
    """Why a row is rejected; the values are written to `rejects.jsonl` and to the counts."""

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
    """A rejected row: which one, why, and what to do. It contains none of the row's content."""

    row: int
    origin: Origin
    reason: Reason
    detail: str

    def __str__(self) -> str:
        return f"{self.origin}: {self.reason}: {self.detail}"

    def as_record(self) -> dict[str, str | int]:
        """Return the object to write to `rejects.jsonl`."""
        return {
            "row": self.row,
            "file": self.origin.file,
            "line": self.origin.line,
            "reason": self.reason.value,
            "detail": self.detail,
        }
