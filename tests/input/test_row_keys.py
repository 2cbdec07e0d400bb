"""The keys next to the messages of a row are read in every format, refused, or unread."""

import json

import pytest

from mtpack.input.dialogue import Dialogue, Origin, Reason, Reject
from mtpack.input.rows import RowOptions, read_dialogue

USER = {"role": "user", "content": "Hello"}
ANSWER = {"role": "assistant", "content": "Hi"}
SYSTEM = {"role": "system", "content": "Be brief."}
FUNCTION = {"name": "add", "parameters": {"type": "object"}}
TOOL = {"type": "function", "function": FUNCTION}
OTHER_TOOL = {"type": "function", "function": {"name": "sub"}}
ROWS = [
    {"messages": [USER, ANSWER]},
    {"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}]},
    {"prompt": "Hello", "completion": "Hi"},
    {"instruction": "Hello", "output": "Hi"},
]
in_every_format = pytest.mark.parametrize("row", ROWS, ids=lambda row: next(iter(row)))


def read(row, messages_key: str | None = None) -> Dialogue | Reject:
    options = RowOptions(messages_key=messages_key)
    text = json.dumps(row).encode()
    row_format = None if messages_key is None else "messages"
    return read_dialogue(0, Origin("rows.jsonl", 1), text, 2**20, row_format, options)


def dialogue_of(row, messages_key: str | None = None) -> Dialogue:
    dialogue = read(row, messages_key)
    assert isinstance(dialogue, Dialogue), dialogue
    return dialogue


def refuse(row, messages_key: str | None = None) -> tuple[Reason, str]:
    reject = read(row, messages_key)
    assert isinstance(reject, Reject), reject
    return reject.reason, reject.detail


@in_every_format
def test_a_system_text_is_the_first_message(row):
    dialogue = dialogue_of({**row, "system": "Be brief."})
    assert dialogue.messages == [SYSTEM, USER, ANSWER]
    assert dialogue.trained_messages() == [2]
    assert dialogue_of({**row, "system": ""}) == dialogue_of({**row, "system": None})
    assert refuse({**row, "system": ["Be brief."]})[0] == Reason.INVALID_ROW


def test_a_system_text_may_repeat_the_first_message_but_not_differ_from_it():
    row = {"messages": [SYSTEM, USER, ANSWER]}
    assert dialogue_of({**row, "system": "Be brief."}) == dialogue_of(row)
    assert refuse({**row, "system": "Be long."}) == (
        Reason.INVALID_ROW,
        'the row has a "system", and its messages begin with another system message; '
        "keep one of them",
    )


@in_every_format
@pytest.mark.parametrize(
    "written",
    [
        {"tools": [TOOL]},
        {"tools": TOOL},
        {"tools": json.dumps([TOOL])},
        {"tools": json.dumps(TOOL)},
        {"tools": [json.dumps(TOOL)]},
        {"functions": [FUNCTION]},
        {"functions": json.dumps([FUNCTION])},
        {"functions": [TOOL], "tools": [TOOL]},
    ],
    ids=str,
)
def test_tools_are_read_under_each_of_their_names(row, written):
    dialogue = dialogue_of({**row, **written})
    assert (dialogue.tools, dialogue.unread) == ([TOOL], ())


@pytest.mark.parametrize("key", ["tools", "functions"])
def test_the_tools_of_a_system_message_are_those_of_the_row(key):
    for written in ([TOOL], json.dumps([TOOL])):
        row = {"messages": [{**SYSTEM, key: written}, USER, ANSWER]}
        assert dialogue_of(row) == dialogue_of(
            {"messages": [SYSTEM, USER, ANSWER], "tools": [TOOL]}
        )
        assert dialogue_of({**row, "tools": [TOOL]}).tools == [TOOL]
        assert refuse({**row, "tools": [OTHER_TOOL]}) == (
            Reason.INVALID_TOOLS,
            "the row has different tools in several places",
        )


@in_every_format
def test_a_row_may_set_variables_of_the_template(row):
    args = {"enable_thinking": False, "documents": [{"title": "A"}], "none": None}
    expected = {"enable_thinking": False, "documents": [{"title": "A"}]}
    for written in (args, json.dumps(args)):
        assert dialogue_of({**row, "chat_template_kwargs": written}).template_args == expected
    switch = {"enable_thinking": False}
    assert dialogue_of({**row, **switch}).template_args == switch
    assert dialogue_of({**row, **switch, "chat_template_kwargs": switch}).template_args == switch
    assert dialogue_of({**row, "chat_template_kwargs": {}}).template_args is None


@pytest.mark.parametrize(
    "keys",
    [
        {"enable_thinking": "no"},
        {"enable_thinking": 0},
        {"chat_template_kwargs": "no"},
        {"chat_template_kwargs": [1]},
        {"chat_template_kwargs": {"messages": []}},
        {"chat_template_kwargs": {"tools": []}},
        {"chat_template_kwargs": {"add_generation_prompt": True}},
        {"chat_template_kwargs": {"not a name": 1}},
        {"chat_template_kwargs": {"enable_thinking": True}, "enable_thinking": False},
    ],
    ids=str,
)
def test_variables_that_a_row_can_not_set_are_refused(keys):
    assert refuse({**ROWS[0], **keys})[0] == Reason.INVALID_ROW


# Rows that must not be trained as they are


@in_every_format
@pytest.mark.parametrize("key", ["rejected", "rejected_response", "rejected_messages"])
def test_a_row_with_a_rejected_answer_is_refused(row, key):
    for value in ("Go away", [ANSWER]):
        assert refuse({**row, key: value})[0] == Reason.PREFERENCE_ROW
    for value in (None, "", [], False):
        assert isinstance(read({**row, key: value}), Dialogue)


def test_the_refusal_of_a_preference_row_says_what_to_do():
    row = {"prompt": [USER], "chosen": [ANSWER], "rejected": [ANSWER]}
    assert refuse(row) == (
        Reason.PREFERENCE_ROW,
        'the row has "chosen" and "rejected": it compares answers, so mtpack can\'t train it; keep '
        'the answer to train as "completion", or name the messages to train with --messages-key',
    )
    assert dialogue_of({"completion": [ANSWER], "prompt": [USER]}).messages == [USER, ANSWER]


@in_every_format
@pytest.mark.parametrize("key", ["label", "kto_tag"])
def test_a_row_that_is_a_bad_example_is_refused_and_a_good_one_is_read(row, key):
    assert refuse({**row, key: False}) == (
        Reason.PREFERENCE_ROW,
        f'"{key}" is false: the answer is a bad example (KTO), so it is not trained; '
        "remove such rows",
    )
    assert dialogue_of({**row, key: True}).unread == ()
    assert dialogue_of({**row, key: "sports"}).unread == (key,)


@pytest.mark.parametrize(
    ("key", "placeholder"),
    [
        *(("images", "<image>"), ("videos", "<video>"), ("audios", "<audio>")),
        *(("image", "<image>"), ("video", "<video>"), ("audio", "<audio>")),
    ],
)
def test_media_next_to_placeholders_are_refused(key, placeholder):
    text = f"{placeholder}What is this?"
    for content in (text, [{"type": "text", "text": text}]):
        row = {"messages": [{"role": "user", "content": content}, ANSWER]}
        assert refuse({**row, key: ["a"]}) == (
            Reason.MEDIA_ROW,
            f'the row has "{key}" and {placeholder} in its text; mtpack packs text only',
        )
        assert isinstance(read(row), Dialogue)
        assert isinstance(read({**row, key: []}), Dialogue)
    assert dialogue_of({**ROWS[0], key: "a.png"}).unread == (key,)


# Keys without a meaning


@in_every_format
def test_other_keys_of_a_row_are_listed_as_unread(row):
    dialogue = dialogue_of({**row, "id": 5, "meta": {"a": 1}, "score": None, "tags": []})
    assert dialogue.unread == ("id", "meta", "tags")
    assert dialogue._replace(unread=()) == dialogue_of(row)


def test_keys_of_another_format_are_unread():
    assert dialogue_of({**ROWS[0], "prompt": "Hello", "input": ""}).unread == ("prompt", "input")
    assert dialogue_of({**ROWS[3], "text": "Hello Hi"}).unread == ("text",)


# --messages-key


def test_messages_are_found_under_the_key_that_the_user_names():
    expected = dialogue_of(ROWS[0])
    for messages in ([USER, ANSWER], json.dumps([USER, ANSWER])):
        assert dialogue_of({"dialog": messages}, "dialog") == expected
        assert dialogue_of({"data": {"messages": messages}}, "data.messages") == expected
        assert dialogue_of({"a": {"b": {"c": messages}}}, "a.b.c") == expected
        assert dialogue_of({"data.messages": messages}, "data.messages") == expected
    text = json.dumps({"messages": [USER, ANSWER]})
    assert dialogue_of({"data": text}, "data.messages") == expected


def test_keys_next_to_nested_messages_belong_to_the_row():
    inner = {"turns": [USER, ANSWER], "tools": [TOOL], "source": "web"}
    dialogue = dialogue_of({"data": inner, "system": "Be brief.", "id": 1}, "data.turns")
    assert dialogue.messages == [SYSTEM, USER, ANSWER]
    assert dialogue.tools == [TOOL]
    assert dialogue.unread == ("id", "data.source")
    assert refuse({"data": inner, "tools": [OTHER_TOOL]}, "data.turns")[0] == Reason.INVALID_ROW


def test_the_messages_that_a_user_names_may_be_those_of_a_preference_row():
    row = {"chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}
    dialogue = dialogue_of(row, "chosen")
    assert (dialogue.messages, dialogue.unread) == ([USER, ANSWER], ("rejected",))


@pytest.mark.parametrize(
    ("row", "end"),
    [
        ({"dialog": [USER]}, 'its keys are "dialog"'),
        ({}, "it has no keys"),
        ({str(number): 1 for number in range(20)}, '"9", "10", "11", ...'),
        ([USER], "the row must be an object, found a list"),
    ],
    ids=str,
)
def test_a_row_without_the_named_key_is_refused_with_its_keys(row, end):
    reason, detail = refuse(row, "data.turns")
    assert reason == Reason.INVALID_ROW
    assert detail.startswith('the row has no "data.turns", the key that --messages-key names; ')
    assert detail.endswith(end)


def test_a_row_of_no_format_is_refused_with_its_keys_and_the_option_that_helps():
    assert refuse({"dialog": [USER], "id": 1}) == (
        Reason.INVALID_ROW,
        'the row has none of "messages" (or "prompt" and "completion"), "conversations", '
        '"instruction" and "output"; its keys are "dialog", "id"; '
        "name the key of the messages with --messages-key",
    )
    assert refuse({"question": "Why?", "id": 1})[1].endswith('; its keys are "question", "id"')
    assert refuse({"instruction": "Add.", "response": "3"}) == (
        Reason.INVALID_ROW,
        'the row has no "output"; its other keys are "response"',
    )
