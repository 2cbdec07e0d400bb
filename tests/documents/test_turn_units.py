"""The turns of a batch get the weights of their messages, by row and message."""

from hypothesis import given
from hypothesis import strategies as st

from mtpack.documents.turn_units import TurnUnits
from mtpack.input.dialogue import Origin, make_dialogue
from tests.support.strategies import as_documents, token_batches

# Rows and messages as those of the batches, and others; in any order.
given_units = st.dictionaries(
    st.sampled_from([0, 1, 2, 7, 8, 9, 2**31]),
    st.dictionaries(st.integers(0, 12), st.integers(0, 2**24), max_size=6),
    max_size=5,
)


def collect(units_of_rows: dict[int, dict[int, int]], default: int) -> TurnUnits:
    collected = TurnUnits(default)
    for row, units in units_of_rows.items():
        messages = [{"role": "assistant", "content": "So."}] * 13
        collected.add(make_dialogue(row, Origin("rows", 1), messages, turn_units=units))
    return collected


@given(token_batches(has_weights=False), given_units, st.sampled_from([1024, 1, 300]))
def test_a_turn_has_the_units_of_its_message_or_those_of_its_source(batch, units_of_rows, default):
    weighed = collect(units_of_rows, default).weigh(batch)
    expected = [
        units_of_rows.get(document.row, {}).get(turn.message, default)
        for document in as_documents(batch)
        for turn in document.turns
    ]
    assert weighed.turn_units.tolist() == expected


@given(given_units)
def test_messages_whose_weight_is_rounded_to_0_are_counted(units_of_rows):
    zeros = [units for row in units_of_rows.values() for units in row.values() if not units]
    assert collect(units_of_rows, 1024).count().weight_too_small == len(zeros)
