"""A template that does too much has its row rejected; below the limits nothing changes."""

import json
import sys

import pytest
from click.testing import CliRunner
from transformers.utils import chat_template_utils

from mtpack.cli import main
from mtpack.input.dialogue import Origin, Reason, Reject, make_dialogue
from mtpack.template.chat_template import ChatTemplate, TemplateRaisedError
from mtpack.template.render_dialogue import render_dialogue
from mtpack.template.sandbox.limits import Limits, TemplateLimitError
from mtpack.tokenizer.loading import load_tokenizer

DATE = "2026-01-31"
SMALL = Limits(characters=1_000_000, steps=20_000)
CHARACTERS = "makes a text of more than 1,000,000 characters"
STEPS = "takes more than 20,000 steps"
BITS = "computes a whole number of more than 65,536 bits"
DEPTH = "nests deeper than Python can follow"
MESSAGES = [
    {"role": "user", "content": "walrus"},
    {"role": "assistant", "content": "otter"},
]


def compiled(source: str, limits: Limits = SMALL) -> ChatTemplate:
    return ChatTemplate({"default": source}, {"huge": "a" * 900_000}, DATE, limits)


def double(start: str, twice: str, then: str = "") -> str:
    """Return a template that computes `twice` a hundred times, each time from the last result."""
    return (
        f"{{% set ns = namespace(x={start}) %}}{{% for _ in range(100) %}}"
        f"{{% set ns.x = {twice} %}}{{% endfor %}}{then}"
    )


