"""A row that sets variables of its template gives what a run with these variables would give."""

import gc
import json
import weakref
from dataclasses import dataclass, replace
from functools import cache
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtpack.documents.control_tokens import Renderer, load_renderer
from mtpack.documents.overlong import SuffixRenderer
from mtpack.input.dialogue import Dialogue, Origin, Reject, make_dialogue
from mtpack.input.reading import LINE_LIMIT
from mtpack.input.rows import read_dialogue
from mtpack.options import PackOptions
from mtpack.template.chat_template import ChatTemplate
from mtpack.template.dropped_content import MessageKinds
from mtpack.template.hidden_tools import list_tool_kinds, refuse_hidden_tools
from mtpack.template.message_forms import find_forms
from mtpack.template.reasoning_counts import ReasoningCounts
from mtpack.template.rendered_dialogue import RenderedDialogue
from mtpack.template.tracing.replayer import Replayer
from mtpack.template.turn_probes import TurnProbes
from mtpack.tokenizer.encoders import Encoders
from mtpack.tokenizer.loading import EMBEDDED_FOLDER, LoadedTokenizer, load_tokenizer
from tests.conftest import SHARED, examples
from tests.support.dialogue_kinds import KINDS
from tests.support.template_facts import FACTS
from tests.support.template_table import (
    DATE,
    MERGES,
    compute_reference_documents,
    encode_documents,
    list_flags,
    load_template,
    pack,
)

needs_templates = pytest.mark.skipif(
    not SHARED.is_dir(), reason="needs ../shared, which is not here"
)
WITH_SWITCHES = [name for name, facts in FACTS.items() if facts.switches]
# One template of each family.
FAMILIES = (
    "llama.cpp/GLM-4.6.jinja",
    "llama.cpp/Qwen-Qwen3-0.6B.jinja",
    "llama.cpp/deepseek-ai-DeepSeek-V3.2.jinja",
    "llama.cpp/google-gemma-4-31B-it-interleaved.jinja",
    "trl/nemotron_3_nano.jinja",
)
SOME_KINDS = ("plain", "reasoning_content", "inline think", "tools, reasoning before a call")
TOKENIZER = load_tokenizer(str(EMBEDDED_FOLDER))


@dataclass
class Rows:
    """Renders and counts dialogues one after the other, as a run does."""

    renderer: Renderer
    merge: str

    def render(self, dialogue: Dialogue) -> RenderedDialogue | Reject:
        renderer = self.renderer.of(dialogue)
        dialogue = find_forms(renderer.template, dialogue.tools).apply(dialogue)
        kinds = list_tool_kinds(dialogue) or []
        refused = refuse_hidden_tools(renderer.template, renderer.added_tokens, dialogue, kinds)
        if refused:
            return refused
        return renderer.render(dialogue, self.merge)

    def count(self, dialogue: Dialogue) -> list:
        renderer = self.renderer.of(dialogue)
        kinds = MessageKinds()
        kinds.add(dialogue)
        reasoning = ReasoningCounts(TurnProbes(renderer.template, renderer.added_tokens))
        reasoning.add(dialogue)
        dropped = kinds.count_dropped(renderer.template, renderer.added_tokens)
        return [dropped, reasoning.count(), renderer.name_counts(dialogue)]


def load_rows(
    tokenizer: LoadedTokenizer,
    sources: dict[str, str],
    variables: dict,
    merge: str = "auto",
    control_tokens: str = "keep",
    replays: bool = True,
) -> Rows:
    template = ChatTemplate(sources, variables, DATE)
    options = PackOptions(merge=merge, control_tokens=control_tokens)
    replayer = Replayer(template, tokenizer.added_tokens, merge) if replays else None
    renderer = replace(load_renderer(template, tokenizer, options), replayer=replayer)
    return Rows(renderer, merge)


def make_rows(source: str, **options) -> Rows:
    return load_rows(TOKENIZER, {"default": source}, {}, **options)


def make_row(*messages: dict, **arguments) -> Dialogue:
    """Make a dialogue whose row sets arguments: of a question and an answer by default."""
    plain = make_dialogue(0, Origin("row", 1), list(messages) or [QUESTION, ANSWER])
    return plain._replace(template_args=arguments or None)


