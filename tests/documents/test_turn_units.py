"""The turns of a batch get the weights of their messages, by row and message."""

from hypothesis import given
from hypothesis import strategies as st

from mtpack.documents.turn_units import TurnUnits
from mtpack.input.dialogue import Origin, make_dialogue
from mtpack.token_batch import TokenBatch
from tests.support.strategies import as_documents, token_batches

units = st.integers(0, 2**24)


@st.composite
def units_of_rows(draw, batch: TokenBatch) -> dict[int, dict[int, int]]:
    """Draw weights of some turns of a batch and of other messages, with rows in any order."""
    turns = [(one.row, turn.message) for one in as_documents(batch) for turn in one.turns]
    others = [(row, message + 1) for row, message in turns] + [(3, 0), (9, 5)]
    drawn: dict[int, dict[int, int]] = {}
    for row, message in draw(st.permutations(sorted({*turns, *others}))):
        if draw(st.booleans()):
            drawn.setdefault(row, {})[message] = draw(units)
    return drawn


def collect(weights: dict[int, dict[int, int]], default: int) -> TurnUnits:
    collected = TurnUnits(default)
    for row, own in weights.items():
        dialogue = make_dialogue(row, Origin("rows", 1), [{"role": "user", "content": "So."}])
        collected.add(dialogue._replace(turn_units=own))
    return collected


# The rows of a split are numbered from 0, so that there are never more than fit into 32 bits.
batches = token_batches(has_weights=False).filter(lambda batch: (batch.document_rows < 99).all())


@given(st.data(), batches, st.sampled_from([1024, 1, 300]))
def test_a_turn_has_the_units_of_its_message_or_those_of_its_source(data, batch, default):
    weights = data.draw(units_of_rows(batch))
    expected = [
        weights.get(document.row, {}).get(turn.message, default)
        for document in as_documents(batch)
        for turn in document.turns
    ]
    assert collect(weights, default).weigh(batch).turn_units.tolist() == expected


@given(st.data(), batches)
def test_messages_whose_weight_is_rounded_to_0_are_counted(data, batch):
    weights = data.draw(units_of_rows(batch)) | {100: {1: 0, 3: 0}}
    zeros = [own for row in weights.values() for own in row.values() if not own]
    assert collect(weights, 1024).count().weight_too_small == len(zeros)
