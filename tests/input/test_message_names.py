"""Roles, keys, calls and reasonings have one meaning under all their names, in every format."""

import json

import pytest

from mtpack.input.dialogue import Dialogue, Origin, Reason, Reject
from mtpack.input.message import ROLE_NAMES
from mtpack.input.rows import read_dialogue

USER = {"role": "user", "content": "Hello"}
ANSWER = {"role": "assistant", "content": "Hi"}
CALL = {"name": "add", "arguments": {"a": 1}}
TOOL_CALL = {"type": "function", "function": CALL}
RESULT = {"role": "tool", "content": "3"}
REASONED = {"thinking": "easy", **ANSWER, "reasoning_content": "easy"}


def read(row) -> Dialogue | Reject:
    return read_dialogue(0, Origin("rows.jsonl", 1), json.dumps(row).encode(), 2**20)


def read_messages(*messages) -> Dialogue:
    dialogue = read({"messages": list(messages)})
    assert isinstance(dialogue, Dialogue), dialogue
    assert dialogue == read({"conversations": list(messages)})
    return dialogue


def refuse(*messages) -> tuple[Reason, str]:
    reject = read({"messages": list(messages)})
    assert isinstance(reject, Reject), reject
    return reject.reason, reject.detail


# Roles and keys


@pytest.mark.parametrize("name", [name for name in ROLE_NAMES if not name.endswith("_call")])
def test_a_role_may_have_any_of_its_names_in_any_case_under_either_key(name):
    expected = [{"role": ROLE_NAMES[name], "content": "Hello"}]
    for written in (name, name.upper(), name.capitalize()):
        for key in ("role", "from"):
            for text_key in ("content", "value"):
                assert read_messages({key: written, text_key: "Hello"}).messages == expected


def test_names_that_contradict_each_other_are_refused():
    reason, detail = refuse({**USER, "from": "gpt"})
    assert (reason, detail) == (
        Reason.INVALID_MESSAGE,
        'message 0: "from" and "role" have different values; keep one of them',
    )
    reason, detail = refuse({**USER, "from": "human", "value": "Bye"})
    assert (reason, detail) == (
        Reason.INVALID_MESSAGE,
        'message 0: "value" and "content" have different values; keep one of them',
    )
    assert read_messages({**USER, "from": "human", "value": "Hello"}).messages == [USER]


def test_a_second_name_that_means_something_else_is_an_unread_key():
    message = {**USER, "from": "the web", "value": 0.7}
    dialogue = read_messages(message)
    assert dialogue.messages == [message]
    assert dialogue.unread == ("messages.from", "messages.value")


def test_a_message_may_be_json_text():
    assert read_messages(json.dumps(USER), ANSWER).messages == [USER, ANSWER]
    assert refuse("{")[0] == Reason.INVALID_MESSAGE


# Tool calls


def test_calls_are_read_under_each_of_their_names():
    expected = [{**ANSWER, "tool_calls": [TOOL_CALL]}]
    for calls in ([TOOL_CALL], TOOL_CALL, json.dumps([TOOL_CALL]), [json.dumps(TOOL_CALL)]):
        assert read_messages({**ANSWER, "tool_calls": calls}).messages == expected
    for call in (CALL, json.dumps(CALL), {**CALL, "arguments": '{"a": 1}'}):
        assert read_messages({**ANSWER, "function_call": call}).messages == expected
    assert refuse({**ANSWER, "function_call": CALL, "tool_calls": [TOOL_CALL]}) == (
        Reason.INVALID_TOOL_CALLS,
        "message 0 (assistant): tool calls in two places; keep one of them",
    )


def call_message(**more) -> dict:
    return {"role": "tool_call", "content": json.dumps(CALL), **more}


def test_an_assistant_message_and_the_calls_after_it_are_one_message():
    dialogue = read_messages(USER, ANSWER, call_message(), call_message(), RESULT, RESULT, ANSWER)
    assert dialogue.roles == ("user", "assistant", "tool", "tool", "assistant")
    assert dialogue.messages[1] == {**ANSWER, "tool_calls": [TOOL_CALL, TOOL_CALL]}
    assert dialogue.trained_messages() == [1, 4]


def test_a_call_message_may_be_written_as_a_tool_call_and_have_no_arguments():
    for call in (TOOL_CALL, [TOOL_CALL], json.dumps(TOOL_CALL)):
        message = {"role": "tool_call", "content": call}
        assert read_messages(message).messages[0]["tool_calls"] == [TOOL_CALL]
    [call] = read_messages({"role": "tool_call", "content": '{"name": "f"}'}).messages[0][
        "tool_calls"
    ]
    assert call == {"type": "function", "function": {"name": "f", "arguments": {}}}


def test_calls_without_a_text_before_them_are_one_message():
    dialogue = read_messages(USER, call_message(), call_message(), RESULT)
    assert dialogue.messages[1] == {**ANSWER, "content": "", "tool_calls": [TOOL_CALL, TOOL_CALL]}


def test_an_answer_after_a_call_and_a_second_answer_are_messages_of_their_own():
    assert read_messages(call_message(), ANSWER).roles == ("assistant", "assistant")
    assert read_messages(ANSWER, ANSWER).roles == ("assistant", "assistant")


def test_later_messages_keep_their_numbers_in_errors_and_their_loss_switches():
    dialogue = read_messages(USER, ANSWER, call_message(), USER, {**ANSWER, "loss": False})
    assert dialogue.untrained == {3}
    assert refuse(ANSWER, call_message(), {"role": "user"})[1].startswith("message 2 (user): ")


