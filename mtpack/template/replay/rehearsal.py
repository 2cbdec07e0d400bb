"""Dialogues that a template is recorded on before there is any data.

What is learned from them, forked workers share; each shape that a worker meets first costs it 2 ms.
"""

from __future__ import annotations

from collections.abc import Iterator

from mtpack.dialogue import Dialogue, Origin, TextMessages

_MOST_TURNS = 24


def rehearsed_dialogues() -> Iterator[Dialogue]:
    """Yield dialogues of one exchange to 24, with and without a system message."""
    for roles, texts in ((), ()), (("system",), ("Be brief.",)):
        for turns in range(1, _MOST_TURNS + 1):
            messages = TextMessages.of(
                (*roles, *("user", "assistant") * turns), (*texts, *("Why?", "Because.") * turns)
            )
            yield Dialogue(0, Origin("rehearsal", 1), messages, None)
