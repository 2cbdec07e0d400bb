"""What the filters of the HTML report offer: what the columns of a sequence show to be unusual."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from mtpack.report.decoding import Decoder
from mtpack.report.row_view import RowView
from mtpack.report.turn_marks import TurnMark, find_marks
from mtpack.shards.dataset import Shards

_MOSTLY = 0.5


class SequenceMark(StrEnum):
    """One thing that is unusual about a document or a sequence; the value is what is shown."""

    SEVERAL_DOCUMENTS = "dialogue in several documents"
    MOSTLY_PADDING = "more padding than tokens"


Mark = TurnMark | SequenceMark
MARKS: tuple[Mark, ...] = (*TurnMark, *SequenceMark)
EXPLANATIONS: dict[Mark, str] = {
    TurnMark.CUT: "The dialogue was too long, and --overlong truncate has cut this turn.",
    TurnMark.NO_END: (
        "The turn ends in no control token, so the model does not learn to stop there."
    ),
    TurnMark.STRADDLE: (
        "A token would lie across the start of the turn, so the text is cut there, as a server "
        "does that encodes the prompt alone."
    ),
    TurnMark.BENT: (
        "The chat template rewrites history, and --merge always has merged this turn all the "
        "same: the turn, or the text before it, is not what the model sees at inference."
    ),
    SequenceMark.SEVERAL_DOCUMENTS: (
        "The dialogue was split because it is too long, or some of its turns have documents of "
        "their own because merging is not exact."
    ),
    SequenceMark.MOSTLY_PADDING: "Most of the computation on this sequence is for padding.",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem of a sequence."""

    mark: Mark
    document: int | None = None
    """The index of the document in the sequence; None if it concerns the whole sequence."""
    turn: int | None = None
    """The index of the turn in the sequence; None if it concerns more than a turn."""


def find_problems(
    shards: Shards, view: RowView, decoder: Decoder | None, num_documents: Mapping[int, int]
) -> list[Problem]:
    """Return the problems of a sequence: those of turns, of documents, of the whole.

    num_documents: the number of documents in all shards, by dialogue. Without a decoder, most marks
    of turns are not known.
    """
    problems = [
        Problem(mark, view.turns[turn].document, turn)
        for turn, marks in find_marks(shards, view, decoder).items()
        for mark in marks
    ]
    for number, document in enumerate(view.documents):
        if num_documents[document.dialogue] > 1:
            problems.append(Problem(SequenceMark.SEVERAL_DOCUMENTS, number))
    if view.padding > _MOSTLY * len(view.token_ids):
        problems.append(Problem(SequenceMark.MOSTLY_PADDING))
    return problems
