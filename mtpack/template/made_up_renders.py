"""The renders of made-up dialogues, and the kinds of turns that are made up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from mtpack.input.dialogue import Dialogue, Messages
from mtpack.template.chat_template import ChatTemplate, TemplateRaisedError
from mtpack.template.limits import TemplateLimitError
from mtpack.template.made_up import (
    ANSWER,
    QUESTION,
    WORDS,
    Message,
    make_calling_message,
    make_tool,
)
from mtpack.template.markers import MarkedText, Text
from mtpack.template.message_forms import find_forms
from mtpack.template.modes import Mode
from mtpack.template.probe_results import ProbeResults


class TurnKind(NamedTuple):
    """The properties of a turn that a template may depend on."""

    has_tools: bool
    """Whether the dialogue declares tools."""
    has_calls: bool
    """Whether the message calls tools."""

    @classmethod
    def of(cls, dialogue: Dialogue, message: int) -> TurnKind:
        """Return the kind of the turn of a message."""
        has_calls = bool(dialogue.messages[message].get("tool_calls"))
        return cls(dialogue.tools is not None, has_calls)

    @property
    def tools(self) -> list[Any] | None:
        """The tools of a made-up dialogue with such a turn."""
        return [make_tool()] if self.has_tools else None


@dataclass(frozen=True, slots=True)
class MadeUpRenders:
    """The renders of made-up dialogues by one template; None for those that it refuses.

    The messages are brought into the forms of the template.
    """

    template: ChatTemplate

    @property
    def made_up(self) -> MadeUpRenders:
        """The renders of the template with made-up arguments, which is what probes ask."""
        return MadeUpRenders(self.template.made_up)

    @property
    def probe_results(self) -> ProbeResults:
        """See `probe_results.py`."""
        return self.template.probe_results

    def text(
        self,
        messages: Messages,
        tools: list[Any] | None,
        mode: Mode | None = None,
        *,
        prompt: bool = False,
    ) -> str | None:
        """Return a rendered text; prompt: with the generation prompt."""
        return self._try(self.template.render, messages, tools, prompt=prompt, mode=mode)

    def marked(
        self, messages: Messages, tools: list[Any] | None, mode: Mode | None = None
    ) -> MarkedText | None:
        """Return a rendered text with its regions."""
        return self._try(self.template.render_marked, messages, tools, mode=mode)

    def turn(self, message: Message, tools: list[Any] | None, mode: Mode | None) -> str | None:
        """Return what is written for an assistant message after a question."""
        own = self.marked([QUESTION, message], tools, mode)
        if own is None:
            return None
        region = own.find_region(1)
        return own.text if region is None else own.text[slice(*region)]

    def _try(
        self,
        render: Callable[..., Text],
        messages: Messages,
        tools: list[Any] | None,
        **options: Any,
    ) -> Text | None:
        formed = find_forms(self.template, tools).apply_to_messages(messages)
        try:
            return render(formed, tools, **options)
        except (TemplateRaisedError, TemplateLimitError, MemoryError):
            return None


def make_turns(has_calls: bool, reasoning: str = "") -> Iterator[Message]:
    """Yield an assistant message in each form that a template may require."""
    added = {"reasoning_content": reasoning, "thinking": reasoning} if reasoning else {}
    if not has_calls:
        yield ANSWER | added
        return
    for content in (WORDS["assistant"], ""):
        yield make_calling_message(content) | added
