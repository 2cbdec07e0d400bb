"""Made-up dialogues for the warm-up: a template is recorded on them before any data is read.

Forked workers share what was recorded. Otherwise each worker needs 2 ms for every new shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from mtpack.input.dialogue import Dialogue, Origin, make_dialogue

_MAX_EXCHANGES = 24
_SYSTEM = (("system", "Be brief."),)
_QUESTION, _ANSWER = ("user", "Why?"), ("assistant", "Because.")
_EXCHANGE = (_QUESTION, _ANSWER)
_REPEATED_SPEAKERS = (_QUESTION, _QUESTION, _ANSWER, _ANSWER, *_EXCHANGE, _ANSWER)


def warm_up_dialogues() -> Iterator[Dialogue]:
    """Yield dialogues of 1 to 24 exchanges.

    Each comes with and without a system message, and with and without a last, unanswered question.
    Before them come dialogues with messages of the same role in a row: most is learned from those.
    """
    exchanges = [_EXCHANGE * turns for turns in range(1, _MAX_EXCHANGES + 1)]
    for middle, opening, closing in product([_REPEATED_SPEAKERS, *exchanges], (1, 0), (1, 0)):
        pairs = _SYSTEM[:opening] + middle + _EXCHANGE[:closing]
        messages = [{"role": role, "content": text} for role, text in pairs]
        yield make_dialogue(0, Origin("warm-up", 1), messages)
