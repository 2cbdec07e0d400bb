"""Templates render as in transformers, show where each message is, and can do no harm."""

import datetime
import json
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from itertools import pairwise

import jinja2
import pytest
from transformers.utils import chat_template_utils

from mtpack.input.dialogue import Dialogue, Origin
from mtpack.input.reading import LINE_LIMIT
from mtpack.input.rows import read_dialogue
from mtpack.template.chat_template import ChatTemplate, TemplateRaisedError
from tests.conftest import SHARED, shared
from tests.support.dialogue_kinds import KINDS, TOOLS, say

DATE = "2026-01-31"
SPECIAL_TOKENS = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": "<s>"}
TEMPLATES = sorted(
    path.relative_to(SHARED / "templates").as_posix()
    for path in (SHARED / "templates").glob("*/*.jinja")
)
ROWS = {
    kind: KINDS[kind]
    for kind in (
        "plain",
        "system",
        "tools, one call",
        "tools, parallel calls",
        "reasoning_content",
        "empty content",
        "unicode, white space at the edges",
    )
}
CONVERSATION = [
    say("user", "walrus"),
    say("assistant", "otter"),
    say("user", "badger"),
    say("assistant", "ferret"),
]


def as_dialogue(row: dict) -> Dialogue:
    dialogue = read_dialogue(0, Origin("row", 1), json.dumps(row).encode(), LINE_LIMIT)
    assert isinstance(dialogue, Dialogue), dialogue
    return dialogue


def as_messages(*messages: dict) -> list[dict]:
    return as_dialogue({"messages": list(messages)}).messages


@cache
def read_source(name: str) -> str:
    return shared(f"templates/{name}").read_text(encoding="utf-8")


@cache
def compile_named(name: str) -> ChatTemplate:
    return compile_source(read_source(name))


def compile_source(source: str, **variables) -> ChatTemplate:
    return ChatTemplate({"default": source}, SPECIAL_TOKENS | variables, DATE)


def render_kinds(template: ChatTemplate) -> Iterator[tuple[str, Dialogue, bool, str]]:
    """Yield (kind, dialogue, prompt, text) for all kinds that `template` does not refuse."""
    for kind, row in ROWS.items():
        dialogue = as_dialogue(row)
        for prompt in (False, True):
            try:
                text = template.render(dialogue.messages, dialogue.tools, prompt=prompt)
            except TemplateRaisedError:
                continue
            yield kind, dialogue, prompt, text


# Rendering


