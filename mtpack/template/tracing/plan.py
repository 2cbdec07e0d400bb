"""What is the same for every dialogue of a shape: its documents, where its turns start and end.

This is `spans.py` for outlines instead of texts, as far as that can be decided without looking at
what the cells hold. Where it can't, the plan says so (`None`), and `spans.py` decides on the texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mtpack.input.dialogue import Dialogue
from mtpack.template.tracing.slotted_text import SlottedText, agreement
from mtpack.template.turn_columns import Place, PlainPlaces, PlainTurns
from mtpack.template.turn_spans import DocumentText, RenderedDialogue, TurnText
from mtpack.token_batch import TurnFlag
from mtpack.tokenizer.added_tokens import AddedTokens


@dataclass(frozen=True, slots=True)
class PlannedTurn:
    """A turn in an outline."""

    message: int
    spans: tuple[tuple[Place, Place], ...]
    start: Place
    end: Place
    flags: TurnFlag
    cut_behind: bool

    def filled(self, sums: list[int], flags: TurnFlag, own_text: str | None = None) -> TurnText:
        """Return the turn in a text; sums: characters in the first cells of its outline."""
        return TurnText(
            message=self.message,
            spans=tuple(
                (sums[cells] + chars, sums[more] + last)
                for (cells, chars), (more, last) in self.spans
            ),
            start=sums[self.start[0]] + self.start[1],
            end=sums[self.end[0]] + self.end[1],
            flags=self.flags | flags,
            own_text=own_text,
        )


@dataclass(frozen=True, slots=True)
class TurnPlan:
    """What is known of one trained message."""

    own: SlottedText | None
    """The dialogue up to and with it; None where the template refuses that."""
    turn: PlannedTurn
    """In `own`; in the whole dialogue where there is none."""
    exact: bool | None
    """Whether merging is exact; None: only the texts can tell."""

    @property
    def is_plain(self) -> bool:
        """Whether the turn can be merged without a look at any text."""
        return bool(self.exact) and self.turn.cut_behind

    def without_marks(self) -> TurnPlan:
        """Return it with what filling takes, and no more."""
        return replace(self, own=None if self.own is None else self.own.without_marks())


@dataclass(frozen=True, slots=True)
class PlainPlan:
    """All turns are trained in one document, one span each: most dialogues of most templates."""

    full: SlottedText
    places: PlainPlaces
    end: Place
    """Of the last turn."""

    def filled(self, values: Sequence[Any], row: int) -> RenderedDialogue:
        """Return the documents for a sheet's values."""
        return self.joined([values[cell] for cell in self.full.cells], row)

    def joined(self, texts: Sequence[str], row: int) -> RenderedDialogue:
        """Return the documents for what the cells of the whole dialogue hold."""
        lengths = list(map(len, texts))
        document = DocumentText(self.full.joined(texts), PlainTurns(self.places, lengths))
        cells, chars = self.end
        return RenderedDialogue(row, document, (), sum(lengths[:cells]) + chars)


@dataclass(frozen=True, slots=True)
class DialoguePlan:
    """How a dialogue of this shape becomes documents."""

    full: SlottedText
    turns: tuple[TurnPlan, ...]
    last_end: Place
    """The end of what is written for the last trained message in the whole dialogue."""
    merge: str

    def filled(self, values: Sequence[Any], row: int) -> RenderedDialogue:
        """Return the documents for a sheet's values."""
        text, sums = self.full.filled(values)
        merged: list[TurnText] = []
        own: list[DocumentText] = []
        merged_end: int | None = 0
        for planned in self.turns:
            if planned.is_plain and self.merge != "never":
                turn = planned.turn.filled(sums, TurnFlag(0))
                merged.append(turn)
                merged_end = turn.end
            else:
                merged_end = self._fill_apart(planned, values, (text, sums), merged, own)
        if merged_end is None:
            merged_end = sums[self.last_end[0]] + self.last_end[1]
        return RenderedDialogue(row, DocumentText(text, tuple(merged)), tuple(own), merged_end)

    def _fill_apart(
        self,
        planned: TurnPlan,
        values: Sequence[Any],
        full: tuple[str, list[int]],
        merged: list[TurnText],
        own: list[DocumentText],
    ) -> int | None:
        """Fill in a turn that needs its own text; return its end if merging it is exact."""
        text, sums = full
        if planned.own is None:
            merged.append(planned.turn.filled(sums, TurnFlag.UNPROVEN))
            return merged[-1].end
        own_text, own_sums = planned.own.filled(values)
        turn = planned.turn.filled(own_sums, TurnFlag(0))
        exact = planned.exact
        if exact is None:
            exact = text.startswith(own_text[: turn.end])
        if self.merge == "never" or (self.merge == "auto" and not exact):
            flags = turn.flags if exact else turn.flags | TurnFlag.OWN_DOCUMENT
            own.append(DocumentText(own_text, (turn._replace(flags=flags),)))
        else:
            merged.append(turn if planned.turn.cut_behind else turn._replace(own_text=own_text))
        return turn.end if exact else None


