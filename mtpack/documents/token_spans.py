"""Find the tokens of every turn: rendered dialogues become a `TokenBatch`.

`template/turn_spans.py` finds the characters of a turn. This module encodes the texts and finds the
turn's *loss tokens*, the tokens whose prediction is trained:

- A token carries loss if all its characters lie inside a span of the turn. Where a token would
  cross the start of a turn, the text is cut there (`cut_starts.py`). Any other token that crosses
  the start or the end of a span carries no loss. Both are counted (`straddles`).
- The first token of a document carries no loss, because no token before it predicts it.
- Generation tags may mark characters before the start of the turn. Tokens that start there carry
  loss as well, and are counted (`given_trained`).
- A turn without a loss token is dropped and counted (`turns_dropped.no_loss_token`). A document
  ends with the last loss token of its last turn; a document without turns is dropped.

This module also decides the last case of merging. Two texts that are equal up to the end of a turn
may still have other tokens there, because a token may continue into the text that follows. If the
text leaves this open (`RenderedDialogue.to_compare`), the ids of the merged text and of the turn's
own text are compared, with both texts cut alike. If they differ, merging is not exact for this
turn.

For speed, all texts are encoded at once, and the tokens of all turns are found with a few numpy
calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mtpack.counts import Counts
from mtpack.documents.cut_starts import CutTexts, DocumentTexts, encode_documents
from mtpack.template.rendered_dialogue import (
    DocumentText,
    PlacedTurns,
    RenderedDialogue,
    Turns,
    place_turns,
)
from mtpack.token_batch import Int64, TokenBatch, TurnFlag, offsets_from_lengths
from mtpack.tokenizer.encode import EncodedTexts, TextEncoder


def encode_dialogues(
    encoder: TextEncoder, rendered: Sequence[RenderedDialogue], merge: str
) -> tuple[TokenBatch, Counts]:
    """Encode dialogues; return their documents and the counts that need token ids.

    merge: `auto`, `always` or `never`. Raises what `TextEncoder.encode` raises.
    """
    texts, documents = DocumentTexts(), _Documents()
    numbers = [texts.add_dialogue(dialogue) for dialogue in rendered]
    cut_texts = encode_documents(encoder, texts)
    encoded = cut_texts.encoded
    for dialogue, (merged, compared, own) in zip(rendered, numbers, strict=True):
        turns = dialogue.merged.turns
        moved: list[tuple[int, DocumentText]] = []
        if compared:
            turns, moved = _compare_ids(cut_texts, dialogue, merged, compared, merge)
        documents.add(dialogue.row, cut_texts.find(merged), turns)
        for number, document in (*moved, *zip(own, dialogue.own, strict=True)):
            documents.add(dialogue.row, cut_texts.find(number), document.turns)
    batch, counts = documents.build_batch(cut_texts)
    merged_texts = _to_int64([cut_texts.find(merged) for merged, _, _ in numbers])
    merged_ends = _to_int64([dialogue.merged_end for dialogue in rendered])
    ends = encoded.positions.at(merged_texts, merged_ends)
    tokens = encoded.first_token_ending_after(merged_texts, ends) - encoded.offsets[merged_texts]
    return batch, counts + Counts(tokens_if_merged=int(tokens.sum()))


def encode_document(encoder: TextEncoder, row: int, document: DocumentText) -> TokenBatch:
    """Encode one document; the batch is empty if no turn has a loss token."""
    texts, documents = DocumentTexts(), _Documents()
    number = texts.add(row, document)
    cut_texts = encode_documents(encoder, texts)
    documents.add(row, cut_texts.find(number), document.turns)
    return documents.build_batch(cut_texts)[0]


def _compare_ids(
    texts: CutTexts,
    dialogue: RenderedDialogue,
    merged: int,
    compared: list[int],
    merge: str,
) -> tuple[Turns, list[tuple[int, DocumentText]]]:
    """Compare the ids of turns in the merged text with the ids in their own texts.

    merged, compared: the numbers of these texts. Return the turns that are trained in the merged
    text, and the documents of the others, each with the number of its text.
    """
    cut_merged = texts.find(merged)
    turns = dialogue.merged.turns.to_list()
    differing = {
        index: (number, document)
        for number, (index, document) in zip(compared, dialogue.to_compare, strict=True)
        if not _have_same_ids(
            texts.encoded, cut_merged, texts.find_compared(number), turns[index].end
        )
    }
    if not differing:
        return dialogue.merged.turns, []
    if merge == "always":
        for index in differing:
            turns[index] = turns[index]._replace(flags=turns[index].flags | TurnFlag.BENT)
        return Turns.of(turns), []
    kept = [turn for index, turn in enumerate(turns) if index not in differing]
    return Turns.of(kept), list(differing.values())


def _have_same_ids(encoded: EncodedTexts, merged: int, own: int, end: int) -> bool:
    """Return whether two texts have the same tokens up to the character `end`."""
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


@dataclass(slots=True)
class _Documents:
    """Collects documents with their turns."""

    rows: list[int] = field(default_factory=list)
    """The input row of each document."""
    texts: list[int] = field(default_factory=list)
    """The number of each document's text."""
    turns: list[Turns] = field(default_factory=list)

    def add(self, row: int, text: int, turns: Turns) -> None:
        """Add a document of an input row: the number of its text, and its trained turns."""
        self.rows.append(row)
        self.texts.append(text)
        self.turns.append(turns)

    def build_batch(self, cut_texts: CutTexts) -> tuple[TokenBatch, Counts]:
        """Find the tokens of all turns; drop turns and documents without a loss token."""
        encoded = cut_texts.encoded
        texts = _to_int64(self.texts)
        found = place_turns(self.turns)
        turn_documents = np.repeat(np.arange(len(texts)), found.num_turns)
        spans = _find_loss_tokens(encoded, texts[turn_documents], found)
        spans_per_turn = np.bincount(spans.turns, minlength=len(turn_documents))
        turns = np.flatnonzero(spans_per_turn)
        turns_per_document = np.bincount(turn_documents[turns], minlength=len(texts))
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
            document_rows=_to_int64(self.rows)[documents],
            turn_offsets=turn_offsets,
            turn_messages=found.messages[turns].astype(np.int32),
            turn_flags=found.flags[turns].astype(np.uint8),
            span_offsets=span_offsets,
            span_starts=spans.starts.astype(np.int32),
            span_ends=spans.ends.astype(np.int32),
        )
        counts = Counts(
            turns_dropped={"no_loss_token": len(turn_documents) - len(turns)},
            straddles=cut_texts.count_straddles(texts[turn_documents], found.starts),
        )
        return batch, spans.counts + counts


