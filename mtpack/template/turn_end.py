"""The rules for the end of a turn; the definition is in `turn_spans.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from mtpack.template.markers import Range
from mtpack.template.slots import (
    ends_in,
    has_text_between,
    require_no_slots,
    starts_with,
    strip_end,
)
from mtpack.template.stop_tokens import Ending
from mtpack.template.written_turn import WrittenTurn


class End(NamedTuple):
    """The end of a turn."""

    position: int
    """The position after its last character, before `stop`."""
    stop: str = ""
    """The stop token that belongs to the turn but is written with the next message, with the white
    space before it."""
    is_marked: bool = True
    """Whether the template ends the turn with a control token."""


def find_end(turn: WrittenTurn) -> End:
    """Return the end of a turn: the first rule that finds it decides."""
    ending = turn.probes.find_ending(turn.kind)
    region = _find_range(turn)
    for rule in _RULES:
        found = rule(turn, ending, region)
        if found is not None:
            return found
    end = _strip_space(turn, region)
    is_marked = ending.in_message and ends_in(turn.text.text[:end], turn.added_tokens.ending)
    return End(end, is_marked=is_marked)


def _end_before_stop(turn: WrittenTurn, ending: Ending, region: Range) -> End | None:
    """The template writes the turn's stop token with the next message."""
    if not ending.stop or turn.text.generations is not None:
        return None
    text = turn.text.text[slice(*region)]
    if not turn.is_last:  # the next message is there, and its start may belong to the region
        written = _strip_space(turn, region)
        if ends_in(turn.text.text[:written], (ending.stop.strip(),)):
            return End(written)
    if not ends_in(text, (ending.trailing,)):
        return None
    return End(region[1] - len(ending.trailing), ending.stop)


def _end_in_control_token(turn: WrittenTurn, ending: Ending, region: Range) -> End | None:
    """The message ends in a control token, which is not the end of its own prompt."""
    if not ending.in_message:  # then it can only be a part of the content
        return None
    end = _strip_space(turn, region)
    text = turn.text.text[:end]
    if not ends_in(text, turn.added_tokens.ending):
        return None
    in_prompt = turn.prompt is not None and starts_with(turn.prompt, text)
    return None if in_prompt else End(end)


def _end_after_closing_token(turn: WrittenTurn, ending: Ending, region: Range) -> End | None:
    """One control token alone closes the conversation after the message.

    It is not the role header of the next turn, which some templates always write.
    """
    end = _strip_space(turn, region)
    text = turn.text.text
    closing = text[end:].strip()
    require_no_slots(closing)
    if not closing or closing != turn.added_tokens.find_trailing_control_token(closing):
        return None
    if turn.prompt is not None and ends_in(strip_end(turn.prompt), (closing,)):
        return None
    return End(text.index(closing, end) + len(closing))


_RULES: tuple[Callable[[WrittenTurn, Ending, Range], End | None], ...] = (
    _end_before_stop,
    _end_in_control_token,
    _end_after_closing_token,
)


def _find_range(turn: WrittenTurn) -> Range:
    """Return the region of a turn without a later message inside it (a tool's answer)."""
    text = turn.text
    start, end = turn.region
    for later in text.marked:
        for region in text.find_written(later) if later > turn.message else ():
            if has_text_between(text.text, start, region[0]):
                end = min(end, region[0])
    return start, end


def _strip_space(turn: WrittenTurn, region: Range) -> int:
    """Return the end of a region without the white space after it."""
    return region[0] + len(strip_end(turn.text.text[slice(*region)]))