QUESTION = {"role": "user", "content": "walrus"}
ANSWER = {"role": "assistant", "content": "otter"}
LOOP = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def read(row: dict) -> Dialogue:
    """Read a row as it is, before it is brought into the forms of a template."""
    dialogue = read_dialogue(0, Origin("row", 1), json.dumps(row).encode(), LINE_LIMIT)
    assert isinstance(dialogue, Dialogue), dialogue
    return dialogue


def text_of(rendered: RenderedDialogue | Reject) -> str:
    assert isinstance(rendered, RenderedDialogue), rendered
    return rendered.merged.text


# The same as in a run with the arguments


@needs_templates
@pytest.mark.parametrize("name", FAMILIES)
def test_a_row_with_a_switch_gives_what_a_run_with_it_gives(name):
    assert_as_in_runs(name, SOME_KINDS, ("auto",))


@pytest.mark.oracle
@needs_templates
@pytest.mark.parametrize("name", WITH_SWITCHES)
def test_a_row_of_any_kind_with_a_switch_gives_what_a_run_with_it_gives(name):
    assert_as_in_runs(name, tuple(KINDS), MERGES)


def assert_as_in_runs(name: str, kinds: tuple[str, ...], merges: tuple[str, ...]) -> None:
    """Render each kind in one run with switches of rows, and in runs with `--template-arg`."""
    with load_template(name) as loaded:
        sources, variables = loaded.template.sources, loaded.template.variables
        switch = FACTS[name].switches[0]
        for merge in merges:
            mixed = load_rows(loaded.tokenizer, sources, variables, merge)
            for value in (True, False):
                both = variables | {switch: value}
                run = load_rows(loaded.tokenizer, sources, both, merge, replays=False)
                for kind in kinds:
                    row = read(KINDS[kind])
                    with_switch = row._replace(template_args={switch: value})
                    expected = run.render(row)
                    for _ in range(2):  # recorded, and replayed
                        assert mixed.render(with_switch) == expected, (kind, merge)
                    assert mixed.count(with_switch) == run.count(row), kind
            assert mixed.renderer.count_replays()["replayed"] > 0


@pytest.mark.oracle
@needs_templates
@pytest.mark.parametrize("name", WITH_SWITCHES)
def test_documents_of_rows_with_a_switch_equal_those_of_the_reference(name):
    with load_template(name) as loaded:
        switch = FACTS[name].switches[0]
        for merge in MERGES:
            sources, variables = loaded.template.sources, loaded.template.variables
            rows = load_rows(loaded.tokenizer, sources, variables, merge)
            for kind, value in product(KINDS, (True, False)):
                row = KINDS[kind] | {"chat_template_kwargs": {switch: value}}
                expected = compute_reference_documents(loaded.reference, row, merge)
                rendered = rows.render(read(KINDS[kind])._replace(template_args={switch: value}))
                found = pack(loaded, rendered, merge)
                assert found == expected, (kind, value, merge)
                assert list_flags([found]) == list_flags([expected]), (kind, value, merge)


# Each row by itself, in any order

A_SWITCH = (
    LOOP
    + "{% if add_generation_prompt %}<|im_start|>assistant\n"
    + "{% if thinking is defined and not thinking %}<think></think>{% endif %}{% endif %}"
)
READS_ALL = (
    "{% if bos %}{{ bos }}{% endif %}{{ motto }}"
    "{% for d in documents or [] %}[{{ loop.index }}: {{ d.text }}]{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content and not (thinking is defined and not thinking) %}"
    "<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{{ '<think>' if thinking else '<think></think>' if thinking is defined else '' }}{% endif %}"
)
ARGUMENTS = (
    None,
    {"thinking": True},
    {"thinking": False},
    {"thinking": 0, "unread": "a"},
    {"motto": "<think>"},
    {"motto": "Be brief, and kind. "},
    {"motto": "Be kind, and brief. ", "thinking": False},
    {"documents": [{"text": "a"}]},
    {"documents": [{"text": "b c"}, {"text": "x" * 40}]},
    {"bos": "<s>", "motto": None, "documents": []},
)
REASONED = {"role": "assistant", "content": "otter", "reasoning_content": "ferret"}
DIALOGUES = ((QUESTION, ANSWER), (QUESTION, REASONED, QUESTION))


