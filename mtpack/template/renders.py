"""The renders of a dialogue that are compared to find its turns."""

from __future__ import annotations

from typing import ClassVar, NamedTuple, Protocol

from mtpack.input.dialogue import Dialogue, Messages
from mtpack.template.chat_template import ChatTemplate
from mtpack.template.markers import MarkedText
from mtpack.template.message_forms import find_forms

QUESTION = {"role": "user", "content": "?"}


class Render(NamedTuple):
    """One render of a dialogue: which messages, and whether with the generation prompt."""

    num_messages: int
    """The number of messages of the dialogue, from the first."""
    prompt: bool = False
    question: bool = False
    """Whether a short message of the user follows them."""


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
    if render.question:
        messages += find_forms(template, dialogue.tools).apply_to_messages([QUESTION])
    return messages
