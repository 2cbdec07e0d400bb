"""A replay gives the same as rendering, for any template and any dialogue."""

import json

import jinja2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers.utils import chat_template_utils

from mtpack.input.dialogue import Dialogue, Origin, Reject
from mtpack.input.reading import LINE_LIMIT
from mtpack.input.rows import RowOptions, read_dialogue
from mtpack.template.chat_template import ChatTemplate
from mtpack.template.limits import Limits, Meter
from mtpack.template.render_dialogue import render_dialogue
from mtpack.template.tracing import operations
from mtpack.template.tracing.automaton import Automaton
from mtpack.template.tracing.program import Program
from mtpack.template.tracing.recorder import Event, Recorder
from mtpack.template.tracing.replayer import Replayer
from mtpack.template.tracing.tracers import Untraceable
from mtpack.tokenizer.loading import load_tokenizer
from tests.conftest import examples
from tests.support.template_grammar import rows, template_sources
from tests.template.test_chat_template import compile_source

MERGES = ("auto", "always", "never")
ADDED_TOKENS = load_tokenizer(None).added_tokens


def say(role: str, content, **fields) -> dict:
    return {"role": role, "content": content, **fields}


def read(row: dict, number: int = 0) -> Dialogue:
    """Read a row from JSON, so that no two dialogues share an object.

    The messages are in every form that a template may take (`template/message_forms.py`): arguments
    may be text, and a content null.
    """
    text = json.dumps(row).encode()
    options = RowOptions(keeps_argument_text=True)
    dialogue = read_dialogue(number, Origin("row", 1), text, LINE_LIMIT, options=options)
    assert isinstance(dialogue, Dialogue), dialogue
    for message, written in zip(dialogue.messages, row["messages"], strict=True):
        if written["content"] is None:
            message["content"] = None
    return dialogue


def assert_replayed_as_rendered(
    source: str, rows: list[dict], merges: tuple[str, ...] = MERGES
) -> int:
    """Render each dialogue three times by replayers; return how many of them were replayed."""
    template = compile_source(source)
    replayed = 0
    for merge in merges:
        replayer = Replayer(template, ADDED_TOKENS, merge)
        expected = [render_dialogue(template, ADDED_TOKENS, read(row), merge) for row in rows]
        counts = []
        for _ in range(3):
            for row, rendered in zip(rows, expected, strict=True):
                assert replayer.render_dialogue(read(row)) == rendered, (merge, row)
            counts.append(replayer.replayed)
        replayed += replayer.replayed
        if counts[1] > counts[0]:
            # What was recorded once is replayed from then on.
            assert counts[2] - counts[1] >= counts[1] - counts[0], merge
    return replayed


A_TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
LOOP = "{% for m in messages %}" + A_TURN + "{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CHATML = LOOP + PROMPT


def dialogue(*contents: str, **fields) -> dict:
    roles = ("user", "assistant")
    return {
        "messages": [
            say(roles[number % 2], content, **(fields if number % 2 else {}))
            for number, content in enumerate(contents)
        ]
    }