TOO_MUCH_TEXT = {
    "repetition": "{{ 'a' * 300000000 }}",
    "repetition from the right": "{{ 300000000 * 'a' }}",
    "repetition that is not written": "{% set x = 'a' * 300000000 %}",
    "repetition of safe text": "{{ ('a' | safe) * 300000000 }}",
    "repetition of bytes": "{{ 'a'.encode() * 300000000 }}",
    "a width": "{{ '%300000000d' % 1 }}",
    "a precision": "{{ '%.300000000f' % 1.5 }}",
    "a width from the values": "{{ '%*d' % (300000000, 1) }}",
    "a name used many times": "{{ ('%(x)s' * 10) % {'x': huge} }}",
    "the filter format": "{{ '%300000000s' | format(1) }}",
    "a format field": "{{ '{:300000000}'.format(1) }}",
    "a format field with a field": "{{ '{:{w}}'.format(1, w=300000000) }}",
    "a format field of safe text": "{{ ('{:300000000}' | safe).format(1) }}",
    "many format fields": "{{ '{0}{0}{0}'.format(huge) }}",
    "a format map": "{{ '{x:300000000}'.format_map({'x': 1}) }}",
    "doubling by ~": double("'ab'", "ns.x ~ ns.x"),
    "doubling by +": double("'ab'", "ns.x + ns.x"),
    "doubling of safe text by +": double("'ab' | safe", "ns.x + ns.x"),
    "doubling by the filter join": double("'ab'", "[ns.x, ns.x] | join"),
    "doubling by the method join": double("'ab'", "''.join([ns.x, ns.x])"),
    "doubling by the filter replace": double("'ab'", "ns.x | replace('a', 'aa')"),
    "doubling by the method replace": double("'ab'", "ns.x.replace('a', 'aa')"),
    "doubling by a macro": "{% macro f(x) %}{{ x }}{{ x }}{% endmacro %}"
    + double("'a'", "f(ns.x)"),
    "doubling by a block of set": (
        "{% set ns = namespace(x='a') %}{% for _ in range(100) %}"
        "{% set x %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = x %}{% endfor %}"
    ),
    "a separator": "{{ range(100) | join(huge) }}",
    "the filter center": "{{ 'a' | center(300000000) }}",
    "the filter center called by map": "{{ ['a'] | map('center', 300000000) | list }}",
    "the filter indent": "{{ 'a\nb' | indent(300000000) }}",
    "the filter indent with text": "{{ 'a\nb\nc' | indent(huge) }}",
    "the filter wordwrap": "{{ 'a b c' | wordwrap(1, wrapstring=huge) }}",
    "the filter urlize": "{{ 'a.com b.com' | urlize(rel=huge) }}",
    "center": "{{ 'a'.center(300000000) }}",
    "ljust": "{{ 'a'.ljust(300000000) }}",
    "rjust": "{{ 'a'['rjust'](300000000) }}",
    "zfill": "{{ ('a' | attr('zfill'))(300000000) }}",
    "expandtabs": "{{ '\t'.expandtabs(300000000) }}",
    "translate": "{{ 'aaa'.translate({97: huge}) }}",
    "to_bytes": "{{ (1).to_bytes(300000000, 'big') }}",
    "the indent of JSON": "{{ messages | tojson(indent=300000000) }}",
    "the separators of JSON": "{{ messages | tojson(separators=(huge, ':')) }}",
    "a list of one text": "{{ [huge, huge] }}",
    "a list of one text in a format": "{{ '%s' % [huge, huge] }}",
    "a list of one text with ~": "{{ '' ~ [huge, huge] }}",
    "a list of one text as JSON": "{{ [huge, huge] | tojson }}",
    "text that is written": "{{ huge }}{{ huge }}",
    "text that a macro writes": (
        "{% macro f() %}{{ huge }}{{ huge }}{% endmacro %}{% set x = f() %}"
    ),
    "text in a block of set": "{% set x %}{{ huge }}{{ huge }}{% endset %}",
    "text in a generation tag": "{% generation %}{{ huge }}{{ huge }}{% endgeneration %}",
}
TOO_MANY_STEPS = {
    "nested ranges": (
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"
    ),
    "a loop that skips all items": "{% for i in range(100000) if false %}{% endfor %}",
    "a loop that calls itself on its items": (
        "{% for i in [range(50000)] recursive %}{{ loop(i) if i is iterable }}{% endfor %}"
    ),
    "macros that call each other": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}"
    ),
    "slices of nothing": "{% for x in [] | slice(10 ** 10) %}{{ loop.length }}{% endfor %}",
    "a batch with a fill value": "{{ [1] | batch(300000000, 'a') | list }}",
    "filters that read all items": "{% for i in range(9) %}{{ range(9000) | sum }}{% endfor %}",
    "items that map yields": "{{ range(30000) | map('string') | list }}",
    "text made many times": "{% for i in range(1000) %}{% set x = huge ~ i %}{% endfor %}",
    "repetition of a list": "{{ [0] * 300000000 }}",
    "doubling of a list": double("[1]", "ns.x + ns.x"),
    "a list of lists of lists": double("[1]", "[ns.x, ns.x]", "{{ ns.x }}"),
    "a list of lists of lists as JSON": double("[1]", "[ns.x, ns.x]", "{{ ns.x | tojson }}"),
    "a dict of dicts of dicts": double("{}", "{1: ns.x, 2: ns.x}", "{{ ns.x ~ '' }}"),
    "a tuple of tuples of tuples": double("()", "(ns.x, ns.x)", "{{ {ns.x: 1} }}"),
    "a list of lists by +": double("[]", "[ns.x] + [ns.x]", "{{ ns.x == ns.x }}"),
    "a list of lists by batch": double("[]", "'a' | batch(3, ns.x) | list"),
    "a dict of dicts by dict": double("[1]", "[dict(a=ns.x, b=ns.x)]", "{{ ns.x | string }}"),
    "a list in a list in a list": (
        "{% set ns = namespace(x=[]) %}{% for _ in range(5000) %}{% set ns.x = [ns.x] %}"
        "{% endfor %}{{ ns.x | tojson }}"
    ),
}
TOO_LARGE_NUMBERS = {
    "a power": "{{ 9 ** (9 ** 9) }}",
    "a power of a power": double("3", "ns.x ** 2"),
    "a product of a product": double("3", "ns.x * ns.x"),
    "rounding": "{{ 1 | round(1000000000, 'ceil') }}",
    "rounding to the left": "{{ 1 | round(-1000000000) }}",
}
TOO_DEEP = {
    "a macro that calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a block that calls itself": "{% block f %}{{ self.f() }}{% endblock %}",
    "a loop that calls itself": "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "a caller that calls itself": (
        "{% macro f() %}{{ caller() }}{% endmacro %}"
        "{% macro g() %}{% call f() %}{{ g() }}{% endcall %}{% endmacro %}{{ g() }}"
    ),
}
HOSTILE = [
    pytest.param(source, error_text, id=name)
    for error_text, sources in (
        (CHARACTERS, TOO_MUCH_TEXT),
        (STEPS, TOO_MANY_STEPS),
        (BITS, TOO_LARGE_NUMBERS),
        (DEPTH, TOO_DEEP),
    )
    for name, source in sources.items()
]


