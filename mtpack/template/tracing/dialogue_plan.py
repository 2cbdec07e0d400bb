"""Plan the documents and turns of all dialogues of a shape, as positions in texts with slots.

This does what `turn_spans.py` does, but for texts with slots, as far as the result does not depend
on the texts in the slots. Where it does depend on them, the plan has None, and `turn_spans.py`
decides on the filled texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mtpack.input.dialogue import Dialogue
from mtpack.template.tracing.slotted_text import SlottedText, find_agreement
from mtpack.template.turn_columns import SlotPosition, SlottedTurns, TurnLayout
from mtpack.template.turn_spans import DocumentText, RenderedDialogue, TurnText
from mtpack.token_batch import TurnFlag
from mtpack.tokenizer.added_tokens import AddedTokens


@dataclass(frozen=True, slots=True)
class TurnPositions:
    """The positions of a turn in a text with slots; `TurnText` has the meaning of the fields."""

    message: int
    spans: tuple[tuple[SlotPosition, SlotPosition], ...]
    start: SlotPosition
    end: SlotPosition
    flags: TurnFlag
    is_cut_after: bool
    """Whether the ids up to `end` never depend on what follows (`AddedTokens.is_cut_after`)."""

    def fill(
        self, slot_offsets: list[int], flags: TurnFlag, own_text: str | None = None
    ) -> TurnText:
        """Return the turn in a filled text; slot_offsets: as from `SlottedText.fill`."""
        return TurnText(
            message=self.message,
            spans=tuple(
                (slot_offsets[slots] + chars, slot_offsets[more] + last)
                for (slots, chars), (more, last) in self.spans
            ),
            start=slot_offsets[self.start[0]] + self.start[1],
            end=slot_offsets[self.end[0]] + self.end[1],
            flags=self.flags | flags,
            own_text=own_text,
        )


@dataclass(frozen=True, slots=True)
class TurnPlan:
    """How one trained message becomes a turn of a document."""

    own: SlottedText | None
    """The dialogue up to and including the message; None where the template refuses it."""
    turn: TurnPositions
    """The positions in `own`, or in the whole dialogue where `own` is None."""
    exact: bool | None
    """Whether merging is exact; None: it depends on the texts in the slots."""

    @property
    def is_merged_in_any_text(self) -> bool:
        """Whether merging is exact, in text and ids, whatever text is in the slots."""
        return bool(self.exact) and self.turn.is_cut_after

    def drop_marks(self) -> TurnPlan:
        """Return a copy without marks, which filling does not need."""
        return replace(self, own=None if self.own is None else self.own.drop_marks())


@dataclass(frozen=True, slots=True)
class OneDocumentPlan:
    """A plan with all turns in one document, one span each: most dialogues of most templates."""

    full: SlottedText
    layout: TurnLayout
    end: SlotPosition
    """The end of the last turn."""

    def fill(self, values: Sequence[Any], row: int) -> RenderedDialogue:
        """Return the documents for the values of a program's slots."""
        return self.fill_texts([values[slot] for slot in self.full.slots], row)

    def fill_texts(self, texts: Sequence[str], row: int) -> RenderedDialogue:
        """Return the documents for the texts in the slots of the whole dialogue."""
        lengths = list(map(len, texts))
        document = DocumentText(self.full.join(texts), SlottedTurns(self.layout, lengths))
        slots, chars = self.end
        return RenderedDialogue(row, document, (), sum(lengths[:slots]) + chars)


