"""Each template gets messages in the form that it takes, found by probes."""

import json
from functools import cache
from typing import Any

import pytest

from mtpack.input.dialogue import Dialogue, Origin
from mtpack.input.reading import LINE_LIMIT
from mtpack.input.rows import RowOptions, read_dialogue
from mtpack.template.chat_template import (
    ChatTemplate,
    TemplateRaisedError,
)
from mtpack.template.loading import load_chat_template
from mtpack.template.message_forms import MessageForms, find_forms
from mtpack.tokenizer.loading import load_tokenizer
from tests.conftest import SHARED, shared
from tests.support.dialogue_kinds import TOOLS, call, say
from tests.support.template_facts import BOS, EOS, FACTS

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared, which is not here")

DATE = "2026-01-31"
CONTENT = "{{ m.content }}"
CALLS = "{% for c in m.tool_calls or [] %}{{ c.function.name }}({{ ARGUMENTS }}){% endfor %}"
TO_JSON = "c.function.arguments | tojson"
AS_THEY_ARE = "c.function.arguments"
TEXT_OR_OBJECT = f"{AS_THEY_ARE} if {AS_THEY_ARE} is string else {TO_JSON}"
JOINED = f"'' + {AS_THEY_ARE}"
ITEMS = f"{AS_THEY_ARE}.items() | list"


def compile_source(source: str, **others: str) -> ChatTemplate:
    variables = {"bos_token": BOS, "eos_token": EOS}
    return ChatTemplate({"default": source, **others}, variables, DATE)


def make_template(body: str, before: str = "") -> ChatTemplate:
    """Return a template that writes `body` for every message `m`."""
    return compile_source(
        f"{before}{{% for m in messages %}}<{{{{ m.role }}}}>{body}{{{{ '\\n' }}}}{{% endfor %}}"
    )


def make_calling_template(arguments: str, content: str = CONTENT) -> ChatTemplate:
    return make_template(content + CALLS.replace("ARGUMENTS", arguments))


def read(row: dict[str, Any], *, keeps_argument_text: bool = False) -> Dialogue:
    dialogue = read_dialogue(
        0,
        Origin("row", 1),
        json.dumps(row).encode(),
        LINE_LIMIT,
        options=RowOptions(keeps_argument_text=keeps_argument_text),
    )
    assert isinstance(dialogue, Dialogue), dialogue
    return dialogue


def render(template: ChatTemplate, row: dict[str, Any], tool_arguments: str = "auto") -> str:
    """Return the text of a row, read and brought into the forms of the template."""
    dialogue = read(row, keeps_argument_text=tool_arguments == "text")
    template = ChatTemplate(
        template.sources, template.variables, DATE, tool_arguments=tool_arguments
    )
    dialogue = find_forms(template, dialogue.tools).apply(dialogue)
    return template.render(dialogue.messages, dialogue.tools)


def make_row(*messages: dict[str, Any], tools: Any = None) -> dict[str, Any]:
    return {"messages": list(messages), "tools": tools}


def calling(arguments: Any, content: Any = "") -> dict[str, Any]:
    function = {"name": "weather", "arguments": arguments}
    return make_row(
        say("user", "walrus"),
        say("assistant", content, tool_calls=[{"type": "function", "function": function}]),
    )


# Arguments


@pytest.mark.parametrize(
    ("arguments", "form"),
    [
        (TO_JSON, "object"),
        (ITEMS, "object"),
        (TEXT_OR_OBJECT, "object"),
        (AS_THEY_ARE, "text"),  # writes an object as Python does
        (JOINED, "text"),  # raises on an object
        (f"{AS_THEY_ARE} if {AS_THEY_ARE} is string", "text"),  # writes nothing for an object
        ("''", "object"),  # never writes arguments
        ("raise_exception('no calls')", "object"),
    ],
)
def test_arguments_are_text_only_if_the_template_does_not_write_objects_properly(arguments, form):
    assert find_forms(make_calling_template(arguments), None).arguments == form


