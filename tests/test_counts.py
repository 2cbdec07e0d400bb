"""Counts add up, and every fact about a turn has its count."""

from collections import Counter
from dataclasses import fields
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from mtpack.counts import OTHER_KEYS, Counts
from mtpack.token_batch import TurnFlag
from tests.support.strategies import Document, Turn, as_batch


def test_counts_add_up_by_reason_and_reasons_without_a_number_go():
    one = Counts(rows_read=3, rows_dropped={"no_turn": 1}, turns_dropped={"overlong": 0})
    other = Counts(rows_read=4, rows_dropped={"no_turn": 2, "a_reason": 5})
    both = one + other
    assert both == Counts(rows_read=7, rows_dropped={"a_reason": 5, "no_turn": 3})
    assert list(both.rows_dropped) == ["a_reason", "no_turn"]


@given(st.integers(0, 2**32))
def test_names_of_rows_add_up_to_the_same_hundred_in_any_order(seed):
    random = Random(seed)
    names = ["".join(random.choices("ab", k=random.randint(1, 8))) for _ in range(300)]
    parts = [Counter(random.sample(names, random.randint(1, 200))) for _ in range(4)]
    counts = [Counts(never_read=part) for part in parts]
    whole = sum(counts, Counts())
    random.shuffle(counts)
    assert sum(counts[1:], Counts()) + (counts[0] + Counts()) == whole
    numbers = sum(parts, Counter())
    kept = {name: number for name, number in whole.never_read.items() if name != OTHER_KEYS}
    assert len(kept) == min(100, len(numbers))
    assert kept.items() <= numbers.items()
    assert sum(whole.never_read.values()) == numbers.total()


def test_short_names_are_kept_since_long_ones_are_rarely_names_of_fields():
    ids = {f"a{number:03}-{number}": 5 for number in range(200)}
    found = Counts(never_read=ids) + Counts(never_read={"system": 1})
    assert found.never_read["system"] == 1
    assert found.never_read[OTHER_KEYS] == 5 * 101


def test_every_flag_of_a_turn_has_one_count():
    flags = [field.metadata["flag"] for field in fields(Counts) if field.metadata.get("flag")]
    assert sorted(flags) == sorted(TurnFlag)


def test_a_batch_is_counted_with_the_flags_of_its_turns():
    flags = TurnFlag.BENT | TurnFlag.NO_EOT
    turns = [Turn(1, 0, [(1, 3)]), Turn(3, flags, [(4, 5)]), Turn(5, TurnFlag.NO_EOT, [(6, 8)])]
    found = Counts.of(as_batch([Document(0, list(range(9)), turns)]))
    assert found == Counts(documents=1, turns_packed=3, tokens=9, loss_tokens=5, bent=1, no_eot=2)