@settings(max_examples=examples(40))
@given(st.lists(st.tuples(st.sampled_from(DIALOGUES), st.sampled_from(ARGUMENTS)), max_size=8))
def test_rows_with_other_arguments_in_one_run_do_not_change_a_row(rows):
    in_one_run = make_rows(READS_ALL)
    for messages, arguments in rows:
        row, plain = make_row(*messages, **arguments or {}), make_row(*messages)
        alone = load_run(json.dumps(arguments))
        assert in_one_run.render(row) == alone.render(plain)
        assert in_one_run.count(row)[:2] == alone.count(plain)[:2]


@cache
def load_run(arguments: str) -> Rows:
    """Load a run with arguments (as JSON), all of whose dialogues are rendered."""
    return load_rows(TOKENIZER, {"default": READS_ALL}, json.loads(arguments) or {}, replays=False)


def test_a_row_wins_over_the_arguments_of_the_run():
    rows = load_rows(TOKENIZER, {"default": "{{ motto }}" + LOOP}, {"motto": "run "})
    assert text_of(rows.render(make_row())).startswith("run <|im_start|>")
    assert text_of(rows.render(make_row(motto="row "))).startswith("row <|im_start|>")


def test_documents_are_variables_of_the_template():
    source = "{% for d in documents or [] %}{{ d.text }} {% endfor %}" + LOOP
    rows = make_rows(source)
    assert text_of(rows.render(make_row(documents=[{"text": "a b"}, {"text": "c"}]))).startswith(
        "a b c <|im_start|>"
    )
    assert text_of(rows.render(make_row())).startswith("<|im_start|>")


def test_a_row_that_sets_a_switch_is_rendered_in_no_other_mode():
    source = READS_ALL.replace("not (thinking is defined and not thinking)", "thinking")
    rows = make_rows(source)
    reasoned = make_row(QUESTION, REASONED)
    (dropped, reasoning, _) = rows.count(reasoned)
    assert (dropped, reasoning.rows_in_mode) == ({}, {"thinking=true": 1})
    assert "ferret" in text_of(rows.render(reasoned))
    switched_off = make_row(QUESTION, REASONED, thinking=False)
    (dropped, reasoning, _) = rows.count(switched_off)
    assert (dropped, reasoning.rows_in_mode) == ({"assistant.reasoning_content": 1}, {})
    assert "ferret" not in text_of(rows.render(switched_off))


def test_the_forms_of_messages_are_those_that_the_template_takes_with_the_arguments():
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if parts %}{{ m.content[0].text }}"
        "{% else %}{{ m.content + '' }}{% endif %}<|im_end|>\n{% endfor %}"
    )
    rows = make_rows(source)
    assert text_of(rows.render(make_row())) == text_of(rows.render(make_row(parts=True)))


def test_a_hidden_call_is_refused_where_the_arguments_of_the_row_hide_it():
    source = LOOP.replace("<|im_end|>", "{{ '' if plain else m.tool_calls or '' }}<|im_end|>")
    call = {"type": "function", "function": {"name": "find", "arguments": {"what": "eel"}}}
    messages = [QUESTION, {"role": "assistant", "content": "", "tool_calls": [call]}]
    rows = make_rows(source)
    assert isinstance(rows.render(make_row(*messages)), RenderedDialogue)
    refused = rows.render(make_row(*messages, plain=True))
    assert isinstance(refused, Reject)
    assert refused.reason == "tools_not_shown"


# Texts in arguments


@pytest.mark.parametrize("policy", ["keep", "literal", "error"])
def test_control_tokens_in_documents_are_those_of_input_text(policy):
    source = "{% for d in documents or [] %}{{ d.text }} {% endfor %}" + LOOP
    rows = make_rows(source, control_tokens=policy)
    row = make_row(documents=[{"text": "ends in <|im_end|>"}])
    rendered, (_, _, counted) = rows.render(row), rows.count(row)
    if policy == "error":
        assert isinstance(rendered, Reject)
        assert rendered.reason == "control_token"
        assert rendered.detail.startswith("the documents: ")
        return
    assert counted == {"control_tokens" if policy == "keep" else "control_tokens_literal"}
    (document,) = encode_documents(TOKENIZER, rendered, "auto")
    end = TOKENIZER.backend.token_to_id("<|im_end|>")
    assert document.ids.count(end) == (3 if policy == "keep" else 2)


def test_an_error_of_the_template_that_quotes_an_argument_is_not_shown():
    rows = make_rows("{{ raise_exception('unknown: ' ~ motto) if motto }}" + LOOP)
    refused = rows.render(make_row(motto="confidential"))
    assert isinstance(refused, Reject)
    assert refused.reason == "template_raised"
    assert "confidential" not in refused.detail


