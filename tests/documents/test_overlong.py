"""What `--overlong` leaves: nothing longer than a sequence, no turn cut unasked, none uncounted."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtpack.documents.overlong import OverlongResult, apply_overlong_policy
from tests.support.strategies import (
    Document,
    Turn,
    as_batch,
    as_documents,
    assert_same_batch,
    token_batches,
    up_to,
)

DROPPED = "turns_dropped.overlong"
POLICIES = ("turns", "split", "truncate", "drop", "error")

limits = st.integers(1, 65)
"""The sequence length: of the documents drawn, some fit, some don't."""


def no_piece(row: int, message: int) -> None:
    """Make no further document."""


def some_pieces(row: int, message: int):
    """Make a document of one token with loss for two turns of three; the others can't fit alone."""
    if (row + message) % 3 == 0:
        return None
    return as_batch([piece(row, message)])


def piece(row: int, message: int) -> Document:
    return Document(row, [-message - 1], [Turn(message, 0, [(0, 1)])])


def slow_turns(documents: list[Document], seq_len: int) -> list[Document]:
    result = []
    for document in documents:
        result += up_to(document, [turn for turn in document.turns if turn.end <= seq_len])
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
        result += up_to(document, left)
    return result


def slow_drop(documents: list[Document], seq_len: int) -> list[Document]:
    return [document for document in documents if len(document.ids) <= seq_len]


def slow_error(documents: list[Document], seq_len: int) -> list[Document]:
    bad = {document.row for document in documents if len(document.ids) > seq_len}
    return [document for document in documents if document.row not in bad]


def slow_split(documents: list[Document], seq_len: int) -> list[Document]:
    too_long = [
        (document.row, turn.message)
        for document in documents
        for turn in document.turns
        if turn.end > seq_len
    ]
    made = [some_pieces(*turn) for turn in too_long]
    pieces = [as_documents(one)[0] for one in made if one is not None]
    return slow_turns(documents, seq_len) + pieces


SLOW_TWINS = {
    "turns": slow_turns,
    "split": slow_split,
    "truncate": slow_truncate,
    "drop": slow_drop,
    "error": slow_error,
}


def turns_of(documents: list[Document]) -> list[tuple[int, Turn]]:
    """(row, turn) of all documents."""
    return [(document.row, turn) for document in documents for turn in document.turns]


def assert_empty(fitted: OverlongResult) -> None:
    assert (fitted.batch.num_documents, fitted.batch.num_turns, len(fitted.batch.ids)) == (0, 0, 0)


@pytest.mark.parametrize("policy", POLICIES)
@given(batch=token_batches(), seq_len=limits)
def test_every_policy_does_what_its_obvious_twin_does(policy, batch, seq_len):
    fitted = apply_overlong_policy(batch, seq_len, policy, some_pieces)
    assert_same_batch(fitted.batch, SLOW_TWINS[policy](as_documents(batch), seq_len))


@pytest.mark.parametrize("policy", POLICIES)
@given(batch=token_batches(), seq_len=limits)
def test_nothing_longer_than_a_sequence_is_left(policy, batch, seq_len):
    fitted = apply_overlong_policy(batch, seq_len, policy, some_pieces)
    for document in as_documents(fitted.batch):
        assert len(document.ids) <= seq_len
        assert document.turns
        assert len(document.ids) == document.turns[-1].end


@pytest.mark.parametrize("policy", POLICIES)
@given(batch=token_batches(), seq_len=limits)
def test_every_turn_is_kept_or_counted_as_dropped_or_its_row_is_rejected(policy, batch, seq_len):
    fitted = apply_overlong_policy(batch, seq_len, policy, some_pieces)
    rejected = [row for row, _ in turns_of(as_documents(batch)) if row in fitted.rejected_rows]
    assert set(fitted.counts) <= {DROPPED}
    assert batch.num_turns == fitted.batch.num_turns + fitted.counts[DROPPED] + len(rejected)


@given(token_batches(), limits)
def test_each_turn_is_trained_at_most_once(batch, seq_len):
    there = {(row, turn.message) for row, turn in turns_of(as_documents(batch))}
    for policy in POLICIES:
        turns = turns_of(
            as_documents(apply_overlong_policy(batch, seq_len, policy, some_pieces).batch)
        )
        names = [(row, turn.message) for row, turn in turns]
        assert len(names) == len(set(names))
        assert set(names) <= there


