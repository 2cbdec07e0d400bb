"""Count the turns whose reasoning is not what the prompt asks for, and the modes that rows need.

Whether something is missing in a turn without a reasoning depends on its kind alone, so the
template is asked once for each kind.
"""

from __future__ import annotations

from collections import Counter

from mtpack.counts import NO_MODE, Counts
from mtpack.input.dialogue import Dialogue
from mtpack.input.reasoning import END_OF_THINK, has_reasoning
from mtpack.template.made_up_renders import TurnKind
from mtpack.template.modes import Mode
from mtpack.template.turn_probes import TurnProbes

_PLAIN = TurnKind(has_tools=False, has_calls=False)


class ReasoningCounts:
    """Counts dialogues by mode, and their turns without a reasoning by kind."""

    def __init__(self, probes: TurnProbes) -> None:
        """Take the probes of the template; start with no dialogues."""
        self._probes = probes
        self._modes: Counter[str] = Counter()
        self._kinds: Counter[tuple[TurnKind, Mode | None]] = Counter()
        """Of turns without a reasoning, with the mode of their dialogue."""

    def add_plain(self, num_turns: int) -> None:
        """Count trained turns in dialogues that have texts alone, and no `</think>` in them."""
        self._kinds[_PLAIN, None] += num_turns

    def add(self, dialogue: Dialogue) -> None:
        """Count a dialogue and its trained turns."""
        turns = dialogue.trained_messages()
        without = [index for index in turns if not has_reasoning(dialogue.messages[index])]
        mode = None if len(without) == len(turns) else self._probes.choose_mode(dialogue)
        if mode is not None:
            self._modes[str(mode)] += 1
        for index in without:
            if END_OF_THINK not in str(dialogue.messages[index].get("content")):
                self._kinds[TurnKind.of(dialogue, index), mode] += 1

    def count(self) -> Counts:
        """Return the counts of all dialogues."""
        missing: Counter[str] = Counter()
        empty: Counter[str] = Counter()
        for (kind, mode), number in self._kinds.items():
            gap = self._probes.find_gap(kind, mode)
            if gap is not None:
                (empty if gap.is_empty else missing)[str(gap.mode or NO_MODE)] += number
        return Counts(
            rows_in_mode=dict(self._modes),
            reasoning_missing=dict(missing),
            reasoning_empty=dict(empty),
        )