@pytest.mark.parametrize(("source", "error_text"), HOSTILE)
def test_a_render_that_exceeds_a_limit_names_the_limit(source, error_text):
    template = compiled(source)
    for render in (template.render, template.render_marked):
        with pytest.raises(TemplateLimitError, match=error_text):
            render(MESSAGES, None)


@pytest.mark.parametrize("call", ["lipsum(3)", "[1, 2] | random"])
def test_a_template_that_uses_random_values_is_refused(call):
    with pytest.raises(TemplateRaisedError, match="uses random values"):
        compiled(f"{{{{ {call} }}}}").render(MESSAGES, None)


def test_each_render_is_counted_alone():
    template = compiled("{% for i in range(15000) %}{% endfor %}")
    for _ in range(3):
        assert template.render_marked(MESSAGES, None).text == ""


def test_the_allowed_depth_does_not_depend_on_the_stack_of_the_caller():
    template = compiled(
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{% endif %}.{% endmacro %}{{ f(100) }}"
    )

    def render_below(frames: int) -> str:
        return render_below(frames - 1) if frames else template.render(MESSAGES, None)

    assert template.render(MESSAGES, None) == "." * 101
    assert render_below(sys.getrecursionlimit() - 300) == "." * 101


# Below the limits nothing changes


SAME = [
    "{{ 'a' ~ 1 ~ none ~ [2, 'b'] ~ missing ~ 1.5 }}",
    "{{ 'a' + 'b' + content }}{{ 1 + 2 + 3.5 }}{{ [1] + [2] + ['b'] }}{{ (1,) + (2,) }}",
    "{{ ('a' | safe) + '<' + 'b' }}{{ '<' + ('a' | safe) }}{{ ('a' | e) ~ '<' }}",
    "{% autoescape true %}{{ content ~ ('<' | safe) ~ 1 ~ '<' }}{{ '<' }}{% endautoescape %}",
    "{{ 'ab' * 3 }}{{ 2 * 'ab' }}{{ [1] * 2 }}{{ 'a' * -1 }}{{ 3 * 4 }}{{ 1.5 * 2 }}{{ true * 3 }}",
    "{{ 2 ** 10 }}{{ 2 ** -1 }}{{ 2.5 ** 2 }}{{ 7 % 4 }}{{ -7 % 4.0 }}{{ 7 // 2 }}{{ 7 / 2 }}",
    "{{ '%s-%5.2f-%*d-%%' % ('a', 1.5, 4, 3) }}{{ '%(x)s%(x)s' % {'x': 1} }}{{ '%s' % 'a' }}",
    "{{ '%s %s' | format('a', 1) }}{{ '%(x)s' | format(x=2) }}{{ ('<%s>' | safe) % '<' }}",
    "{{ '{}-{:>5}-{x!r:{w}}'.format('a', 1, x='b', w=6) }}{{ '{x}'.format_map({'x': [1]}) }}",
    "{{ ('<{}>' | safe).format('<') }}{{ '{0[1]}{1.real}'.format('ab', 3) }}",
    "{{ 'a'.center(5) }}|{{ 'a'.ljust(3) }}|{{ 'a'.rjust(3, '-') }}|{{ '7'.zfill(3) }}",
    "{{ 'a\tb'.expandtabs(4) }}{{ 'aXa'.replace('a', 'bb', 1) }}{{ 'ab'.translate({97: 'x'}) }}",
    "{{ '-'.join(['a', 'b']) }}{{ '-'.join('ab') }}{{ ', '.join({'a': 1}) }}{{ (5).to_bytes(2) }}",
    "{{ 'a b'.split() | join('-') }}{{ [1, 'a'] | join }}{{ 'ab' | join('-') }}",
    "{{ messages | join(', ', attribute='role') }}{{ messages | map(attribute='role') | join }}",
    "{{ 'a' | center(5) }}|{{ 'a\nb' | indent(2, true) }}|{{ 'aXa' | replace('a', 'b') }}",
    "{{ 12 | replace(1, 3) }}{{ 'a b c' | wordwrap(2) }}{{ 'see a.com' | urlize }}",
    "{{ messages | tojson }}{{ messages | tojson(indent=2) }}",
    "{{ {'b': 1, 'a': [2]} | tojson(sort_keys=true) }}{{ 'é' | tojson(ensure_ascii=true) }}",
    "{{ [1, 'é', none, 1.5] | tojson(separators=(',', ':')) }}{{ [[1]] | tojson(indent='\t') }}",
    "{{ range(5) | list }}{{ range(5) | sum }}{{ [[1], [2]] | sum(start=[]) }}{{ [3, 1] | sort }}",
    "{{ range(5) | batch(2, 0) | list }}{{ range(5) | slice(2) | list }}",
    "{{ [1, 1] | unique | list }}{{ messages | selectattr('role', 'eq', 'user') | list | length }}",
    "{{ 'abc' | list | reverse | join }}{{ messages | rejectattr('x') | map('length') | list }}",
    "{{ messages | groupby('role') | map('first') | list }}{{ {'b': 1, 'a': 2} | dictsort }}",
    "{{ 1.256 | round(1) }}{{ 15 | round(-1) }}{{ 1.2 | round(0, 'ceil') }}{{ [1, 2] | max }}",
    "{{ 3 | string }}{{ [1] | string }}{{ {'a': 1} | xmlattr }}{{ {'a': [1]} | pprint }}",
    "{% for i in range(4) if i is odd %}{{ loop.index }}{{ loop.length }}{{ i }}{% endfor %}",
    "{% for i in [1, [2, [3]]] recursive %}{{ loop(i) if i is iterable else i }}{% endfor %}",
    "{% for i in [] %}{% else %}-{% endfor %}{% for k, v in {'a': 1}.items() %}{{ k }}{% endfor %}",
    "{% macro f(x, y='b') %}{{ x }}{{ y }}{{ caller() if caller }}{% endmacro %}{{ f('a') }}"
    "{% call f(1) %}c{% endcall %}{{ f.arguments }}",
    "{% set x %}a{{ 1 }}{% endset %}{{ x }}{{ x | length }}{% filter upper %}a{% endfilter %}",
    "{% block a %}{{ 1 }}{% endblock %}{{ self.a() }}{{ 'a' 'b' }}{{ missing }}{{ none }}",
]


