"""The documents of several dialogues as columns: what is encoded together.

A document is referred to by its number. Positions are in bytes of UTF-8 from the start of its text,
as those of tokens are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from mtpack.template.rendered_dialogue import (
    DocumentText,
    KnownTokens,
    PlacedTurns,
    RenderedDialogue,
    place_turns,
)
from mtpack.token_batch import Int64
from mtpack.tokenizer.encode import Positions


@dataclass(frozen=True, slots=True)
class RenderedDocuments:
    """The documents of dialogues, as texts with their turns.

    The documents of a dialogue follow each other: first the merged one, then those to compare with
    it, then the turns that have their own.
    """

    texts: list[str]
    lengths: Int64
    """(documents,): the length of each text, in bytes."""
    rows: Int64
    """(documents,): the input row of each."""
    turns: PlacedTurns
    """Positions are in bytes."""
    merged: Int64
    """(dialogues,): the merged document of each dialogue."""
    merged_ends: Int64
    """(dialogues,): `RenderedDialogue.merged_end`, in bytes."""
    compared: Int64
    """(turns to compare, 3): the merged document, the index of the turn in it, and its `served`."""
    encoded: dict[int, KnownTokens] = field(default_factory=dict)
    """The tokens of texts, by document, where they are known already."""

    __hash__ = None  # type: ignore[assignment]  # arrays can be compared, but have no hash

    @classmethod
    def of(cls, dialogues: Sequence[RenderedDialogue]) -> RenderedDocuments:
        """Make the columns of the documents of dialogues."""
        documents: list[DocumentText] = []
        rows: list[int] = []
        merged: list[int] = []
        compared: list[tuple[int, int, int]] = []
        for dialogue in dialogues:
            number = len(documents)
            merged.append(number)
            documents.append(dialogue.merged)
            for turn, document in dialogue.to_compare:
                compared.append((number, turn, len(documents)))
                documents.append(document)
            documents += dialogue.own
            rows += [dialogue.row] * (len(documents) - number)
        ends = _to_int64([dialogue.merged_end for dialogue in dialogues])
        return cls._of_documents(documents, rows, merged, ends, compared)

    @classmethod
    def of_document(cls, row: int, document: DocumentText) -> RenderedDocuments:
        """Make the columns of one document without its dialogue."""
        return cls._of_documents([document], [row], [], _to_int64([]), [])

    @classmethod
    def _of_documents(
        cls,
        documents: Sequence[DocumentText],
        rows: list[int],
        merged: list[int],
        merged_ends: Int64,
        compared: list[tuple[int, int, int]],
    ) -> RenderedDocuments:
        """Make the columns; merged_ends: in characters."""
        texts = [document.text for document in documents]
        positions, numbers = Positions.of(texts), _to_int64(merged)
        turns = place_turns([document.turns for document in documents])
        return cls(
            texts=texts,
            lengths=np.diff(positions.texts),
            rows=_to_int64(rows),
            turns=_count_bytes(turns, positions),
            merged=numbers,
            merged_ends=positions.at(numbers, merged_ends) - positions.texts[numbers],
            compared=_to_int64(compared).reshape(-1, 3),
            encoded={
                number: document.encoded
                for number, document in enumerate(documents)
                if document.encoded is not None
            },
        )

    @classmethod
    def join(cls, parts: Sequence[RenderedDocuments]) -> RenderedDocuments:
        """Return the documents of all parts, in the order of their rows.

        All documents of a row are in one part.
        """
        if len(parts) == 1:
            return parts[0]
        firsts = np.cumsum([0, *(len(part.texts) for part in parts)]).tolist()
        numbered = list(zip(parts, firsts, strict=False))
        joined = cls(
            texts=[text for part in parts for text in part.texts],
            lengths=np.concatenate([part.lengths for part in parts]),
            rows=np.concatenate([part.rows for part in parts]),
            turns=PlacedTurns.join([part.turns for part in parts]),
            merged=np.concatenate([part.merged + first for part, first in numbered]),
            merged_ends=np.concatenate([part.merged_ends for part in parts]),
            compared=np.concatenate([p.compared + np.array([n, 0, n]) for p, n in numbered]),
            encoded={
                first + number: tokens
                for part, first in numbered
                for number, tokens in part.encoded.items()
            },
        )
        return joined.take(np.argsort(joined.rows, kind="stable"))

    def take(self, documents: Int64) -> RenderedDocuments:
        """Return the documents with these numbers, in that order: all those of their dialogues."""
        numbers: Int64 = np.full(len(self.texts), -1, np.int64)
        numbers[documents] = np.arange(len(documents))
        merged, compared = numbers[self.merged], numbers[self.compared[:, [0, 2]]]
        dialogues = np.argsort(merged, kind="stable")[(merged < 0).sum() :]
        turns = compared[:, 0] >= 0
        return RenderedDocuments(
            texts=[self.texts[number] for number in documents.tolist()],
            lengths=self.lengths[documents],
            rows=self.rows[documents],
            turns=self.turns.take(documents),
            merged=merged[dialogues],
            merged_ends=self.merged_ends[dialogues],
            compared=np.column_stack(
                [compared[turns, 0], self.compared[turns, 1], compared[turns, 1]]
            ),
            encoded={
                int(numbers[number]): tokens
                for number, tokens in self.encoded.items()
                if numbers[number] >= 0
            },
        )

    def of_row(self, row: int) -> RenderedDocuments:
        """Return the documents of one row."""
        return self.take(np.flatnonzero(self.rows == row))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RenderedDocuments) and (
            self.texts == other.texts
            and self.encoded == other.encoded
            and all(map(np.array_equal, self._list_arrays(), other._list_arrays()))
        )

    def _list_arrays(self) -> list[Int64]:
        turns = self.turns
        of_turns = [turns.num_turns, turns.messages, turns.flags, turns.starts, turns.ends]
        of_spans = [turns.num_spans, turns.span_starts, turns.span_ends]
        return [self.rows, self.merged, self.merged_ends, self.compared, *of_turns, *of_spans]


def _count_bytes(turns: PlacedTurns, positions: Positions) -> PlacedTurns:
    """Return turns with their positions in bytes; they are in characters of these texts."""
    if positions.are_characters:
        return turns
    texts = np.repeat(np.arange(len(turns.num_turns)), turns.num_turns)
    span_texts = np.repeat(texts, turns.num_spans)

    def convert(texts: Int64, characters: Int64) -> Int64:
        return positions.at(texts, characters) - positions.texts[texts]

    return replace(
        turns,
        starts=convert(texts, turns.starts),
        ends=convert(texts, turns.ends),
        span_starts=convert(span_texts, turns.span_starts),
        span_ends=convert(span_texts, turns.span_ends),
    )


def _to_int64(values: Sequence[int] | Sequence[tuple[int, int, int]]) -> Int64:
    return np.array(values, dtype=np.int64)
