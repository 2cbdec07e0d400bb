"""The sequences of the HTML report: a seeded sample, those with problems, and their texts.

The page holds them as JSON, which its script shows. A token of it is a number in a vocabulary of
the page, so that 100,000 tokens take about half a megabyte.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np

from mtpack.report.decoding import Decoder
from mtpack.report.document_text import read_pieces
from mtpack.report.escaping import escape
from mtpack.report.html_problems import MARKS, Mark, Problem, find_problems
from mtpack.report.row_view import DocumentView, RowView, TurnView, view_row
from mtpack.shards.dataset import Shards

_SEED = 0
_EXAMINED_TOKENS = 500_000
_SHOWN_TOKENS = 300_000
_MOST_EXAMINED = 400
_MOST_SHOWN = 60
_MOST_OF_A_KIND = 10
_LONGEST = 30_000
"""So many positions of a sequence are shown at most."""


@dataclass(frozen=True, slots=True)
class SampledSequences:
    """The sequences that the page shows, as JSON values."""

    examined: int
    """The number of sequences among which those with problems were looked for."""
    with_mark: dict[Mark, int]
    """How many of them have each mark."""
    sequences: list[dict[str, Any]]
    """In the order of the shards."""
    vocabulary: list[tuple[int, str, int]]
    """Id, text, and 1 for a header: a control token or the name of a role."""


def sample_sequences(shards: Shards, decoder: Decoder | None) -> SampledSequences:
    """Draw sequences in seeded order, and prefer some with each kind of problem.

    About 500,000 tokens are examined and 300,000 are shown, whatever the size of the shards.
    Without a decoder, the texts are ids. Raises InputError for a damaged sequence.
    """
    seq_len = shards.metadata.seq_len
    views = _read_views(shards, _draw_numbers(len(shards), seq_len))
    num_documents = _count_documents(shards, views)
    problems = {view.number: find_problems(shards, view, decoder, num_documents) for view in views}
    writer = _SequenceWriter(decoder)
    shown = _choose(views, problems, seq_len)
    return SampledSequences(
        examined=len(views),
        with_mark={mark: sum(_has(some, mark) for some in problems.values()) for mark in MARKS},
        sequences=[writer.write(view, problems[view.number]) for view in shown],
        vocabulary=[
            (number, escape(text), int(is_header)) for number, text, is_header in writer.numbers
        ],
    )


def _has(problems: list[Problem], mark: Mark) -> bool:
    return any(problem.mark == mark for problem in problems)


def _draw_numbers(rows: int, seq_len: int) -> list[int]:
    """Return the numbers of the sequences to examine in seeded order, the first one first."""
    count = min(rows, _MOST_EXAMINED, max(1, _EXAMINED_TOKENS // seq_len))
    drawn = random.Random(_SEED).sample(range(rows), count)
    return [0, *(number for number in drawn if number)][:count]


def _read_views(shards: Shards, numbers: list[int]) -> list[RowView]:
    """Return the views of these sequences, which are read in the order of the shards.

    The ids are copied, because a view of them keeps the record batch of a compressed shard.
    """
    views = {}
    for number in sorted(numbers):
        view = view_row(shards, number)
        views[number] = replace(view, token_ids=view.token_ids.copy())
    return [views[number] for number in numbers]


def _count_documents(shards: Shards, views: Iterable[RowView]) -> dict[int, int]:
    """Return how many documents the dialogues of these sequences have in all shards."""
    dialogues = np.unique([each.dialogue for view in views for each in view.documents])
    counts = np.zeros(len(dialogues), np.int64)
    for batch in shards.batches():
        found = batch.dialogue_ids[np.isin(batch.dialogue_ids, dialogues)]
        counts += np.bincount(np.searchsorted(dialogues, found), minlength=len(dialogues))
    return dict(zip(dialogues.tolist(), counts.tolist(), strict=True))


def _choose(
    views: Sequence[RowView], problems: dict[int, list[Problem]], seq_len: int
) -> list[RowView]:
    """Return the sequences to show: some of each kind of problem, then the first ones drawn."""
    most = min(_MOST_SHOWN, max(1, _SHOWN_TOKENS // min(seq_len, _LONGEST)))
    share = max(1, min(_MOST_OF_A_KIND, most // (2 * len(MARKS))))
    preferred = {view.number: view for view in views[:1]}
    for mark in MARKS:
        with_mark = (view for view in views if _has(problems[view.number], mark))
        preferred |= {view.number: view for view in islice(with_mark, share)}
    ordered = preferred | {view.number: view for view in views}
    chosen = list(ordered.values())[:most]
    return sorted(chosen, key=lambda view: view.number)


@dataclass
class _SequenceWriter:
    """Converts sequences to JSON values, and collects the tokens in them."""

    decoder: Decoder | None
    numbers: dict[tuple[int, str, bool], int] = field(default_factory=dict)
    """The number of each token (id, text, whether it is in a header) in the vocabulary."""

    def write(self, view: RowView, problems: list[Problem]) -> dict[str, Any]:
        """Return a sequence as the script of the page reads it."""
        return {
            "number": view.number,
            "documents": [
                {
                    "dialogue": document.dialogue,
                    "start": document.start,
                    "length": document.length,
                    "tokens": self._number_tokens(view, document),
                }
                for document in view.documents
            ],
            "turns": [_describe_turn(turn) for turn in view.turns],
            "padding": view.padding,
            "problems": [
                {"mark": each.mark, "document": each.document, "turn": each.turn}
                for each in problems
            ],
        }

    def _number_tokens(self, view: RowView, document: DocumentView) -> list[int]:
        """Return the tokens of a document that are shown, by their numbers in the vocabulary."""
        shown = max(0, min(document.length, _LONGEST - document.start))
        if not shown:
            return []
        ids = view.token_ids[document.start : document.start + shown].tolist()
        numbers = []
        for number, (text, is_header) in zip(
            ids, self._read_texts(view, document, ids), strict=False
        ):
            token = (number, text, is_header)
            numbers.append(self.numbers.setdefault(token, len(self.numbers)))
        return numbers

    def _read_texts(
        self, view: RowView, document: DocumentView, ids: list[int]
    ) -> Iterator[tuple[str, bool]]:
        """Yield the text of each token, and whether it is part of a header."""
        if self.decoder is None:
            yield from ((f"{each} ", False) for each in ids)
            return
        for piece in read_pieces(view, document, self.decoder, with_tokens=True):
            yield from ((text, piece.is_header) for text in piece.tokens or ())


def _describe_turn(turn: TurnView) -> dict[str, Any]:
    """Return a turn; `weight` is there only if its shard has weights."""
    weight = {} if turn.turn_weight is None else {"weight": turn.turn_weight}
    ranges = _find_ranges(turn)
    return {"document": turn.document, "message": turn.message, "ranges": ranges, **weight}


def _find_ranges(turn: TurnView) -> list[list[int]]:
    """Return the positions of a turn's loss tokens as ranges: first, and the one after the last."""
    breaks = np.flatnonzero(np.diff(turn.positions) > 1) + 1
    parts = np.split(turn.positions, breaks)
    return [[int(part[0]), int(part[-1]) + 1] for part in parts]
