"""The data model of the input: dialogues, their origin, and rejected rows."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, NamedTuple

ROLES = ("system", "developer", "user", "assistant", "tool")
SYSTEM_ROLES = frozenset(("system", "developer"))

Messages = list[dict[str, Any]]
"""What the template sees of each message: `role`, `content`, `tool_calls` and all other keys."""


# Types with one instance per row are named tuples: creating a frozen data class takes
# twice as long.
class Origin(NamedTuple):
    """The position of a row: the file as the user named it, and the line (or row) from 1."""

    file: str
    line: int
    after_byte: int = 0
    """Lines are counted from the first that begins after so many bytes: a process that reads a part
    of a file does not know how many are before it."""

    def __str__(self) -> str:
        after = f" after byte {self.after_byte:,}" if self.after_byte else ""
        return f"{self.file} line {self.line}{after}"

    def place(self, lines_before: int) -> Origin:
        """Return the position in the file; lines_before: those in the first `after_byte` bytes."""
        return Origin(self.file, self.line + lines_before) if self.after_byte else self


class Dialogue(NamedTuple):
    """One accepted input row; `make_dialogue` makes it."""

    row: int
    """The row's index over all inputs, from 0; blank lines are not rows."""
    origin: Origin
    roles: tuple[str, ...]
    messages: Messages
    tools: list[Any] | None
    untrained: frozenset[int]
    """Indices of the assistant messages that carry no loss; all others carry loss."""
    has_only_texts: bool
    """Whether each message is a role and a text and nothing else, and there are no tools."""
    template_args: dict[str, Any] | None = None
    """The variables of the template that the row sets itself; None if it sets none."""
    unread: tuple[str, ...] = ()
    """The keys that mtpack does not read, each once: `source` of the row, `messages.mood` of its
    messages, `messages.content.x` of content parts, `messages.tool_calls.x` and
    `messages.tool_calls.function.x` of calls. The template may read those of messages."""
    turn_units: dict[int, int] | None = None
    """By the index of a message: its weight times that of its source, in units of 1/1024, where it
    has one other than 0 and 1. One that is rounded to 0 units is in `untrained` too."""

    def trained_messages(self) -> list[int]:
        """Return the indices of the messages that carry loss, ascending."""
        assistants = [index for index, role in enumerate(self.roles) if role == "assistant"]
        return [index for index in assistants if index not in self.untrained]

    def with_messages(self, messages: Messages, untrained: Collection[int]) -> Dialogue:
        """Return the dialogue with other messages; untrained: indices of those without loss.

        `turn_units` stays as it is, so that it has the indices of the messages before.
        """
        row = self.row, self.origin, messages, self.tools, untrained
        return make_dialogue(*row, self.template_args, self.unread, self.turn_units)

    def train_last_turn(self) -> Dialogue:
        """Return the dialogue with loss on its last turn alone (`--train-turns last`).

        That is the last assistant message that carries loss. A dialogue without one stays as it is.
        """
        earlier = self.trained_messages()[:-1]
        return self._replace(untrained=self.untrained.union(earlier)) if earlier else self

    def reject(self, reason: Reason, detail: str) -> Reject:
        """Return the rejection of this row."""
        return Reject(self.row, self.origin, reason, detail)


def make_dialogue(
    row: int,
    origin: Origin,
    messages: Messages,
    tools: list[Any] | None = None,
    untrained: Collection[int] = (),
    template_args: dict[str, Any] | None = None,
    unread: tuple[str, ...] = (),
    turn_units: dict[int, int] | None = None,
) -> Dialogue:
    """Make a dialogue of messages as the template sees them; each has a role.

    untrained: indices of messages without loss; only those of assistants matter. template_args,
    unread, turn_units: those of `Dialogue`.
    """
    roles = tuple([message["role"] for message in messages])
    without_loss = frozenset([index for index in untrained if roles[index] == "assistant"])
    has_only_texts = (
        tools is None
        and set(map(len, messages)) == {2}
        and {type(message.get("content")) for message in messages} == {str}
    )
    columns = roles, messages, tools, without_loss, has_only_texts
    return Dialogue(row, origin, *columns, template_args, unread, turn_units)


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
    PREFERENCE_ROW = "preference_row"
    MEDIA_ROW = "media_row"
    INVALID_MESSAGE = "invalid_message"
    UNKNOWN_ROLE = "unknown_role"
    INVALID_CONTENT = "invalid_content"
    INVALID_TOOLS = "invalid_tools"
    INVALID_TOOL_CALLS = "invalid_tool_calls"
    INVALID_LOSS_SWITCH = "invalid_loss_switch"
    TEMPLATE_RAISED = "template_raised"
    TEMPLATE_LIMIT = "template_limit"
    TURN_NOT_FOUND = "turn_not_found"
    TOOLS_NOT_SHOWN = "tools_not_shown"
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

    def place(self, first_row: int, lines_before: int) -> Reject:
        """Return the rejection with its position in the input, and that in its file.

        first_row: the number of rows before its split. lines_before: as in `Origin.place`.
        """
        return replace(self, row=self.row + first_row, origin=self.origin.place(lines_before))

    def as_record(self) -> dict[str, str | int]:
        """Return the object to write to `rejects.jsonl`."""
        return {
            "row": self.row,
            "file": self.origin.file,
            "line": self.origin.line,
            "reason": self.reason.value,
            "detail": self.detail,
        }
