"""Rows whose tool calls or tool results a template never writes are refused, and no others."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from mtpack.input.dialogue import Dialogue, Origin, Reason, Reject
from mtpack.input.reading import LINE_LIMIT
from mtpack.input.rows import read_dialogue
from mtpack.template.chat_template import ChatTemplate
from mtpack.template.hidden_tools import list_tool_kinds, refuse_hidden_tools
from tests.template.test_dropped_content import (
    TOKENS,
    CountingTemplate,
    calls,
    make_random_dialogues,
    result,
    say,
)

CALL = say("assistant", "", tool_calls=calls("Oslo"))
CALLING = (say("user", "walrus"), CALL, result("badger"), say("assistant", "ferret"))


def compile_body(body: str) -> ChatTemplate:
    """Return a template that writes `body` for every message `m`."""
    source = f"{{% for m in messages %}}<{{{{ m.role }}}}>{body}\n{{% endfor %}}"
    return ChatTemplate({"default": source}, {}, "2026-01-01")


CONTENT = "{{ m.content }}"
NAMES = "{% for c in m.tool_calls or [] %}{{ (c.function or c).name }}{% endfor %}"
CALLS = "{{ m.tool_calls | tojson if m.tool_calls }}"
WITHOUT_RESULTS = "{{ m.content if m.role != 'tool' }}"


def read_row(*messages: dict[str, Any], tools: Any = None) -> Dialogue:
    row = json.dumps({"messages": messages, "tools": tools}).encode()
    dialogue = read_dialogue(0, Origin("row", 1), row, LINE_LIMIT)
    assert isinstance(dialogue, Dialogue), dialogue
    return dialogue


def refuse(body: str, *messages: dict[str, Any]) -> int | None:
    """Return the number of the message for which a row is refused; None if it is not."""
    dialogue = read_row(*messages)
    kinds = list_tool_kinds(dialogue)
    rejected = kinds and refuse_hidden_tools(compile_body(body), TOKENS, dialogue, kinds)
    if not rejected:
        return None
    assert rejected.reason is Reason.TOOLS_NOT_SHOWN
    assert "--chat-template" in rejected.detail
    return int(rejected.detail.split(":")[0].removeprefix("message "))


@pytest.mark.parametrize(
    ("body", "hidden"),
    [
        (CONTENT + CALLS, None),
        (CONTENT + NAMES, None),
        (CONTENT, 1),
        (WITHOUT_RESULTS + CALLS, 2),
        (CONTENT + CALLS + "{% if m.role == 'none' %}{{ raise_exception('x') }}{% endif %}", None),
    ],
)
def test_a_row_is_refused_if_a_call_or_a_result_is_never_written(body, hidden):
    assert refuse(body, *CALLING) == hidden


def test_a_row_that_the_template_refuses_is_left_to_it():
    body = CONTENT + "{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    assert refuse(body, *CALLING) is None


@pytest.mark.parametrize(
    ("content", "hidden"),
    [
        ("weather(city='Oslo')", None),
        ('<call>{"name": "weather", "arguments": {"city":"Oslo"}}</call>', None),
        ("I call weather.", 1),
        ("Oslo, a city.", 1),
    ],
)
def test_a_call_that_the_content_spells_is_shown(content, hidden):
    assert refuse(CONTENT, CALLING[0], CALL | {"content": content}, *CALLING[2:]) == hidden


@pytest.mark.parametrize("value", ['Tromsø "x"', 12, 1.5, True, ["a", {"b": False}]])
def test_a_value_is_spelled_as_it_is_or_as_json(value):
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": value}}}
    for ascii_only in (True, False):
        content = "weather " + json.dumps({"city": value}, ensure_ascii=ascii_only, indent=1)
        message = say("assistant", content, tool_calls=[call])
        assert refuse(CONTENT, CALLING[0], message, *CALLING[2:]) is None
    message = say("assistant", "weather city", tool_calls=[call])
    assert refuse(CONTENT, CALLING[0], message, *CALLING[2:]) == 1


def test_what_comes_after_the_last_trained_turn_does_not_matter():
    untrained = {"train": False}
    answered = (say("user", "lemur"), say("assistant", "tapir"))
    hidden_result = WITHOUT_RESULTS + CALLS
    assert refuse(hidden_result, *CALLING[:3]) is None
    assert refuse(hidden_result, *CALLING[:3], CALLING[3] | untrained) is None
    assert refuse(CONTENT, *answered, CALLING[0], CALL | untrained, *CALLING[2:3]) is None
    assert refuse(CONTENT, CALLING[0], CALL | untrained, *CALLING[2:]) == 1


def test_results_in_a_dialogue_of_texts_alone_are_tested_as_well():
    texts = (say("user", "walrus"), say("assistant", "I ask."), say("tool", "badger"), CALLING[3])
    assert read_row(*texts).has_only_texts
    assert refuse(WITHOUT_RESULTS, *texts) == 2
    assert refuse(CONTENT, *texts) is None
    assert list_tool_kinds(read_row(*texts[:2])) is None


BODIES = (
    CONTENT,
    CONTENT + NAMES,
    WITHOUT_RESULTS + CALLS,
    CONTENT + "{% if not m.content %}" + CALLS + "{% endif %}",
    CONTENT + "{{ (m.tool_calls | first) | tojson if m.tool_calls and tools }}",
    "{{ m.content if m.role != 'tool' or loop.previtem.role != 'tool' }}" + CALLS,
)


@pytest.mark.parametrize("body", BODIES)
def test_refused_are_the_rows_in_which_other_words_change_nothing(body):
    template = compile_body(body)
    refused = []
    for dialogue in make_random_dialogues(60):
        kinds = list_tool_kinds(dialogue)
        found = (
            kinds is not None and refuse_hidden_tools(template, TOKENS, dialogue, kinds) is not None
        )
        assert found == any(find_hidden(template, dialogue))
        refused.append(found)
    assert any(refused) == (body != CONTENT + NAMES)
    assert not all(refused)


def find_hidden(template: ChatTemplate, dialogue: Dialogue) -> Iterator[int]:
    """Yield the messages whose calls, or result, can be other ones without a change of the text."""
    for index, message in enumerate(dialogue.messages):
        if message["role"] != "tool" and "tool_calls" not in message:
            continue
        end = dialogue.roles.index("assistant", index) + 1
        changed = json.loads(json.dumps(dialogue.messages[:end]))
        if message["role"] == "tool":
            changed[index]["content"] = "zebra"
        for call in changed[index].get("tool_calls", ()):
            call = call.get("function", call)
            other = {"zebra": "zebra"}
            is_text = isinstance(call["arguments"], str)
            call |= {"name": "zebra", "arguments": json.dumps(other) if is_text else other}
        messages = dialogue.messages[:end]
        tools = dialogue.tools
        if template.render(messages, tools) == template.render(changed, tools):
            yield index


def test_rows_whose_calls_are_shown_in_part_are_not_rendered_one_by_one():
    template = CountingTemplate(
        {"default": f"{{% for m in messages %}}{NAMES}{{% endfor %}}"}, {}, "2026-01-01"
    )
    dialogue = read_row(*CALLING[:2], CALLING[3])
    kinds = list_tool_kinds(dialogue)
    assert kinds is not None
    refuse_hidden_tools(template, TOKENS, dialogue, kinds)
    renders = template.renders
    refuse_hidden_tools(template, TOKENS, dialogue, kinds)
    assert template.renders == renders


def test_a_refused_row_is_a_reject_without_content():
    dialogue = read_row(*CALLING)
    kinds = list_tool_kinds(dialogue)
    assert kinds is not None
    rejected = refuse_hidden_tools(compile_body(CONTENT), TOKENS, dialogue, kinds)
    assert isinstance(rejected, Reject)
    assert not any(word in str(rejected) for word in ("walrus", "Oslo", "weather", "badger"))
