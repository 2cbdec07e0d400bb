"""What a template does with every turn of a kind, each found when it is first needed."""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import Any

from mtpack.input.dialogue import Dialogue
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


class TurnProbes:
    """The properties of a template that the rules for turns need."""

    def __init__(self, template: ChatTemplate, added_tokens: AddedTokens) -> None:
        """Take the template, and the tokens that it may write."""
        self.added_tokens = added_tokens
        self._renders = MadeUpRenders(template)
        self._modes: dict[bool, tuple[Mode, ...]] = {}
        self._endings: dict[TurnKind, Ending] = {}
        self._reasoning_modes: dict[TurnKind, Mode | None] = {}
        self._gaps: dict[TurnKind, Gap | None] = {}

    def list_modes(self, has_tools: bool) -> tuple[Mode, ...]:
        """Return the modes that change the end of the prompt (`reasoning.find_modes`)."""
        if has_tools not in self._modes:
            self._modes[has_tools] = find_modes(self._renders, has_tools)
        return self._modes[has_tools]

    def find_ending(self, kind: TurnKind) -> Ending:
        """Return how a turn of a kind ends (`stop_tokens.find_ending`)."""
        if kind not in self._endings:
            self._endings[kind] = find_ending(self._renders, self.added_tokens, kind)
        return self._endings[kind]

    def choose_mode(self, dialogue: Dialogue) -> Mode | None:
        """Return the mode in which a dialogue is rendered: None, or one that a reasoning needs."""
        if dialogue.texts is not None:
            return None
        for message in dialogue.trained_messages():
            if has_reasoning(dialogue.messages[message]):
                mode = self._find_reasoning_mode(kind_of(dialogue, message))
                if mode is not None:
                    return mode
        return None

    def _find_reasoning_mode(self, kind: TurnKind) -> Mode | None:
        if kind not in self._reasoning_modes:
            modes = self.list_modes(kind.has_tools)
            self._reasoning_modes[kind] = find_reasoning_mode(self._renders, kind, modes)
        return self._reasoning_modes[kind]

    @cached_property
    def scaffolds(self) -> tuple[Scaffold, ...]:
        """The empty reasonings that the template can write (`reasoning.find_scaffolds`)."""
        return find_scaffolds(self._renders, self.added_tokens)

    def find_gap(self, kind: TurnKind) -> Gap | None:
        """Return what is missing in a turn without a reasoning (`reasoning.find_gap`)."""
        if kind not in self._gaps:
            modes = self.list_modes(kind.has_tools)
            self._gaps[kind] = find_gap(self._renders, kind, modes, self.scaffolds)
        return self._gaps[kind]


@lru_cache(maxsize=8)
def get_probes(template: ChatTemplate, added_tokens: AddedTokens) -> TurnProbes:
    """Return the probes of a template, always the same."""
    return TurnProbes(template, added_tokens)


def kind_of(dialogue: Dialogue, message: int) -> TurnKind:
    """Return the kind of the turn of a message."""
    has_calls = bool(dialogue.messages[message].get("tool_calls"))
    return TurnKind(dialogue.tools is not None, has_calls)


def has_reasoning(message: dict[str, Any]) -> bool:
    """Return whether a message has a reasoning of its own."""
    reasoning = message.get("reasoning_content")
    return isinstance(reasoning, str) and bool(reasoning.strip())
