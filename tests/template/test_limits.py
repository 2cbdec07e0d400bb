"""A template that does too much has its row rejected; below the limits nothing changes."""

import json
import sys

import jinja2
import pytest
from click.testing import CliRunner
from transformers.utils import chat_template_utils

from mtpack.cli import main
from mtpack.input.dialogue import Origin, Reason, Reject, make_dialogue
from mtpack.template.chat_template import ChatTemplate, TemplateRaisedError
from mtpack.template.limits import LimitedEnvironment, Limits, Meter, TemplateLimitError
from mtpack.template.render_dialogue import render_dialogue
from mtpack.tokenizer.loading import load_tokenizer

DATE = "2026-01-31"
SMALL = Limits(characters=1_000_000, iterations=20_000)
CHARACTERS = "writes more than 1,000,000 characters"
ITERATIONS = "makes more than 20,000 loop iterations and macro calls"
DEPTH = "nests deeper than Python can follow"
MESSAGES = [
    {"role": "user", "content": "walrus"},
    {"role": "assistant", "content": "otter"},
]


def compiled(source: str, limits: Limits = SMALL) -> ChatTemplate:
    return ChatTemplate({"default": source}, {"huge": "a" * 900_000}, DATE, limits)


TOO_MUCH_TEXT = {
    "text that is written": "{{ huge }}{{ huge }}",
    "text that is made in one step": "{{ 'a' * 2000000 }}",
    "text that a loop writes": "{% for i in range(19000) %}{{ huge }}{% endfor %}",
    "text that a macro writes": (
        "{% macro f() %}{{ huge }}{{ huge }}{% endmacro %}{% set x = f() %}"
    ),
    "text that a caller writes": (
        "{% macro f() %}{% set x = caller() %}{% endmacro %}"
        "{% call f() %}{{ huge }}{{ huge }}{% endcall %}"
    ),
    "text in a block": "{% block f %}{{ huge }}{% endblock %}{% set x = self.f() %}",
    "text in a block of set": "{% set x %}{{ huge }}{{ huge }}{% endset %}",
    "text in a generation tag": "{% generation %}{{ huge }}{{ huge }}{% endgeneration %}",
    "texts that are large together": (
        "{% for i in range(100) %}{% set x %}{{ huge[:90000] }}{% endset %}{% endfor %}"
    ),
    "doubling by a macro": (
        "{% set ns = namespace(x='a') %}{% macro f(x) %}{{ x }}{{ x }}{% endmacro %}"
        "{% for _ in range(100) %}{% set ns.x = f(ns.x) %}{% endfor %}"
    ),
    "doubling by a block of set": (
        "{% set ns = namespace(x='a') %}{% for _ in range(100) %}"
        "{% set x %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = x %}{% endfor %}"
    ),
}
TOO_MANY_ITERATIONS = {
    "nested ranges": (
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"
    ),
    "a loop that skips all items": "{% for i in range(100000) if false %}{% endfor %}",
    "a loop that calls itself on its items": (
        "{% for i in [range(50000)] recursive %}{{ loop(i) if i is iterable }}{% endfor %}"
    ),
    "macros that call each other": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(15) }}"
    ),
    "a caller that calls itself": (
        "{% set ns = namespace() %}{% macro keep() %}{% set ns.call = caller %}{% endmacro %}"
        "{% call(n) keep() %}{% if n %}{{ ns.call(n - 1) }}{{ ns.call(n - 1) }}{% endif %}"
        "{% endcall %}{{ ns.call(15) }}"
    ),
    "blocks that call each other": "{% block f15 %}{% endblock %}"
    + "".join(
        f"{{% block f{n} %}}{{{{ self.f{n + 1}() ~ self.f{n + 1}() }}}}{{% endblock %}}"
        for n in range(15)
    ),
    "slices of nothing": "{% for x in [] | slice(10 ** 10) %}{{ loop.index }}{% endfor %}",
}
TOO_DEEP = {
    "a macro that calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a block that calls itself": "{% block f %}{{ self.f() }}{% endblock %}",
    "a loop that calls itself": "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "a caller that calls itself": (
        "{% macro f() %}{{ caller() }}{% endmacro %}"
        "{% macro g() %}{% call f() %}{{ g() }}{% endcall %}{% endmacro %}{{ g() }}"
    ),
    "a list in a list in a list": (
        "{% set ns = namespace(x=[]) %}{% for _ in range(5000) %}{% set ns.x = [ns.x] %}"
        "{% endfor %}{{ ns.x | tojson }}"
    ),
}
HOSTILE = [
    pytest.param(source, error_text, id=name)
    for error_text, sources in (
        (CHARACTERS, TOO_MUCH_TEXT),
        (ITERATIONS, TOO_MANY_ITERATIONS),
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
    template = compiled("{% for i in range(15000) %}{% endfor %}{{ huge }}")
    for _ in range(3):
        assert template.render_marked(MESSAGES, None).text == "a" * 900_000


def test_a_text_that_is_too_long_is_not_made_to_its_end():
    pieces = iter(["a" * 1000] * 10_000)
    with pytest.raises(TemplateLimitError, match=CHARACTERS):
        Meter(SMALL).join(pieces)
    assert len(list(pieces)) > 8_000


def test_no_constant_is_computed_before_the_render():
    """No watchdog runs while a template is compiled."""
    environment = LimitedEnvironment(Meter(Limits()))
    computed: list[int] = []
    environment.filters["compute"] = lambda number: computed.append(number) or number
    template = environment.from_string(
        "{{ 1 | compute }}{{ 2 | compute ~ 3 | compute }}"
        "{% if 4 | compute %}{% set x = 5 | compute %}{% endif %}"
    )
    assert not computed
    assert template.render() == "123"
    assert computed == [1, 2, 3, 4, 5]
    with pytest.raises(jinja2.TemplateSyntaxError, match="autoescape takes true or false"):
        environment.from_string("{% autoescape 6 | compute %}{% endautoescape %}")
    assert len(computed) == 5


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
    template = compiled(LOOP + f"{{% if {when} %}}{{{{ huge }}}}{{{{ huge }}}}{{% endif %}}")
    dialogue = make_dialogue(5, Origin("rows.jsonl", 6), MESSAGES * 2)
    added_tokens = load_tokenizer(None).added_tokens
    rejected = render_dialogue(template, added_tokens, dialogue, "auto")
    assert isinstance(rejected, Reject)
    assert str(rejected) == (
        "rows.jsonl line 6: template_limit: the chat template writes more than 1,000,000 "
        "characters; shorten the dialogue or use another --chat-template"
    )


def test_a_row_that_exceeds_a_limit_stops_the_run_or_is_skipped_as_the_option_says(tmp_path):
    template = tmp_path / "hostile.jinja"
    template.write_text(
        LOOP + "{% if 'boom' in messages[0].content %}{{ 'a' * 200000000 }}{% endif %}"
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
    assert f"{rows} line 2: template_limit: the chat template writes more than 134" in failed.stderr
    assert not output.exists()
    skipped = CliRunner().invoke(main, [*command, "--on-error", "skip", "--json"])
    assert skipped.exit_code == 0
    report = json.loads(skipped.stdout)
    assert (report["rows_packed"], report["rows_rejected"]) == (2, {Reason.TEMPLATE_LIMIT: 1})