ROWS = [
    dialogue("a", "b"),
    dialogue("b", "a", "c", "d"),
    dialogue("", " b ", "a\n", ""),
    dialogue("<b>&", "x", "a", "b", "a", "a"),
    {"messages": [say("system", "a"), *dialogue("a", "b", "c", "d")["messages"]]},
    {"messages": [say("system", ""), *dialogue("b", "a", "a", "d")["messages"]]},
    dialogue("a", "b", "c", "d", k="a", meta={"k": 1, "z": "Z"}, n=1),
    dialogue("a", "b", "c", "d", k="", meta={"k": True, "z": None}, n=True),
    dialogue("b", "b", "a", "d", k="b", meta={"k": 1.0, "z": "a"}, n=1.0),
    dialogue("b", "b", "a", "d", k="B", meta={"b": "B", "a": "a", "C": "c"}, n=1000),
    {"messages": [say("user", "q"), *dialogue("u", "b", "a", "d", k="x")["messages"]]},
    *(
        {
            "messages": [
                say("user", "a"),
                say("assistant", content, tool_calls=[{"name": "f", "arguments": arguments}]),
                say("tool", result),
                say("assistant", "d"),
            ]
        }
        for content, arguments, result in (
            ("", {"k": "a"}, "b"),
            (None, {"k": "b"}, {"t": 20, "s": "a"}),
            (None, {"k": None}, {"t": True, "s": "b"}),
            ("a", '{"k": "a"}', [1, "b", {"a": None}]),
            ("b", '{"k":"b"}', [2, "a", {"a": "b"}]),
            ("", {}, 20),
            ("", {}, 21),
            (None, {}, 20.0),
            (None, {}, True),
        )
    ),
]
SUSPICIOUS_TEMPLATES = {
    # Contents that are not text.
    "content by its type": CHATML.replace(
        "m.content", "m.content if m.content is string else m.content|tojson"
    ),
    "content tested for null": CHATML.replace(
        "{{ m.content }}", "{% if m.content is not none %}{{ m.content }}{% else %}-{% endif %}"
    ),
    "keys of a content": CHATML.replace(
        "{{ m.content }}",
        "{% if m.content is mapping %}{% for k, v in m.content.items() %}{{ k }}={{ v }};"
        "{% endfor %}{% elif m.content is iterable %}{% for v in m.content %}{{ v }},{% endfor %}"
        "{% else %}{{ m.content + 1 if m.content is number }}{% endif %}",
    ),
    "arguments by their type": CHATML.replace(
        "{{ m.content }}",
        "{% for c in m.tool_calls or [] %}{{ c.arguments if c.arguments is string else "
        "c.arguments|tojson }}{% endfor %}",
    ),
    # Output before the loop that depends on messages which a shorter dialogue does not have.
    "count before the loop": "{{ messages|length }}" + CHATML,
    "last message before the loop": "{{ messages[-1].content }}" + CHATML,
    "all messages before the loop": "{{ messages|tojson }}" + CHATML,
    "count in a variable": "{% set n = messages|length %}{{ n }}" + CHATML,
    "count of a slice": "{{ messages[1:]|length }}" + CHATML,
    "last of an empty slice": "{{ messages[:-1][::-1]|tojson }}" + CHATML,
    "an empty slice reversed and chosen from": (
        "{{ messages[:-1][::-1]|selectattr('role', 'equalto', 'user')|list|length }}" + CHATML
    ),
    # Many filters return no list, but an iterator, which can be iterated over only once.
    "truth of a generator": (
        "{% if messages|selectattr('role', 'equalto', 'system') %}S{% endif %}" + CHATML
    ),
    "a generator used twice": (
        "{% set roles = messages|map(attribute='role') %}{{ roles|join }}{{ roles|join }}" + CHATML
    ),
    "a generator that two loops share": (
        "{% set all = messages|reverse %}{% for m in all %}{{ m.role }}{% endfor %}"
        "{% for m in all %}{{ m.role }}{% endfor %}" + CHATML
    ),
    "element of a generator": "{{ (messages|reverse)[0].role }}" + CHATML,
    "truth of an empty iterator": (
        "{% if messages[1:]|reverse %}more{% endif %}{% if messages[5:]|reverse %}!{% endif %}"
        + CHATML
    ),
    "length of a generator": "{{ messages|map(attribute='role')|length }}" + CHATML,
    "text of a view": "{% for m in messages %}{{ m.keys() }}" + A_TURN + "{% endfor %}",
    "element of a view": "{% for m in messages %}{{ m.keys()[0] }}" + A_TURN + "{% endfor %}",
    "view as a sequence": (
        "{% for m in messages %}{{ m.keys() is sequence }}{{ m.keys() is iterable }}"
        + A_TURN
        + "{% endfor %}"
    ),
    "json of a view": "{% for m in messages %}{{ m.values()|tojson }}" + A_TURN + "{% endfor %}",
    "valid uses of a view": (
        "{% for m in messages %}{% for k, v in m.items() %}{{ k }}={{ v }};{% endfor %}"
        "{{ m.keys()|join }}{{ m.keys()|list }}{{ m.values()|first }}{{ 'k' in m.keys() }}"
        "{{ m.keys()|length }}" + A_TURN + "{% endfor %}"
    ),
    "groups have names": (
        "{% for g in messages|groupby('role') %}{{ g.grouper }}{{ g.list|length }}{% endfor %}"
        + CHATML
    ),
    "sorting ignores case": (
        "{% for m in messages %}{{ {'a': m.content, 'b': m.k, 'c': 'A'}.values()|map('string')"
        "|sort|join }}" + A_TURN + "{% endfor %}"
    ),
    "sorting a view of tracers ignores case": (
        "{% for m in messages %}{% if m.k %}{{ {'a': m.content, 'b': m.k}.values()|sort|first }}"
        "{% endif %}" + A_TURN + "{% endfor %}"
    ),
    # Operators and methods of Python.
    "percent without a format": "{% for m in messages %}{{ 'x' % m.content }}{% endfor %}",
    "percent": "{% for m in messages %}{{ '<%s>' % m.content }}" + A_TURN + "{% endfor %}",
    "percent by name": "{% for m in messages %}{{ '%(role)s' % m }}" + A_TURN + "{% endfor %}",
    "sameas of texts": (
        "{% for m in messages %}{{ m.role is sameas 'user' }}"
        "{{ m.content is sameas messages[0].content }}" + A_TURN + "{% endfor %}"
    ),
    "sameas of numbers": (
        "{% for m in messages %}{{ m.n is sameas 1 }}{{ m.n is sameas true }}"
        "{{ m.n is sameas 1000 }}" + A_TURN + "{% endfor %}"
    ),
    "numbers that are equal": (
        "{% for m in messages %}{{ m.n }}{{ m.n == 1 }}{{ m.n is integer }}{{ m.n is float }}"
        "{{ m.n is number }}{{ m.n is boolean }}{{ m.n|tojson }}{{ {1: 'one'}[m.n] }}"
        "{{ 'q' if m.n in [1, 2] }}" + A_TURN + "{% endfor %}"
    ),
    "a dict's keys that are equal": (
        "{% set d = {1: 'a'} if messages[0].content == 'a' else {true: 'a'} %}"
        "{% for m in messages %}{{ d }}" + A_TURN + "{% endfor %}"
    ),
    "methods of numbers": (
        "{% for m in messages %}{% if m.n is float %}{{ m.n.hex() }}{% endif %}"
        + A_TURN
        + "{% endfor %}"
    ),
    "markup": (
        "{% for m in messages %}{{ m.content|e }}{{ '<' ~ (m.content|e) }}{{ (m.content|e) + '<' }}"
        "{{ (m.content|safe) + '<' + m.content }}{{ '<' + (m.content|e|trim) }}"
        "{{ m.content|e is escaped }}{{ m.content is escaped }}" + A_TURN + "{% endfor %}"
    ),
    "methods of markup": (
        "{% for m in messages %}{{ (m.content|e).unescape() }}" + A_TURN + "{% endfor %}"
    ),
    # Loops.
    "the loop itself as text": "{% for m in messages %}{{ loop }}" + A_TURN + "{% endfor %}",
    "the loop itself, tested": (
        "{% for m in messages %}{{ loop is iterable }}{{ loop is callable }}"
        + A_TURN
        + "{% endfor %}"
    ),
    "all attributes of a loop": (
        "{% for m in messages %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}"
        "{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}"
        "{{ loop.previtem.role }}{{ loop.nextitem.role }}" + A_TURN + "{% endfor %}"
    ),
    "cycles": ("{% for m in messages %}{{ loop.cycle('x', 'y') }}" + A_TURN + "{% endfor %}"),
    "changes": ("{% for m in messages %}{{ loop.changed(m.content) }}" + A_TURN + "{% endfor %}"),
    "depth": "{% for m in messages %}{{ loop.depth }}" + A_TURN + "{% endfor %}",
    "changes in an inner loop": (
        "{% for m in messages %}{% for c in ['a', 'a', m.content] %}"
        "{{ loop.changed(c) }}{{ loop.cycle(1, 2) }}{% endfor %}" + A_TURN + "{% endfor %}"
    ),
    "a cycler": (
        "{% set c = cycler('x', 'y') %}{% for m in messages %}{{ c.next() }}"
        "{% if m.role == 'user' %}{{ c.next() }}{% endif %}" + A_TURN + "{% endfor %}"
    ),
    "a cycler in a namespace": (
        "{% set ns = namespace(c=cycler('x', 'y')) %}{% for m in messages %}{{ ns.c.next() }}"
        "{% if m.role == 'user' %}{{ ns.c.next() }}{% endif %}" + A_TURN + "{% endfor %}"
    ),
    "a joiner": (
        "{% set j = joiner(', ') %}{% for m in messages %}{% if m.content == 'a' %}{{ j() }}"
        "{% endif %}" + A_TURN + "{% endfor %}"
    ),
    "a cycler in a macro": (
        "{% set c = [cycler('x', 'y')] %}{% macro f() %}{{ c[0].next() }}{% endmacro %}"
        "{% for m in messages %}{% if m.content == 'a' %}{{ f() }}{% endif %}"
        + A_TURN
        + "{% endfor %}"
    ),
    "a constant for each character": (
        "{% for m in messages %}{% for c in m.content %}{{ 'x' }}"
        "{% if c.type == 'image' %}I{% endif %}{% endfor %}" + A_TURN + "{% endfor %}"
    ),
    "a set in a loop stays in it": (
        "{% set x = 'out' %}{% for m in messages %}{{ x }}{% if m.content == 'a' %}"
        "{% set x = m.content %}{% endif %}{{ x }}" + A_TURN + "{% endfor %}{{ x }}"
    ),
    "set in one branch only": (
        "{% if messages[0].content == 'a' %}{% set x = 'A' %}"
        "{% elif messages[0].role == 'system' %}{% set y = messages[0].content %}{% endif %}"
        "{% for m in messages %}{{ x }}{{ y }}"
        "{{ x is defined }}" + A_TURN + "{% endfor %}{{ x }}"
    ),
    "set anew between loops": (
        "{% set x = 1 %}{% for m in messages %}{{ x }}{% endfor %}{% set x = messages[0].content %}"
        "{% for m in messages %}{{ x }}" + A_TURN + "{% endfor %}{{ x }}"
    ),
    "plain loops, for and else": (
        "{% for m in messages if m.role == 'system' %}{{ loop.length }}{{ m.content }}"
        "{% else %}none{% endfor %}" + CHATML
    ),
    "break and continue": (
        "{% for m in messages %}{% if m.content == 'd' %}{% break %}{% endif %}"
        "{% if m.content == '' %}{% continue %}{% endif %}" + A_TURN + "{% endfor %}end"
    ),
    # Variables that are live from step to step.
    "a macro of two bodies": (
        "{% if messages[0].content == 'a' %}{% macro f(x) %}A{{ x }}{% endmacro %}"
        "{% else %}{% macro f(x) %}B{{ x }}{% endmacro %}{% endif %}"
        "{% for m in messages %}{{ f(m.content) }}" + A_TURN + "{% endfor %}"
    ),
    "a macro kept from an earlier message": (
        "{% set ns = namespace(f=none) %}{% for m in messages %}"
        "{% if ns.f %}[{{ ns.f() }}]{% endif %}"
        + A_TURN
        + "{% set y = 'A' if m.content == 'a' else 'B' %}"
        "{% macro f() %}{{ y }}{% endmacro %}{% set ns.f = f %}{% endfor %}"
    ),
    "a namespace under two names": (
        "{% set a = namespace(x='0', list=[]) %}{% set b = a %}{% set c = namespace(x='0') %}"
        "{% for m in messages %}{% set b.x = m.content %}{{ a.x }}{{ c.x }}"
        "{% set a.list = a.list + [m.role] %}{{ b.list }}" + A_TURN + "{% endfor %}{{ a.x }}"
    ),
    "a namespace that grows and counts": (
        "{% set ns = namespace(n=0, text='', seen={}) %}{% for m in messages %}"
        "{% set ns.n = ns.n + 1 %}{% set ns.text = ns.text ~ m.content ~ ',' %}"
        "{% set ns.last = m.role %}{{ ns.n }}{{ ns.last }}"
        + A_TURN
        + "{% endfor %}{{ ns.text }}{{ ns.n is odd }}"
    ),
    "a long gathered text": (
        "{% set ns = namespace(text='') %}{% for m in messages %}{% set ns.text %}{{ ns.text }}"
        "{% for i in range(6) %}{{ 'u' if m.content == 'a' else 'v' }}{% endfor %}{{ m.content }}"
        "{% endset %}" + A_TURN + "{% endfor %}{{ ns.text }}"
    ),
    "a long gathered text of marks": (
        "{% set ns = namespace(text='') %}{% for m in messages %}{% set ns.text %}{{ ns.text }}"
        "{% generation %}{{ 'u' if m.content == 'a' else 'v' }}{% endgeneration %}"
        "{% endset %}" + A_TURN + "{% endfor %}{{ ns.text }}"
    ),
    # Captured text and its marks.
    "marks in a text that is trimmed": (
        "{% set all %}{% for m in messages %}"
        + A_TURN
        + "{% endfor %}{% endset %}{{ all|trim }}"
        + PROMPT
    ),
    "tags in a text that is trimmed": (
        "{% for m in messages %}{% set t %}{% generation %} {{ m.content }} {% endgeneration %}"
        "{% endset %}<|im_start|>{{ m.role }}\n{{ t|trim }}<|im_end|>\n{% endfor %}"
    ),
    "tags in a text that is tested": (
        "{% for m in messages %}{% set t %}{% generation %}{{ m.k }}{% endgeneration %}{% endset %}"
        "{% if t %}T{% endif %}{% if t == 'a' %}A{% endif %}{{ t|length }}"
        + A_TURN
        + "{% endfor %}"
    ),
    "a filter block": (
        "{% for m in messages %}{% filter upper %}{{ m.content }}{% endfilter %}"
        + A_TURN
        + "{% endfor %}"
    ),
    "a filter block around tags": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% filter trim %}{% generation %} "
        "{{ m.content }} {% endgeneration %}{% endfilter %}<|im_end|>\n{% endfor %}"
    ),
    # Macros.
    "macros with defaults, varargs and a caller": (
        "{% macro f(x, y='d', z=none) %}{{ x }}{{ y }}{{ z }}{{ varargs|length }}"
        "{{ kwargs|length }}{% endmacro %}{% macro g(x) %}[{{ caller(x) }}]{% endmacro %}"
        "{% for m in messages %}{{ f(m.content) }}{{ f(m, m.k, 1, 2) }}{{ f(1, w=m.k) }}"
        "{% call(v) g(m.content) %}{{ v }}{{ m.k }}{% endcall %}" + A_TURN + "{% endfor %}"
    ),
    "a closed macro of messages or of nothing": (
        "{% macro all(list) %}{% for x in list %}{{ x.content }}{% endfor %}{% endmacro %}"
        "{{ all(messages[1:]) }}{{ all(messages[4:]) }}" + CHATML
    ),
    "a closed macro of a dict": (
        "{% macro show(d) %}{% for k in d %}{{ k }}{{ d[k] }}{% endfor %}{% endmacro %}"
        "{% for m in messages %}{% if m.meta %}{{ show(m.meta) }}{% endif %}"
        + A_TURN
        + "{% endfor %}"
    ),
    # Undefined values.
    "undefined attributes": (
        "{% for m in messages %}{{ m.nothing }}{{ m.k is defined }}{{ m.k }}{{ m.k|default('D') }}"
        "{{ m.k|default('E', true) }}{{ m.meta.z }}{{ m['meta']['k'] }}{{ m.get('k', 'F') }}"
        "{{ 'k' in m }}{{ m.nothing == m.k }}" + A_TURN + "{% endfor %}"
    ),
    "undefined attributes of nothing": (
        "{% for m in messages %}{{ m.nothing.more }}" + A_TURN + "{% endfor %}"
    ),
    "attributes of methods": (
        "{% for m in messages %}{{ m.content.strip.owner }}{{ m.content.strip.name }}"
        + A_TURN
        + "{% endfor %}"
    ),
}
"""Templates whose output could depend on a dialogue in a way that no event records."""