def plan_dialogue(
    added_tokens: AddedTokens,
    dialogue: Dialogue,
    outlines: Mapping[tuple[int, bool], SlottedText | None],
    merge: str,
    has_generations: bool,
) -> PlainPlan | DialoguePlan | None:
    """Plan a shape from the outlines of its renders; None where its texts have to be looked at."""
    full = outlines[len(dialogue.messages), False]
    assert full is not None
    planner = _Planner(added_tokens, has_generations, outlines)
    turns = []
    for message in dialogue.trained_messages():
        planned = planner.turn(full, message, merge)
        if planned is None:
            return None
        turns.append(planned)
    if not turns:
        return None
    region = _region(full, turns[-1].turn.message)
    if region is None:
        return None
    if merge != "never" and all(turn.is_plain and _is_one_span(turn.turn) for turn in turns):
        located = [planned.turn for planned in turns]
        places = PlainPlaces.of(
            messages=[turn.message for turn in located],
            flags=[turn.flags for turn in located],
            starts=[turn.start for turn in located],
            ends=[turn.end for turn in located],
        )
        return PlainPlan(full.without_marks(), places, located[-1].end)
    return DialoguePlan(
        full=full.without_marks(),
        turns=tuple(turn.without_marks() for turn in turns),
        last_end=full.marks[region[1]].place,
        merge=merge,
    )


def _is_one_span(turn: PlannedTurn) -> bool:
    return turn.spans == ((turn.start, turn.end),)


@dataclass(frozen=True, slots=True)
class _Planner:
    added_tokens: AddedTokens
    has_generations: bool
    outlines: Mapping[tuple[int, bool], SlottedText | None]

    def turn(self, full: SlottedText, message: int, merge: str) -> TurnPlan | None:
        own = self.outlines[message + 1, False]
        turn = self._locate(full if own is None else own, message)
        if turn is None:
            return None
        if own is None:
            return TurnPlan(None, turn, None)
        agreed = agreement(full, own)
        exact = None
        if agreed.place >= turn.end:  # places in what is the same in both are in order
            exact = True
        elif agreed.differs:
            exact = False
        if merge == "always" and not exact:  # where it is bent to needs its texts
            return None
        return TurnPlan(own, turn, exact)

    def _locate(self, outline: SlottedText, message: int) -> PlannedTurn | None:
        region = _region(outline, message)
        prompt = self.outlines.get((message, True))
        if region is None or prompt is None or _holds_a_later(outline, region, message):
            return None
        if agreement(prompt, outline).place != prompt.end:
            return None
        end = self._end(outline, region, prompt.end)
        if end is None:
            return None
        spans: tuple[tuple[Place, Place], ...] = ((prompt.end, end),)
        if self.has_generations:
            found = _generations(outline, region)
            if found is None:
                return None
            spans = found
            end = max((last for _, last in spans), default=end)
        literal = outline.literal_before(end)
        ends = self.added_tokens.surely_end_a_turn(literal.rstrip())
        cut = self.added_tokens.surely_cut_behind(literal)
        if ends is None or cut is None:
            return None
        flags = TurnFlag(0) if ends else TurnFlag.NO_EOT
        return PlannedTurn(message, spans, prompt.end, end, flags, cut)

    def _end(self, outline: SlottedText, region: tuple[int, int], start: Place) -> Place | None:
        """Return where a turn ends; start: where its prompt does."""
        end = _without_white_space(outline, region)
        if end is None or end[0] < start[0] or end[1] <= start[1]:
            return None
        ends = self.added_tokens.surely_end_a_turn(outline.literal_before(end))
        if ends:
            return end
        if ends is None or end[0] != len(outline.cells):
            return None
        behind = outline.literals[-1][len(outline.literal_before(end)) :]
        closing = behind.strip()
        if closing and closing == self.added_tokens.control_token_behind(closing):
            return end[0], end[1] + behind.index(closing) + len(closing)
        return end


def _region(outline: SlottedText, message: int) -> tuple[int, int] | None:
    """Return which marks open and close the one region of a message that is not empty."""
    opened: list[int] = []
    regions = []
    for number, mark in enumerate(outline.marks):
        if mark.kind == "enter":
            opened.append(number)
        elif mark.kind == "leave":
            start = opened.pop()
            if outline.marks[start].message == message and (
                outline.marks[start].place != mark.place
            ):
                regions.append((start, number))
    if len(regions) != 1:
        return None
    ((start, end),) = regions
    has_text = outline.marks[start].place[1] < outline.marks[end].place[1]
    return (start, end) if has_text else None


def _holds_a_later(outline: SlottedText, region: tuple[int, int], message: int) -> bool:
    """Return whether a later message is written inside the region of `message`."""
    inside = outline.marks[region[0] + 1 : region[1]]
    return any(mark.message is not None and mark.message > message for mark in inside)


def _without_white_space(outline: SlottedText, region: tuple[int, int]) -> Place | None:
    """Return where a region ends without white space, if plain text settles it."""
    (start_cells, start_chars), (cells, chars) = (outline.marks[mark].place for mark in region)
    literal = outline.literal_before((cells, chars))
    if start_cells == cells:
        literal = literal[len(literal) - (chars - start_chars) :]
    kept = literal.rstrip()
    return (cells, chars - (len(literal) - len(kept))) if kept else None


def _generations(
    outline: SlottedText, region: tuple[int, int]
) -> tuple[tuple[Place, Place], ...] | None:
    """Return the tagged spans in a region, if each surely has text and none crosses its edge."""
    spans = []
    start = -1
    for number, mark in enumerate(outline.marks):
        if mark.kind == "generation":
            start = number
        elif mark.kind == "end_generation" and start >= 0:
            if number < region[0] or start > region[1]:
                continue
            first = outline.marks[start].place
            if start < region[0] or number > region[1] or first[1] == mark.place[1]:
                return None
            spans.append((first, mark.place))
    return tuple(spans)