@pytest.mark.parametrize("arguments", [TO_JSON, TEXT_OR_OBJECT, AS_THEY_ARE, JOINED])
def test_objects_and_their_json_text_give_the_same_text_as_tojson(arguments):
    value = {"city": "Zürich <&'>", "days": [1, 2.0, 1e-7, None, True], "big": 2**70}
    expected = f"<user>walrus\n<assistant>weather({json.dumps(value, ensure_ascii=False)})\n"
    template = make_calling_template(arguments)
    for given in (value, json.dumps(value), json.dumps(value, indent=1)):
        for content in ("", None):
            assert render(template, calling(given, content)) == expected
    for empty in ("", " ", None, {}, "{}"):
        assert render(template, calling(empty)).endswith("weather({})\n")


def test_the_user_can_force_the_form_of_arguments():
    both = make_calling_template(TEXT_OR_OBJECT)
    assert render(both, calling('{"a":  1}')).endswith('weather({"a": 1})\n')
    assert render(both, calling('{"a":  1}'), "text").endswith('weather({"a":  1})\n')
    assert render(both, calling("a = 1"), "text").endswith("weather(a = 1)\n")
    assert render(both, calling({"a": 1}), "text").endswith('weather({"a": 1})\n')
    needs_text = make_calling_template(AS_THEY_ARE)
    assert render(needs_text, calling({"a": 1}), "object").endswith("weather({'a': 1})\n")


@pytest.mark.parametrize(
    "demand",
    [
        "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}",
        "{% if not tools %}{{ raise_exception('no tools') }}{% endif %}",
        "{% if messages[-1].role == 'assistant' and messages[-1].tool_calls %}"
        "{{ raise_exception('no result') }}{% endif %}",
        "{% for m in messages if m.tool_calls and m.tool_calls[0].id | length != 9 %}"
        "{{ raise_exception('the id must have nine characters') }}{% endfor %}",
        "{% for m in messages if m.tool_calls and not m.content %}"
        "{{ raise_exception('no content') }}{% endfor %}",
    ],
)
def test_the_form_of_arguments_is_found_whatever_the_template_demands(demand):
    body = CONTENT + CALLS.replace("ARGUMENTS", JOINED)
    assert find_forms(make_template(body, demand), None).arguments == "text"


def test_each_of_several_templates_has_its_own_forms():
    source = "{% for m in messages %}" + CONTENT + CALLS + "{% endfor %}"
    template = compile_source(
        source.replace("ARGUMENTS", TO_JSON), tool_use=source.replace("ARGUMENTS", JOINED)
    )
    assert find_forms(template, None).arguments == "object"
    assert find_forms(template, TOOLS).arguments == find_forms(template, []).arguments == "text"


# Contents

PARTS = [{"type": "text", "text": "wal"}, {"type": "text", "text": "rus"}]
LOOP = "{% for part in m.content %}[{{ part.text }}]{% endfor %}"


@pytest.mark.parametrize(
    "content",
    [
        "{{ '' + m.content }}",  # would raise
        "{{ m.content }}",  # would write the list as Python shows it
        "{{ m.content | tojson }}",  # would write it as JSON
        "{% if m.content is string %}{{ m.content }}{% endif %}",  # would write nothing
        "{{ m.content if m.content is string else m.content[0].text }}",  # would write one
    ],
)
def test_text_parts_are_joined_by_newlines_for_a_template_that_takes_text(content):
    found = render(make_template(content), make_row(say("user", PARTS), say("assistant", "otter")))
    assert found.replace("\\n", "\n").replace('"', "") == "<user>wal\nrus\n<assistant>otter\n"


def test_a_template_that_loops_over_parts_gets_them():
    template = make_template(
        f"{{% if m.content is string %}}<{CONTENT}>{{% else %}}{LOOP}{{% endif %}}"
    )
    found = render(template, make_row(say("user", PARTS), say("assistant", "otter")))
    assert found == "<user>[wal][rus]\n<assistant><otter>\n"


