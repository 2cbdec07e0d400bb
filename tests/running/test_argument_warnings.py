"""A template argument that no template reads is named, with the one that was meant."""

import json

import pytest

import mtpack
from mtpack.running.argument_warnings import list_argument_warnings
from mtpack.running.pack import Callbacks
from mtpack.template.chat_template import ChatTemplate
from tests.conftest import SAMPLE_DATA

NEVER_READ = '--template-arg: the chat template never reads "{}"; {}'
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def warnings_of(source: str, *arguments: str, **sources: str) -> list[str]:
    template = ChatTemplate({"default": source, **sources}, {}, "2026-01-01")
    return list_argument_warnings(template, arguments)


def test_the_nearest_variable_is_named():
    source = "{{ messages }}{% if enable_thinking is false %}{{ date_string }}{% endif %}"
    assert warnings_of(source, "enable_thinkin=false") == [
        NEVER_READ.format("enable_thinkin", "did you mean enable_thinking?")
    ]
    assert warnings_of(source, "enable_thinking=false", "date_string=today") == []


def test_all_variables_are_named_if_none_is_near():
    assert warnings_of("{{ messages }}{{ knobs }}{{ style }}", "x=1", "x=2") == [
        NEVER_READ.format("x", "it reads knobs, style")
    ]
    many = "".join(f"{{{{ variable_{number} }}}}" for number in range(9))
    (warning,) = warnings_of(many, "x=1")
    assert warning.endswith("variable_6, variable_7, ...")


def test_a_template_without_variables_says_so():
    """What mtpack itself sets, and what the environment offers, is no variable to set."""
    source = CHATML + "{{ tools }}{{ documents }}{{ range(2) }}{% set a = 1 %}{{ a }}"
    assert warnings_of(source, "message=1", "a=2") == [
        NEVER_READ.format("message", "it has no variables to set"),
        NEVER_READ.format("a", "it has no variables to set"),
    ]


def test_variables_that_the_template_sets_itself_are_not_suggested():
    sets = "{% if messages %}{% set content = 1 %}{% endif %}{{ content }}"
    assert warnings_of(sets, "x=1") == [NEVER_READ.format("x", "it has no variables to set")]
    for asks in (
        "{% if style is not defined %}{% set style = 1 %}{% endif %}{{ style }}",
        "{% set style = style | default(1) %}{{ style }}",
    ):
        assert warnings_of(sets + asks, "x=1") == [NEVER_READ.format("x", "it reads style")]


@pytest.mark.parametrize(
    "source",
    [
        "{% if x is defined %}1{% endif %}",
        "{% set x = x | default(1) %}{{ x }}",
        "{% if not x is defined %}{% set x = true %}{% endif %}{{ x }}",
        "{% for m in messages %}{{ x }}{% endfor %}",
        "{% macro f(a) %}{{ x }}{% endmacro %}{{ f(1) }}",
    ],
)
def test_a_variable_that_the_template_reads_anywhere_gives_no_warning(source):
    assert warnings_of(source, "x=1") == []
    assert warnings_of(CHATML, "x=1", tool_use=source) == []


def test_the_warning_is_shown_before_the_first_row_and_in_the_report(tmp_path):
    template = tmp_path / "template.jinja"
    template.write_text(CHATML + "{% if enable_thinking %}{% endif %}")
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps({"messages": 1}) + "\n")
    expected = NEVER_READ.format("enable_thinkin", "did you mean enable_thinking?")
    for rows in (SAMPLE_DATA / "conversations_en.jsonl", bad):
        warned: list[str] = []
        options = {"chat_template": template, "template_arg": {"enable_thinkin": False}}
        settings = {"output": tmp_path / "packed", "workers": 1, "overwrite": True, **options}
        try:
            report = mtpack.pack(rows, callbacks=Callbacks(warn=warned.append), **settings)
        except mtpack.InputError:
            assert rows == bad
        else:
            assert report.about.warnings == [expected]
        assert warned.count(f"warning: {expected}") == 1
