"""Counts add up, and every fact about a turn has its count."""

from dataclasses import fields

from mtpack.counts import Counts
from mtpack.token_batch import TurnFlag
from tests.support.strategies import Document, Turn, as_batch


def test_counts_add_up_by_reason_and_reasons_without_a_number_go():
    one = Counts(rows_read=3, rows_dropped={"no_turn": 1}, turns_dropped={"overlong": 0})
    other = Counts(rows_read=4, rows_dropped={"no_turn": 2, "a_reason": 5})
    both = one + other
    assert both == Counts(rows_read=7, rows_dropped={"a_reason": 5, "no_turn": 3})
    assert list(both.rows_dropped) == ["a_reason", "no_turn"]


def test_every_flag_of_a_turn_has_one_count():
    flags = [field.metadata["flag"] for field in fields(Counts) if field.metadata.get("flag")]
    assert sorted(flags) == sorted(TurnFlag)


def test_a_batch_is_counted_with_the_flags_of_its_turns():
    flags = TurnFlag.BENT | TurnFlag.NO_EOT
    turns = [Turn(1, 0, [(1, 3)]), Turn(3, flags, [(4, 5)]), Turn(5, TurnFlag.NO_EOT, [(6, 8)])]
    found = Counts.of(as_batch([Document(0, list(range(9)), turns)]))
    assert found == Counts(documents=1, turns_packed=3, tokens=9, loss_tokens=5, bent=1, no_eot=2)
