"""Operations on token batches give the same result as simple loops over nested lists."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtpack.token_batch import concatenate, keep_loss_tokens_before, keep_turns
from tests.support.strategies import (
    Document,
    Turn,
    as_batch,
    as_documents,
    assert_same_batch,
    keep_only,
    token_batches,
)


def slow_keep_turns(documents: list[Document], kept: list[bool]) -> list[Document]:
    marks = iter(kept)
    result = []
    for document in documents:
        result += keep_only(document, [turn for turn in document.turns if next(marks)])
    return result


def slow_keep_loss_tokens_before(documents: list[Document], limit: int) -> list[Document]:
    result = []
    for document in documents:
        turns = []
        for turn in document.turns:
            spans = [(start, min(end, limit)) for start, end in turn.spans if start < limit]
            if spans:
                turns.append(replace(turn, spans=spans))
        result += keep_only(document, turns)
    return result


@given(token_batches())
def test_a_batch_equals_its_nested_lists(batch):
    assert_same_batch(batch, as_documents(batch))


@given(token_batches())
def test_the_properties_of_a_batch_equal_those_of_the_lists(batch):
    documents = as_documents(batch)
    turns = [(number, turn) for number, one in enumerate(documents) for turn in one.turns]
    assert batch.num_documents == len(documents)
    assert batch.num_turns == len(turns)
    assert batch.document_lengths.tolist() == [len(document.ids) for document in documents]
    assert batch.turn_documents.tolist() == [number for number, _ in turns]
    assert batch.loss_token_num.tolist() == [len(turn.positions) for _, turn in turns]
    assert batch.turn_ends.tolist() == [turn.positions[-1] + 1 for _, turn in turns]
    assert batch.span_turns.tolist() == [
        number for number, (_, turn) in enumerate(turns) for _ in turn.spans
    ]


@given(st.data(), token_batches())
def test_take_returns_documents_in_the_requested_order(data, batch):
    documents = as_documents(batch)
    numbers = st.integers(0, max(len(documents) - 1, 0))
    order = data.draw(st.lists(numbers, max_size=8 if documents else 0))
    taken = batch.take(np.array(order, dtype=np.int64))
    assert_same_batch(taken, [documents[number] for number in order])


@given(st.lists(token_batches(), max_size=3))
def test_concatenate_keeps_the_documents_of_all_batches_in_order(batches):
    expected = [document for batch in batches for document in as_documents(batch)]
    assert_same_batch(concatenate(batches), expected)


@given(st.data(), token_batches())
def test_keep_turns_keeps_marked_turns_and_ends_a_document_with_the_last_of_them(data, batch):
    kept = data.draw(st.lists(st.booleans(), min_size=batch.num_turns, max_size=batch.num_turns))
    found = keep_turns(batch, np.array(kept, dtype=np.bool_))
    assert_same_batch(found, slow_keep_turns(as_documents(batch), kept))


@given(token_batches())
def test_keep_turns_with_all_turns_changes_nothing_and_without_turns_leaves_nothing(batch):
    every = np.ones(batch.num_turns, dtype=np.bool_)
    assert_same_batch(keep_turns(batch, every), as_documents(batch))
    assert_same_batch(keep_turns(batch, ~every), [])


@given(token_batches(), st.integers(0, 65))
def test_keep_loss_tokens_before_cuts_spans_at_the_limit_and_drops_empty_turns(batch, limit):
    found = keep_loss_tokens_before(batch, limit)
    assert_same_batch(found, slow_keep_loss_tokens_before(as_documents(batch), limit))


@pytest.mark.parametrize(
    ("limit", "spans", "loss_token_num"),
    [
        (9, [(2, 4), (6, 9)], 5),
        (8, [(2, 4), (6, 8)], 4),
        (6, [(2, 4)], 2),  # the second span starts at the limit, so it is dropped
        (3, [(2, 3)], 1),
    ],
)
def test_loss_token_num_of_a_cut_turn_counts_the_tokens_that_are_left(limit, spans, loss_token_num):
    document = Document(row=5, ids=list(range(9)), turns=[Turn(1, 0, [(2, 4), (6, 9)])])
    cut = keep_loss_tokens_before(as_batch([document]), limit)
    assert as_documents(cut) == [Document(5, list(range(spans[-1][1])), [Turn(1, 0, spans)])]
    assert cut.loss_token_num.tolist() == [loss_token_num]


@given(token_batches(min_documents=1))
def test_no_operation_changes_its_input(batch):
    before = as_documents(batch)
    batch.take(np.arange(batch.num_documents)[::-1])
    concatenate([batch, batch])
    keep_turns(batch, np.arange(batch.num_turns) % 2 == 1)
    keep_loss_tokens_before(batch, 3)
    assert_same_batch(batch, before)
