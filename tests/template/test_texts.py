"""What a template writes is the same in every run: an object without a fixed text is refused."""

import pytest
from transformers.utils import chat_template_utils

from mtpack.input.dialogue import Origin, Reason, Reject, make_dialogue
from mtpack.template.chat_template import ChatTemplate, TemplateObjectError, TemplateRaisedError
from mtpack.template.render_dialogue import render_dialogue
from mtpack.template.texts import UnstableTextError, check_text
from mtpack.template.tracing.replayer import Replayer
from mtpack.tokenizer.loading import load_tokenizer

MESSAGES = [{"role": "user", "content": "a <b>"}, {"role": "assistant", "content": "otter"}]
VARIABLES = {"lt": "<", "kv": {"a": 1, "b": [1.5, None, "<x>"]}}

OBJECTS = {
    "macro": "f",
    "generator": "messages|map('upper')",
    "iterator": "messages|reverse",
    "method": "messages[0].content.strip",
    "method of a dict": "messages[0].items",
    "function": "range",
    "namespace": "namespace(a=1)",
    "object of Jinja": "cycler(1, 2)",
    "template": "self",
    "clock": "strftime_now",
    "object in a list": "[1, (2, range)]",
    "object in a dict": "{'a': [range]}",
    "object as a key": "{range: 1}",
}
ERRORS = {
    "{{ [1].index(range) }}": "<function safe_range> is not in list",
    "{{ {}[cycler(1)].x }}": "dict object has no element <jinja2.utils.Cycler object>",
    "{{ {}[messages[0].content.strip].x }}": (
        "dict object has no element <built-in method strip of str object>"
    ),
}
"""What Python and Jinja raise with the text of an object in it, by template."""
WAYS = {
    "output": "{{ OBJECT }}",
    "concatenation": "{{ 'a' ~ OBJECT }}",
    "a set block": "{% set x %}{{ OBJECT }}{% endset %}",
    "a macro": "{% macro g(x) %}{{ x }}{% endmacro %}{{ g(OBJECT)|length }}",
    "string": "{{ OBJECT|string|length }}",
    "other filters": "{{ OBJECT|upper }}",
    "a filter that is mapped": "{{ [OBJECT]|map('string')|list }}",
    "join": "{{ [OBJECT]|join }}",
    "percent": "{{ '%s' % [OBJECT] }}",
    "percent of bytes": "{{ ('%a'.encode() % [OBJECT]).decode() }}",
    "format": "{{ '{}'.format(OBJECT) }}",
    "format with a name": "{{ '{a!r:>9}'.format(a=OBJECT) }}",
    "format_map": "{{ '{a}'.format_map({'a': OBJECT}) }}",
    "the filter format": "{{ '%s'|format(OBJECT) }}",
    "markup": "{{ ('%s'|safe) % [OBJECT] }}",
    "a method of markup": "{{ (','|safe).join([OBJECT]) }}",
    "autoescape": "{% autoescape true %}{{ OBJECT }}{% endautoescape %}",
    "concatenation in autoescape": "{% autoescape true %}{{ 1 ~ OBJECT }}{% endautoescape %}",
    "pprint": "{{ OBJECT|pprint }}",
    "an error": "{{ raise_exception(OBJECT) }}",
}
ORDER = {
    "a set of keys": "{{ (kv.keys() - {'a': 1})|length }}",
    "a set of a list": "{% for x in [1] - kv.keys() %}{% endfor %}",
}
REACHED_BY_FORMAT = "{{ '{0.strip}'.format('a') }}"

