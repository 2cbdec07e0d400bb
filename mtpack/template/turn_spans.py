"""Find where each turn starts and ends in the rendered text, and whether merging it is exact.

This is the definition of a turn; docs/turns.md has it with examples. A *turn* is an assistant
message that carries loss: what the model has to write at inference. For the message at index i:

    full    the whole dialogue, rendered
    own     the messages up to and including i, rendered
    prompt  the messages before i, rendered with the generation prompt: the model's input
    region  the characters that the template writes for message i, its role header included

Region: marks in the template's loop over the messages find it, or else what `own` adds to a text
without the message (`message_regions.py`). If neither works, the row is rejected
(`turn_not_found`). If the template does not write the message, its region is empty.

Start: the end of `prompt`, if `own` starts with `prompt`. So the role header carries no loss, nor
does a scaffold (`<think>`) that the prompt contains. Otherwise it is the end of their common
prefix, moved back to the edge of an added token of `prompt`, and the turn is flagged
`PROMPT_DIFFERS`. If they differ already before the region, only the region is compared with the
generation prompt. If `prompt` contains the whole turn, nothing is left to train. If `prompt`
can't be rendered (the assistant speaks first), or has no generation prompt since no question came
yet, the turn starts after its role header, which is found in the region as the text of the
generation prompt.

End: the end of the region without trailing white space, so the end-of-turn token is trained. A
later message inside the region (a tool's answer) ends the turn before it. If the turn ends in no
control token, but one alone closes the conversation, that token is part of the turn. A turn that
ends in no control token is flagged `NO_EOT`.

Spans: the loss tokens lie in [start, end), or, if the template has `{% generation %}` tags, in the
tagged characters of the region.

Merging turn i into `full` is exact if and only if `full` and `own` agree up to the end of the turn,
in text and, where that end is not an added token, in token ids (`documents/token_spans.py` compares
the ids). Any other turn gets `own` as its own document under `--merge auto`, and is
trained in `full` and flagged `BENT` under `--merge always`. Under `--merge never`, every turn has
its own document. A turn whose `own` the template refuses is trained in `full`, as `UNPROVEN`.

Where a turn starts and ends, small rules decide in order: `_START_RULES` and `_END_RULES`. All
rules also hold for texts with slots (`slots.py`), which stand for many dialogues at once. A rule
that has to see what is in a slot raises UndecidedError, and decides for each dialogue later.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from mtpack.input.dialogue import Dialogue
from mtpack.template.markers import MarkedText, Range
from mtpack.template.message_regions import RegionFinder
from mtpack.template.rendered_dialogue import DocumentText, RenderedDialogue, Turns, TurnText
from mtpack.template.renders import Render, Renders, try_render
from mtpack.template.slots import (
    ends_in,
    find_common_length,
    has_text_between,
    require_no_slots,
    starts_with,
    strip_end,
)
from mtpack.token_batch import TurnFlag
from mtpack.tokenizer.added_tokens import AddedTokens

_SYSTEM_ROLES = frozenset(("system", "developer"))


class LocatedTurns(NamedTuple):
    """The turns of a dialogue, each located in its `own`."""

    full: str
    turns: list[tuple[TurnText, DocumentText | None]]
    """Each with the document that it gets if merging is not exact, which is its `own`; None if the
    template refuses to render that: then the turn is located in `full`."""
    end: int
    """The end of the region of the last turn in `full`."""


class _Written(NamedTuple):
    """A message in a rendered text that contains it, and the prompt for it."""

    text: MarkedText
    message: int
    region: Range
    prompt: str | None
    """None if the template refuses to render it."""

    @property
    def content(self) -> str:
        """The text of the region."""
        return self.text.text[slice(*self.region)]


@dataclass(frozen=True)
class TurnFinder:
    """Finds the turns of one dialogue, by comparing renders of it.

    The renders may be texts with slots (`slots.py`): then the result is valid for all dialogues
    with these renders, and its texts have slots as well. All methods raise UndecidedError if texts
    with slots can't decide.
    """

    renders: Renders
    added_tokens: AddedTokens
    dialogue: Dialogue

    @cached_property
    def _regions(self) -> RegionFinder:
        return RegionFinder(self.renders, self.added_tokens, self.dialogue)

    @cached_property
    def _full(self) -> MarkedText:
        return self.renders.marked(Render(len(self.dialogue.messages)))

    def locate_turns(self) -> LocatedTurns:
        """Locate all turns; raise TemplateRaisedError or TurnNotFoundError."""
        full = self._full
        turns: list[tuple[TurnText, DocumentText | None]] = []
        trained = self.dialogue.trained_messages()
        for message in trained:
            own = self._render_own(message)
            turn = self._locate(own or full, message)
            turns.append((turn, None if own is None else _make_own_document(own, turn)))
        region = full.find_region(trained[-1]) if trained else None
        return LocatedTurns(full.text, turns, region[1] if region else len(full.text))

    def divide(self, located: LocatedTurns, merge: str) -> RenderedDialogue:
        """Divide located turns between `full` and documents of their own.

        merge: `auto`, `always` or `never`. Raises TurnNotFoundError.
        """
        merged: list[TurnText] = []
        own_documents: list[DocumentText] = []
        to_compare: list[tuple[int, DocumentText]] = []
        end = 0
        for turn, own in located.turns:
            end = turn.end
            if own is None:  # nothing to compare `full` with
                merged.append(turn._replace(flags=turn.flags | TurnFlag.UNPROVEN))
                continue
            until_end = own.text[:end]
            exact = starts_with(located.full, until_end)
            if merge == "never" and exact:
                own_documents.append(DocumentText(own.text, Turns.of([turn])))
            elif merge != "always" and not exact:
                own_documents.append(own)
                end = located.end
            elif not exact:
                merged.append(self._locate_bent(turn.message, until_end[turn.start :]))
                end = merged[-1].end
            else:
                if not ends_in(until_end, self.added_tokens.cutting):
                    to_compare.append((len(merged), own))
                merged.append(turn)
        document = DocumentText(located.full, Turns.of(merged))
        row = self.dialogue.row
        return RenderedDialogue(row, document, tuple(own_documents), end, tuple(to_compare))

    def _locate_bent(self, message: int, own_turn: str) -> TurnText:
        """Locate in `full` a turn whose text or context differs there; own_turn: its own text."""
        full = self._full
        require_no_slots(full.text, own_turn)
        turn = self._locate(full, message)
        turn = turn._replace(flags=turn.flags | TurnFlag.BENT)
        if full.generations is not None:
            return turn
        end, last_token = turn.end, self.added_tokens.find_trailing_control_token(own_turn)
        if full.text.startswith(own_turn, turn.start):
            end = turn.start + len(own_turn)
        elif full.text.startswith(last_token, end) and not full.text[:end].endswith(last_token):
            end += len(last_token)  # here the token also opens the tool's answer
        return turn._replace(spans=((turn.start, end),), end=end)

    def _render_own(self, message: int) -> MarkedText | None:
        """Return the `own` of `message`; None if the template refuses it."""
        if message == len(self.dialogue.messages) - 1:
            return self._full
        return try_render(self.renders.marked, Render(message + 1))

    def _locate(self, text: MarkedText, message: int) -> TurnText:
        """Locate the turn of `message` in a rendered text that contains the message."""
        region = self._regions.find(text, message)
        if region[0] == region[1]:
            return TurnText(message, (), *region, TurnFlag(0))
        prompt = try_render(self.renders.text, Render(message, prompt=True))
        written = _Written(text, message, region, prompt)
        end = self._find_end(written)
        start, flags = self._find_start(written, end)
        spans: tuple[Range, ...] = ((start, end),)
        if text.generations is not None:
            spans = _find_tagged(text, region)
            end = max((last for _, last in spans), default=end)
        if not ends_in(strip_end(text.text[:end]), self.added_tokens.ending):
            flags |= TurnFlag.NO_EOT
        return TurnText(message, spans, start, end, flags)

    # End: the first rule that gives a position decides

    def _find_end(self, written: _Written) -> int:
        """Return the end of a turn."""
        text = written.text
        start, last = written.region
        for later in text.marked:
            for region in text.find_written(later) if later > written.message else ():
                if has_text_between(text.text, start, region[0]):
                    last = min(last, region[0])
        end = start + len(strip_end(text.text[start:last]))
        for rule in _END_RULES:
            found = rule(self, written, end)
            if found is not None:
                return found
        return end

    def _end_in_control_token(self, written: _Written, end: int) -> int | None:
        """The message ends in a control token, which is not the end of its own prompt."""
        text = written.text.text[:end]
        if not ends_in(text, self.added_tokens.ending):
            return None
        in_prompt = written.prompt is not None and starts_with(written.prompt, text)
        return None if in_prompt else end

    def _end_after_closing_token(self, written: _Written, end: int) -> int | None:
        """One control token alone closes the conversation after the message."""
        text = written.text.text
        closing = text[end:].strip()
        require_no_slots(closing)
        if closing and closing == self.added_tokens.find_trailing_control_token(closing):
            return text.index(closing, end) + len(closing)
        return None

    # Start: the first rule that gives a position decides

    def _find_start(self, written: _Written, end: int) -> tuple[int, TurnFlag]:
        """Return the start of the turn that ends at `end`, and its flags."""
        for rule in _START_RULES:
            found = rule(self, written, end)
            if found is not None:
                return found
        return self._start_in_region(written)

    def _start_after_header(self, written: _Written, end: int) -> tuple[int, TurnFlag] | None:
        """There is no prompt for the first turn: it starts after its role header.

        Text that opens every conversation (a default system prompt) may precede the header.
        """
        if not self._lacks_prompt(written):
            return None
        header = self._find_header(written.message).lstrip()
        if written.prompt is not None and not header:
            return None
        require_no_slots(header, written.content)
        length = _find_longest_prefix(written.content, header)  # a scaffold may follow the header
        position = written.region[0] + written.content.find(header[:length])
        if header and not header[length:].strip():
            flags = TurnFlag(0) if length == len(header) else TurnFlag.PROMPT_DIFFERS
            return position + length, flags
        end = self.added_tokens.find_last_boundary(header, length)
        first_line = header.find("\n")
        if 0 <= first_line <= length and header[end:first_line].strip():  # the role's name
            end = min(first_line + 1, length)
        return position + end if end else written.region[0], TurnFlag.PROMPT_DIFFERS

    def _start_after_prompt(self, written: _Written, end: int) -> tuple[int, TurnFlag] | None:
        """The text continues the prompt."""
        prompt = written.prompt or ""
        return (len(prompt), TurnFlag(0)) if starts_with(written.text.text, prompt) else None

    def _start_at_end(self, written: _Written, end: int) -> tuple[int, TurnFlag] | None:
        """The prompt contains the whole turn: nothing is left to train."""
        in_prompt = starts_with(written.prompt or "", written.text.text[:end])
        return (end, TurnFlag.PROMPT_DIFFERS) if in_prompt else None

    def _start_in_prompt(self, written: _Written, end: int) -> tuple[int, TurnFlag] | None:
        """The text leaves the prompt in the region: there the turn starts."""
        start = self._find_common_end(written.prompt or "", written.text.text)
        return (start, TurnFlag.PROMPT_DIFFERS) if start > written.region[0] else None

    def _start_in_region(self, written: _Written) -> tuple[int, TurnFlag]:
        """They differ in an earlier message: compare the generation prompt with the region."""
        header = self._find_generation_prompt(written.message)
        common = len(header)
        if not written.content.startswith(header):
            common = self._find_common_end(header, written.content)
        return written.region[0] + common, TurnFlag.PROMPT_DIFFERS

    def _lacks_prompt(self, written: _Written) -> bool:
        """Return whether the template writes no generation prompt, since no question came yet."""
        if written.prompt is None:
            return True
        roles = self.dialogue.roles[: written.message]
        if roles[-1] not in _SYSTEM_ROLES or not _SYSTEM_ROLES.issuperset(roles):
            return False
        before = try_render(self.renders.text, Render(written.message))
        return before is not None and starts_with(before, written.prompt)

    def _find_header(self, message: int) -> str:
        """Return the generation prompt for a turn without a prompt; "" if there is none."""
        prompt = try_render(self.renders.marked, Render(message + 1, prompt=True))
        after_turn = "" if prompt is None or not prompt.regions else _find_rest(prompt)
        # What a prompt changes in the turn itself is its end, not the generation prompt.
        return after_turn if after_turn.strip() else self._find_added(Render(0, question=True))

    def _find_generation_prompt(self, num_messages: int) -> str:
        """Return the generation prompt after the messages, or else after a question; "" if none."""
        return self._find_added(Render(num_messages)) or self._find_added(Render(0, question=True))

    def _find_added(self, before: Render) -> str:
        """Return what the generation prompt adds to a render; "" if nothing, or refused."""
        prompt = try_render(self.renders.marked, before._replace(prompt=True))
        without = try_render(self.renders.text, before)
        if prompt is None or without is None:
            return ""
        rest = _find_rest(prompt)
        added = prompt.text[len(without) :] if starts_with(prompt.text, without) else ""
        # Both are ends of the prompt. The longer one also has what ends the message before it.
        return min(filter(str.strip, (added, rest)), key=len, default="")

    def _find_common_end(self, prompt: str, text: str) -> int:
        """Return the end of the common prefix, moved back to an added token's edge in `prompt`."""
        require_no_slots(prompt, text)
        return self.added_tokens.find_last_boundary(prompt, find_common_length(prompt, text))


