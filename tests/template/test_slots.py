"""An answer about texts with slots is the answer for all texts that may fill them."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtpack.template.slots import (
    SLOT,
    UndecidedError,
    ends_in,
    find_common_length,
    has_text_between,
    make_slot,
    slot_number,
    starts_with,
    strip_end,
)
from tests.conftest import examples

ENDINGS = ("<e>", "e><e>", "好")
LITERALS = st.sampled_from(["a", "<e>", "<", "e>", " ", "\n", "好"])
SLOTS = st.sampled_from([make_slot(number) for number in range(3)])
texts_with_slots = st.lists(LITERALS | SLOTS, max_size=8).map("".join)
fillings = st.lists(st.lists(LITERALS, max_size=3).map("".join), min_size=3, max_size=3)


def fill(text: str, filling: list[str]) -> str:
    return SLOT.sub(lambda slot: filling[slot_number(slot[0])], text)


def assert_valid_for(filling: list[str], question: Callable, *texts: str) -> None:
    """Assert that the answer about texts with slots, if any, is right for the filled texts."""
    try:
        answer = question(*texts)
    except UndecidedError:
        return
    filled = [fill(text, filling) for text in texts]
    expected = fill(answer, filling) if isinstance(answer, str) else answer
    assert question(*filled) == expected


@settings(max_examples=examples(2000))
@given(shared=texts_with_slots, one=texts_with_slots, other=texts_with_slots, filling=fillings)
def test_an_answer_about_slots_is_right_for_all_texts_that_fill_them(shared, one, other, filling):
    assert_valid_for(filling, starts_with, shared + one, shared + other)
    assert_valid_for(filling, starts_with, shared + one, shared)
    assert_valid_for(filling, strip_end, shared)
    assert_valid_for(filling, lambda text: ends_in(text, ENDINGS), shared)

    def has_text_in_the_middle(*parts: str) -> bool:
        before, middle, _ = parts
        return has_text_between("".join(parts), len(before), len(before) + len(middle))

    assert_valid_for(filling, has_text_in_the_middle, one, shared, other)


def test_an_answer_that_no_slot_changes_is_given():
    slot = make_slot(0)
    assert starts_with(f"a{slot}b", f"a{slot}")
    assert not starts_with(f"a{slot}b", "c")
    assert not starts_with("a", f"a{slot}<e>")  # the slot may be empty, but not what follows it
    assert ends_in(f"{slot}<e>", ENDINGS)
    assert not ends_in(f"{slot}a", ENDINGS)
    assert strip_end(f"{slot}a \n") == f"{slot}a"
    assert has_text_between(f"{slot}a", 0, 2)
    assert not has_text_between(slot, 1, 1)
    for undecided in (
        lambda: starts_with(f"a{slot}", "ab"),
        lambda: starts_with("a", f"a{slot}"),
        lambda: ends_in(f"{slot}>", ENDINGS),
        lambda: strip_end(f"a{slot} "),
        lambda: has_text_between(slot, 0, 1),
    ):
        with pytest.raises(UndecidedError):
            undecided()


@given(one=st.text("ab"), other=st.text("ab"))
def test_the_common_length_is_that_of_the_longest_common_prefix(one, other):
    common = find_common_length(one, other)
    assert one[:common] == other[:common]
    assert one[common : common + 1] != other[common : common + 1] or common == len(one) == len(
        other
    )
