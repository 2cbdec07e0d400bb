"""Documents and loss tokens of every chat template equal the slow reference's.

`python -m tests.support.template_table` prints what this test goes through, as a table.
"""

import pytest

from tests.conftest import SHARED, shared
from tests.support.dialogue_kinds import KINDS
from tests.support.template_facts import FACTS
from tests.support.template_table import TEMPLATES, line, table_row

# Templates for which a kind of dialogue can't be right, and why: (template, kind) -> reason.
CAN_NOT_BE_RIGHT: dict[tuple[str, str], str] = {}

# With the tokenizer of Qwen3, the control tokens of most are plain text.
WITH_QWEN_3 = (
    "axolotl/llava.jinja",
    "trl/gemma3.jinja",
    "trl/glm4moe.jinja",
    "trl/qwen3_6.jinja",
)

needs_templates = pytest.mark.skipif(
    not SHARED.is_dir(), reason="needs ../shared, which is not here"
)


@needs_templates
def test_every_template_is_in_the_table():
    found = (SHARED / "templates").glob("*/*.jinja")
    assert sorted(path.relative_to(SHARED / "templates").as_posix() for path in found) == TEMPLATES


@needs_templates
@pytest.mark.parametrize("name", FACTS)
def test_all_kinds_of_dialogues_get_the_documents_of_the_reference(name):
    row = table_row(name)
    print(line(row))
    wrong = {kind for kind in row.failed + row.not_found if (name, kind) not in CAN_NOT_BE_RIGHT}
    assert not wrong
    assert row.passed
    assert len(row.passed + row.refused + row.failed + row.not_found) == len(KINDS)


@needs_templates
@pytest.mark.parametrize("name", WITH_QWEN_3)
def test_so_they_do_with_a_tokenizer_that_does_not_know_the_control_tokens(name):
    row = table_row(name, shared("tokenizers/qwen3"))
    assert not row.failed + row.not_found
    assert row.passed