@pytest.mark.parametrize("source", SUSPICIOUS_TEMPLATES.values(), ids=SUSPICIOUS_TEMPLATES)
def test_a_replay_gives_the_same_as_rendering(source):
    assert_replayed_as_rendered(source, ROWS)
    assert_replayed_as_rendered(source, ROWS[::-1])


MARKS = "\ufdd00\ufdd1a\ufdd2"
UNSAFE_CASES = {
    "marks in a text that only own documents have": (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ m.k if loop.last }}{% endfor %}",
        [
            dialogue(*"abcd", k="x"),
            dialogue(*"abcdef", k="x"),
            dialogue("a", "b", "c", "d", "e", k=MARKS),
            dialogue("a", "b", "c", "d", k="\ufdd2"),
            dialogue("a", "b", "c", "d", k="z"),
        ],
    ),
    "white space that decides where a generation prompt starts": (
        "{{ messages[0].content|trim if add_generation_prompt else messages[0].content }}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n<|im_end|>\n{% endfor %}FOOT" + PROMPT,
        [{"messages": [say("assistant", content)]} for content in ("a", " x", "y", " z")],
    ),
    "a content that decides whether a message may be missing": (
        "{% for m in messages %}{% if m.role == 'user' %}Q{% elif m.role == 'tool' %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% endif %}{% endfor %}",
        [dialogue("a", content) for content in ("", "x", "", "y")],
    ),
    "slots that a template writes": (
        "{{ messages[0].role }}:{{ messages[0].content }}"
        "{{ '%c' % (messages[1].content|length + 55295) }}" + CHATML,
        [dialogue("a", content) for content in ("", "a", "aa", "")],
    ),
    "slots and marks that a template writes for numbers": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{{ '%c' % m.n if m.n }}"
        "<|im_end|>\n{% endfor %}" + PROMPT,
        [dialogue("a", "b", "c", "d", n=n) for n in (65, 66, 57343, 55296, 64978, 65)],
    ),
    "a step of a slice that is zero": (
        "{{ messages[::messages[1].n]|length }}" + CHATML,
        [dialogue("a", "b", n=n) for n in (1, 2, 0, 1)],
    ),
}
"""Texts that could be taken for a mark or a slot, or that decide what no guard asks."""