@dataclass(frozen=True, slots=True)
class GeneralPlan:
    """A plan for any other dialogue, such as one whose turns need documents of their own."""

    full: SlottedText
    turns: tuple[TurnPlan, ...]
    last_end: SlotPosition
    """The end of the last trained message's region in the whole dialogue."""
    merge: str
    """`auto`, `always` or `never`."""

    def fill(self, values: Sequence[Any], row: int) -> RenderedDialogue:
        """Return the documents for the values of a program's slots."""
        text, slot_offsets = self.full.fill(values)
        merged: list[TurnText] = []
        own: list[DocumentText] = []
        merged_end: int | None = 0
        for planned in self.turns:
            if planned.is_merged_in_any_text and self.merge != "never":
                turn = planned.turn.fill(slot_offsets, TurnFlag(0))
                merged.append(turn)
                merged_end = turn.end
            else:
                merged_end = self._fill_own_text(planned, values, (text, slot_offsets), merged, own)
        if merged_end is None:
            merged_end = slot_offsets[self.last_end[0]] + self.last_end[1]
        return RenderedDialogue(row, DocumentText(text, tuple(merged)), tuple(own), merged_end)

    def _fill_own_text(
        self,
        planned: TurnPlan,
        values: Sequence[Any],
        full: tuple[str, list[int]],
        merged: list[TurnText],
        own: list[DocumentText],
    ) -> int | None:
        """Add a turn that needs its own text; return its end if merging it is exact, else None."""
        text, slot_offsets = full
        if planned.own is None:
            merged.append(planned.turn.fill(slot_offsets, TurnFlag.UNPROVEN))
            return merged[-1].end
        own_text, own_slot_offsets = planned.own.fill(values)
        turn = planned.turn.fill(own_slot_offsets, TurnFlag(0))
        exact = planned.exact
        if exact is None:
            exact = text.startswith(own_text[: turn.end])
        if self.merge == "never" or (self.merge == "auto" and not exact):
            flags = turn.flags if exact else turn.flags | TurnFlag.OWN_DOCUMENT
            own.append(DocumentText(own_text, (turn._replace(flags=flags),)))
        else:
            merged.append(turn if planned.turn.is_cut_after else turn._replace(own_text=own_text))
        return turn.end if exact else None


DialoguePlan = OneDocumentPlan | GeneralPlan


def plan_dialogue(
    added_tokens: AddedTokens,
    dialogue: Dialogue,
    slotted_texts: Mapping[tuple[int, bool], SlottedText | None],
    merge: str,
    has_generations: bool,
) -> DialoguePlan | None:
    """Plan the dialogues of a shape; None where the positions depend on the texts in the slots.

    slotted_texts: by render, the number of messages and whether with a generation prompt; None for
    a render that the template refuses.
    """
    full = slotted_texts[len(dialogue.messages), False]
    assert full is not None
    planner = _Planner(added_tokens, has_generations, slotted_texts)
    turns = []
    for message in dialogue.trained_messages():
        planned = planner.plan_turn(full, message, merge)
        if planned is None:
            return None
        turns.append(planned)
    if not turns:
        return None
    region = _find_region(full, turns[-1].turn.message)
    if region is None:
        return None
    if merge != "never" and all(
        turn.is_merged_in_any_text and _is_one_span(turn.turn) for turn in turns
    ):
        located = [planned.turn for planned in turns]
        layout = TurnLayout.from_columns(
            messages=[turn.message for turn in located],
            flags=[turn.flags for turn in located],
            starts=[turn.start for turn in located],
            ends=[turn.end for turn in located],
        )
        return OneDocumentPlan(full.drop_marks(), layout, located[-1].end)
    return GeneralPlan(
        full=full.drop_marks(),
        turns=tuple(turn.drop_marks() for turn in turns),
        last_end=full.marks[region[1]].position,
        merge=merge,
    )


def _is_one_span(turn: TurnPositions) -> bool:
    return turn.spans == ((turn.start, turn.end),)


