"""Dialogues that a template is recorded on before there is any data.

What is learned from them, forked workers share; each shape that a worker meets first costs it 2 ms.
"""

from __future__ import annotations

from collections.abc import Iterator

from mtpack.dialogue import Dialogue, Message, Origin

_MOST_TURNS = 24
_SYSTEM = Message("system", {"role": "system", "content": "Be brief."}, trained=False)
_EXCHANGE = (
    Message("user", {"role": "user", "content": "Why?"}, trained=False),
    Message("assistant", {"role": "assistant", "content": "Because."}, trained=True),
)


def rehearsed_dialogues() -> Iterator[Dialogue]:
    """Yield dialogues of one exchange to 24, with and without a system message."""
    for opening in ((), (_SYSTEM,)):
        for turns in range(1, _MOST_TURNS + 1):
            messages = opening + _EXCHANGE * turns
            texts = [message.fields["content"] for message in messages]
            yield Dialogue(0, Origin("rehearsal", 1), messages, None, texts)