@pytest.mark.parametrize(("source", "rows"), UNSAFE_CASES.values(), ids=UNSAFE_CASES)
def test_a_replay_gives_the_same_as_rendering_for_unsafe_texts(source, rows):
    assert_replayed_as_rendered(source, rows)
    assert_replayed_as_rendered(source, rows[::-1])


def is_valid(source: str) -> bool:
    """Return whether transformers compiles a template; the grammar generates some invalid ones."""
    try:
        chat_template_utils._compile_jinja_template(source)
    except (SyntaxError, jinja2.TemplateSyntaxError):
        return False
    return True


@given(
    source=template_sources.filter(is_valid),
    rows=st.lists(rows(), min_size=2, max_size=5),
    merge=st.sampled_from(MERGES),
)
@settings(max_examples=examples(100), suppress_health_check=list(HealthCheck))
def test_a_replay_of_any_template_gives_the_same_as_rendering(source, rows, merge):
    assert_replayed_as_rendered(source, rows, (merge,))


def test_a_dialogue_that_exceeds_a_limit_is_not_replayed():
    source = "{% for m in messages %}{% for i in range(99) %}{% endfor %}" + A_TURN + "{% endfor %}"
    template = ChatTemplate({"default": source}, {}, "2026-01-31", Limits(iterations=2_000))
    replayer = Replayer(template, ADDED_TOKENS, "auto")
    for _ in range(2):
        for num_turns in range(1, 12):
            dialogue = read({"messages": [say("user", "a"), say("assistant", "b")] * num_turns})
            rendered = replayer.render_dialogue(dialogue)
            assert rendered == render_dialogue(template, ADDED_TOKENS, dialogue, "auto")
            assert isinstance(rendered, Reject) == (num_turns > 10)
    assert replayer.replayed > 6  # those that make up to half of the iterations


