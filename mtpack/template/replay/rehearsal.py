"""Dialogues that a template is recorded on before there is any data.

What is learned from them, forked workers share; each shape that a worker meets first costs it 2 ms.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from mtpack.dialogue import Dialogue, Origin, TextMessages

_MOST_TURNS = 24
_SYSTEM = (("system", "Be brief."),)
_EXCHANGE = (("user", "Why?"), ("assistant", "Because."))


def rehearsed_dialogues() -> Iterator[Dialogue]:
    """Yield dialogues of one exchange to 24, with a system message or not, answered or not."""
    for opening, turns, closing in product((0, 1), range(1, _MOST_TURNS + 1), (0, 1)):
        said = _SYSTEM[:opening] + _EXCHANGE * turns + _EXCHANGE[:closing]
        roles, texts = zip(*said, strict=True)
        yield Dialogue(0, Origin("rehearsal", 1), TextMessages.of(roles, texts), None)
