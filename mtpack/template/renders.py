"""The renders of a dialogue that are compared to find its turns."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, NamedTuple, Protocol

from mtpack.input.dialogue import Dialogue, Messages
from mtpack.template.chat_template import ChatTemplate, TemplateRaisedError
from mtpack.template.made_up import ANSWER, QUESTION
from mtpack.template.markers import MarkedText, Text
from mtpack.template.message_forms import find_forms
from mtpack.template.modes import Mode


class Render(NamedTuple):
    """One render of a dialogue: which messages, and whether with the generation prompt."""

    num_messages: int
    """The number of messages of the dialogue, from the first."""
    prompt: bool = False
    question: bool = False
    """Whether `QUESTION` (`made_up.py`) follows them."""
    answer: bool = False
    """Whether `ANSWER` follows them."""
    mode: Mode | None = None
    """The switch that is set; None for the default."""

    @property
    def has_other_messages(self) -> bool:
        """Whether it has messages that are not the dialogue's."""
        return self.question or self.answer


class Renders(Protocol):
    """The renders of one dialogue, by its template or by a replay of it.

    Each raises TemplateRaisedError if the template refuses to render this.
    """

    have_slots: ClassVar[bool]
    """Whether they stand for all dialogues of a shape (`slots.py`)."""

    def text(self, render: Render) -> str:
        """Return the rendered text."""

    def marked(self, render: Render) -> MarkedText:
        """Return the rendered text and its regions."""


def select_messages(template: ChatTemplate, dialogue: Dialogue, render: Render) -> Messages:
    """Return the messages of a render, in the forms of its template."""
    messages = dialogue.messages[: render.num_messages]
    if not render.has_other_messages:
        return messages
    others = [QUESTION] * render.question + [ANSWER] * render.answer
    return messages + find_forms(template, dialogue.tools).apply_to_messages(others)


def try_render(render: Callable[[Render], Text], wanted: Render) -> Text | None:
    """Return a render; None if the template refuses it."""
    try:
        return render(wanted)
    except TemplateRaisedError:
        return None