@pytest.mark.parametrize("source", SAME)
def test_below_the_limits_the_text_is_that_of_transformers(source):
    variables = {"content": "walrus"}
    expected, _ = chat_template_utils.render_jinja_template(
        [MESSAGES], chat_template=source, **variables
    )
    template = ChatTemplate({"default": source}, variables, DATE, SMALL)
    assert template.render(MESSAGES, None) == expected[0]
    assert template.render_marked(MESSAGES, None).text == expected[0]


# The row is rejected


LOOP = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"


@pytest.mark.parametrize(
    "when",
    ["messages | length == 4", "messages | length == 2", "add_generation_prompt"],
    ids=["in the whole dialogue", "in its own document", "in a prompt"],
)
def test_a_limit_exceeded_in_any_render_of_a_dialogue_rejects_the_row(when):
    template = compiled(LOOP + f"{{% if {when} %}}{{{{ 'a' * 300000000 }}}}{{% endif %}}")
    dialogue = make_dialogue(5, Origin("rows.jsonl", 6), MESSAGES * 2)
    added_tokens = load_tokenizer(None).added_tokens
    rejected = render_dialogue(template, added_tokens, dialogue, "auto")
    assert isinstance(rejected, Reject)
    assert str(rejected) == (
        "rows.jsonl line 6: template_limit: the chat template makes a text of more than 1,000,000 "
        "characters; shorten the dialogue or use another --chat-template"
    )


def test_a_row_that_exceeds_a_limit_stops_the_run_or_is_skipped_as_the_option_says(tmp_path):
    template = tmp_path / "hostile.jinja"
    template.write_text(
        LOOP + "{% if 'boom' in messages[0].content %}{{ 9 ** (9 ** 9) }}{% endif %}"
    )
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(
            json.dumps({"messages": [{"role": "user", "content": content}, MESSAGES[1]]}) + "\n"
            for content in ("fine", "boom", "fine")
        )
    )
    output = tmp_path / "packed"
    command = ["pack", str(rows), "--chat-template", str(template), "-o", str(output), "--quiet"]
    failed = CliRunner().invoke(main, command)
    assert failed.exit_code == 1
    assert f"{rows} line 2: template_limit: the chat template {BITS}" in failed.stderr
    assert not output.exists()
    skipped = CliRunner().invoke(main, [*command, "--on-error", "skip", "--json"])
    assert skipped.exit_code == 0
    report = json.loads(skipped.stdout)
    assert (report["rows_packed"], report["rows_rejected"]) == (2, {Reason.TEMPLATE_LIMIT: 1})
