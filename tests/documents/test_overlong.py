"""`--overlong`: all documents fit, only `truncate` cuts turns, and no turn is trained twice."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtpack.documents.overlong import apply_overlong_policy, find_needed_seq_len
from mtpack.token_batch import TokenBatch
from tests.support.strategies import (
    Document,
    Turn,
    as_batch,
    as_documents,
    assert_same_batch,
    keep_only,
    token_batches,
)

POLICIES = ("turns", "split", "truncate", "drop", "error")

limits = st.integers(1, 65)
"""The sequence length: some of the drawn documents fit, others do not."""


def render_no_suffix(row: int, message: int) -> None:
    """Render no additional document."""


def render_some_suffixes(row: int, message: int):
    """Render a document of one loss token for two of three turns; the others do not fit."""
    if (row + message) % 3 == 0:
        return None
    return as_batch([suffix(row, message)])


def suffix(row: int, message: int) -> Document:
    return Document(row, [-message - 1], [Turn(message, 0, [(0, 1)])])


def slow_turns(documents: list[Document], seq_len: int) -> list[Document]:
    result = []
    for document in documents:
        result += keep_only(document, [turn for turn in document.turns if turn.end <= seq_len])
    return result


def slow_truncate(documents: list[Document], seq_len: int) -> list[Document]:
    result = []
    for document in documents:
        left = []
        for turn in document.turns:
            positions = [position for position in turn.positions if position < seq_len]
            spans = [(a, min(b, seq_len)) for a, b in turn.spans if a in positions]
            if positions:
                left.append(replace(turn, spans=spans))
        result += keep_only(document, left)
    return result


def slow_drop(documents: list[Document], seq_len: int) -> list[Document]:
    return [document for document in documents if len(document.ids) <= seq_len]


def slow_error(documents: list[Document], seq_len: int) -> list[Document]:
    bad = {document.row for document in documents if len(document.ids) > seq_len}
    return [document for document in documents if document.row not in bad]


def slow_split(documents: list[Document], seq_len: int) -> list[Document]:
    suffixes = []
    for row, turn in turns_of(documents):
        rendered = render_some_suffixes(row, turn.message) if turn.end > seq_len else None
        if rendered is not None:
            (document,) = as_documents(rendered)
            turns = [replace(each, units=turn.units) for each in document.turns]
            suffixes.append(replace(document, turns=turns))
    return slow_turns(documents, seq_len) + suffixes


SLOW_POLICIES = {
    "turns": slow_turns,
    "split": slow_split,
    "truncate": slow_truncate,
    "drop": slow_drop,
    "error": slow_error,
}


def turns_of(documents: list[Document]) -> list[tuple[int, Turn]]:
    """Return (row, turn) for all turns."""
    return [(document.row, turn) for document in documents for turn in document.turns]


def assert_empty(result: TokenBatch) -> None:
    assert (result.num_documents, result.num_turns, len(result.ids)) == (0, 0, 0)


@pytest.mark.parametrize("policy", POLICIES)
@given(batch=token_batches(), seq_len=limits)
def test_every_policy_equals_its_simple_implementation(policy, batch, seq_len):
    result = apply_overlong_policy(batch, seq_len, policy, render_some_suffixes)
    assert_same_batch(result, SLOW_POLICIES[policy](as_documents(batch), seq_len))


@pytest.mark.parametrize("policy", POLICIES)
@given(batch=token_batches(), seq_len=limits)
def test_no_document_is_longer_than_a_sequence(policy, batch, seq_len):
    result = apply_overlong_policy(batch, seq_len, policy, render_some_suffixes)
    for document in as_documents(result):
        assert len(document.ids) <= seq_len
        assert document.turns
        assert len(document.ids) == document.turns[-1].end


@given(token_batches(), limits)
def test_each_turn_is_trained_at_most_once(batch, seq_len):
    before = {(row, turn.message) for row, turn in turns_of(as_documents(batch))}
    for policy in POLICIES:
        turns = turns_of(
            as_documents(apply_overlong_policy(batch, seq_len, policy, render_some_suffixes))
        )
        names = [(row, turn.message) for row, turn in turns]
        assert len(names) == len(set(names))
        assert set(names) <= before


@given(token_batches(), limits)
def test_only_truncate_cuts_a_turn(batch, seq_len):
    whole = turns_of(as_documents(batch))
    for policy in ("turns", "split", "drop", "error"):
        for turn in turns_of(
            as_documents(apply_overlong_policy(batch, seq_len, policy, render_no_suffix))
        ):
            assert turn in whole


@given(token_batches(), limits)
def test_truncate_keeps_exactly_the_loss_tokens_that_fit(batch, seq_len):
    left = {
        (row, turn.message): [position for position in turn.positions if position < seq_len]
        for row, turn in turns_of(as_documents(batch))
    }
    result = apply_overlong_policy(batch, seq_len, "truncate", render_no_suffix)
    found = {(row, turn.message): turn.positions for row, turn in turns_of(as_documents(result))}
    assert found == {name: positions for name, positions in left.items() if positions}
    assert result.loss_token_num.tolist() == [len(positions) for positions in found.values()]


@given(token_batches(), limits)
def test_split_renders_one_suffix_for_each_turn_that_does_not_fit(batch, seq_len):
    rendered = []
    apply_overlong_policy(
        batch, seq_len, "split", lambda row, message: rendered.append((row, message))
    )
    assert rendered == [
        (row, turn.message) for row, turn in turns_of(as_documents(batch)) if turn.end > seq_len
    ]


@given(token_batches(), limits)
def test_split_keeps_every_turn_if_every_suffix_fits(batch, seq_len):
    result = apply_overlong_policy(batch, seq_len, "split", lambda *turn: as_batch([suffix(*turn)]))
    assert result.num_turns == batch.num_turns


@given(token_batches(), limits)
def test_error_rejects_every_row_with_a_document_that_is_too_long(batch, seq_len):
    result = apply_overlong_policy(batch, seq_len, "error", render_no_suffix)
    documents = as_documents(batch)
    missing = {*batch.document_rows.tolist()} - {*result.document_rows.tolist()}
    assert missing == {one.row for one in documents if len(one.ids) > seq_len}


@given(token_batches())
def test_documents_that_fit_do_not_change(batch):
    longest = max(batch.document_lengths.tolist(), default=1)
    for policy in POLICIES:
        assert apply_overlong_policy(batch, longest, policy, render_no_suffix) is batch


@pytest.mark.parametrize("policy", POLICIES)
def test_no_document_may_be_left(policy):
    batch = as_batch([Document(3, [10, 11, 12], [Turn(1, 0, [(2, 3)])])])
    result = apply_overlong_policy(batch, 2, policy, render_no_suffix)
    assert_empty(result)


def test_the_policies_differ_on_the_same_documents():
    """Row 0 has 7 tokens, row 1 a document of 9 and one of 4; a sequence holds 6."""
    early, cut, late = Turn(1, 0, [(1, 3)]), Turn(3, 0, [(5, 7)]), Turn(5, 0, [(8, 9)])
    short = Document(1, [20, 21, 22, 23], [Turn(7, 0, [(1, 4)])])
    batch = as_batch(
        [
            Document(0, list(range(7)), [early, cut]),
            Document(1, list(range(9)), [early, late]),
            short,
        ]
    )

    def after(policy: str) -> tuple[list[Document], int]:
        result = apply_overlong_policy(batch, 6, policy, render_no_suffix)
        return as_documents(result), batch.num_turns - result.num_turns

    heads = [Document(0, [0, 1, 2], [early]), Document(1, [0, 1, 2], [early])]
    truncated = Document(0, [0, 1, 2, 3, 4, 5], [early, Turn(3, 0, [(5, 6)])])
    assert after("turns") == ([*heads, short], 2)
    assert after("split") == ([*heads, short], 2)
    assert after("truncate") == ([truncated, heads[1], short], 1)
    assert after("drop") == ([short], 4)
    assert after("error") == ([], 5)


@pytest.mark.parametrize("policy", POLICIES)
@given(batch=token_batches())
def test_the_needed_sequence_length_is_the_smallest_with_which_a_turn_is_kept(policy, batch):
    needed = find_needed_seq_len(batch, policy)
    if needed is None:
        assert not batch.num_turns
        return
    assert apply_overlong_policy(batch, needed, policy, render_no_suffix).num_turns
    assert_empty(apply_overlong_policy(batch, needed - 1, policy, render_no_suffix))