@pytest.fixture
def frozen_clock(monkeypatch):
    """Let transformers' `strftime_now` format DATE, too."""

    class Frozen(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls.fromisoformat(DATE)

    monkeypatch.setattr(chat_template_utils, "datetime", Frozen)


@pytest.mark.oracle
@pytest.mark.usefixtures("frozen_clock")
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_dialogue_is_rendered_or_refused_as_transformers_does(name):
    for kind, row in ROWS.items():
        dialogue = as_dialogue(row)
        for prompt in (False, True):
            try:
                texts, _ = chat_template_utils.render_jinja_template(
                    [deepcopy(row["messages"])],
                    tools=row.get("tools"),
                    chat_template=read_source(name),
                    add_generation_prompt=prompt,
                    **SPECIAL_TOKENS,
                )
                expected = texts[0]
            except Exception:  # a template can raise anything
                expected = None
            try:
                found = compile_named(name).render(dialogue.messages, dialogue.tools, prompt=prompt)
            except TemplateRaisedError:
                found = None
            assert found == expected, f"{kind}, prompt={prompt}"


def test_no_messages_are_refused():
    with pytest.raises(TemplateRaisedError, match="no messages"):
        compile_source("{{ messages | length }}").render((), None)


def test_the_template_named_tool_use_is_for_dialogues_with_tools():
    template = ChatTemplate({"default": "without", "tool_use": "with"}, {}, DATE)
    messages = as_messages(say("user", "walrus"))
    assert template.render(messages, None) == "without"
    assert template.render(messages, []) == "with"  # as in transformers
    assert template.render(messages, TOOLS) == "with"
    assert compile_source("only").render(messages, TOOLS) == "only"


def test_a_template_gets_the_special_tokens_and_missing_ones_are_undefined():
    template = compile_source(
        "{{ bos_token }}{{ cls_token is defined }}{{ tools is none }}{{ documents is none }}"
    )
    assert template.render(as_messages(say("user", "")), None) == "<s>FalseTrueTrue"


def test_strftime_now_formats_the_date_of_the_run():
    template = compile_source("{{ strftime_now('%d %B %Y %H:%M') }}")
    assert template.render(as_messages(say("user", "")), None) == "31 January 2026 00:00"


def test_raise_exception_refuses_with_the_text_of_the_template():
    template = compile_source("{{ raise_exception('Only two roles, please') }}")
    with pytest.raises(TemplateRaisedError, match=r"^Only two roles, please$"):
        template.render(as_messages(say("user", "")), None)


def test_the_error_text_is_one_line_of_limited_length():
    template = compile_source("{{ raise_exception('x' * 5000 ~ '\n' ~ 'more') }}")
    with pytest.raises(TemplateRaisedError) as error:
        template.render(as_messages(say("user", "")), None)
    assert str(error.value) == "x" * 200


# The regions of messages


@pytest.mark.oracle
@pytest.mark.parametrize("name", TEMPLATES)
def test_marks_never_change_the_text(name):
    template = compile_named(name)
    for kind, dialogue, prompt, text in render_kinds(template):
        marked = template.render_marked(dialogue.messages, dialogue.tools, prompt=prompt)
        assert marked.text == text, f"{kind}, prompt={prompt}"


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.oracle
def test_regions_ascend_with_the_messages_and_share_no_character(name):
    """Except tool results: nested in each other in Command A, inside their call in Gemma 4."""
    template = compile_named(name)
    for kind, dialogue, prompt, text in render_kinds(template):
        regions = template.render_marked(dialogue.messages, dialogue.tools, prompt=prompt).regions
        for before, after in pairwise(sorted(regions)):
            a_result = dialogue.roles[after] == "tool"
            assert regions[before][1] <= regions[after][0] or a_result, kind
        assert all(0 <= start < end <= len(text) for start, end in regions.values())


@pytest.mark.oracle
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_content_of_a_message_is_in_its_region(name):
    template = compile_named(name)
    for kind, dialogue, prompt, text in render_kinds(template):
        regions = template.render_marked(dialogue.messages, dialogue.tools, prompt=prompt).regions
        for index, (start, end) in regions.items():
            content = dialogue.messages[index]["content"].strip()
            if content and text.count(content) == 1:
                assert content in text[start:end], f"{kind}, prompt={prompt}, message {index}"


def test_nearly_every_template_has_a_region_for_each_assistant_message():
    if not TEMPLATES:
        shared("templates")
    found = set()
    for name in TEMPLATES:
        for kind, dialogue, prompt, _ in render_kinds(compile_named(name)):
            if kind == "plain" and not prompt:
                regions = compile_named(name).render_marked(dialogue.messages, None).regions
                if {1, 3} <= regions.keys():
                    found.add(name)
    assert len(found) >= 110, sorted(set(TEMPLATES) - found)  # of 116; 5 of those refuse the row


LINE = "<{{ message.role }}>{{ message.content }}\n"
LOOPS = {
    "plain": f"{{% for message in messages %}}{LINE}{{% endfor %}}",
    "loop over a slice": f"{{% for message in messages[0:] %}}{LINE}{{% endfor %}}",
    "loop over a set variable": (
        f"{{% set rows = messages %}}{{% for message in rows %}}{LINE}{{% endfor %}}"
    ),
    "filtered loop": f"{{% for message in messages if message.role %}}{LINE}{{% endfor %}}",
    "continue": (
        "{% for message in messages %}{% if message.role == 'user' %}"
        f"{LINE}{{% continue %}}{{% endif %}}{LINE}{{% endfor %}}"
    ),
    "continue in an else": (
        "{% for message in messages %}{% if message.role == 'assistant' %}"
        f"{LINE}{{% else %}}{LINE}{{% continue %}}{{% endif %}}{{% endfor %}}"
    ),
    "break at the end": (
        f"{{% for message in messages %}}{LINE}{{% if loop.last %}}{{% break %}}{{% endif %}}"
        "{% endfor %}"
    ),
    "the loop variable is set in the body": (
        "{% for message in messages %}{% set message = dict(message, role=message.role) %}"
        f"{LINE}{{% endfor %}}"
    ),
    "loops inside the loop": (
        "{% for message in messages %}{% for _ in range(2) %}{% if loop.first %}{% continue %}"
        f"{{% endif %}}{LINE}{{% endfor %}}{{% endfor %}}"
    ),
    "a loop over messages that writes nothing": (
        "{% for message in messages %}{% set x = message.role %}{% endfor %}"
        f"{{% for message in messages %}}{LINE}{{% endfor %}}"
    ),
    "macro": (
        f"{{% macro write(message) %}}{LINE}{{% endmacro %}}"
        "{% for message in messages %}{{ write(message) }}{% endfor %}"
    ),
    "loop in a macro": (
        f"{{% macro write(rows) %}}{{% for message in rows %}}{LINE}{{% endfor %}}{{% endmacro %}}"
        "{{ write(messages) }}"
    ),
    "loop in a set block": (
        f"{{% set text %}}{{% for message in messages %}}{LINE}{{% endfor %}}{{% endset %}}"
        "{{ text }}"
    ),
}


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
def test_regions_are_found_in_all_forms_of_loops(loop):
    template = compile_source("Start\n" + loop + "End")
    marked = template.render_marked(as_messages(*CONVERSATION), None)
    assert (
        marked.text == "Start\n<user>walrus\n<assistant>otter\n<user>badger\n<assistant>ferret\nEnd"
    )
    assert [marked.text[slice(*marked.regions[index])] for index in range(4)] == [
        "<user>walrus\n",
        "<assistant>otter\n",
        "<user>badger\n",
        "<assistant>ferret\n",
    ]


def test_a_message_written_twice_has_no_region():
    twice = "{% for message in messages %}{{ message.content }}{% endfor %}" * 2
    marked = compile_source(twice).render_marked(as_messages(*CONVERSATION), None)
    assert marked.text == "walrusotterbadgerferret" * 2
    assert marked.regions == {}


def test_there_are_no_regions_if_marks_would_change_the_text():
    shouted = "{% for message in messages %}{{ loop.index }}{% endfor %}"
    counted = f"{{% set text %}}{shouted}{{% endset %}}{{{{ text | length }}}}"
    marked = compile_source(counted).render_marked(as_messages(*CONVERSATION), None)
    assert (marked.text, marked.regions) == ("4", {})


@pytest.mark.parametrize("mark", ["\ufdd0", "\ufdd02\ufdd1", "\ufdd2", "\ufdd3", "\ufdd4"])
def test_text_that_contains_mark_characters_is_not_changed(mark):
    template = compile_source(LOOPS["plain"])
    messages = as_messages(say("user", f"wal{mark}rus"), say("assistant", f"{mark}otter"))
    marked = template.render_marked(messages, None)
    assert marked.text == template.render(messages, None)
    assert f"wal{mark}rus" in marked.text
    assert marked.regions in ({}, {0: (0, 14), 1: (14, 32)})  # \ufdd0 alone is not a mark


GENERATION_TAGS = {
    "in the loop": (
        "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}</>{% endgeneration %}{% else %}{{ m.content }}</>"
        "{% endif %}{% endfor %}"
    ),
    "in a macro": (
        "{% macro write(m) %}<{{ m.role }}>{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}</>{% endgeneration %}{% else %}{{ m.content }}</>"
        "{% endif %}{% endmacro %}{% for m in messages %}{{ write(m) }}{% endfor %}"
    ),
    "in a set block": (
        "{% for m in messages %}{% set line %}<{{ m.role }}>{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}</>{% endgeneration %}{% else %}{{ m.content }}</>"
        "{% endif %}{% endset %}{{ line }}{% endfor %}"
    ),
    "with white space control": (
        "{%- for m in messages -%}<{{ m.role }}>{%- if m.role == 'assistant' -%}"
        "{%- generation -%} {{ m.content }}</> {%- endgeneration -%}{%- else -%}"
        "{{ m.content }}</>{%- endif -%}{%- endfor -%}"
    ),
}


@pytest.mark.parametrize("source", GENERATION_TAGS.values(), ids=GENERATION_TAGS)
def test_generation_tags_are_found_in_all_places(source):
    template = compile_source(source)
    marked = template.render_marked(as_messages(*CONVERSATION), None)
    assert marked.text == "<user>walrus</><assistant>otter</><user>badger</><assistant>ferret</>"
    assert [marked.text[start:end] for start, end in marked.generations] == [
        "otter</>",
        "ferret</>",
    ]


def test_without_generation_tags_there_are_no_generations():
    template = compile_source(LOOPS["plain"])
    assert template.render_marked(as_messages(*CONVERSATION), None).generations is None


# The sandbox


@pytest.mark.parametrize(
    "expression",
    [
        "''.__class__",
        "messages.__class__",
        "messages[0]['__class__']",
        "(messages | attr('__class__'))",
        "strftime_now.__self__",
        "raise_exception.__globals__",
        "dict.__class__",
        "dict.fromkeys.__func__",
        "namespace.__init__",
        "namespace(a=1)._Namespace__attrs",
        "cycler.__init__",
    ],
)
def test_attributes_that_lead_out_of_the_sandbox_are_undefined(expression):
    messages = as_messages(*CONVERSATION)
    written = compile_source("{{ " + expression + " is defined }}{{ " + expression + " }}")
    assert written.render(messages, None) == "False"
    used = compile_source("{{ " + expression + ".__name__ }}")
    with pytest.raises(TemplateRaisedError):
        used.render(messages, None)


def test_format_strings_do_not_lead_out_of_the_sandbox():
    template = compile_source("{{ '<{0.__class__}>'.format(messages) }}")
    assert template.render(as_messages(*CONVERSATION), None) == "<>"


@pytest.mark.parametrize(
    "expression",
    [
        "messages.append({})",
        "messages.clear()",
        "messages.reverse()",
        "messages[0].update(content='changed')",
        "messages[0].pop('content')",
        "messages[0].setdefault('more', 1)",
        "messages[0].tags.append('changed')",
        "(messages[0] | attr('update'))(content='changed')",
        "tools.append({})",
        "tools[0].clear()",
    ],
)
def test_a_template_can_not_change_the_dialogue(expression):
    template = compile_source(
        f"{{% for message in messages %}}{{{{ {expression} }}}}{{% endfor %}}"
    )
    dialogue = as_dialogue({"messages": [say("user", "walrus", tags=["a"])], "tools": TOOLS})
    untouched = deepcopy(dialogue)
    for render in (template.render, template.render_marked):
        with pytest.raises(TemplateRaisedError):
            render(dialogue.messages, dialogue.tools)
        assert dialogue == untouched


@pytest.mark.parametrize(
    "statement",
    [
        "{% set ns = namespace(messages[0]) %}{% set ns.content = 'changed' %}{{ ns.content }}",
        "{% set ns = namespace(all=messages) %}{% set ns.all = [] %}{{ ns.all }}",
        "{% set m = dict(messages[0], content='changed') %}{{ m.content }}",
        "{% set messages = messages + [{'role': 'user'}] %}{{ messages | length }}",
        "{% for message in messages %}{% set message = {} %}{% endfor %}",
        "{{ messages | sort(attribute='content', reverse=true) | map('list') | list }}",
        "{{ messages | reverse | list }}{{ messages[0].copy() }}{{ messages[::-1] }}",
        "{{ messages | map('items') | map('list') | list }}{{ messages[0] | dictsort }}",
        "{{ messages[0]['pop'] }}{{ '{0.clear}'.format(messages) }}",
        "{{ messages | map(attribute='pop') | list }}{{ messages | map('attr', 'clear') | list }}",
    ],
)
def test_a_template_works_on_copies_of_the_dialogue(statement):
    template = compile_source(statement)
    dialogue = as_dialogue({"messages": [say("user", "walrus", tags=["a"]), *CONVERSATION[1:]]})
    untouched = deepcopy(dialogue)
    for render in (template.render, template.render_marked):
        render(dialogue.messages, dialogue.tools)
        assert dialogue == untouched


@pytest.mark.parametrize(
    "statement",
    [
        "{% set ns = namespace(_hidden=1) %}",
        "{% set ns = namespace({'__class__': 1}) %}",
        "{% set ns = namespace() %}{% set ns._hidden = 1 %}",
    ],
)
def test_a_namespace_stores_no_name_that_starts_with_an_underscore(statement):
    template = compile_source(statement)
    with pytest.raises(TemplateRaisedError, match="can't store the attribute '_"):
        template.render(as_messages(*CONVERSATION), None)


def test_a_namespace_stores_all_other_names():
    template = compile_source(
        "{% set ns = namespace(self=1, n=2) %}{% set ns.n = 3 %}{{ ns.self }}{{ ns.n }}"
    )
    assert template.render(as_messages(*CONVERSATION), None) == "13"


def test_a_template_sees_only_the_fields_of_a_message():
    source = (
        "{% for m in messages %}{{ m }}{{ m | tojson }}{{ m._mtpack_index is defined }}{% endfor %}"
    )
    template = compile_source(source)
    messages = as_messages(say("user", "walrus"))
    fields = messages[0]
    expected = f"{fields}{json.dumps(fields)}False"
    assert template.render_marked(messages, None).text == expected
    assert template.render_marked(messages, None).regions == {0: (0, len(expected))}


@pytest.mark.parametrize(
    ("source", "is_read"),
    [
        ("{{ date }}", True),
        ("{% if date is defined %}today{% endif %}", True),
        ("{% set date = date or 'today' %}", True),
        ("{% macro head() %}{{ date }}{% endmacro %}{{ head() }}", True),
        ("{% block head %}{{ date }}{% endblock %}", True),
        ("{% set date = 'today' %}{{ date }}", False),
        ("{% for date in messages %}{{ date }}{% endfor %}", False),
        ("{{ messages[0].date }}{{ 'date' }}", False),
        ("{# date #}", False),
    ],
)
def test_a_variable_is_read_where_the_template_itself_does_not_set_it(source, is_read):
    assert compile_source(source).reads_variable("date") == is_read
    both = ChatTemplate({"default": "", "tool_use": source}, {}, DATE)
    assert both.reads_variable("date") == is_read


def test_a_variable_may_replace_a_function_that_the_template_calls():
    source = "{{ strftime_now('%Y') }}"
    assert compile_source(source).reads_variable("strftime_now")
    assert not compile_source(source).reads_variable("namespace")


def test_the_digest_depends_on_the_source_and_not_on_the_variables():
    one, same, other = compile_source("a"), compile_source("a", more=1), compile_source("b")
    assert one.sha256 == same.sha256 != other.sha256


def test_the_class_raises_the_syntax_errors_of_jinja():
    with pytest.raises(jinja2.TemplateSyntaxError):
        compile_source("{% for %}")