@pytest.mark.parametrize(
    ("first", "second"),
    [({"loss": True}, {"loss": False}), ({}, {"loss": 0}), ({"masked": 1}, {}), ({"loss": 0}, {})],
)
def test_loss_switches_of_one_message_that_contradict_each_other_are_refused(first, second):
    reason, detail = refuse({**ANSWER, **first}, call_message(**second))
    assert reason == Reason.INVALID_LOSS_SWITCH
    assert detail == (
        "message 1 (tool_call): it is one message with the assistant message before it, "
        "but one of them is trained and the other is not"
    )


def test_equal_loss_switches_of_one_message_are_its_loss_switch():
    for switch in ({"loss": False}, {"masked": True}):
        assert read_messages({**ANSWER, **switch}, call_message(loss=0)).untrained == {0}


# Loss switches


@pytest.mark.parametrize(
    "name",
    [
        *("train", "loss", "trainable", "training"),
        *("weight", "loss_weight", "loss_mask", "step_loss_mask"),
    ],
)
def test_loss_switches_of_other_tools_are_true_or_false_or_one_or_zero(name):
    for value in (True, 1, 1.0):
        assert read_messages(USER, {**ANSWER, name: value}).trained_messages() == [1]
    for value in (False, 0, 0.0):
        assert read_messages(USER, {**ANSWER, name: value}).trained_messages() == []
    assert refuse({**USER, name: 1})[0] == Reason.INVALID_LOSS_SWITCH
    assert refuse({**ANSWER, name: 1, "masked": 1})[0] == Reason.INVALID_LOSS_SWITCH


def test_a_masked_message_has_no_loss():
    for value in (True, 1):
        assert read_messages(USER, {**ANSWER, "masked": value}).trained_messages() == []
        assert read_messages({**USER, "masked": value}, ANSWER).messages == [USER, ANSWER]
    for value in (False, 0):
        assert read_messages(USER, {**ANSWER, "masked": value}).trained_messages() == [1]
        assert read_messages({**USER, "masked": value}, ANSWER).trained_messages() == [1]


# Reasoning


def test_a_reasoning_is_read_under_each_of_its_names():
    for name in ("reasoning_content", "thinking", "reasoning"):
        message = read_messages({**ANSWER, name: "easy"}).messages[0]
        assert (message["thinking"], message["reasoning_content"]) == ("easy", "easy")
    for kind, key in (("reasoning.text", "text"), ("reasoning.summary", "summary")):
        details = [{"type": kind, key: "easy", "index": 0}]
        assert read_messages({**ANSWER, "reasoning_details": details}).messages == [REASONED]


def test_thinking_parts_that_open_a_content_are_its_reasoning():
    text = {"type": "text", "text": "Hi"}
    for thinking in ("easy", [{"type": "text", "text": "easy"}]):
        part = {"type": "thinking", "thinking": thinking, "signature": "x"}
        message = {"role": "assistant", "content": [part, text]}
        assert read_messages(message).messages == [{**REASONED, "content": [text]}]
        assert read_messages({"role": "assistant", "content": [part]}).messages == [
            {**REASONED, "content": ""}
        ]
        assert refuse({"role": "assistant", "content": [text, part]})[0] == Reason.INVALID_CONTENT
        assert refuse({**message, "reasoning": "hard"})[0] == Reason.INVALID_CONTENT
        assert refuse({"role": "user", "content": [part]})[0] == Reason.INVALID_CONTENT


@pytest.mark.parametrize(
    "details",
    [
        "easy",
        ["easy"],
        [{"type": "reasoning.encrypted", "data": "e"}],
        [{"type": "reasoning.text"}],
    ],
    ids=str,
)
def test_reasoning_details_that_hold_no_text_are_refused(details):
    assert refuse({**ANSWER, "reasoning_details": details})[0] == Reason.INVALID_CONTENT


def test_reasoning_details_next_to_their_text_are_read():
    details = [{"type": "reasoning.text", "text": part, "index": 0} for part in ("ea", "sy")]
    dialogue = read_messages({**ANSWER, "reasoning": "easy", "reasoning_details": details})
    assert dialogue.messages[0]["reasoning_content"] == "easy"
    assert dialogue.unread == ()


@pytest.mark.parametrize(
    "detail",
    [{"type": "reasoning.encrypted", "data": "e"}, {"type": "reasoning.text", "text": "?"}],
)
def test_reasoning_details_that_add_something_are_an_unread_key(detail):
    dialogue = read_messages({**ANSWER, "reasoning": "easy", "reasoning_details": [detail]})
    assert dialogue.messages[0]["reasoning_content"] == "easy"
    assert dialogue.unread[0] == "messages.reasoning_details"


def test_a_second_reasoning_that_differs_is_an_unread_key():
    dialogue = read_messages({**ANSWER, "reasoning": "hard", "thinking": "easy"})
    assert dialogue.messages[0]["reasoning_content"] == "easy"
    assert dialogue.unread == ("messages.reasoning",)


# Keys without a meaning


def test_keys_without_a_meaning_are_listed_once_each():
    part = {"type": "text", "text": "Hello", "cache": 1}
    call = {**TOOL_CALL, "function": {**CALL, "strict": 1}, "index": 0, "id": "c1"}
    dialogue = read_messages(
        {**USER, "mood": "good", "name": "Ann", "note": None},
        {**USER, "mood": "bad", "content": [part, part]},
        {**ANSWER, "tool_calls": [call]},
        {**RESULT, "tool_call_id": "c1", "name": "add"},
    )
    assert dialogue.unread == (
        "messages.mood",
        "messages.content.cache",
        "messages.tool_calls.index",
        "messages.tool_calls.function.strict",
    )
    assert dialogue.messages[0] == {**USER, "mood": "good", "name": "Ann"}