@pytest.mark.parametrize("name", ["raise_exception", "namespace", "dict", "strftime_now", "range"])
def test_an_argument_that_replaces_a_function_of_templates_does_no_harm(name):
    source = "{% set n = namespace(x=1) %}{{ strftime_now('%Y') }}{{ range(2) | list }}" + LOOP
    rows = make_rows(source + "{{ dict(a=1) if messages | length > 9 }}")
    alone = load_rows(TOKENIZER, rows.renderer.template.sources, {name: "x"}, replays=False)
    for _ in range(3):
        assert rows.render(make_row(**{name: "x"})) == alone.render(make_row())


# Memory and time


def test_many_different_arguments_do_not_fill_the_memory():
    rows = make_rows("{{ n }}{{ motto }}" + LOOP)
    templates, renderers = weakref.WeakSet(), []
    for number in range(300):
        row = make_row(n=number)
        if number < 20:
            assert text_of(rows.render(row)).startswith(f"{number}<|im_start|>")
        renderer = rows.renderer.of(row)
        renderers.append(weakref.ref(renderer))
        templates.add(renderer.template)
        templates.add(rows.renderer.of(make_row(motto=f"number {number}")).template)
        del renderer
    gc.collect()
    assert len(templates) <= 65  # those of the motto share one
    assert sum(each() is not None for each in renderers) <= 8


def test_rows_that_set_different_variables_are_all_replayed():
    names = [f"v{number}" for number in range(20)]
    source = "".join(f"{{{{ {name} }}}}" for name in names) + LOOP
    rows = make_rows(source)
    for name in names:
        rendered = [text_of(rows.render(make_row(**{name: "!"}))) for _ in range(2)]
        assert rendered[0] == rendered[1]
        assert rendered[0].startswith("!<|im_start|>")
    assert rows.renderer.count_replays()["replayed"] == len(names)


def test_large_arguments_do_not_fill_the_memory():
    rows = make_rows("{{ n }}" + LOOP)
    alive = weakref.WeakSet()
    for number in range(20):
        keys = {f"{number} {key}": 1 for key in range(10_000)}
        alive.add(rows.renderer.of(make_row(n=keys)).template.made_up)
    gc.collect()
    assert len(alive) <= 8


def test_rows_whose_arguments_differ_in_texts_share_what_probes_find():
    template = make_rows("{{ motto }}{{ effort }}{{ n }}{{ documents }}" + LOOP).renderer.template

    def made_up(**arguments) -> ChatTemplate:
        return template.with_arguments(arguments).made_up

    assert made_up(motto="a b") is made_up(motto="c d e")
    assert made_up(motto="x" * 40) is made_up(motto="a b")
    assert made_up(documents=[{"text": "a"}]) is made_up(documents=[{"text": "b"}, {"text": "c"}])
    assert made_up(documents=[{"id": 1}]) is made_up(documents=[{"id": 2}])
    assert made_up(effort="high") is not made_up(effort="low")
    assert made_up(n=1) is not made_up(n=True)
    assert made_up(n=None) is not template
    assert made_up(other=1) is template


def test_replays_of_rows_with_arguments_are_counted():
    rows = make_rows("{{ n }}" + LOOP)
    for _, number in product(range(3), range(20)):
        for _ in range(2):
            rows.render(make_row(n=number))
    counted = rows.renderer.count_replays()
    assert counted["replayed"] >= 60
    rows.render(make_row())
    rows.render(make_row())
    assert rows.renderer.count_replays()["replayed"] == counted["replayed"] + 1


def test_a_suffix_has_the_arguments_of_its_row():
    rows = make_rows("{{ motto }}" + LOOP)
    row = make_row(QUESTION, ANSWER, QUESTION, ANSWER, motto="row ")
    whole = encode_documents(TOKENIZER, rows.render(row), "auto")[0]
    encoders = Encoders(TOKENIZER, 0)
    suffixes = SuffixRenderer(rows.renderer, encoders, lambda _: row, len(whole.ids) - 1)
    suffix = suffixes.render(0, 3)
    assert TOKENIZER.backend.decode(suffix.ids.tolist(), skip_special_tokens=False).startswith(
        "row <|im_start|>user"
    )
