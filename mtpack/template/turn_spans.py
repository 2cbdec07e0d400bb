"""Find where each turn starts and ends in the rendered text, and whether merging it is exact.

This is the definition of a turn; docs/turns.md has it with examples. A *turn* is an assistant
message that carries loss: what the model has to write at inference. For the message at index i:

    full    the whole dialogue, rendered
    own     the messages up to and including i, rendered
    prompt  the messages before i, rendered with the generation prompt: the model's input
    region  the characters that the template writes for message i, its role header included
    served  what the model sees and writes at inference: a context, and then the turn's own text

All of them are rendered in the default mode of the template, with one exception: if the default
mode drops a reasoning, or closes it in the prompt, and another mode writes it and continues its own
prompt, the dialogue is rendered in that mode (`turn_probes.py`).

Region: marks in the template's loop over the messages find it, or else what `own` adds to a text
without the message (`message_regions.py`). If neither works, the row is rejected
(`turn_not_found`). If the template does not write the message, its region is empty.

Start and context (`turn_start.py`): if `own` starts with `prompt`, the turn starts where `prompt`
ends, and `served` is `own`. So the role header carries no loss, nor does a scaffold (`<think>`)
that the prompt contains. If `prompt` contains the whole turn, nothing is left to train. Otherwise,
the first of these decides:

- Other mode: another mode writes the same `own`, which starts with the prompt of that mode. The
  turn starts where that prompt ends (`PROMPT_OTHER_MODE`).
- Same header: from the content of the last message before the turn to the turn, `prompt` and `own`
  have the same text. They differ earlier, and the context is `prompt` (`PROMPT_CONTEXT`).
- Closed scaffold: `prompt` ends in an empty reasoning that `own` does not have, or has a part of
  it, and no reasoning follows. The context is `prompt`, and the turn's own text is what follows the
  header and that part in `own` (`PROMPT_CONTEXT`).
- Otherwise, the turn starts where the common prefix of `own` and `prompt` ends, moved back to the
  edge of an added token of `prompt` (`PROMPT_DIFFERS`). If they differ already before the region,
  only the region is compared with the generation prompt.

If `prompt` can't be rendered (the assistant speaks first), or has no generation prompt since no
question came yet, the turn starts after its role header, which is found in the region as the text
of the generation prompt.

End (`turn_end.py`): the end of the region without trailing white space, so the end-of-turn token is
trained. A later message inside the region (a tool's answer) ends the turn before it. If the turn
ends in no control token, but one alone closes the conversation, that token is part of the turn. So
is a *stop token* (at which generation stops) that the template writes right after the turn, as the
start of the next message: after a call, that of a tool's answer, otherwise that of a question. It
is added to `served` if it is not there. A control token counts only if the template writes it: a
content that ends in one changes nothing. A turn that ends in no control token is flagged `NO_EOT`,
and one that ends in another than a stop token `NOT_A_STOP`.

Spans: the loss tokens lie in [start, end), or, if the template has `{% generation %}` tags, in the
tagged characters of the region. With tags, `served` is always `own`.

Merging turn i into `full` is exact if and only if `full` and `served` agree up to the end of the
turn, in text and, where that end is not an added token, in token ids (`documents/token_spans.py`
compares the ids). Any other turn gets `served` as its own document under `--merge auto`. Under
`--merge always`, its own text is trained in `full` and flagged `BENT`. Under `--merge never`, every
turn has its own document. A turn whose `own` the template refuses is trained in `full`, as
`UNPROVEN`. `full` ends with the stop token of its last turn.

Where a turn starts and ends, small rules decide in order. All rules also hold for texts with slots
(`slots.py`), which stand for many dialogues at once. A rule that has to see what is in a slot
raises UndecidedError, and decides for each dialogue later.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from mtpack.input.dialogue import Dialogue
from mtpack.template.markers import MarkedText, Range
from mtpack.template.message_regions import RegionFinder
from mtpack.template.modes import Mode
from mtpack.template.rendered_dialogue import DocumentText, RenderedDialogue, Turns, TurnText
from mtpack.template.renders import Render, Renders, try_render
from mtpack.template.slots import (
    ends_in,
    has_text_between,
    require_no_slots,
    starts_with,
    strip_end,
)
from mtpack.template.turn_end import End, find_end
from mtpack.template.turn_probes import TurnProbes
from mtpack.template.turn_start import find_start
from mtpack.template.written_turn import WrittenTurn
from mtpack.token_batch import TurnFlag


class _Located(NamedTuple):
    """A turn in a rendered text."""

    turn: TurnText
    """Its positions in that text, without `stop`."""
    context: str | None = None
    """The text before the turn at inference, if it is not the text before it here."""
    stop: str = ""
    """The text after the turn at inference (`turn_end.End`)."""


class LocatedTurns(NamedTuple):
    """The turns of a dialogue, each located in its `served`."""

    full: str
    turns: list[tuple[TurnText, DocumentText | None]]
    """Each with its `served`, as a document; None if the template refuses to render `own`: then
    the turn is located in `full`."""
    end: int
    """The end of the region of the last turn in `full`."""


@dataclass(frozen=True)
class TurnFinder:
    """Finds the turns of one dialogue, by comparing renders of it.

    The renders may be texts with slots (`slots.py`): then the result is valid for all dialogues
    with these renders, and its texts have slots as well. All methods raise UndecidedError if texts
    with slots can't decide.
    """

    renders: Renders
    probes: TurnProbes
    dialogue: Dialogue

    @cached_property
    def _regions(self) -> RegionFinder:
        return RegionFinder(self.renders, self.probes.added_tokens, self.dialogue, self._mode)

    @cached_property
    def _full(self) -> MarkedText:
        return self.renders.marked(Render(len(self.dialogue.messages), mode=self._mode))

    @cached_property
    def _mode(self) -> Mode | None:
        """The mode of the dialogue: another than the default if a reasoning needs it."""
        return self.probes.choose_mode(self.dialogue)

    def locate_turns(self) -> LocatedTurns:
        """Locate all turns; raise TemplateRaisedError or TurnNotFoundError."""
        full, text, end = self._full, self._full.text, None
        turns: list[tuple[TurnText, DocumentText | None]] = []
        trained = self.dialogue.trained_messages()
        for message in trained:
            own = self._render_own(message)
            found = self._locate(own or full, message)
            turns.append((found.turn, None) if own is None else _serve(own.text, found))
            if own is full and found.stop:  # no next message writes it
                text = full.text[: found.turn.end] + found.stop
                end = len(text)
        if end is None:
            region = full.find_region(trained[-1]) if trained else None
            end = region[1] if region else len(full.text)
        return LocatedTurns(text, turns, end)

    def divide(self, located: LocatedTurns, merge: str) -> RenderedDialogue:
        """Divide located turns between `full` and documents of their own.

        merge: `auto`, `always` or `never`. Raises TurnNotFoundError.
        """
        merged: list[TurnText] = []
        own_documents: list[DocumentText] = []
        to_compare: list[tuple[int, DocumentText]] = []
        end = 0
        for turn, served in located.turns:
            end = turn.end
            if served is None:  # nothing to compare `full` with
                merged.append(turn._replace(flags=turn.flags | TurnFlag.UNPROVEN))
                continue
            until_end = served.text[:end]
            exact = starts_with(located.full, until_end)
            if merge == "never" and exact:
                own_documents.append(DocumentText(served.text, Turns.of([turn])))
            elif merge != "always" and not exact:
                own_documents.append(served)
                end = located.end
            elif not exact:
                merged.append(self._locate_bent(located.full, until_end, turn))
                end = merged[-1].end
            else:
                if not ends_in(until_end, self.probes.added_tokens.cutting):
                    to_compare.append((len(merged), served))
                merged.append(turn)
        document = DocumentText(located.full, Turns.of(merged))
        row = self.dialogue.row
        return RenderedDialogue(row, document, tuple(own_documents), end, tuple(to_compare))

    def _locate_bent(self, full: str, until_end: str, turn: TurnText) -> TurnText:
        """Locate in `full` a turn whose text or context differs there.

        until_end: its `served`, up to the end of the turn. turn: as it is located in that.
        """
        own_text = until_end[turn.start :]
        require_no_slots(full, own_text)
        found = self._locate(self._full, turn.message)
        ends = found.turn.flags & (TurnFlag.NO_EOT | TurnFlag.NOT_A_STOP)
        bent = found.turn._replace(flags=turn.flags | TurnFlag.BENT)
        if self._full.generations is not None:
            return bent._replace(flags=bent.flags | ends)
        last_token = self.probes.added_tokens.find_trailing_control_token(own_text)
        end = bent.end
        rest = full[end:].lstrip() if found.stop else full[end:]
        if full.startswith(own_text, bent.start):
            end = bent.start + len(own_text)
        elif rest.startswith(last_token) and not full[:end].endswith(last_token):
            # Here the token also opens the next message.
            end = len(full) - len(rest) + len(last_token)
        else:
            ends |= TurnFlag.NO_EOT if found.stop else TurnFlag(0)  # it does not follow here
            bent = bent._replace(flags=bent.flags | ends)
        return bent._replace(spans=((bent.start, end),), end=end)

    def _render_own(self, message: int) -> MarkedText | None:
        """Return the `own` of `message`; None if the template refuses it."""
        if message == len(self.dialogue.messages) - 1:
            return self._full
        return try_render(self.renders.marked, Render(message + 1, mode=self._mode))

    def _locate(self, text: MarkedText, message: int) -> _Located:
        """Locate the turn of `message` in a rendered text that contains the message."""
        region = self._regions.find(text, message)
        if region[0] == region[1]:
            return _Located(TurnText(message, (), *region, TurnFlag(0)))
        render = Render(message + 1, mode=self._mode)
        before = render._replace(num_messages=message, prompt=True)
        prompt = try_render(self.renders.text, before)
        is_last = text is not self._full or message == len(self.dialogue.messages) - 1
        written = WrittenTurn(
            self.renders, self.probes, self.dialogue, render, text, region, prompt, is_last
        )
        end = find_end(written)
        start = find_start(written, end.position)
        last = end.position
        spans: tuple[Range, ...] = ((start.position, last),)
        if text.generations is not None:
            spans = _find_tagged(text, region)
            last = max((last for _, last in spans), default=last)
        flags = start.flags | self._find_end_flags(text.text[:last], end)
        turn = TurnText(message, spans, start.position, last, flags)
        return _Located(turn, start.context, end.stop)

    def _find_end_flags(self, until_end: str, end: End) -> TurnFlag:
        """Return what the report counts about the end of a turn."""
        tokens = self.probes.added_tokens
        if end.stop:
            return TurnFlag(0)
        if not end.is_marked or not ends_in(strip_end(until_end), tokens.ending):
            return TurnFlag.NO_EOT
        if tokens.stops and not ends_in(strip_end(until_end), tokens.stops):
            return TurnFlag.NOT_A_STOP
        return TurnFlag(0)


def _serve(own: str, found: _Located) -> tuple[TurnText, DocumentText]:
    """Return a turn in its `served`, and that text as the document of the turn."""
    turn, text = found.turn, own
    if found.context is not None or found.stop:
        context = own[: turn.start] if found.context is None else found.context
        text = context + own[turn.start : turn.end] + found.stop
        start, end = len(context), len(text)
        turn = turn._replace(spans=((start, end),), start=start, end=end)
    flagged = turn._replace(flags=turn.flags | TurnFlag.OWN_DOCUMENT)
    return turn, DocumentText(text, Turns.of([flagged]))


def _find_tagged(text: MarkedText, region: Range) -> tuple[Range, ...]:
    """Return the characters of a region that are tagged."""
    start, end = region
    return tuple(
        (max(first, start), min(last, end))
        for first, last in text.generations or ()
        if has_text_between(text.text, first, end) and has_text_between(text.text, start, last)
    )
