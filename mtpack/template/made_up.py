"""Small made-up dialogues, and their renders: they show what a template does.

Some properties belong to a template, not to a dialogue: how it ends a turn, how it writes a
reasoning, which switches it has. They are found once, in dialogues whose texts are words that stand
for any text. So they do not depend on the rows of a run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from mtpack.input.dialogue import Messages
from mtpack.template.chat_template import ChatTemplate, TemplateRaisedError
from mtpack.template.limits import TemplateLimitError
from mtpack.template.markers import MarkedText
from mtpack.template.message_forms import find_forms
from mtpack.template.modes import Mode

QUESTION, ANSWER, REASONING = "mtpackquestion", "mtpackanswer", "mtpackreasoning"
NAME, VALUE = "mtpackname", "mtpackvalue"
_CALL_ID = "call00001"  # some templates require nine letters and digits
ASK: Messages = [{"role": "user", "content": QUESTION}]
RESULT = {"role": "tool", "tool_call_id": _CALL_ID, "name": NAME, "content": "mtpackresult"}
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": NAME,
            "description": NAME,
            "parameters": {"type": "object", "properties": {NAME: {"type": "string"}}},
        },
    }
]


class TurnKind(NamedTuple):
    """The properties of a turn that a template may depend on."""

    has_tools: bool
    """Whether the dialogue declares tools."""
    has_calls: bool
    """Whether the message calls tools."""


@dataclass(frozen=True, eq=False)
class MadeUpRenders:
    """The renders of made-up dialogues by one template; None for those that it refuses."""

    template: ChatTemplate

    def text(
        self, messages: Messages, has_tools: bool, mode: Mode | None = None, *, prompt: bool = False
    ) -> str | None:
        """Return a rendered text; prompt: with the generation prompt."""
        tools = get_tools(has_tools)
        formed = find_forms(self.template, tools).apply_to_messages(messages)
        try:
            return self.template.render(formed, tools, prompt=prompt, mode=mode)
        except (TemplateRaisedError, TemplateLimitError, MemoryError):
            return None

    def marked(
        self, messages: Messages, has_tools: bool, mode: Mode | None = None
    ) -> MarkedText | None:
        """Return a rendered text with its regions."""
        tools = get_tools(has_tools)
        formed = find_forms(self.template, tools).apply_to_messages(messages)
        try:
            return self.template.render_marked(formed, tools, mode=mode)
        except (TemplateRaisedError, TemplateLimitError, MemoryError):
            return None

    def turn(self, message: dict[str, Any], has_tools: bool, mode: Mode | None) -> str | None:
        """Return what is written for an assistant message after a question."""
        own = self.marked([*ASK, message], has_tools, mode)
        if own is None:
            return None
        region = own.find_region(1)
        return own.text if region is None else own.text[slice(*region)]


def get_tools(has_tools: bool) -> list[Any] | None:
    """Return the tools of a made-up dialogue."""
    return _TOOLS if has_tools else None


def make_turns(has_calls: bool, reasoning: str = "") -> Iterator[dict[str, Any]]:
    """Yield an assistant message in each form that a template may require."""
    turn: dict[str, Any] = {"role": "assistant", "content": ANSWER}
    if reasoning:
        turn |= {"reasoning_content": reasoning, "thinking": reasoning}
    if not has_calls:
        yield turn
        return
    function = {"name": NAME, "arguments": {NAME: VALUE}}
    calls = [{"id": _CALL_ID, "type": "function", "function": function}]
    for content in (ANSWER, ""):
        yield turn | {"content": content, "tool_calls": calls}
