"""The weights that messages give their turns, in every format of rows."""

import json
from typing import Any

import pytest

from mtpack.input.dialogue import Dialogue, Origin, Reject
from mtpack.input.rows import RowOptions, read_dialogue

ASK = {"role": "user", "content": "Spell cat."}


def read(row: Any, source_weight: float | None = 1.0, **options: Any) -> Dialogue | Reject:
    text = json.dumps(row).encode()
    row_options = RowOptions(source_weight=source_weight)
    return read_dialogue(0, Origin("rows.jsonl", 1), text, 2**20, options=row_options, **options)


def answer(**fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": "C-A-T", **fields}


def read_answers(*answers: dict[str, Any], source_weight: float = 1.0) -> Dialogue | Reject:
    messages = [message for one in answers for message in (ASK, one)]
    return read({"messages": messages}, source_weight)


def test_a_weight_is_kept_in_units_by_the_index_of_its_message():
    dialogue = read_answers(answer(weight=0.5), answer(), answer(loss_weight=2))
    assert dialogue.turn_units == {1: 512, 5: 2048}
    assert not dialogue.untrained
    assert all("weight" not in message for message in dialogue.messages)


def test_a_weight_times_that_of_its_source_is_rounded_once():
    dialogue = read_answers(answer(weight=0.3), answer(), source_weight=0.1)
    assert dialogue.turn_units == {1: 31}  # an answer without a weight has that of the source


def test_weights_of_0_and_1_are_loss_switches():
    dialogue = read_answers(answer(weight=1), answer(weight=0), answer(loss_weight=True))
    assert (dialogue.turn_units, dialogue.untrained) == (None, {3})


def test_a_weight_that_is_rounded_to_0_is_kept_and_its_message_has_no_loss():
    dialogue = read_answers(answer(weight=1e-9), answer(weight=0.001))
    assert (dialogue.turn_units, dialogue.untrained) == ({1: 0, 3: 1}, {1})


def test_a_weight_beside_a_switch_that_agrees_is_taken():
    dialogue = read_answers(answer(weight=0.25, train=True, loss_weight=0.25, masked=False))
    assert dialogue.turn_units == {1: 256}


def test_a_system_message_next_to_the_messages_moves_the_indices():
    dialogue = read({"system": "Be brief.", "messages": [ASK, answer(weight=0.5)]})
    assert dialogue.turn_units == {2: 512}


def test_a_weight_makes_a_message_of_a_prompt_a_turn():
    row = {"prompt": [ASK, answer(weight=0.5), ASK], "completion": [answer()]}
    dialogue = read(row)
    assert (dialogue.turn_units, dialogue.untrained) == ({1: 512}, frozenset())


def test_other_formats_have_weights_too():
    conversations = [
        {"from": "human", "value": "Spell cat."},
        {"from": "gpt", "value": "C-A-T", "weight": 0.5},
    ]
    assert read({"conversations": conversations}).turn_units == {1: 512}


def test_an_answer_and_the_call_after_it_are_one_turn_with_one_weight():
    call = {"role": "tool_call", "content": {"name": "spell", "arguments": {}}}
    same = read({"messages": [ASK, answer(weight=0.5), {**call, "weight": 0.5}]})
    assert same.turn_units == {1: 512}
    other = read({"messages": [ASK, answer(weight=0.5), {**call, "weight": 0.25}]})
    assert "have different weights" in other.detail


@pytest.mark.parametrize(
    ("fields", "detail"),
    [
        ({"weight": -0.5}, '"weight" must be a number from 0 to 16,384'),
        ({"weight": 16385}, '"weight" must be a number from 0 to 16,384'),
        ({"loss_weight": "0.5"}, '"loss_weight" must be a number from 0 to 16,384'),
        ({"weight": [0.5]}, '"weight" must be a number from 0 to 16,384'),
        ({"train": 0.5}, '"train" must be true or false, 1 or 0'),
        ({"loss_mask": 0.5}, '"loss_mask" must be true or false, 1 or 0'),
        ({"weight": 0.5, "train": False}, "train and weight contradict each other"),
        ({"weight": 0.5, "loss_weight": 0.6}, "weight and loss_weight contradict each other"),
        ({"weight": 0.5, "masked": True}, "weight and masked contradict each other"),
    ],
)
def test_what_is_no_weight_is_rejected(fields, detail):
    reject = read_answers(answer(**fields))
    assert (reject.reason, detail in reject.detail) == ("invalid_loss_switch", True)


def test_a_weight_that_its_source_makes_too_large_is_rejected():
    reject = read_answers(answer(weight=16000), source_weight=2.0)
    assert "times that of its source, is above 16,384" in reject.detail


def test_only_answers_have_weights():
    reject = read({"messages": [{**ASK, "weight": 0.5}, answer()]})
    assert "only assistant messages can be trained" in reject.detail


def test_without_the_option_other_weights_are_rejected_and_the_option_is_named():
    reject = read({"messages": [ASK, answer(weight=0.5)]}, source_weight=None)
    assert reject.reason == "invalid_loss_switch"
    assert reject.detail == (
        'message 1 (assistant): "weight" must be 0 or 1; other weights need --turn-weights'
    )
