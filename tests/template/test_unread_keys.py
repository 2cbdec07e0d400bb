"""The keys that neither mtpack nor the template reads are found."""

import pytest

from mtpack.template.chat_template import ChatTemplate
from mtpack.template.unread_keys import find_unread_keys
from tests.conftest import SHARED
from tests.support.template_facts import FACTS

DATE = "2026-01-01"
LOOP = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
CALLS = LOOP.replace("<|im_end|>", "{% for c in m.tool_calls or [] %}CALL{% endfor %}<|im_end|>")


def find(source: str, *unread: str, arguments: tuple[str, ...] = ()) -> set[str]:
    return find_unread_keys(ChatTemplate({"default": source}, {}, DATE), unread, arguments)


def test_a_key_that_the_template_does_not_name_is_never_read():
    keys = (
        "messages.mood",
        "messages.content.mood",
        "messages.tool_calls.mood",
        "messages.tool_calls.function.mood",
    )
    assert find(LOOP, *keys) == set(keys)


@pytest.mark.parametrize(
    "reading",
    [
        "{{ m.mood }}",
        "{{ m['mood'] }}",
        "{{ m.get('mood') }}",
        "{% if m.mood is defined %}!{% endif %}",
        "{% if 'mood' in m %}!{% endif %}",
        "{{ [m] | map(attribute='mood') | list }}",
        "{{ [m] | map(attribute='mood.a') | list }}",
        "{% set key = 'mood' %}{{ m[key] }}",
        "{{ m | tojson }}",
        "{{ m }}",
        "{% for key in m %}{{ key }}{% endfor %}",
        "{% for key, value in m.items() %}{{ value }}{% endfor %}",
        "{{ m | length }}",
    ],
)
def test_a_key_of_a_message_counts_as_read_where_the_template_may_read_it(reading):
    source = LOOP.replace("<|im_end|>", reading + "<|im_end|>")
    assert find(LOOP, "messages.mood") == {"messages.mood"}
    assert find(source, "messages.mood") == set()


def test_a_key_of_a_row_is_never_read_even_if_the_template_has_a_variable_of_its_name():
    assert find("{{ mood }}" + LOOP, "mood", "source") == {"mood", "source"}


@pytest.mark.parametrize(
    ("place", "written"),
    [
        ("messages.tool_calls.", "{{ c | tojson }}"),
        ("messages.tool_calls.", "{{ m.tool_calls }}"),
        ("messages.tool_calls.function.", "{{ c.function | tojson }}"),
        ("messages.tool_calls.function.", "{{ c | tojson }}"),
    ],
)
def test_the_keys_of_calls_count_as_read_where_the_template_writes_calls_as_a_whole(place, written):
    key = place + "mood"
    assert find(CALLS, key) == {key}
    assert find(CALLS.replace("CALL", written), key) == set()


def test_a_template_that_writes_functions_alone_does_not_read_the_other_keys_of_calls():
    source = CALLS.replace("CALL", "{{ c.function | tojson }}")
    assert find(source, "messages.tool_calls.mood", "messages.mood") == {
        "messages.tool_calls.mood",
        "messages.mood",
    }


def test_the_keys_of_parts_count_as_read_where_the_template_writes_parts_as_a_whole():
    parts = LOOP.replace(
        "{{ m.content }}", "{% for part in m.content %}{{ part.text }}PART{% endfor %}"
    )
    key = "messages.content.mood"
    assert find(parts.replace("PART", ""), key) == {key}
    assert find(parts.replace("PART", "{{ part | length }}"), key) == set()


def test_a_key_is_read_if_any_template_of_the_tokenizer_reads_it():
    both = {"default": LOOP, "tool_use": LOOP + "{{ messages[0].mood }}{{ motto }}"}
    template = ChatTemplate(both, {}, DATE)
    assert find_unread_keys(template, ["messages.mood"], ["motto"]) == set()


def test_an_argument_of_a_row_that_the_template_does_not_read_is_named():
    assert find(LOOP, arguments=("enable_thinking",)) == {"chat_template_kwargs.enable_thinking"}
    assert find("{{ enable_thinking }}" + LOOP, arguments=("enable_thinking",)) == set()


def test_a_template_that_refuses_every_dialogue_reads_no_key():
    assert find("{{ raise_exception('no') }}", "messages.mood") == {"messages.mood"}


def test_a_long_name_is_cut_since_it_may_be_content():
    long = "my name is Ana and I live at number 7"
    cut = "my name is Ana and I live at ..."
    assert find(LOOP, long, f"messages.{long}", arguments=(long,)) == {
        cut,
        f"messages.{cut}",
        f"chat_template_kwargs.{cut}",
    }


def test_a_name_with_control_characters_is_written_with_escapes():
    assert find(LOOP, "a\nb\x1b") == {r"a\nb\u001b"}


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared, which is not here")
@pytest.mark.parametrize("name", sorted(FACTS)[::6])
def test_no_template_of_a_model_reads_made_up_keys_of_messages(name):
    source = (SHARED / "templates" / name).read_text(encoding="utf-8")
    assert find(source, "messages.source_dataset") == {"messages.source_dataset"}