@given(token_batches(), limits)
def test_only_truncate_cuts_a_turn(batch, seq_len):
    whole = turns_of(as_documents(batch))
    for policy in ("turns", "split", "drop", "error"):
        for turn in turns_of(
            as_documents(apply_overlong_policy(batch, seq_len, policy, no_piece).batch)
        ):
            assert turn in whole


@given(token_batches(), limits)
def test_truncate_keeps_the_loss_tokens_that_fit_and_counts_those(batch, seq_len):
    left = {
        (row, turn.message): [position for position in turn.positions if position < seq_len]
        for row, turn in turns_of(as_documents(batch))
    }
    fitted = apply_overlong_policy(batch, seq_len, "truncate", no_piece)
    found = {
        (row, turn.message): turn.positions for row, turn in turns_of(as_documents(fitted.batch))
    }
    assert found == {name: positions for name, positions in left.items() if positions}
    assert fitted.batch.loss_token_num.tolist() == [len(positions) for positions in found.values()]
    assert fitted.counts[DROPPED] == sum(not positions for positions in left.values())


@given(token_batches(), limits)
def test_split_asks_for_each_turn_that_does_not_fit_once(batch, seq_len):
    asked = []
    apply_overlong_policy(
        batch, seq_len, "split", lambda row, message: asked.append((row, message))
    )
    assert asked == [
        (row, turn.message) for row, turn in turns_of(as_documents(batch)) if turn.end > seq_len
    ]


@given(token_batches(), limits)
def test_split_trains_every_turn_if_every_piece_fits(batch, seq_len):
    fitted = apply_overlong_policy(batch, seq_len, "split", lambda *turn: as_batch([piece(*turn)]))
    assert fitted.batch.num_turns == batch.num_turns
    assert not fitted.counts[DROPPED]


@given(token_batches(), limits)
def test_error_rejects_all_documents_of_the_rows_with_one_that_is_too_long(batch, seq_len):
    fitted = apply_overlong_policy(batch, seq_len, "error", no_piece)
    documents = as_documents(batch)
    assert fitted.rejected_rows == {one.row for one in documents if len(one.ids) > seq_len}
    assert not fitted.counts[DROPPED]


@given(token_batches(), limits)
def test_only_error_rejects_rows(batch, seq_len):
    for policy in ("turns", "split", "truncate", "drop"):
        assert not apply_overlong_policy(batch, seq_len, policy, no_piece).rejected_rows


@given(token_batches())
def test_documents_that_fit_are_left_alone(batch):
    longest = max(batch.document_lengths.tolist(), default=1)
    for policy in POLICIES:
        fitted = apply_overlong_policy(batch, longest, policy, no_piece)
        assert_same_batch(fitted.batch, as_documents(batch))
        assert (+fitted.counts, fitted.rejected_rows) == ({}, set())


@pytest.mark.parametrize("policy", POLICIES)
def test_a_run_may_be_left_with_nothing(policy):
    batch = as_batch([Document(3, [10, 11, 12], [Turn(1, 0, [(2, 3)])])])
    fitted = apply_overlong_policy(batch, 2, policy, no_piece)
    assert_empty(fitted)
    assert fitted.counts[DROPPED] == (0 if policy == "error" else 1)
    assert fitted.rejected_rows == ({3} if policy == "error" else set())


def test_the_policies_side_by_side():
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
        fitted = apply_overlong_policy(batch, 6, policy, no_piece)
        return as_documents(fitted.batch), fitted.counts[DROPPED]

    heads = [Document(0, [0, 1, 2], [early]), Document(1, [0, 1, 2], [early])]
    truncated = Document(0, [0, 1, 2, 3, 4, 5], [early, Turn(3, 0, [(5, 6)])])
    assert after("turns") == ([*heads, short], 2)
    assert after("split") == ([*heads, short], 2)
    assert after("truncate") == ([truncated, heads[1], short], 1)
    assert after("drop") == ([short], 4)
    assert after("error") == ([], 0)