VALUES = (
    *("kv", "kv.items()", "kv.keys()|list", "kv.values()", "x", "[x]", "none", "true", "range(3)"),
    *("1.5", "'x'.encode()", "(1, 2)", "3|trim", "kv|string", "kv|pprint", "['a', 1, none]|join"),
    *("'%s-%r' % ('a', kv)", "'%s' % 3", "7 % 4", "-7 % 4", "7.5 % 2", "5 - 2 - 1", "1 ~ 2 ~ x"),
    *(
        "'{0:>5}|{a[0]}|{0!r}'.format('x', a=[1])",
        "('a'|safe).join([lt, kv])",
        "('<{}>'|safe).format(lt)",
        "kv.b[2]|e",
    ),
    *(
        "messages|join(',', attribute='role')",
        "{'a': lt}|xmlattr",
        "kv|urlencode",
        "'a'|safe ~ '<'",
    ),
    *(
        "'%s<'|safe % [lt]",
        "'<%s>'|safe|format(lt)",
        "messages|first",
        "kv|tojson",
        "'a b'|title",
    ),
)
PLACES = (
    "{{ VALUE }}",
    "{% set v = VALUE %}{{ v }}{{ v }}",
    "{{ (VALUE) ~ '<' }}",
    "{% macro f(v) %}[{{ v }}]{% endmacro %}{{ f(VALUE) }}",
    "{% autoescape true %}{{ VALUE }}{{ (VALUE) ~ '<' ~ 1 }}{% endautoescape %}",
)


def compiled(source: str) -> ChatTemplate:
    macro = "{% macro f() %}x{% endmacro %}"
    return ChatTemplate({"default": macro + source}, VARIABLES, "2026-01-31")


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("value", OBJECTS.values(), ids=OBJECTS)
def test_an_object_without_a_fixed_text_is_refused_by_its_type(value, way):
    template = compiled(way.replace("OBJECT", f"({value})"))
    with pytest.raises(TemplateObjectError, match=r"^writes an object of type \w+, which has no"):
        template.render(MESSAGES, None)


@pytest.mark.parametrize("source", ORDER.values(), ids=ORDER)
def test_a_set_is_refused(source):
    with pytest.raises(TemplateObjectError, match=r"^makes a set, which has no fixed order$"):
        compiled(source).render(MESSAGES, None)


def test_an_object_that_a_format_reaches_is_refused():
    with pytest.raises(TemplateObjectError, match="builtin_function_or_method"):
        compiled(REACHED_BY_FORMAT).render(MESSAGES, None)


@pytest.mark.parametrize("source", ERRORS, ids=ERRORS)
def test_an_error_names_no_address(source):
    with pytest.raises(TemplateRaisedError) as raised:
        compiled(source).render(MESSAGES, None)
    assert str(raised.value) == ERRORS[source]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("value", VALUES)
def test_every_value_has_the_text_that_transformers_writes(value, place):
    source = place.replace("VALUE", value)
    expected = chat_template_utils._compile_jinja_template(source).render(
        messages=MESSAGES, **VARIABLES
    )
    template = ChatTemplate({"default": source}, VARIABLES, "2026-01-31")
    assert template.render(MESSAGES, None) == expected


def test_a_row_is_rejected_with_the_type_of_the_object():
    tokens = load_tokenizer(None).added_tokens
    dialogue = make_dialogue(0, Origin("rows.jsonl", 7), MESSAGES)
    source = "{% for m in messages %}{{ m.role }}{{ m.content.strip }}{% endfor %}"
    for template in (compiled(source), compiled(source.replace("m.content.strip", "messages|map"))):
        rejected = render_dialogue(template, tokens, dialogue, "auto")
        assert isinstance(rejected, Reject)
        assert rejected.reason is Reason.TEMPLATE_RAISED
        assert rejected.detail.startswith("the chat template ")
    rejected = render_dialogue(compiled(source), tokens, dialogue, "auto")
    assert rejected.detail == (
        "the chat template writes an object of type builtin_function_or_method, "
        "which has no fixed text"
    )


@pytest.mark.parametrize("value", OBJECTS.values(), ids=OBJECTS)
def test_a_replay_refuses_what_a_render_refuses(value):
    source = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
        f"{{% if m.content == 'otter' %}}{{{{ {value} }}}}{{% endif %}}</>{{% endfor %}}"
    )
    template, tokens = compiled(source), load_tokenizer(None).added_tokens
    replayer = Replayer(template, tokens, "auto")
    for row in range(4):
        dialogue = make_dialogue(row, Origin("rows.jsonl", row), MESSAGES)
        result = replayer.render_dialogue(dialogue)
        assert result is None or isinstance(result, Reject)


def test_values_that_hold_one_value_many_times_are_checked_in_linear_time():
    value = [1]
    for _ in range(100):
        value = [value, value]
    assert check_text(value) is value
    value.append(value)
    check_text(value)
    with pytest.raises(UnstableTextError):
        check_text([value, object()])
