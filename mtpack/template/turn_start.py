"""The rules for the start of a turn and its context; the definition is in `turn_spans.py`."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Any, NamedTuple

from mtpack.input.dialogue import SYSTEM_ROLES
from mtpack.template.markers import MarkedText
from mtpack.template.reasoning import Scaffold, remove_space
from mtpack.template.renders import Render
from mtpack.template.slots import (
    UndecidedError,
    are_equal,
    find_common_length,
    require_no_slots,
    starts_with,
    strip_end,
)
from mtpack.template.written_turn import WrittenTurn
from mtpack.token_batch import TurnFlag

_NO_FLAG = TurnFlag(0)


class Start(NamedTuple):
    """The start of a turn."""

    position: int
    flags: TurnFlag = _NO_FLAG
    context: str | None = None
    """The text before the turn at inference, if it is not the text before `position`."""


def find_start(turn: WrittenTurn, end: int) -> Start:
    """Return the start of the turn that ends at `end`: the first rule that finds it decides."""
    for rule in _RULES:
        found = rule(turn, end)
        if found is not None:
            return found
    return _start_in_region(turn)


def _start_after_header(turn: WrittenTurn, end: int) -> Start | None:
    """There is no prompt for the first turn: it starts after its role header.

    Text that opens every conversation (a default system prompt) may precede the header.
    """
    if not _lacks_prompt(turn):
        return None
    prompt = _find_header(turn)
    header = prompt.lstrip()
    if turn.prompt is not None and not header:
        return None
    require_no_slots(header, turn.region_text)
    length = _find_longest_prefix(turn.region_text, header)  # a scaffold may follow the header
    position = turn.region[0] + turn.region_text.find(header[:length])
    if header and not header[length:].strip():
        flags = _NO_FLAG if length == len(header) else TurnFlag.PROMPT_DIFFERS
        return Start(position + length, flags)
    boundary = turn.added_tokens.find_last_boundary(header, length)
    first_line = header.find("\n")
    if 0 <= first_line <= length and header[boundary:first_line].strip():  # the role's name
        boundary = min(first_line + 1, length)
    if not boundary and turn.prompt is not None:  # the message has no header
        return None
    if not boundary:
        position, boundary = turn.region[0], _find_common_end(turn, prompt, turn.region_text)
    return Start(position + boundary, TurnFlag.PROMPT_DIFFERS)


def _start_after_prompt(turn: WrittenTurn, end: int) -> Start | None:
    """The text continues the prompt."""
    prompt = turn.prompt or ""
    if not starts_with(turn.text.text, prompt):
        return None
    return Start(len(prompt), TurnFlag.PROMPT_OTHER_MODE if turn.render.mode else _NO_FLAG)


def _start_at_end(turn: WrittenTurn, end: int) -> Start | None:
    """The prompt contains the whole turn: nothing is left to train."""
    in_prompt = starts_with(turn.prompt or "", turn.text.text[:end])
    return Start(end, TurnFlag.PROMPT_DIFFERS) if in_prompt else None


def _start_after_prompt_of_mode(turn: WrittenTurn, end: int) -> Start | None:
    """The same text is written in another mode, and continues the prompt of that mode."""
    for mode in turn.probes.list_modes(turn.kind):
        if turn.render.mode is not None and turn.render.mode.name == mode.name:
            continue
        prompt = turn.try_text(turn.before._replace(prompt=True, mode=mode))
        if prompt is None or not starts_with(turn.text.text, prompt):
            continue
        own, other = (turn.try_text(turn.render._replace(mode=m)) for m in (turn.render.mode, mode))
        if own is None or other is None or not are_equal(own, other):
            continue
        without = turn.try_text(turn.before._replace(mode=mode))
        if without is None or not are_equal(prompt, without):  # it ends in a role header
            return Start(len(prompt), TurnFlag.PROMPT_OTHER_MODE)
    return None


def _start_after_same_header(turn: WrittenTurn, end: int) -> Start | None:
    """The text from the content of the last message to the turn is the same in the prompt."""
    if turn.text.generations is not None or turn.prompt is None:
        return None
    start = _find_header_end(turn, len(turn.prompt))
    return None if start is None else Start(start, TurnFlag.PROMPT_CONTEXT, turn.prompt)


def _start_after_closed_scaffold(turn: WrittenTurn, end: int) -> Start | None:
    """The prompt ends in an empty, closed reasoning that the turn lacks, or has a part of."""
    if turn.text.generations is not None or turn.prompt is None:
        return None
    for scaffold in turn.probes.scaffolds:
        length = _find_scaffold(turn.prompt, scaffold)
        header = None if length is None else _find_header_end(turn, length)
        if length is None or header is None:
            continue
        given, written = turn.prompt[length:], turn.text.text[header:end]
        require_no_slots(written[: len(given)])
        part = next(cut for cut in range(len(given) + 1) if written.startswith(given[cut:]))
        start = header + len(given) - part
        rest = remove_space(turn.text.text[start:end])
        if not starts_with(rest, scaffold.before):  # otherwise, a reasoning follows
            return Start(start, TurnFlag.PROMPT_CONTEXT, turn.prompt)
    return None


def _find_header_end(turn: WrittenTurn, length: int) -> int | None:
    """Return where the text has the role header that ends at `length` in the prompt; else None.

    Before it, both have the same text from the content of the last message on.
    """
    if starts_with(turn.text.text, (turn.prompt or "")[:length]):
        return length
    prompt = turn.try_marked(turn.before._replace(prompt=True))
    last = None if prompt is None else prompt.find_region(turn.message - 1)
    if prompt is None or last is None or last[1] > length:
        return None
    header = prompt.text[last[1] : length]
    if not starts_with(turn.region_text, header):
        return None
    end = turn.region[0] + len(header)
    before = turn.text.text[:end]
    if turn.renders.have_slots and not before.endswith(prompt.text[last[0] : length]):
        raise UndecidedError  # the content may be only a part of what is written for the message
    content = _first_text(turn.dialogue.messages[turn.message - 1].get("content"))
    first = max(last[0], prompt.text.rfind(content, *last)) if content else last[0]
    return end if before.endswith(prompt.text[first:length]) else None


def _first_text(content: Any) -> str:
    """Return a content that is text, or the first of its text parts that is not blank."""
    texts = [content]
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict)]
    return next((text.strip() for text in texts if isinstance(text, str) and text.strip()), "")


def _find_scaffold(prompt: str, scaffold: Scaffold) -> int | None:
    """Return where the scaffold starts with which a prompt ends; None if it does not."""
    position = len(prompt)
    for character in reversed(scaffold.text):
        position = len(strip_end(prompt[:position])) - 1
        if position < 0 or prompt[position] != character:
            return None
    return position


def _start_in_prompt(turn: WrittenTurn, end: int) -> Start | None:
    """The text leaves the prompt in the region: there the turn starts."""
    start = _find_common_end(turn, turn.prompt or "", turn.text.text)
    return Start(start, TurnFlag.PROMPT_DIFFERS) if start > turn.region[0] else None


_RULES: tuple[Callable[[WrittenTurn, int], Start | None], ...] = (
    _start_after_header,
    _start_after_prompt,
    _start_at_end,
    _start_after_prompt_of_mode,
    _start_after_same_header,
    _start_after_closed_scaffold,
    _start_in_prompt,
)


def _start_in_region(turn: WrittenTurn) -> Start:
    """They differ in an earlier message: compare the generation prompt with the region."""
    header = _find_generation_prompt(turn)
    common = len(header)
    if not turn.region_text.startswith(header):
        common = _find_common_end(turn, header, turn.region_text)
    return Start(turn.region[0] + common, TurnFlag.PROMPT_DIFFERS)


def _lacks_prompt(turn: WrittenTurn) -> bool:
    """Return whether the template writes no generation prompt, since no question came yet."""
    if turn.prompt is None:
        return True
    roles = turn.dialogue.roles[: turn.message]
    if roles[-1] not in SYSTEM_ROLES or not SYSTEM_ROLES.issuperset(roles):
        return False
    before = turn.try_text(turn.before)
    return before is not None and starts_with(before, turn.prompt)


def _find_header(turn: WrittenTurn) -> str:
    """Return the generation prompt for a turn without a prompt; "" if there is none."""
    prompt = turn.try_marked(turn.render._replace(prompt=True))
    after_turn = "" if prompt is None or not prompt.regions else _find_rest(prompt)
    # What a prompt changes in the turn itself is its end, not the generation prompt.
    return after_turn if after_turn.strip() else _find_added(turn, _ask(turn))


def _find_generation_prompt(turn: WrittenTurn) -> str:
    """Return the generation prompt of a turn, or else that of a question; "" if none."""
    return _find_added(turn, turn.before) or _find_added(turn, _ask(turn))


def _ask(turn: WrittenTurn) -> Render:
    """Return the render of a question alone."""
    return Render(0, question=True, mode=turn.render.mode)


def _find_added(turn: WrittenTurn, before: Render) -> str:
    """Return what the generation prompt adds to a render; "" if nothing, or refused."""
    prompt = turn.try_marked(before._replace(prompt=True))
    without = turn.try_text(before)
    if prompt is None or without is None:
        return ""
    rest = _find_rest(prompt)
    added = prompt.text[len(without) :] if starts_with(prompt.text, without) else ""
    # Both are ends of the prompt. The longer one also has what ends the message before it.
    return min(filter(str.strip, (added, rest)), key=len, default="")


def _find_rest(text: MarkedText) -> str:
    """Return what follows the last message in a text."""
    return text.text[max((end for _, end in text.regions.values()), default=0) :]


def _find_longest_prefix(text: str, prefix: str) -> int:
    """Return the length of the longest beginning of `prefix` that is anywhere in `text`."""
    lengths = range(1, len(prefix) + 1)
    return bisect_left(lengths, True, key=lambda length: prefix[:length] not in text)


def _find_common_end(turn: WrittenTurn, prompt: str, text: str) -> int:
    """Return the end of the common prefix, moved back to an added token's edge in `prompt`."""
    require_no_slots(prompt, text)
    return turn.added_tokens.find_last_boundary(prompt, find_common_length(prompt, text))
