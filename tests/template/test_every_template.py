"""The documents and loss tokens of every chat template equal those of the slow reference.

`python -m tests.support.template_table` prints the results of this test as a table.
"""

import json
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import SHARED, shared
from tests.support.dialogue_kinds import KINDS
from tests.support.template_facts import FACTS
from tests.support.template_table import (
    MERGES,
    TEMPLATES,
    compute_reference_documents,
    compute_table_row,
    format_line,
    load_template,
    pack,
    render,
)

# Kinds of dialogues that can't be right with a template, and why: (template, kind) -> reason.
EXCEPTIONS: dict[tuple[str, str], str] = {
    (f"trl/{name}.jinja", "opened by the assistant"): (
        "an answer has no header, and no generation prompt says whether the space before it is one"
    )
    for name in ("llava_next", "llava_next_training")
}

# To the tokenizer of Qwen3, the control tokens of most of these are plain text.
WITH_QWEN_3 = (
    "axolotl/llava.jinja",
    "trl/gemma3.jinja",
    "trl/glm4moe.jinja",
    "trl/qwen3_6.jinja",
)

# By template, the share of the turns that stand after exactly a prompt of the server.
AS_PROMPTED = Path(__file__).parent / "as_prompted.txt"

needs_templates = pytest.mark.skipif(
    not SHARED.is_dir(), reason="needs ../shared, which is not here"
)


@needs_templates
def test_the_table_has_every_template():
    found = (SHARED / "templates").glob("*/*.jinja")
    assert sorted(path.relative_to(SHARED / "templates").as_posix() for path in found) == TEMPLATES
    assert sorted(read_as_prompted()) == TEMPLATES


@cache
def read_as_prompted() -> dict[str, float]:
    """Return the shares that are kept, by template, in percent."""
    lines = AS_PROMPTED.read_text(encoding="utf-8").splitlines()
    return {name: float(share) for share, name in (line.split() for line in lines)}


@pytest.mark.oracle
@needs_templates
@pytest.mark.parametrize("name", FACTS)
def test_all_kinds_of_dialogues_give_the_documents_of_the_reference(name):
    row = compute_table_row(name)
    print(format_line(row))
    wrong = {kind for kind in row.failed + row.not_found if (name, kind) not in EXCEPTIONS}
    assert not wrong
    assert row.passed
    assert len(row.passed + row.refused + row.not_shown + row.failed + row.not_found) == len(KINDS)
    # As many turns as before stand after a prompt of the server.
    assert 100 * row.as_prompted >= read_as_prompted()[name] - 0.05


# One call id twice; an assistant that opens.
CASES = ("sameid.jsonl", "open.jsonl", "starts_assistant.jsonl")


@pytest.mark.oracle
@needs_templates
@pytest.mark.parametrize("name", FACTS)
def test_the_small_inputs_give_the_documents_of_the_reference(name):
    with load_template(name) as loaded:
        opened = (name, "opened by the assistant") in EXCEPTIONS
        for case in CASES[:1] if opened else CASES:
            row = json.loads(shared(f"data/cases/{case}").read_text(encoding="utf-8"))
            for merge in MERGES:
                found = pack(loaded, render(loaded, row, merge), merge)
                assert found == compute_reference_documents(loaded.reference, row, merge), case


@pytest.mark.oracle
@needs_templates
@pytest.mark.parametrize("name", WITH_QWEN_3)
def test_the_reference_agrees_for_a_tokenizer_without_the_templates_control_tokens(name):
    row = compute_table_row(name, shared("tokenizers/qwen3"))
    assert not row.failed + row.not_found
    assert row.passed
