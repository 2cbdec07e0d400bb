"""Any text is a chat template: it renders rows, rejects them, or is refused by name."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mtpack.errors import MtpackError, SetupError
from mtpack.fast_path import FastPathFailedError
from mtpack.input.files import InputFile, describe_input
from mtpack.input.reading import read_splits
from mtpack.options import PackOptions
from mtpack.running.pipeline import check_template, load_pipeline
from mtpack.running.stopwatch import Stopwatch
from mtpack.running.tokenize_split import tokenize
from tests.conftest import examples
from tests.fuzz.corpus import HARD_TEMPLATES, ROWS
from tests.fuzz.mutations import MARK, damaged
from tests.fuzz.test_rows import write
from tests.support.template_grammar import rows as grammar_rows
from tests.support.template_grammar import template_sources

# None makes something huge in one step: in these tests, no watchdog runs.
PIECES = (
    *(
        b"{{",
        b"}}",
        b"{%",
        b"%}",
        b"{#",
        b"#}",
        b"-%}",
        b"{%- ",
        b"'",
        b'"',
        b"(",
        b")",
        b"[",
        b"]",
    ),
    *(b"|", b".", b",", b"~", b"==", b" is ", b" not ", b" in ", b" if ", b" else ", b" recursive"),
    *(b"{% endfor %}", b"{% endif %}", b"{% else %}", b"{% break %}", b"{% set m = m.content %}"),
    *(b"{% raw %}", b"{% include 'a' %}", b"{% extends 'a' %}", b"{% import 'a' as b %}"),
    *(b"{% block a %}", b"{% endblock %}", b"{% macro a(b) %}", b"{% endmacro %}", b"{{ a(m) }}"),
    *(b"messages", b"loop", b"m", b"none", b"m.content", b"m['role']", b"namespace", b"dict"),
    *(b"__class__", b"|attr('__class__')", b"|map('upper')", b"|tojson", b"|length", b"|first"),
    *(b"{{ raise_exception(m.content) }}", b"{{ m.content.nothing.more }}", b"{{ self }}"),
    *(
        b"{{ loop }}",
        b"{{ cycler }}",
        b"{{ m.content|int / 0 }}",
        b"{{ [].pop() }}",
        b"\0",
        b"\xff",
    ),
    *(b"{% generation %}", b"{% endgeneration %}", b"{% autoescape true %}", b"{{ strftime_now }}"),
)
sources = template_sources.map(str.encode) | template_sources.flatmap(
    lambda source: damaged(source.encode(), PIECES)
)


@pytest.fixture(scope="module")
def rows_file(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("templates") / "rows.jsonl"


def files_of(path: Path, rows: list) -> Iterator[InputFile]:
    path.write_bytes(b"\n".join(map(write, rows)))
    return iter([describe_input("rows.jsonl", path)])


def check_message(text: str) -> None:
    assert 1 <= len(text.splitlines()) <= 2
    assert MARK not in text


def pack_with(source: bytes, rows: list, path: Path) -> None:
    """Tokenize rows with a template; only errors with a name are raised, and caught here."""
    template = path.with_name("template.jinja")
    template.write_bytes(source)
    try:
        pipeline = load_pipeline(PackOptions(chat_template=str(template)))
        check_template(pipeline)
    except SetupError as error:
        check_message(str(error))
        return
    for split in read_splits(files_of(path, rows)):
        try:
            found = tokenize(pipeline, split, Stopwatch())
        except (MtpackError, FastPathFailedError) as error:
            check_message(str(error))
            continue
        assert sum(found.row_turns < 0) == len(found.rejects)
        for reject in found.rejects:
            check_message(reject.detail)


@given(sources, st.lists(grammar_rows(), min_size=1, max_size=4))
@settings(max_examples=examples(120), suppress_health_check=list(HealthCheck))
def test_any_template_renders_or_rejects_rows_or_is_refused(rows_file, source, rows):
    pack_with(source, [*rows, ROWS["plain"], ROWS["tools"]], rows_file)


@pytest.mark.parametrize("source", HARD_TEMPLATES)
def test_hard_templates_render_or_reject_rows_or_are_refused(rows_file, source):
    pack_with(source.encode(), [*ROWS.values()], rows_file)
