"""What is unusual about a turn of a sequence, as far as its shard shows it."""

from __future__ import annotations

from enum import StrEnum
from itertools import accumulate, pairwise

from mtpack.report.decoding import Decoder
from mtpack.report.row_view import DocumentView, RowView
from mtpack.shards.dataset import Shards


class TurnMark(StrEnum):
    """One thing that is unusual about a turn. The value is what the terminal shows."""

    CUT = "cut at the end of the sequence"
    """`--overlong truncate` cut it."""
    NO_END = "no end-of-turn token"
    """Its last loss token is no control token, and it is not known to be cut (`no_eot`)."""
    STRADDLE = "text cut at its start"
    """A token of the whole text lies across its start, so the text was cut there (`straddles`)."""
    BENT = "merging not exact"
    """It was merged all the same, under `--merge always` (`bent`)."""


def find_marks(
    shards: Shards, view: RowView, decoder: Decoder | None
) -> dict[int, tuple[TurnMark, ...]]:
    """Return the marks of the turns of a sequence that have any, by the number of the turn.

    Which tokens are control tokens, and where a text was cut, is known only with a decoder.
    """
    straddled = {
        turn
        for number, document in enumerate(view.documents)
        for turn in (_find_straddled(view, number, document, decoder) if decoder else ())
    }
    manifest = shards.manifest
    is_truncated = manifest is None or manifest.run.options.get("overlong") == "truncate"
    marks: dict[int, tuple[TurnMark, ...]] = {}
    for number, turn in enumerate(view.turns):
        found = [TurnMark.BENT] if turn.bent else []
        if number in straddled:
            found.append(TurnMark.STRADDLE)
        last, document = int(turn.positions[-1]), view.documents[turn.document]
        if decoder and decoder.control and int(view.token_ids[last]) not in decoder.control:
            is_cut = is_truncated and last == len(view.token_ids) - 1 and document.start == 0
            found.append(TurnMark.CUT if is_cut else TurnMark.NO_END)
        if found:
            marks[number] = tuple(found)
    return marks


def _find_straddled(
    view: RowView, number: int, document: DocumentView, decoder: Decoder
) -> set[int]:
    """Return the turns of a document with a start that a token of the whole text lies across."""
    if decoder.find_spans is None:
        return set()
    starts = {
        int(turn.positions[0]) - document.start: index
        for index, turn in enumerate(view.turns)
        if turn.document == number
    }
    ids = view.token_ids[document.start : document.start + document.length].tolist()
    edges = [0, *sorted(starts), len(ids)]
    parts = [decoder(ids[start:stop]) for start, stop in pairwise(edges)]
    text = "".join(parts)
    if text != decoder(ids):  # a character that several tokens make up lies across a start
        return set()
    positions = accumulate(map(len, parts))
    turn_of_position = {
        position: starts[start] for position, start in zip(positions, edges[1:-1], strict=False)
    }
    return {
        turn_of_position[position]
        for start, end in decoder.find_spans(text)
        for position in range(start + 1, end)
        if position in turn_of_position
    }
