"""Count the turns whose reasoning is not what the prompt asks for, and the modes that rows need.

Whether something is missing in a turn without a reasoning depends on its kind alone, so the
template is asked once for each kind.
"""

from __future__ import annotations

from collections import Counter

from mtpack.counts import Counts
from mtpack.input.dialogue import Dialogue
from mtpack.template.made_up import TurnKind
from mtpack.template.turn_probes import TurnProbes, has_reasoning, kind_of

_PLAIN = TurnKind(has_tools=False, has_calls=False)
_END_OF_REASONING = "</think>"  # in a content, it ends a reasoning
NO_MODE = "none"
"""Stands for the mode in counts by mode, if no mode of the template helps."""


class ReasoningCounts:
    """Counts dialogues by mode, and their turns without a reasoning by kind."""

    def __init__(self, probes: TurnProbes) -> None:
        """Take the probes of the template; start with no dialogues."""
        self._probes = probes
        self._modes: Counter[str] = Counter()
        self._kinds: Counter[TurnKind] = Counter()

    def add(self, dialogue: Dialogue) -> None:
        """Count a dialogue and its trained turns."""
        if dialogue.texts is not None and _END_OF_REASONING not in (dialogue.joined_texts or ""):
            self._kinds[_PLAIN] += dialogue.roles.count("assistant")
            return
        turns = dialogue.trained_messages()
        without = [index for index in turns if not has_reasoning(dialogue.messages[index])]
        mode = None if len(without) == len(turns) else self._probes.choose_mode(dialogue)
        if mode is not None:  # its prompt opens a reasoning, as its turns do
            self._modes[str(mode)] += 1
            return
        for index in without:
            if _END_OF_REASONING not in str(dialogue.messages[index].get("content")):
                self._kinds[kind_of(dialogue, index)] += 1

    def count(self) -> Counts:
        """Return the counts of all dialogues."""
        counts = Counts(rows_in_mode=dict(self._modes))
        for kind, number in self._kinds.items():
            gap = self._probes.find_gap(kind)
            if gap is not None:
                by_mode = {str(gap.mode or NO_MODE): number}
                counts += (
                    Counts(reasoning_empty=by_mode)
                    if gap.is_empty
                    else Counts(reasoning_missing=by_mode)
                )
        return counts
