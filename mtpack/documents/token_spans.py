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
`served` are compared, with both texts cut alike. If they differ, merging is not exact for this
turn.

For speed, all texts are encoded at once, and the tokens of all turns are found with a few numpy
calls.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mtpack.counts import Counts
from mtpack.documents.cut_starts import EncodedDocuments, encode_documents
from mtpack.template.rendered_dialogue import DocumentText
from mtpack.template.rendered_documents import RenderedDocuments
from mtpack.token_batch import Int64, TokenBatch, TurnFlag, offsets_from_lengths
from mtpack.tokenizer.encode import EncodedTexts, TextEncoder


def encode_dialogues(
    encoder: TextEncoder, rendered: RenderedDocuments, merge: str
) -> tuple[TokenBatch, Counts]:
    """Encode dialogues; return their documents and the counts that need token ids.

    merge: `auto`, `always` or `never`. Raises what `TextEncoder.encode` raises.
    """
    documents = encode_documents(encoder, rendered)
    encoded, merged = documents.encoded, documents.written[rendered.merged]
    ends = encoded.text_offsets[merged] + rendered.merged_ends
    tokens = encoded.first_token_ending_after(merged, ends) - encoded.offsets[merged]
    if len(rendered.compared):
        documents = _compare_ids(documents, rendered.compared, merge)
    batch, counts = _build_batch(documents, rendered.rows)
    return batch, replace(counts, tokens_if_merged=int(tokens.sum()))


def encode_document(encoder: TextEncoder, row: int, document: DocumentText) -> TokenBatch:
    """Encode one document; the batch is empty if no turn has a loss token."""
    rendered = RenderedDocuments.of_document(row, document)
    return _build_batch(encode_documents(encoder, rendered), rendered.rows)[0]


def _compare_ids(documents: EncodedDocuments, compared: Int64, merge: str) -> EncodedDocuments:
    """Keep each compared turn in the merged text or in its own, by the ids of the two texts."""
    first_turns = offsets_from_lengths(documents.turns.num_turns)
    kept = np.ones(len(documents.turn_texts), np.bool_)
    flags = documents.turns.flags.copy()
    for merged, index, served in compared.tolist():
        turn = first_turns[merged] + index
        both = int(documents.written[merged]), documents.find_compared(served)
        if _have_same_ids(documents.encoded, *both, int(documents.turns.ends[turn])):
            kept[first_turns[served]] = False
        elif merge == "always":
            kept[first_turns[served]] = False
            flags[turn] |= TurnFlag.BENT
        else:
            kept[turn] = False
    return documents.keep_turns(kept, flags)


def _have_same_ids(encoded: EncodedTexts, merged: int, served: int, end: int) -> bool:
    """Return whether two texts have the same tokens up to the byte `end`."""
    both: Int64 = np.array([merged, served])
    ends = encoded.text_offsets[both] + end
    started = encoded.first_token_starting_at(both, ends)
    ended = np.minimum(encoded.first_token_ending_after(both, ends), started)
    first = encoded.offsets[both]
    (tokens, own_tokens), (whole, own_whole) = started - first, ended - first
    return bool(
        tokens == own_tokens
        and whole == own_whole
        and np.array_equal(encoded.ids[first[0] : started[0]], encoded.ids[first[1] : started[1]])
    )


def _build_batch(documents: EncodedDocuments, rows: Int64) -> tuple[TokenBatch, Counts]:
    """Find the tokens of all turns; drop turns and documents without a loss token."""
    encoded, found, turn_texts = documents.encoded, documents.turns, documents.turn_texts
    spans = _find_loss_tokens(documents)
    spans_per_turn = np.bincount(spans.turns, minlength=len(turn_texts))
    turns = np.flatnonzero(spans_per_turn)
    turns_per_text = np.bincount(turn_texts[turns], minlength=len(rows))
    trained = np.flatnonzero(turns_per_text)

    turn_offsets = offsets_from_lengths(turns_per_text[trained])
    span_offsets = offsets_from_lengths(spans_per_turn[turns])
    lengths = spans.ends[span_offsets[turn_offsets[1:]] - 1]
    begins = encoded.offsets[documents.written[trained]]
    ids = [
        encoded.ids[begin:end]
        for begin, end in zip(begins.tolist(), (begins + lengths).tolist(), strict=True)
    ]
    batch = TokenBatch(
        ids=np.concatenate([np.empty(0, np.int32), *ids]),
        document_offsets=offsets_from_lengths(lengths),
        document_rows=rows[trained],
        turn_offsets=turn_offsets,
        turn_messages=found.messages[turns].astype(np.int32),
        turn_flags=found.flags[turns].astype(np.uint8),
        span_offsets=span_offsets,
        span_starts=spans.starts.astype(np.int32),
        span_ends=spans.ends.astype(np.int32),
    )
    no_loss_token = len(turn_texts) - len(turns)
    dropped = {"no_loss_token": no_loss_token} if no_loss_token else {}
    return batch, replace(spans.counts, turns_dropped=dropped)


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


def _find_loss_tokens(documents: EncodedDocuments) -> _TokenSpans:
    """Find the tokens that lie wholly inside the spans of turns.

    A token without characters belongs to the text that follows it.
    """
    encoded, found = documents.encoded, documents.turns
    turns = np.repeat(np.arange(len(documents.turn_texts)), found.num_spans)
    texts = documents.written[documents.turn_texts[turns]]
    begins = encoded.text_offsets[texts]
    starts, after_start = encoded.find_tokens_at(texts, begins + found.span_starts)
    begun, ended = encoded.find_tokens_at(texts, begins + found.span_ends)
    ends = np.minimum(ended, begun)
    across_start = starts - after_start
    straddles = np.maximum(across_start, 0).sum() + np.maximum(begun - ended, 0).sum()
    straddles += documents.straddles.sum()

    # No token predicts the first token of a document.
    starts = np.maximum(starts, encoded.offsets[texts] + 1)
    nonempty = starts < ends
    turns, texts, starts, ends = turns[nonempty], texts[nonempty], starts[nonempty], ends[nonempty]
    # Spans of a turn without a gap between them form one run: find the first and last span of each.
    is_first = np.ones(len(turns), dtype=np.bool_)
    is_first[1:] = (turns[1:] != turns[:-1]) | (starts[1:] > ends[:-1])
    is_last = np.append(is_first[1:], True)[: len(turns)]
    turns, texts, starts, ends = turns[is_first], texts[is_first], starts[is_first], ends[is_last]

    first_of_turn = documents.first_tokens[turns]
    given_trained = np.maximum(np.minimum(first_of_turn, ends) - starts, 0).sum()
    counts = Counts(straddles=int(straddles), given_trained=int(given_trained))
    begins = encoded.offsets[texts]
    return _TokenSpans(turns, starts - begins, ends - begins, counts)