# Promises of the recorder, the automaton and the program


def test_code_that_does_not_support_tracers_fails_on_one():
    tracer = Recorder(Meter(Limits())).trace_input("text")
    for use in (hash, str, repr, "{}".format, lambda value: {value: 1}, lambda value: f"{value}"):
        with pytest.raises(Untraceable):
            use(tracer)
    with pytest.raises(TypeError):
        "".join([tracer])


def test_a_value_that_a_step_does_not_carry_over_can_not_be_used():
    recorder = Recorder(Meter(Limits()))
    kept, lost = recorder.trace_constant(1), recorder.trace_constant(2)
    recorder.begin_step(0, [kept])
    assert kept == 1
    with pytest.raises(Untraceable, match="earlier step"):
        recorder.write(lost)


def test_a_contradiction_ends_all_replays_of_a_template():
    automaton = Automaton()
    automaton.learn([(Event("write", None, ("a",)), None), (Event("end"), None)])
    with pytest.raises(Untraceable, match="other events"):
        automaton.learn([(Event("write", None, ("b",)), None), (Event("end"), None)])
    assert automaton.root.event is None
    with pytest.raises(Untraceable):
        automaton.learn([(Event("end"), None)])


def test_a_program_runs_only_where_its_guards_hold():
    program = Program([{"content": "a"}], None)
    slot = program.load_field(0, "content")
    program.guard(operations.COMPARISONS["eq"], (slot, ("a",)))
    assert program.run([{"content": "a"}], None) is not None
    assert program.run([{"content": "b"}], None) is None
