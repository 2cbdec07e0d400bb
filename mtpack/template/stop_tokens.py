"""How a template ends a turn: with a token of its own, or with the start of the next message.

A server stops at a stop token. Some templates write it only with the next message: GLM's head of a
user's message or of a tool's answer, Jamba's separator. The model must learn to write it.
"""

from __future__ import annotations

from typing import NamedTuple

from mtpack.template.made_up import (
    ANSWER,
    NAME,
    QUESTION,
    VALUE,
    WORDS,
    Message,
    make_result,
)
from mtpack.template.made_up_renders import MadeUpRenders, TurnKind, make_turns
from mtpack.template.probe_results import keep_with_template
from mtpack.tokenizer.added_tokens import AddedTokens


class Ending(NamedTuple):
    """How a template ends a turn of a kind."""

    in_message: bool
    """Whether what the template writes for the message may end in a control token of its own."""
    trailing: str
    """White space that it writes after the turn if no message follows."""
    stop: str
    """The stop token that it writes with the next message, and white space before it; "" if the
    turn ends in a token of its own, or if no stop token follows."""


@keep_with_template
def find_ending(renders: MadeUpRenders, added_tokens: AddedTokens, kind: TurnKind) -> Ending:
    """Return how the template ends a turn of a kind."""
    for message in make_turns(kind.has_calls):
        own = renders.marked([QUESTION, message], kind.tools)
        if own is not None:
            break
    else:
        return Ending(in_message=True, trailing="", stop="")
    text, region = own.text, own.find_region(1)
    end = len(text) if region is None else region[1]
    message_end = len(text[:end].rstrip())
    last_word = max(text.rfind(word) + len(word) for word in (WORDS["assistant"], VALUE, NAME))
    token = added_tokens.find_trailing_control_token(text[last_word:message_end])
    in_message = bool(token)
    turn = text[:message_end]
    if not token and _closes_conversation(text, end, added_tokens):
        turn = text.rstrip()
        token = text[end:].strip()
    stop = ""
    if token not in added_tokens.stops and not (
        token and (not kind.has_calls or _is_end_of_answer(renders, kind, token))
    ):
        stop = _find_next_stop(renders, added_tokens, message, kind, turn)
    return Ending(in_message, text[message_end:end], stop)


def _closes_conversation(text: str, end: int, added_tokens: AddedTokens) -> bool:
    """Return whether one control token follows the message, and is not its own role header."""
    closing = text[end:].strip()
    is_token = bool(closing) and closing == added_tokens.find_trailing_control_token(closing)
    return is_token and not text.partition(WORDS["assistant"])[0].rstrip().endswith(closing)


def _is_end_of_answer(renders: MadeUpRenders, kind: TurnKind, token: str) -> bool:
    """Return whether a turn without calls ends in a token."""
    own = renders.text([QUESTION, ANSWER], kind.tools)
    return own is not None and own.rstrip().endswith(token)


def _find_next_stop(
    renders: MadeUpRenders,
    added_tokens: AddedTokens,
    message: Message,
    kind: TurnKind,
    turn: str,
) -> str:
    """Return the stop token that follows `turn` with the next message, and the space before it."""
    following = make_result() if kind.has_calls else QUESTION
    text = renders.text([QUESTION, message, following], kind.tools)
    if text is None:
        return ""
    rest = text[_find_end_of(turn, text) :]
    token = rest.lstrip()
    stop = max((stop for stop in added_tokens.stops if token.startswith(stop)), key=len, default="")
    return rest[: len(rest) - len(token)] + stop if stop else ""


def _find_end_of(turn: str, text: str) -> int:
    """Return where a turn ends in a longer text; the history may differ from it in details."""
    if text.startswith(turn):
        return len(turn)
    last = max((WORDS["assistant"], VALUE), key=turn.rfind)
    ending = turn.rpartition(last)[2]
    after = text.rfind(last) + len(last)
    for cut in range(len(ending)):
        start = text.find(ending[cut:], after)
        if start >= 0:
            return start + len(ending) - cut
    return after