def test_the_parts_of_a_tools_result_are_joined_as_servers_do():
    template = make_template(
        f"{{% if m.content is string %}}<{CONTENT}>{{% else %}}{LOOP}{{% endif %}}"
    )
    found = render(template, make_row(say("user", "x"), say("tool", PARTS), say("assistant", "y")))
    assert "<tool><wal\nrus>\n" in found


@pytest.mark.parametrize(
    ("content", "user"), [("{{ m.content[0]['text'] }}", "wal\nrus"), (LOOP, "[wal][rus]")]
)
def test_a_template_that_takes_parts_alone_gets_text_as_one_part(content, user):
    template = make_template(content)
    answer = "[otter]" if content == LOOP else "otter"
    found = render(template, make_row(say("user", PARTS), say("assistant", "otter")))
    assert found == f"<user>{user}\n<assistant>{answer}\n"
    assert find_forms(template, None).only_parts >= {"user", "assistant", "system", "tool"}


def test_a_part_with_further_keys_stays_where_the_template_refuses_text():
    needs_language = (
        "{% if m.role == 'user' %}{{ '[' + m.content[0].language + ']' + m.content[0].text }}"
        "{% else %}{{ '' + m.content }}{% endif %}"
    )
    part = {"type": "text", "text": "walrus", "language": "en"}
    row = make_row(say("user", [part]), say("assistant", PARTS))
    found = render(make_template(needs_language), row)
    assert found == "<user>[en]walrus\n<assistant>wal\nrus\n"
    assert render(make_template(CONTENT), row) == "<user>walrus\n<assistant>wal\nrus\n"


def test_a_role_that_takes_parts_alone_changes_no_other():
    template = make_template("{{ m.content[0].text if m.role == 'user' else m.content }}")
    assert find_forms(template, None).only_parts == {"user"}


@pytest.mark.parametrize(
    ("content", "is_null"),
    [
        ("{{ '' if m.content is none else '[' + m.content + ']' }}", True),
        ("{% if m.content is not none %}{{ m.content }}{{ eos_token }}{% endif %}", True),
        ("{{ m.content }}", False),  # writes None
        ("{{ m.content | tojson }}", False),  # writes null
        ("{{ m.content or '' }}", False),  # writes the same
        ("{{ '' + m.content }}", False),  # raises
    ],
)
def test_the_content_of_a_call_is_null_only_if_the_template_tests_for_it(content, is_null):
    template = make_calling_template(TO_JSON, content)
    assert find_forms(template, None).null_content == is_null
    texts = {render(template, calling({"a": 1}, content)) for content in ("", None)}
    assert len(texts) == 1
    assert render(template, make_row(say("user", "x"), say("assistant", ""))).count("None") == 0


def test_a_message_without_calls_never_gets_a_null_content():
    forms = find_forms(
        make_calling_template(TO_JSON, "{{ '-' if m.content is none else '[' + m.content + ']' }}"),
        None,
    )
    assert forms.null_content
    [message] = forms.apply_to_messages([say("assistant", "", reasoning_content="stoat")])
    assert message["content"] == ""


# Results of tools


@pytest.mark.parametrize(
    ("content", "types"),
    [
        ("{{ m.content }}", ()),
        ("{{ m.content | tojson }}", (dict, list, int, float)),
        (
            "{{ m.content if m.content is string else m.content | tojson }}",
            (dict, list, int, float),
        ),
        ("{{ m.content | tojson(indent=2) if m.content is mapping else m.content }}", (dict,)),
        ("{{ m.content | tojson if m.content is iterable else m.content }}", (dict, list)),
        ("{{ '' + m.content }}", ()),
        ("", ()),
    ],
)
def test_a_result_stays_a_value_only_if_the_template_writes_it_as_json(content, types):
    assert find_forms(make_template(content), None).as_json == types


@pytest.mark.parametrize("value", [{"temp": 20, "sky": "Zürich"}, [1, {"a": None}], 20, 2.5, True])
@pytest.mark.parametrize(
    "content", ["{{ m.content }}", "{{ '' + m.content }}", "{{ m.content | tojson }}"]
)
def test_a_result_is_written_as_json_text(content, value):
    found = render(make_template(content), make_row(say("user", "x"), say("tool", value)))
    assert f"<tool>{json.dumps(value, ensure_ascii=False)}\n" in found