@dataclass(frozen=True, slots=True)
class _TokenSpans:
    """Runs of loss tokens [starts, ends), in tokens from the start of their text."""

    turns: Int64
    """(spans,): the turn of each run, ascending."""
    starts: Int64
    """(spans,)"""
    ends: Int64
    """(spans,)"""
    counts: Counts
    """`straddles` and `given_trained`, in tokens."""


def _find_loss_tokens(encoded: EncodedTexts, turn_texts: Int64, found: PlacedTurns) -> _TokenSpans:
    """Find the tokens that lie wholly inside the spans of turns.

    turn_texts: (turns,), the number of each turn's text. A token without characters belongs to the
    text that follows it.
    """
    turns = np.repeat(np.arange(len(turn_texts)), found.num_spans)
    texts = turn_texts[turns]
    start_positions = encoded.positions.at(texts, found.span_starts)
    end_positions = encoded.positions.at(texts, found.span_ends)
    starts = encoded.first_token_starting_at(texts, start_positions)
    begun = encoded.first_token_starting_at(texts, end_positions)
    ended = encoded.first_token_ending_after(texts, end_positions)
    ends = np.minimum(ended, begun)
    across_start = starts - encoded.first_token_ending_after(texts, start_positions)
    straddles = np.maximum(across_start, 0).sum() + np.maximum(begun - ended, 0).sum()

    # No token predicts the first token of a document.
    starts = np.maximum(starts, encoded.offsets[texts] + 1)
    nonempty = starts < ends
    turns, texts, starts, ends = turns[nonempty], texts[nonempty], starts[nonempty], ends[nonempty]
    # Spans of a turn without a gap between them form one run: find the first and last span of each.
    is_first = np.ones(len(turns), dtype=np.bool_)
    is_first[1:] = (turns[1:] != turns[:-1]) | (starts[1:] > ends[:-1])
    is_last = np.append(is_first[1:], True)[: len(turns)]
    turns, texts, starts, ends = turns[is_first], texts[is_first], starts[is_first], ends[is_last]

    turn_positions = encoded.positions.at(turn_texts, found.starts)
    first_of_turn = encoded.first_token_starting_at(turn_texts, turn_positions)[turns]
    given_trained = np.maximum(np.minimum(first_of_turn, ends) - starts, 0).sum()
    counts = Counts(straddles=int(straddles), given_trained=int(given_trained))
    begins = encoded.offsets[texts]
    return _TokenSpans(turns, starts - begins, ends - begins, counts)


def _to_int64(values: Sequence[int]) -> Int64:
    return np.array(values, dtype=np.int64)