_END_RULES: tuple[Callable[[TurnFinder, _Written, int], int | None], ...] = (
    TurnFinder._end_in_control_token,
    TurnFinder._end_after_closing_token,
)
_START_RULES: tuple[Callable[[TurnFinder, _Written, int], tuple[int, TurnFlag] | None], ...] = (
    TurnFinder._start_after_header,
    TurnFinder._start_after_prompt,
    TurnFinder._start_at_end,
    TurnFinder._start_in_prompt,
)


def _find_longest_prefix(text: str, prefix: str) -> int:
    """Return the length of the longest beginning of `prefix` that is anywhere in `text`."""
    lengths = range(1, len(prefix) + 1)
    return bisect_left(lengths, True, key=lambda length: prefix[:length] not in text)


def _find_rest(text: MarkedText) -> str:
    """Return what follows the last message in a text."""
    return text.text[max((end for _, end in text.regions.values()), default=0) :]


def _make_own_document(own: MarkedText, turn: TurnText) -> DocumentText:
    turn = turn._replace(flags=turn.flags | TurnFlag.OWN_DOCUMENT)
    return DocumentText(own.text, Turns.of([turn]))


def _find_tagged(text: MarkedText, region: Range) -> tuple[Range, ...]:
    """Return the characters of a region that are tagged."""
    start, end = region
    return tuple(
        (max(first, start), min(last, end))
        for first, last in text.generations or ()
        if has_text_between(text.text, first, end) and has_text_between(text.text, start, last)
    )
