"""Rendered dialogues to a `TokenBatch`: the text as ids, the turns as ranges of tokens.

All texts are encoded first, and all turns are collected as columns; then the tokens of all turns
are found at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from mtpack.template.turn_columns import PlainTurns, placed
from mtpack.template.turn_spans import DocumentText, RenderedDialogue, TurnText
from mtpack.token_batch import Int64, TokenBatch, TurnFlag, gather_ranges, offsets_from_lengths
from mtpack.tokenizer.encode import EncodedText, EncodedTexts, TextEncoder


def encode_dialogues(
    encoder: TextEncoder, rendered: Sequence[RenderedDialogue], merge: str
) -> tuple[TokenBatch, Counter[str]]:
    """Encode dialogues; return their documents and the counts that only the encoder can make.

    A document ends with the last token of its last turn. Turns without a loss token are left out
    and counted, and so are documents without a turn. Raises what `TextEncoder.encode` does.
    """
    texts = _Texts()
    numbers = [texts.add_dialogue(dialogue) for dialogue in rendered]
    encoded = encoder.encode(texts.texts, texts.rows, texts.known)
    documents = _Documents()
    for dialogue, (merged, owned, alone) in zip(rendered, numbers, strict=True):
        row, turns = dialogue.row, dialogue.merged.turns
        moved: list[tuple[int, TurnText]] = []
        if owned:
            turns, moved = _settle(encoded, merged, owned, turns, merge)
        documents.add(row, merged, turns)
        for number, turn in moved:
            documents.add(row, number, [turn])
        for number, document in zip(alone, dialogue.own, strict=True):
            documents.add(row, number, document.turns)
    batch, counts = documents.as_batch(encoded)
    merged_texts = np.array([merged for merged, _, _ in numbers], dtype=np.int64)
    merged_ends = np.array([dialogue.merged_end for dialogue in rendered], dtype=np.int64)
    ends = encoded.positions.at(merged_texts, merged_ends)
    tokens = encoded.first_token_ending_after(merged_texts, ends) - encoded.offsets[merged_texts]
    counts["tokens_if_merged"] += int(tokens.sum())
    return batch, counts


def encode_document(encoder: TextEncoder, row: int, document: DocumentText) -> TokenBatch:
    """Encode one document."""
    texts, documents = _Texts(), _Documents()
    documents.add(row, texts.add(row, document.text, document.encoded), document.turns)
    return documents.as_batch(encoder.encode(texts.texts, texts.rows, texts.known))[0]


@dataclass(slots=True)
class _Texts:
    """All texts that have to be encoded, by number."""

    texts: list[str] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    """Of each text, the row that it is of."""
    known: dict[int, EncodedText] = field(default_factory=dict)

    def add(self, row: int, text: str, encoded: EncodedText | None) -> int:
        """Return the number of a text."""
        if encoded is not None:
            self.known[len(self.texts)] = encoded
        self.texts.append(text)
        self.rows.append(row)
        return len(self.texts) - 1

    def add_dialogue(self, dialogue: RenderedDialogue) -> tuple[int, dict[int, int], list[int]]:
        """Return the numbers of the merged text, of turns' own texts, and of own documents.

        A turn's own text is numbered by the place of the turn; only few turns have one.
        """
        row = dialogue.row
        merged = self.add(row, dialogue.merged.text, dialogue.merged.encoded)
        owned = {}
        if type(dialogue.merged.turns) is not PlainTurns:
            owned = {
                place: self.add(row, turn.own_text, turn.own_encoded)
                for place, turn in enumerate(dialogue.merged.turns)
                if turn.own_text is not None
            }
        return merged, owned, [self.add(row, own.text, own.encoded) for own in dialogue.own]


def _settle(
    encoded: EncodedTexts,
    merged: int,
    owned: dict[int, int],
    turns: Sequence[TurnText],
    merge: str,
) -> tuple[list[TurnText], list[tuple[int, TurnText]]]:
    """Compare turns' ids with those that they have alone.

    Return the turns that are trained in the merged text, and those that are not, each with the
    number of its own text.
    """
    kept: list[TurnText] = []
    moved: list[tuple[int, TurnText]] = []
    for place, turn in enumerate(turns):
        if place not in owned or _same_ids(encoded, merged, owned[place], turn.end):
            kept.append(turn)
        elif merge == "always":
            kept.append(turn._replace(flags=turn.flags | TurnFlag.BENT))
        else:
            flags = turn.flags | TurnFlag.OWN_DOCUMENT
            moved.append((owned[place], turn._replace(flags=flags)))
    return kept, moved


def _same_ids(encoded: EncodedTexts, merged: int, own: int, end: int) -> bool:
    """Return whether two texts are encoded alike up to the character `end`."""
    both: Int64 = np.array([merged, own])
    ends = encoded.positions.at(both, np.array([end, end]))
    started = encoded.first_token_starting_at(both, ends)
    ended = np.minimum(encoded.first_token_ending_after(both, ends), started)
    first = encoded.offsets[both]
    (tokens, own_tokens), (whole, own_whole) = started - first, ended - first
    return bool(
        tokens == own_tokens
        and whole == own_whole
        and np.array_equal(encoded.ids[first[0] : started[0]], encoded.ids[first[1] : started[1]])
    )


class _Turns(NamedTuple):
    """The turns of all documents as columns, ascending; characters are counted within their text.

    Turn t has `num_spans[t]` of the spans.
    """

    documents: Int64
    """(turns,), as all but the last two."""
    messages: Int64
    flags: Int64
    starts: Int64
    num_spans: Int64
    span_starts: Int64
    """(spans,)"""
    span_ends: Int64
    """(spans,)"""


@dataclass(slots=True)
class _Documents:
    """Documents and their turns: as they are where they are plain, and as columns elsewhere."""

    rows: list[int] = field(default_factory=list)
    texts: list[int] = field(default_factory=list)
    plain: dict[int, PlainTurns] = field(default_factory=dict)
    """By document."""
    turns: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    """All others, as in the columns of `_Turns`."""
    span_starts: list[int] = field(default_factory=list)
    span_ends: list[int] = field(default_factory=list)

    def add(self, row: int, text: int, turns: Sequence[TurnText]) -> None:
        """Add a document of a row: the turns that are trained in a text."""
        document = len(self.rows)
        self.rows.append(row)
        self.texts.append(text)
        if isinstance(turns, PlainTurns):
            self.plain[document] = turns
            return
        for turn in turns:
            self.turns.append((document, turn.message, turn.flags, turn.start, len(turn.spans)))
            self.span_starts += [start for start, _ in turn.spans]
            self.span_ends += [end for _, end in turn.spans]

    def all_turns(self) -> _Turns:
        """Put the turns of all documents together."""
        plain = placed(list(self.plain.values()))
        documents: Int64 = np.repeat(_integers(list(self.plain)), plain.num_turns)
        one = np.ones(len(documents), dtype=np.int64)
        columns = np.concatenate(
            [
                np.stack([documents, plain.messages, plain.flags, plain.starts, one]),
                _integers(self.turns).reshape(-1, 5).T,
            ],
            axis=1,
        )
        order = np.argsort(columns[0], kind="stable")
        spans = gather_ranges(offsets_from_lengths(columns[-1]), order)
        documents, messages, flags, starts, num_spans = columns[:, order]
        span_starts = np.concatenate([plain.starts, _integers(self.span_starts)])[spans]
        span_ends = np.concatenate([plain.ends, _integers(self.span_ends)])[spans]
        return _Turns(documents, messages, flags, starts, num_spans, span_starts, span_ends)

    def as_batch(self, encoded: EncodedTexts) -> tuple[TokenBatch, Counter[str]]:
        """Find the tokens of all turns; leave out turns and documents without a loss token."""
        texts = _integers(self.texts)
        found = self.all_turns()
        spans = _find_tokens(encoded, texts[found.documents], found)
        spans_per_turn = np.bincount(spans.turns, minlength=len(found.documents))
        turns = np.flatnonzero(spans_per_turn)
        turns_per_document = np.bincount(found.documents[turns], minlength=len(texts))
        documents = np.flatnonzero(turns_per_document)

        turn_offsets = offsets_from_lengths(turns_per_document[documents])
        span_offsets = offsets_from_lengths(spans_per_turn[turns])
        lengths = spans.ends[span_offsets[turn_offsets[1:]] - 1]
        begins = encoded.offsets[texts[documents]]
        ids = [
            encoded.ids[begin:end]
            for begin, end in zip(begins.tolist(), (begins + lengths).tolist(), strict=True)
        ]
        batch = TokenBatch(
            ids=np.concatenate([np.empty(0, np.int32), *ids]),
            document_offsets=offsets_from_lengths(lengths),
            document_rows=_integers(self.rows)[documents],
            turn_offsets=turn_offsets,
            turn_messages=found.messages[turns].astype(np.int32),
            turn_flags=found.flags[turns].astype(np.uint8),
            span_offsets=span_offsets,
            span_starts=spans.starts.astype(np.int32),
            span_ends=spans.ends.astype(np.int32),
        )
        spans.counts["turns_dropped.no_loss_token"] = len(found.documents) - len(turns)
        return batch, spans.counts


@dataclass(frozen=True, slots=True)
class _TokenSpans:
    """Runs of loss tokens [starts, ends), counted from the start of their text."""

    turns: Int64
    """(spans,): the turn of each, ascending."""
    starts: Int64
    """(spans,)"""
    ends: Int64
    """(spans,)"""
    counts: Counter[str]


def _find_tokens(encoded: EncodedTexts, turn_texts: Int64, found: _Turns) -> _TokenSpans:
    """Find the tokens that lie wholly inside the spans of turns.

    A token without characters of its own lies where the text goes on.
    """
    turns = np.repeat(np.arange(len(turn_texts)), found.num_spans)
    texts = turn_texts[turns]
    start_positions = encoded.positions.at(texts, found.span_starts)
    end_positions = encoded.positions.at(texts, found.span_ends)
    starts = encoded.first_token_starting_at(texts, start_positions)
    begun = encoded.first_token_starting_at(texts, end_positions)
    ended = encoded.first_token_ending_after(texts, end_positions)
    ends = np.minimum(ended, begun)
    over_the_start = starts - encoded.first_token_ending_after(texts, start_positions)
    straddles = np.maximum(over_the_start, 0).sum() + np.maximum(begun - ended, 0).sum()

    # Nothing predicts a document's first token.
    starts = np.maximum(starts, encoded.offsets[texts] + 1)
    filled = starts < ends
    turns, texts, starts, ends = turns[filled], texts[filled], starts[filled], ends[filled]
    opens = np.ones(len(turns), dtype=np.bool_)  # a run; spans without a gap are one
    opens[1:] = (turns[1:] != turns[:-1]) | (starts[1:] > ends[:-1])
    closes = np.append(opens[1:], True)[: len(turns)]
    turns, texts, starts, ends = turns[opens], texts[opens], starts[opens], ends[closes]

    taken_over = encoded.positions.at(turn_texts, found.starts)
    given = encoded.first_token_starting_at(turn_texts, taken_over)[turns]
    given_trained = np.maximum(np.minimum(given, ends) - starts, 0).sum()
    counts = Counter(straddles=int(straddles), given_trained=int(given_trained))
    begins = encoded.offsets[texts]
    return _TokenSpans(turns, starts - begins, ends - begins, counts)


def _integers(values: Sequence[int] | Sequence[tuple[int, ...]]) -> Int64:
    return np.array(values, dtype=np.int64)
