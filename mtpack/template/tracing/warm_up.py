"""Dialogues that a template is recorded on before there is any data.

What is learned from them, forked workers share; each shape that a worker meets first costs it 2 ms.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from mtpack.input.dialogue import Dialogue, Origin, TextMessages

_MOST_TURNS = 24
_SYSTEM = (("system", "Be brief."),)
_ASKED, _ANSWERED = ("user", "Why?"), ("assistant", "Because.")
_EXCHANGE = (_ASKED, _ANSWERED)
_IN_PIECES = (_ASKED, _ASKED, _ANSWERED, _ANSWERED, *_EXCHANGE, _ANSWERED)


def warm_up_dialogues() -> Iterator[Dialogue]:
    """Yield dialogues of one exchange to 24, with a system message or not, answered or not.

    Before them, such in which somebody speaks twice in a row: most is learned from those.
    """
    exchanges = [_EXCHANGE * turns for turns in range(1, _MOST_TURNS + 1)]
    for asked, opening, closing in product([_IN_PIECES, *exchanges], (1, 0), (1, 0)):
        said = _SYSTEM[:opening] + asked + _EXCHANGE[:closing]
        roles, texts = zip(*said, strict=True)
        yield Dialogue(0, Origin("rehearsal", 1), TextMessages.of(roles, texts), None)
