"""Random documents for property tests, as simple objects and as a `TokenBatch`.

A list of `Document` holds the same data as a `TokenBatch`, in readable form. `as_batch` and
`as_documents` convert between them; the simple implementations in tests use only `Document`.
"""

from dataclasses import dataclass, fields, replace
from itertools import accumulate, pairwise

import numpy as np
from hypothesis import strategies as st

from mtpack.token_batch import TokenBatch


@dataclass(frozen=True)
class Turn:
    """One trained message, and its loss tokens as half-open ranges of positions in the document."""

    message: int
    flags: int
    spans: list[tuple[int, int]]
    units: int | None = None
    """Its weight in units of 1/1024; None in a batch without weights."""

    @property
    def end(self) -> int:
        return self.spans[-1][1]

    @property
    def positions(self) -> list[int]:
        return [position for start, end in self.spans for position in range(start, end)]


@dataclass(frozen=True)
class Document:
    """One document of an input row."""

    row: int
    ids: list[int]
    turns: list[Turn]


def as_batch(documents: list[Document]) -> TokenBatch:
    """Return the documents as a `TokenBatch`."""
    turns = [turn for document in documents for turn in document.turns]
    spans = [span for turn in turns for span in turn.spans]

    def offsets(lists):
        return np.array(list(accumulate(map(len, lists), initial=0)), np.int64)

    units = [1024 if turn.units is None else turn.units for turn in turns]
    has_units = any(turn.units is not None for turn in turns)
    return TokenBatch(
        ids=np.array([number for document in documents for number in document.ids], np.int32),
        document_offsets=offsets([document.ids for document in documents]),
        document_rows=np.array([document.row for document in documents], np.int64),
        turn_offsets=offsets([document.turns for document in documents]),
        turn_messages=np.array([turn.message for turn in turns], np.int32),
        turn_flags=np.array([turn.flags for turn in turns], np.uint8),
        span_offsets=offsets([turn.spans for turn in turns]),
        span_starts=np.array([start for start, _ in spans], np.int32),
        span_ends=np.array([end for _, end in spans], np.int32),
        turn_units=np.array(units, np.int32) if has_units else None,
    )


def as_documents(batch: TokenBatch) -> list[Document]:
    """Return the documents of a batch."""

    def cut(values, offsets):
        return [values[start:end] for start, end in pairwise(offsets)]

    spans = list(zip(batch.span_starts.tolist(), batch.span_ends.tolist(), strict=True))
    units = [None] * batch.num_turns if batch.turn_units is None else batch.turn_units.tolist()
    turns = [
        Turn(message, flags, list(of_turn), own_units)
        for message, flags, of_turn, own_units in zip(
            batch.turn_messages.tolist(),
            batch.turn_flags.tolist(),
            cut(spans, batch.span_offsets.tolist()),
            units,
            strict=True,
        )
    ]
    return [
        Document(row, ids, of_document)
        for row, ids, of_document in zip(
            batch.document_rows.tolist(),
            cut(batch.ids.tolist(), batch.document_offsets.tolist()),
            cut(turns, batch.turn_offsets.tolist()),
            strict=True,
        )
    ]


def assert_same_batch(found: TokenBatch, expected: list[Document]) -> None:
    """Compare the values, lengths and dtypes of every array. Without turns, no weights are none."""
    batch = as_batch(expected)
    assert not batch.num_turns or (found.turn_units is None) == (batch.turn_units is None)
    found = replace(found, turn_units=found.list_units())
    batch = replace(batch, turn_units=batch.list_units())
    for field in fields(TokenBatch):
        array, other = getattr(found, field.name), getattr(batch, field.name)
        assert (field.name, array.tolist()) == (field.name, other.tolist())
        assert (field.name, array.dtype) == (field.name, other.dtype)


seeds = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=3).map(tuple)
"""Seeds of shuffles: any non-negative integers."""

seq_lens = st.integers(1, 12) | st.integers(13, 100)
"""The number of tokens of a sequence, often small."""


def lengths_within(seq_len: int, max_documents: int = 40):
    """Draw lengths of documents that fit into a sequence, with few or many distinct lengths."""
    few = st.lists(st.integers(1, seq_len), min_size=1, max_size=4).flatmap(
        lambda lengths: st.lists(st.sampled_from(lengths), max_size=max_documents)
    )
    many = st.lists(st.integers(1, seq_len), max_size=max_documents)
    return (few | many).map(lambda lengths: np.array(lengths, dtype=np.int64))


cases = seq_lens.flatmap(lambda seq_len: st.tuples(lengths_within(seq_len), st.just(seq_len)))
"""(lengths of documents, tokens of a sequence)"""


def histogram_of(lengths) -> dict[int, int]:
    """Return the number of documents of each length."""
    values, counts = np.unique(lengths, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


# A turn is drawn as (tokens before it, loss tokens of its first span, step to its message index,
# flags, further spans), and a further span as (tokens before it, loss tokens).
_spans = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4)), max_size=2)
_turns = st.tuples(
    st.integers(0, 4), st.integers(1, 5), st.integers(1, 3), st.integers(0, 31), _spans
)
_documents = st.lists(
    st.tuples(st.integers(0, 2), st.lists(_turns, min_size=1, max_size=3)), max_size=5
)
_units = st.integers(1, 3) | st.just(1024) | st.integers(1, 2**24)
_first_rows = st.sampled_from([0, 7, 2**31, 2**40])


@st.composite
def token_batches(draw, min_documents: int = 0, has_weights: bool | None = None):
    """Draw documents of 2 to 70 tokens with up to 3 turns of up to 3 spans; some share a row.

    has_weights: whether the turns have weights; None: in some batches.

    Token p of document d has the id 1000 * (d + 1) + p. No two turns have the same (row, message).
    The first token of a document carries no loss; the last one does.
    """
    documents = []
    units = _units if has_weights or (has_weights is None and draw(st.booleans())) else st.none()
    row = draw(_first_rows)
    message = 0
    for step, turns in draw(_documents.filter(lambda documents: len(documents) >= min_documents)):
        row, message = row + step, (0 if step else message)
        drawn, position = [], 1
        for before, first_span, message_step, flags, more_spans in turns:
            message += message_step
            spans = []
            for gap, num_loss_tokens in [(before, first_span), *more_spans]:
                start = position + gap
                position = start + num_loss_tokens
                spans.append((start, position))
            drawn.append(Turn(message, flags, spans, draw(units)))
        first_id = 1000 * (len(documents) + 1)
        documents.append(Document(row, list(range(first_id, first_id + position)), drawn))
    return as_batch(documents)


def keep_only(document: Document, turns: list[Turn]) -> list[Document]:
    """Return the document with only these turns, up to the last of them, or [] without turns."""
    return [replace(document, ids=document.ids[: turns[-1].end], turns=turns)] if turns else []


def strings_in(value):
    """Yield every string in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    for inner in value if isinstance(value, list) else []:
        yield from strings_in(inner)
    for key, inner in value.items() if isinstance(value, dict) else []:
        yield key
        yield from strings_in(inner)


@st.composite
def batches_of_a_run(draw, min_size: int = 0) -> list[TokenBatch]:
    """Draw the batches of up to three splits of a run: all have weights of turns, or none."""
    batches = token_batches(min_documents=1, has_weights=draw(st.booleans()))
    return draw(st.lists(batches, min_size=min_size, max_size=3))
