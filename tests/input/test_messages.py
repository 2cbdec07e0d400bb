"""Messages reach the template unchanged, or the row is rejected without showing its content."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mtpack.input.dialogue import ROLES, Dialogue, Origin, Reason, Reject
from mtpack.input.loss_switches import LOSS_SWITCHES
from mtpack.input.rows import RowOptions, read_dialogue
from tests.support.strategies import strings_in

ORIGIN = Origin("rows.jsonl", 7)
USER = {"role": "user", "content": "Hello"}
ANSWER = {"role": "assistant", "content": "Hi"}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def read(row) -> Dialogue | Reject:
    return read_dialogue(3, ORIGIN, json.dumps(row).encode(), line_limit=2**20)


def read_single(message) -> Dialogue:
    """Read a dialogue of one message."""
    dialogue = read({"messages": [message]})
    assert isinstance(dialogue, Dialogue), dialogue
    return dialogue


def read_message(message) -> dict:
    return read_single(message).messages[0]


def reason_of(row) -> Reason:
    reject = read(row)
    assert isinstance(reject, Reject), reject
    return reject.reason


def refuses(message, reason: Reason) -> bool:
    return reason_of({"messages": [USER, message]}) == reason


def in_order(value) -> str:
    """Show a value so that types and the order of keys count."""
    return repr(value)


# Rows


def test_a_dialogue_has_its_row_and_origin():
    dialogue = read({"messages": [USER, ANSWER]})
    assert (dialogue.row, dialogue.origin) == (3, ORIGIN)
    assert dialogue.roles == ("user", "assistant")
    assert dialogue.trained_messages() == [1]


def test_other_keys_of_a_row_are_listed_as_unread():
    dialogue = read({"id": 5, "messages": [USER], "source": "web", "score": None})
    assert dialogue.unread == ("id", "source")
    assert dialogue._replace(unread=()) == read({"messages": [USER]})


def test_a_line_above_the_limit_is_refused_as_line_too_long():
    reject = read_dialogue(3, ORIGIN, None, line_limit=65536)
    assert (reject.row, reject.origin, reject.reason) == (3, ORIGIN, Reason.LINE_TOO_LONG)
    assert "65,536" in reject.detail


@pytest.mark.parametrize(
    "row",
    [None, True, 5, "text", [], ["text"], [[USER]], {}, {"message": [USER]}]
    + [{"messages": messages} for messages in (None, [], {}, USER, "[]", 1)],
    ids=str,
)
def test_a_row_without_a_list_of_messages_is_refused(row):
    assert reason_of(row) == Reason.INVALID_ROW


@pytest.mark.parametrize("message", [None, True, 1, "Hello", [USER]], ids=str)
def test_a_message_that_is_not_an_object_is_refused(message):
    assert refuses(message, Reason.INVALID_MESSAGE)


@pytest.mark.parametrize("role", [None, 1, "", "bot", "user ", ["user"], {"a": 1}], ids=str)
def test_an_unknown_role_is_refused(role):
    assert refuses({"role": role, "content": "Hello"}, Reason.UNKNOWN_ROLE)


def test_a_refusal_names_the_message_and_its_role():
    assert read({"messages": [USER, {"role": "user"}]}).detail.startswith("message 1 (user): ")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"{", Reason.INVALID_JSON),
        (b'{"messages": [], "messages": []}', Reason.DUPLICATE_KEY),
        (b'{"messages": NaN}', Reason.NOT_A_NUMBER),
        (b'{"messages": "\xff"}', Reason.NOT_UTF8),
    ],
    ids=str,
)
def test_a_row_of_invalid_json_is_refused_with_the_reason_of_the_parser(text, reason):
    assert read_dialogue(3, ORIGIN, text, line_limit=100).reason == reason


# The fields that reach the template

plain_values = st.recursive(
    st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
special_keys = {
    *("role", "content", "from", "value", "tool_calls", "function_call", "tools", "functions"),
    *("reasoning_content", "thinking", "reasoning", "reasoning_details", *LOSS_SWITCHES),
}
unknown_keys = st.text().filter(lambda key: key not in special_keys)


@given(
    st.dictionaries(unknown_keys, plain_values, max_size=4),
    st.sampled_from(ROLES),
    st.text(),
    st.randoms(use_true_random=False),
)
def test_unknown_keys_and_all_values_are_kept_unchanged_and_in_order(fields, role, content, random):
    members = [*fields.items(), ("role", role), ("content", content)]
    random.shuffle(members)
    message = dict(members)
    read_back = read_message(message)
    assert in_order(read_back) == in_order(message)


def test_keys_of_tool_results_are_kept():
    message = {"role": "tool", "tool_call_id": "call_1", "name": "add", "content": '{"sum": 3}'}
    assert in_order(read_message(message)) == in_order(message)


def test_tool_calls_with_arguments_as_an_object_are_kept():
    calls = [
        {
            "id": "call_1",
            "type": "function",
            "function": {"name": "add", "arguments": {"b": 2.0, "a": 12345678901234567890123}},
        }
    ]
    message = {"role": "assistant", "content": "", "tool_calls": calls}
    assert in_order(read_message(message)) == in_order(message)


def read_call(call: dict, **options) -> dict:
    row = {"messages": [{"role": "assistant", "content": "", "tool_calls": [call]}]}
    read = read_dialogue(3, ORIGIN, json.dumps(row).encode(), 2**20, options=RowOptions(**options))
    [read_back] = read.messages[0]["tool_calls"]
    return read_back


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"b":  2.0, "a":1e1, "c": 1}', {"b": 2.0, "a": 10.0, "c": 1}),
        (
            '{"é": "\\u00e9", "n": 12345678901234567890123}',
            {"é": "é", "n": 12345678901234567890123},
        ),
        (' {"a": {"b": [null, true]}}\n', {"a": {"b": [None, True]}}),
    ],
)
def test_arguments_that_are_json_text_become_the_object_that_json_loads_returns(text, value):
    assert json.loads(text) == value
    for call in ({"function": {"name": "add", "arguments": text}}, {"name": "add"}):
        if "function" not in call:
            call["arguments"] = text
        read_back = read_call(call)
        arguments = read_back.get("function", read_back)["arguments"]
        assert in_order(arguments) == in_order(value)


@pytest.mark.parametrize("text", ['{"b":  2.0}', "not JSON", "[1]"])
def test_arguments_that_are_text_are_kept_unchanged_if_that_is_wanted(text):
    call = {"function": {"name": "add", "arguments": text}}
    assert read_call(call, keeps_argument_text=True) == call


@pytest.mark.parametrize("arguments", [{}, {"arguments": None}, {"arguments": ""}])
@pytest.mark.parametrize("keeps_text", [False, True])
def test_missing_arguments_are_an_empty_object(arguments, keeps_text):
    for call in ({"function": {"name": "add", **arguments}}, {"name": "add", **arguments}):
        read_back = read_call(call, keeps_argument_text=keeps_text)
        assert read_back.get("function", read_back) == {"name": "add", "arguments": {}}


@pytest.mark.parametrize(
    "text", ["not JSON", '{"city": ', "[1]", "null", '"Rome"', '{"a":1,"a":2}']
)
def test_arguments_that_are_no_json_object_are_refused_and_named(text):
    calls = [{"name": "add"}, {"function": {"name": "add", "arguments": text}}]
    reject = read({"messages": [USER, {"role": "assistant", "content": "", "tool_calls": calls}]})
    assert reject.reason == Reason.INVALID_TOOL_CALLS
    assert reject.detail.startswith("message 1 (assistant): the arguments of tool call 1 are ")
    assert "Rome" not in reject.detail


@pytest.mark.parametrize("calls", [[], None])
def test_tool_calls_without_a_call_are_dropped(calls):
    assert read_message({**ANSWER, "tool_calls": calls}) == ANSWER


def test_null_keys_of_a_call_are_dropped_but_not_those_of_its_arguments():
    call = {"id": None, "function": {"name": "add", "arguments": {"a": None}, "index": None}}
    assert read_call(call) == {"function": {"name": "add", "arguments": {"a": None}}}


@pytest.mark.parametrize(
    "calls",
    ["add", {}, 1, ["add"], [None], [{}], [{"function": None}], [{"function": "add"}]]
    + [[{"function": {"name": 1}}], [{"function": {"arguments": {}}}]]
    + [[{"name": "add", "arguments": arguments}] for arguments in ([], 1, True)],
    ids=str,
)
def test_malformed_tool_calls_are_refused(calls):
    message = {"role": "assistant", "content": "", "tool_calls": calls}
    assert refuses(message, Reason.INVALID_TOOL_CALLS)


@given(
    st.dictionaries(
        st.sampled_from(["role", "content", "tool_calls", "thinking", "train", "name"]),
        st.sampled_from([*ROLES, "bot", "", "Hello", None, 1, True, [], {}, [TOOL], ["user"]]),
        max_size=4,
    ),
    st.sampled_from(["messages", "prompt"]),
)
@example({"role": "assistant", "content": "Hi"}, "prompt")
def test_a_key_without_a_value_does_not_change_how_a_message_is_read(message, key):
    """With such a key, a message is read key by key; a role and a text alone are read at once."""

    def row(message):
        return {key: [message], "completion": "Bye"}

    assert in_order(read(row({**message, "nothing": None}))) == in_order(read(row(message)))


def test_keys_without_a_value_are_dropped():
    message = {"name": None, **ANSWER, "tool_calls": None, "thinking": None, "train": None}
    assert in_order(read_message(message)) == in_order(ANSWER)


def test_empty_values_are_kept():
    message = {"role": "assistant", "content": "", "name": "", "score": 0, "ok": False, "list": []}
    assert in_order(read_message(message)) == in_order(message)


def test_nulls_inside_a_value_are_kept():
    message = {**ANSWER, "tool_calls": [{"name": "add", "arguments": {"a": None}}], "extra": [None]}
    assert in_order(read_message(message)) == in_order(message)


@pytest.mark.parametrize("role", ROLES)
def test_every_role_keeps_its_name(role):
    message = read_message({"role": role, "content": "Be brief."})
    assert message["role"] == role


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    "parts",
    [
        [],
        [{"type": "text", "text": "Hello"}],
        [{"type": "text", "text": ""}, {"text": "no type"}],
        [{"type": "text", "text": "Hello", "cache_control": {"type": "ephemeral"}}],
    ],
    ids=str,
)
def test_content_in_text_parts_is_kept_unchanged(role, parts):
    assert read_message({"role": role, "content": parts})["content"] == parts


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    "part",
    [
        {"type": "text", "content": "Hello"},
        {"type": "text", "value": "Hello"},
        {"type": "text", "text": None, "content": "Hello"},
    ],
    ids=str,
)
def test_the_text_of_a_part_is_stored_under_the_key_that_templates_read(role, part):
    content = read_message({"role": role, "content": [{"text": "a"}, part]})["content"]
    assert in_order(content) == in_order([{"text": "a"}, {"type": "text", "text": "Hello"}])


@pytest.mark.parametrize(
    "content",
    [
        1,
        True,
        {"text": "Hello"},
        ["Hello"],
        [None],
        [{"type": "text"}],
        [{"type": None, "text": ""}],
    ]
    + [[{"type": "text", "text": text}] for text in (None, 1, ["Hello"])]
    + [[{"type": "text", key: 1}] for key in ("content", "value")]
    + [[{"type": "image", "image": "cat.png"}], [{"type": ["text"], "text": "Hello"}]],
    ids=str,
)
def test_content_that_is_not_text_is_refused(content):
    assert refuses({"role": "user", "content": content}, Reason.INVALID_CONTENT)


@pytest.mark.parametrize("role", ["system", "developer", "user"])
def test_messages_of_users_and_systems_need_content(role):
    assert refuses({"role": role}, Reason.INVALID_CONTENT)
    assert refuses({"role": role, "content": None, "tool_calls": []}, Reason.INVALID_CONTENT)


@pytest.mark.parametrize(
    "message", [{"role": "tool"}, {"role": "assistant", "tool_calls": [{"name": "add"}]}]
)
def test_a_missing_or_null_content_is_an_empty_text(message):
    for missing in ({}, {"content": None}):
        assert read_message({**message, **missing})["content"] == ""


@pytest.mark.parametrize("content", [{"temp": 20}, [1, {"a": None}], ["text"], 20, 2.5, True, {}])
def test_the_result_of_a_tool_may_be_any_json_value(content):
    assert read_message({"role": "tool", "content": content})["content"] == content


def test_a_part_of_a_tools_content_that_is_not_text_is_refused():
    for medium in ("image", "image_url", "input_audio", "video"):
        content = [{"type": "text", "text": "a"}, {"type": medium, medium: "x"}]
        assert refuses({"role": "tool", "content": content}, Reason.INVALID_CONTENT)


@pytest.mark.parametrize("key", ["tool_calls", "reasoning_content", "thinking", "reasoning"])
def test_an_assistant_message_without_content_must_have_tool_calls_or_reasoning(key):
    value = [{"name": "add"}] if key == "tool_calls" else "Let me see."
    assert read_single({"role": "assistant", key: value}).trained_messages() == [0]
    assert refuses({"role": "assistant"}, Reason.INVALID_CONTENT)


# Reasoning

reasoning_keys = st.sampled_from(["reasoning_content", "thinking", "reasoning"])


@given(
    st.dictionaries(reasoning_keys, st.text()),
    st.sampled_from([USER, ANSWER, {**ANSWER, "name": "Ann"}]),
    st.booleans(),
)
def test_reasoning_is_stored_under_the_same_keys_as_in_transformers(reasoning, rest, first):
    library = pytest.importorskip("transformers.utils.chat_template_utils")
    if not hasattr(library, "_alias_reasoning_fields"):
        pytest.skip("needs transformers 5.23")
    message = {**reasoning, **rest} if first else {**rest, **reasoning}
    [expected] = library._alias_reasoning_fields([message])
    assert in_order(read_message(message)) == in_order(expected)


def test_reasoning_is_stored_under_both_names_and_its_own():
    for key in ("reasoning_content", "thinking", "reasoning"):
        fields = read_message({**ANSWER, key: "Let me see."})
        assert {fields[name] for name in (key, "reasoning_content", "thinking")} == {"Let me see."}


def test_the_standard_name_of_reasoning_has_priority():
    fields = read_message({**ANSWER, "reasoning": "c", "thinking": "b", "reasoning_content": "a"})
    assert (fields["reasoning_content"], fields["thinking"], fields["reasoning"]) == ("a", "b", "c")


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
@pytest.mark.parametrize("value", [1, True, ["Let me see."], {"text": "Let me see."}], ids=str)
def test_reasoning_that_is_not_text_is_refused(key, value):
    assert refuses({**ANSWER, key: value}, Reason.INVALID_CONTENT)


# Loss switches


@pytest.mark.parametrize(
    ("switches", "trained"),
    [
        ({}, True),
        ({"train": True}, True),
        ({"train": False}, False),
        ({"loss": True}, True),
        ({"loss": False}, False),
        ({"weight": 1}, True),
        ({"weight": 1.0}, True),
        ({"weight": 0}, False),
        ({"weight": 0.0}, False),
        ({"weight": None}, True),
        ({"loss_weight": 1.0}, True),
        ({"loss_weight": 0}, False),
        ({"train": True, "loss": True, "weight": 1}, True),
        ({"train": False, "loss": None, "weight": 0}, False),
    ],
    ids=str,
)
def test_loss_switches_of_an_assistant_message_decide_and_are_removed(switches, trained):
    dialogue = read_single({**switches, **ANSWER})
    assert dialogue.trained_messages() == ([0] if trained else [])
    assert in_order(dialogue.messages[0]) == in_order(ANSWER)


@pytest.mark.parametrize("role", [role for role in ROLES if role != "assistant"])
@pytest.mark.parametrize("switch", [{"train": False}, {"loss": False}, {"weight": 0}], ids=str)
def test_loss_switches_of_other_roles_may_be_off_but_not_on(role, switch):
    message = {"role": role, "content": "Hello"}
    dialogue = read_single({**message, **switch})
    assert dialogue.trained_messages() == []
    assert dialogue.messages == [message]
    wanted = {key: 1 if key == "weight" else True for key in switch}
    assert refuses({**message, **wanted}, Reason.INVALID_LOSS_SWITCH)


@pytest.mark.parametrize(
    "switches",
    [
        {"train": True, "loss": False},
        {"train": True, "weight": 0},
        {"loss": False, "weight": 1.0},
        {"train": True, "loss": True, "weight": 0.0},
        {"weight": 1, "loss_weight": 0},
    ],
    ids=str,
)
def test_loss_switches_that_contradict_each_other_are_refused(switches):
    assert refuses({**ANSWER, **switches}, Reason.INVALID_LOSS_SWITCH)


@pytest.mark.parametrize(
    "switch",
    [{key: value} for key in LOSS_SWITCHES for value in (0.5, 2, -1, "true", "1", "", [], {}, [1])],
    ids=str,
)
def test_a_loss_switch_that_is_neither_on_nor_off_is_refused(switch):
    assert refuses({**ANSWER, **switch}, Reason.INVALID_LOSS_SWITCH)


def test_trained_messages_are_the_assistant_messages_that_are_not_switched_off():
    messages = [USER, ANSWER, USER, {**ANSWER, "train": False}, USER, {**ANSWER, "weight": 1}]
    assert read({"messages": messages}).trained_messages() == [1, 5]


# Tools


def tools_of(row):
    dialogue = read({"messages": [USER], **row})
    assert isinstance(dialogue, Dialogue), dialogue
    return dialogue.tools


@pytest.mark.parametrize(
    "tools", [[TOOL], [TOOL, {"name": "sub", "parameters": None}], []], ids=str
)
def test_tools_are_read_from_a_list_and_from_json_text(tools):
    assert in_order(tools_of({"tools": tools})) == in_order(tools)
    assert in_order(tools_of({"tools": json.dumps(tools, indent=1)})) == in_order(tools)


def test_no_tools_and_an_empty_list_of_tools_differ():
    assert tools_of({}) is None
    assert tools_of({"tools": None}) is None
    assert tools_of({"tools": "null"}) is None
    assert tools_of({"tools": []}) == []


@pytest.mark.parametrize(
    "tools",
    [1, True, ["add"], [[TOOL]], [None], "add", "[", '"[]"', "[NaN]", [TOOL, 1]],
    ids=str,
)
def test_tools_that_are_not_a_list_of_objects_are_refused(tools):
    assert reason_of({"messages": [USER], "tools": tools}) == Reason.INVALID_TOOLS


# Arbitrary rows

json_values = st.none() | plain_values | st.text(min_size=41)
messages = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(ROLES) | json_values,
        "content": st.text(min_size=41)
        | st.lists(
            st.fixed_dictionaries(
                {}, optional={"type": st.just("text") | json_values, "text": json_values}
            )
            | json_values,
            max_size=3,
        )
        | json_values,
        "tool_calls": st.lists(
            st.fixed_dictionaries(
                {}, optional=dict.fromkeys(("function", "name", "arguments"), json_values)
            ),
            max_size=2,
        )
        | json_values,
        **{key: st.booleans() | json_values for key in ("train", "loss")},
        **{key: st.sampled_from([0, 1, 0.5]) | json_values for key in ("weight", "loss_weight")},
        **{key: st.text(min_size=41) | json_values for key in ("thinking", "reasoning")},
    },
)
rows = json_values | st.fixed_dictionaries(
    {},
    optional={
        "messages": st.lists(messages | json_values, max_size=3) | json_values,
        "tools": st.lists(json_values, max_size=2) | json_values,
    },
)


@given(rows)
def test_any_json_value_is_a_dialogue_or_a_reject_without_its_content(row):
    result = read(row)
    assert (result.row, result.origin) == (3, ORIGIN)
    if isinstance(result, Dialogue):
        assert len(result.messages) == len(row["messages"])
        assert all(result.roles[index] == "assistant" for index in result.trained_messages())
        return
    assert isinstance(result, Reject)
    assert len(result.detail.splitlines()) == 1
    assert not any(text in result.detail for text in strings_in(row) if len(text) > 40)
    assert json.loads(json.dumps(result.as_record())) == {
        **{"row": 3, "file": "rows.jsonl", "line": 7},
        **{"reason": str(result.reason), "detail": result.detail},
    }


SECRET = "My neighbour's password, told in confidence, is tulip-4711."


@pytest.mark.parametrize(
    "row",
    [
        SECRET,
        {SECRET: 1},
        {"messages": SECRET},
        {"messages": [SECRET]},
        {"messages": [{"role": SECRET, "content": ""}]},
        {"messages": [{"content": SECRET}]},
        {"messages": [{"role": "user", "content": {"text": SECRET}}]},
        {"messages": [{"role": "user", "content": [SECRET]}]},
        {"messages": [{"role": "user", "content": [{"type": SECRET}]}]},
        {"messages": [{"role": "user", "content": [{"type": "image", "url": SECRET}]}]},
        {"messages": [{"role": "user", "content": SECRET, "train": True}]},
        {"messages": [{"role": "assistant", "content": SECRET, "weight": SECRET}]},
        {"messages": [{"role": "assistant", "content": "", "reasoning": [SECRET]}]},
        {"messages": [{"role": "assistant", "content": "", "tool_calls": SECRET}]},
        {"messages": [{"role": "assistant", "content": "", "tool_calls": [{SECRET: 1}]}]},
        {"messages": [USER], "tools": SECRET},
        {"messages": [USER], "tools": [SECRET]},
    ],
    ids=str,
)
def test_a_refusal_quotes_only_a_short_name(row):
    result = read(row)
    assert isinstance(result, Reject)
    assert "password, told" not in result.detail


@pytest.mark.parametrize("role", ["a\nb", "a\u2028b", "a\x85b", "\x1b[31m", "\u202eb"], ids=ascii)
def test_a_refusal_is_one_printable_line_whatever_name_it_quotes(role):
    detail = read({"messages": [{"role": role}]}).detail
    assert detail.isprintable()


HI = {"role": "user", "content": "Hi"}
YES = {"role": "assistant", "content": "Yes."}


@pytest.mark.parametrize(
    ("row", "texts"),
    [
        ({"messages": [HI, YES]}, ("Hi", "Yes.")),
        ({"messages": [HI, {**YES, "train": False}]}, ("Hi", "Yes.")),
        ({"messages": [HI, {**YES, "train": True}]}, ("Hi", "Yes.")),
        ({"messages": [HI, dict(reversed(YES.items()))]}, ("Hi", "Yes.")),
        ({"prompt": [HI, YES], "completion": "Yes."}, ("Hi", "Yes.", "Yes.")),
        ({"prompt": "Hi", "completion": "Yes."}, ("Hi", "Yes.")),
        ({"messages": [HI, {**YES, "name": "a"}]}, None),
        ({"messages": [{**HI, "content": [{"type": "text", "text": "Hi"}]}, YES]}, None),
        ({"conversations": [{"from": "human", "value": "Hi"}]}, ("Hi",)),
        ({"instruction": "Hi", "output": "Yes."}, ("Hi", "Yes.")),
        ({"instruction": "Hi", "output": "Yes.", "system": "Be."}, ("Be.", "Hi", "Yes.")),
    ],
)
def test_a_dialogue_knows_whether_it_has_only_texts(row, texts):
    dialogue = read(row)
    assert dialogue.has_only_texts == (texts is not None)
    if texts is not None:
        assert tuple(message["content"] for message in dialogue.messages) == texts


@pytest.mark.parametrize("wrong", [["role", "content"], "ab", 2, None, {"role": [], "content": ""}])
def test_an_invalid_message_among_text_messages_is_refused(wrong):
    assert isinstance(read({"messages": [HI, wrong, YES]}), Reject)