# Dialogues


def test_a_dialogue_that_needs_no_change_is_returned_itself():
    forms = MessageForms()
    for row in (
        make_row(say("user", "walrus"), say("assistant", "otter")),
        make_row(say("user", "walrus"), say("assistant", "", tool_calls=[call("Oslo")])),
    ):
        dialogue = read(row)
        assert forms.apply(dialogue) is dialogue


def test_forms_keep_all_of_a_dialogue_but_its_messages():
    row = make_row(say("user", PARTS), say("assistant", "otter", train=False), tools=TOOLS)
    dialogue = read(row)
    formed = MessageForms().apply(dialogue)
    assert formed.messages == [say("user", "wal\nrus"), say("assistant", "otter")]
    assert formed._replace(messages=[]) == dialogue._replace(messages=[])
    assert dialogue.messages[0]["content"] == PARTS


def test_the_included_template_takes_the_standard_form_and_loops_over_parts():
    template = load_chat_template(load_tokenizer(None), None, (), DATE)
    forms = find_forms(template, None)
    assert (forms.arguments, forms.null_content, forms.only_parts) == ("object", False, frozenset())


# The given templates and cases


@cache
def read_case(name: str) -> dict[str, Any]:
    row: dict[str, Any] = json.loads(shared(f"data/cases/{name}.jsonl").read_text("utf-8"))
    return row


@cache
def load(name: str) -> ChatTemplate:
    source = shared(f"templates/{name}").read_text("utf-8")
    variables = {"bos_token": BOS, "eos_token": EOS} | dict(FACTS[name].variables)
    return ChatTemplate({"default": source}, variables, DATE)


def render_case(template: str, case: str) -> str:
    """Return the text of a case, or "" if the template refuses it."""
    try:
        return render(load(template), read_case(case))
    except TemplateRaisedError:
        return ""


@needs_shared
@pytest.mark.parametrize("template", FACTS)
def test_text_objects_and_null_contents_give_the_same_text_with_every_template(template):
    cases = ("args_text", "args_dict", "args_text_null", "args_dict_null")
    [text] = {render_case(template, case) for case in cases}
    assert '\\"city\\"' not in text
    [text] = {render_case(template, case) for case in ("null", "empty")}
    assert '\\"a\\"' not in text
    [text] = {render_case(template, f"call_args_{kind}") for kind in ("empty_str", "none")}
    assert '"arguments": }' not in text
    assert "None" not in text


@needs_shared
@pytest.mark.parametrize("template", FACTS)
def test_no_template_writes_a_result_as_python_does(template):
    assert "{'temp'" not in render_case(template, "result_obj")
    assert "None" not in render_case(template, "result_null")


# How each of the given templates that does not take the standard form takes messages.
FORMS = {
    "axolotl/deepseek_v3.jinja": {"arguments": "text"},
    "llama.cpp/meetkai-functionary-medium-v3.2.jinja": {"arguments": "text"},
    "trl/deepseekv3.jinja": {"arguments": "text"},
    "llama.cpp/deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja": {"null_content": True},
    "trl/idefics3.jinja": {"only_parts": {"system", "developer", "user", "assistant", "tool"}},
    "trl/llava_next.jinja": {"only_parts": {"system", "user", "assistant"}},
}
FORMS |= {
    name.replace(".jinja", "_training.jinja"): FORMS[name]
    for name in ("trl/idefics3.jinja", "trl/llava_next.jinja")
}


@needs_shared
@pytest.mark.parametrize("template", FACTS)
def test_the_forms_of_every_template(template):
    forms, standard = find_forms(load(template), None), MessageForms()
    found = {
        name: getattr(forms, name)
        for name in ("arguments", "null_content", "only_parts")
        if getattr(forms, name) != getattr(standard, name)
    }
    assert found == FORMS.get(template, {})