@dataclass(frozen=True, slots=True)
class _Planner:
    """Plans the turns of one shape."""

    added_tokens: AddedTokens
    has_generations: bool
    slotted_texts: Mapping[tuple[int, bool], SlottedText | None]

    def plan_turn(self, full: SlottedText, message: int, merge: str) -> TurnPlan | None:
        own = self.slotted_texts[message + 1, False]
        turn = self._locate(full if own is None else own, message)
        if turn is None:
            return None
        if own is None:
            return TurnPlan(None, turn, None)
        agreed = find_agreement(full, own)
        exact = None
        if agreed.position >= turn.end:  # both are positions in the common prefix
            exact = True
        elif agreed.differs:
            exact = False
        if merge == "always" and not exact:  # the bent turn is found in the texts
            return None
        return TurnPlan(own, turn, exact)

    def _locate(self, slotted_text: SlottedText, message: int) -> TurnPositions | None:
        region = _find_region(slotted_text, message)
        prompt = self.slotted_texts.get((message, True))
        if region is None or prompt is None or _holds_later_message(slotted_text, region, message):
            return None
        if find_agreement(prompt, slotted_text).position != prompt.end:
            return None
        end = self._find_end(slotted_text, region, prompt.end)
        if end is None:
            return None
        spans: tuple[tuple[SlotPosition, SlotPosition], ...] = ((prompt.end, end),)
        if self.has_generations:
            found = _find_generations(slotted_text, region)
            if found is None:
                return None
            spans = found
            end = max((last for _, last in spans), default=end)
        literal = slotted_text.find_literal_before(end)
        ends = self.added_tokens.always_ends_in_control_token(literal.rstrip())
        cut = self.added_tokens.is_always_cut_after(literal)
        if ends is None or cut is None:
            return None
        flags = TurnFlag(0) if ends else TurnFlag.NO_EOT
        return TurnPositions(message, spans, prompt.end, end, flags, cut)

    def _find_end(
        self, slotted_text: SlottedText, region: tuple[int, int], start: SlotPosition
    ) -> SlotPosition | None:
        """Return the end of a turn, or None if it depends on the texts; start: the prompt's end."""
        end = _find_end_of_text(slotted_text, region)
        if end is None or end[0] < start[0] or end[1] <= start[1]:
            return None
        ends = self.added_tokens.always_ends_in_control_token(slotted_text.find_literal_before(end))
        if ends:
            return end
        if ends is None or end[0] != len(slotted_text.slots):
            return None
        rest = slotted_text.literals[-1][len(slotted_text.find_literal_before(end)) :]
        closing = rest.strip()
        if closing and closing == self.added_tokens.find_trailing_control_token(closing):
            return end[0], end[1] + rest.index(closing) + len(closing)
        return end


def _find_region(slotted_text: SlottedText, message: int) -> tuple[int, int] | None:
    """Return the indices of the marks that open and close the one non-empty region of a message.

    None if there is no such region, several, or one that may have no literal text.
    """
    opened: list[int] = []
    regions = []
    for number, mark in enumerate(slotted_text.marks):
        if mark.kind == "enter":
            opened.append(number)
        elif mark.kind == "leave":
            start = opened.pop()
            if slotted_text.marks[start].message == message and (
                slotted_text.marks[start].position != mark.position
            ):
                regions.append((start, number))
    if len(regions) != 1:
        return None
    ((start, end),) = regions
    has_text = slotted_text.marks[start].position[1] < slotted_text.marks[end].position[1]
    return (start, end) if has_text else None


def _holds_later_message(slotted_text: SlottedText, region: tuple[int, int], message: int) -> bool:
    """Return whether a later message is written inside the region of `message`."""
    inside = slotted_text.marks[region[0] + 1 : region[1]]
    return any(mark.message is not None and mark.message > message for mark in inside)


def _find_end_of_text(slotted_text: SlottedText, region: tuple[int, int]) -> SlotPosition | None:
    """Return the end of a region without its white space, if that end is in literal text."""
    (start_slots, start_chars), (slots, chars) = (
        slotted_text.marks[mark].position for mark in region
    )
    literal = slotted_text.find_literal_before((slots, chars))
    if start_slots == slots:
        literal = literal[len(literal) - (chars - start_chars) :]
    kept = literal.rstrip()
    return (slots, chars - (len(literal) - len(kept))) if kept else None


def _find_generations(
    slotted_text: SlottedText, region: tuple[int, int]
) -> tuple[tuple[SlotPosition, SlotPosition], ...] | None:
    """Return the tagged spans in a region; None if one may be empty or crosses its edge."""
    spans = []
    start = -1
    for number, mark in enumerate(slotted_text.marks):
        if mark.kind == "generation":
            start = number
        elif mark.kind == "end_generation" and start >= 0:
            if number < region[0] or start > region[1]:
                continue
            first = slotted_text.marks[start].position
            if start < region[0] or number > region[1] or first[1] == mark.position[1]:
                return None
            spans.append((first, mark.position))
    return tuple(spans)
