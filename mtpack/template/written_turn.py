"""A turn as a template writes it: what the rules for its start and its end look at."""

from __future__ import annotations

from dataclasses import dataclass

from mtpack.input.dialogue import Dialogue
from mtpack.template.made_up_renders import TurnKind
from mtpack.template.markers import MarkedText, Range
from mtpack.template.renders import Render, Renders, try_render
from mtpack.template.turn_probes import TurnProbes
from mtpack.tokenizer.added_tokens import AddedTokens


@dataclass(frozen=True, slots=True)
class WrittenTurn:
    """The message of a turn in a rendered text that contains it, and the prompt for it.

    The renders may be texts with slots (`slots.py`). A rule that reads the dialogue itself must
    check `renders.have_slots` first.
    """

    renders: Renders
    probes: TurnProbes
    dialogue: Dialogue
    render: Render
    """The render of all messages up to this one: its mode is that of the dialogue."""
    text: MarkedText
    region: Range
    """The characters that are written for the message."""
    prompt: str | None
    """None if the template refuses to render it."""
    is_last: bool
    """Whether no message follows in `text`."""

    @property
    def message(self) -> int:
        """The index of the message."""
        return self.render.num_messages - 1

    @property
    def before(self) -> Render:
        """The render of the messages before this one."""
        return self.render._replace(num_messages=self.message)

    @property
    def region_text(self) -> str:
        """The text of the region."""
        return self.text.text[slice(*self.region)]

    @property
    def kind(self) -> TurnKind:
        """The kind of the turn, for probes."""
        return TurnKind.of(self.dialogue, self.message)

    @property
    def added_tokens(self) -> AddedTokens:
        """The added tokens of the tokenizer."""
        return self.probes.added_tokens

    def try_text(self, wanted: Render) -> str | None:
        """Return the text of a render; None if the template refuses it."""
        return try_render(self.renders.text, wanted)

    def try_marked(self, wanted: Render) -> MarkedText | None:
        """Return a render with its regions; None if the template refuses it."""
        return try_render(self.renders.marked, wanted)
