"""Rendered dialogues to a `TokenBatch`: the text as ids, the turns as ranges of tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np

from mtpack.template.spans import DocumentText, RenderedDialogue, TurnText
from mtpack.tokenizer.encode import EncodedText, encode_texts
from mtpack.tokenizer.loading import LoadedTokenizer
from mtpack.turns import Bools, Int32, TokenBatch, TurnFlag


@dataclass(slots=True)
class _Columns:
    """The arrays of a batch while documents are added."""

    ids: list[Int32] = field(default_factory=list)
    document_rows: list[int] = field(default_factory=list)
    turns_per_document: list[int] = field(default_factory=list)
    turn_messages: list[int] = field(default_factory=list)
    turn_flags: list[int] = field(default_factory=list)
    spans_per_turn: list[int] = field(default_factory=list)
    span_starts: list[int] = field(default_factory=list)
    span_ends: list[int] = field(default_factory=list)

    def as_batch(self) -> TokenBatch:
        def offsets(lengths: Sequence[int]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
            return np.fromiter(accumulate(lengths, initial=0), np.int64, len(lengths) + 1)

        return TokenBatch(
            ids=np.concatenate([np.empty(0, np.int32), *self.ids]),
            document_offsets=offsets([len(ids) for ids in self.ids]),
            document_rows=np.array(self.document_rows, dtype=np.int64),
            turn_offsets=offsets(self.turns_per_document),
            turn_messages=np.array(self.turn_messages, dtype=np.int32),
            turn_flags=np.array(self.turn_flags, dtype=np.uint8),
            span_offsets=offsets(self.spans_per_turn),
            span_starts=np.array(self.span_starts, dtype=np.int32),
            span_ends=np.array(self.span_ends, dtype=np.int32),
        )


def encode_dialogues(
    tokenizer: LoadedTokenizer, rendered: Sequence[RenderedDialogue], merge: str
) -> tuple[TokenBatch, Counter[str]]:
    """Encode dialogues; return their documents and the counts that only the encoder can make.

    A document ends with the last token of its last turn. Turns without a loss token are left out
    and counted, and so are documents without a turn.
    """
    columns = _Columns()
    counts: Counter[str] = Counter()
    encoded = encode_texts(tokenizer, list(_texts(rendered)))
    for dialogue in rendered:
        merged = dialogue.merged.encoded or next(encoded)
        counts["tokens_if_merged"] += int(np.count_nonzero(merged.ends <= dialogue.merged_end))
        kept, moved = [], []
        for turn in dialogue.merged.turns:
            if turn.own_text is None:
                kept.append(turn)
                continue
            own = turn.own_encoded or next(encoded)
            if _same_ids(merged, own, turn.end):
                kept.append(turn)
            elif merge == "always":
                kept.append(turn._replace(flags=turn.flags | TurnFlag.BENT))
            else:
                moved.append((own, turn._replace(flags=turn.flags | TurnFlag.OWN_DOCUMENT)))
        row = dialogue.dialogue.row
        _add_document(columns, counts, row, merged, kept)
        for own, turn in moved:
            _add_document(columns, counts, row, own, [turn])
        for document in dialogue.own:
            alone = document.encoded or next(encoded)
            _add_document(columns, counts, row, alone, document.turns)
    return columns.as_batch(), counts


def encode_document(tokenizer: LoadedTokenizer, row: int, document: DocumentText) -> TokenBatch:
    """Encode one document."""
    columns = _Columns()
    encoded = document.encoded or next(encode_texts(tokenizer, [document.text]))
    _add_document(columns, Counter(), row, encoded, document.turns)
    return columns.as_batch()


def _texts(rendered: Sequence[RenderedDialogue]) -> Iterator[str]:
    """Yield every text that `encode_dialogues` has to encode, in the order in which it asks."""
    for dialogue in rendered:
        if dialogue.merged.encoded is None:
            yield dialogue.merged.text
        for turn in dialogue.merged.turns:
            if turn.own_text is not None and turn.own_encoded is None:
                yield turn.own_text
        for document in dialogue.own:
            if document.encoded is None:
                yield document.text


def _same_ids(merged: EncodedText, own: EncodedText, end: int) -> bool:
    """Return whether both are encoded alike up to the character `end`."""
    tokens = int(np.count_nonzero(own.starts < end))
    return (
        int(np.count_nonzero(merged.starts < end)) == tokens
        and np.array_equal(merged.ids[:tokens], own.ids[:tokens])
        and np.array_equal(merged.ends[:tokens] <= end, own.ends[:tokens] <= end)
    )


def _add_document(
    columns: _Columns,
    counts: Counter[str],
    row: int,
    encoded: EncodedText,
    turns: Sequence[TurnText],
) -> None:
    num_turns = length = 0
    for turn in turns:
        trained = np.zeros(len(encoded.ids), dtype=np.bool_)
        for start, end in turn.spans:
            trained |= encoded.inside(start, end)
            counts["straddles"] += encoded.across(start) + encoded.across(end)
        trained[:1] = False  # nothing predicts a document's first token
        starts, ends = _runs(trained)
        if not starts:
            counts["turns_dropped.no_loss_token"] += 1
            continue
        counts["given_trained"] += int(np.count_nonzero(encoded.starts[trained] < turn.start))
        num_turns += 1
        length = ends[-1]
        columns.turn_messages.append(turn.message)
        columns.turn_flags.append(turn.flags)
        columns.spans_per_turn.append(len(starts))
        columns.span_starts += starts
        columns.span_ends += ends
    if num_turns:
        columns.ids.append(encoded.ids[:length])
        columns.document_rows.append(row)
        columns.turns_per_document.append(num_turns)


def _runs(marked: Bools) -> tuple[list[int], list[int]]:
    """Return starts and ends of the runs of ones.

    >>> _runs(np.array([False, True, True, False, True]))
    ([1, 4], [3, 5])
    """
    edges = np.flatnonzero(np.diff(marked, prepend=False, append=False)).tolist()
    return edges[::2], edges[1::2]
