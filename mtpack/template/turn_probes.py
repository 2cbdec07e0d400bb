"""What the rules for turns need to know about a template: what probes find, by kind of turn."""

from __future__ import annotations

from dataclasses import dataclass

from mtpack.input.dialogue import Dialogue
from mtpack.input.reasoning import has_reasoning
from mtpack.template.chat_template import ChatTemplate
from mtpack.template.made_up_renders import MadeUpRenders, TurnKind
from mtpack.template.modes import Mode
from mtpack.template.reasoning import (
    Gap,
    Scaffold,
    find_gap,
    find_modes,
    find_reasoning_mode,
    find_scaffolds,
)
from mtpack.template.stop_tokens import Ending, find_ending
from mtpack.tokenizer.added_tokens import AddedTokens


@dataclass(frozen=True, slots=True)
class TurnProbes:
    """The properties of a template. Each is found when it is first needed, once in a process."""

    template: ChatTemplate
    added_tokens: AddedTokens
    """The tokens that the template may write."""

    @property
    def _renders(self) -> MadeUpRenders:
        return MadeUpRenders(self.template)

    def list_modes(self, kind: TurnKind) -> tuple[Mode, ...]:
        """Return the modes that change the end of the prompt."""
        return find_modes(self._renders, kind)

    def find_ending(self, kind: TurnKind) -> Ending:
        """Return how a turn of a kind ends."""
        return find_ending(self._renders, self.added_tokens, kind)

    def choose_mode(self, dialogue: Dialogue) -> Mode | None:
        """Return the mode in which a dialogue is rendered: None, or one that a reasoning needs."""
        if dialogue.has_only_texts:
            return None
        for message in dialogue.trained_messages():
            previous = dialogue.roles[message - 1] if message else None
            if previous in ("user", "tool") and has_reasoning(dialogue.messages[message]):
                kind = TurnKind.of(dialogue, message)
                mode = find_reasoning_mode(self._renders, kind, after_result=previous == "tool")
                if mode is not None:
                    return mode
        return None

    @property
    def scaffolds(self) -> tuple[Scaffold, ...]:
        """The empty reasonings that the template can write."""
        return find_scaffolds(self._renders, self.added_tokens)

    def find_gap(self, kind: TurnKind, mode: Mode | None) -> Gap | None:
        """Return what is missing in a turn without a reasoning; None if nothing is.

        mode: that of its dialogue.
        """
        return find_gap(self._renders, self.added_tokens, kind, mode)
