"""Rows that say the same in another form give the same shards, and the report names the form."""

import json
from pathlib import Path

import pytest

import mtpack
from mtpack.running.pack import Callbacks
from mtpack.template.message_forms import TEXT_ARGUMENTS
from tests.conftest import shared

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}CALL{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TO_JSON = CHATML.replace("CALL", "{{ c.function.arguments | tojson }}")
JOINED = CHATML.replace("CALL", "{{ 'call ' + c.function.arguments }}")
BOTH = CHATML.replace(
    "CALL",
    "{{ c.function.arguments if c.function.arguments is string else c.function.arguments.a }}",
)


@pytest.fixture
def pack(tmp_path):
    numbers = iter(range(100))

    def pack_rows(rows, template: str, **options):
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        path = rows
        if isinstance(rows, list):
            path = folder / "rows.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        (folder / "template.jinja").write_text(template, encoding="utf-8")
        settings = {"seq_len": 256, "workers": 1, "callbacks": Callbacks(), **options}
        return mtpack.pack(
            path,
            output=folder / "packed",
            chat_template=folder / "template.jinja",
            **settings,
        )

    return pack_rows


def make_row(arguments, content="", result="sunny") -> dict:
    function = {"name": "weather", "arguments": arguments}
    return {
        "messages": [
            {"role": "user", "content": "Why?"},
            {"role": "assistant", "content": content, "tool_calls": [{"function": function}]},
            {"role": "tool", "content": result},
            {"role": "assistant", "content": "So."},
        ]
    }


TEXT, OBJECT = make_row('{"a":1}'), make_row({"a": 1})


@pytest.mark.parametrize("template", [TO_JSON, JOINED, BOTH])
@pytest.mark.parametrize("options", [{}, {"merge": "never"}])
def test_the_same_arguments_in_two_forms_give_the_same_shards(pack, template, options):
    as_text, as_object, with_null = (
        pack([row] * 3, template, **options).shards
        for row in (TEXT, OBJECT, make_row('{"a": 1}', content=None))
    )
    assert as_text == as_object == with_null


def test_further_documents_of_overlong_split_have_the_same_forms(pack):
    before = [{"role": "user", "content": "Why? " * 20}, {"role": "assistant", "content": "So."}]
    reports = [
        pack([{"messages": before + row["messages"]}], JOINED, overlong="split", seq_len=80)
        for row in (TEXT, OBJECT)
    ]
    assert reports[0].shards == reports[1].shards
    assert [report.tally.turns_packed for report in reports] == [3, 3]


def test_the_cases_give_the_same_shards(pack):
    names = ("args_text", "args_dict", "args_text_null", "args_dict_null")
    shards = [pack(Path(shared(f"data/cases/{name}.jsonl")), TO_JSON).shards for name in names]
    assert shards == shards[:1] * 4


def test_the_report_says_if_a_template_gets_arguments_as_text(pack):
    assert pack([OBJECT], JOINED).about.warnings == [TEXT_ARGUMENTS]
    assert pack([OBJECT], TO_JSON).about.warnings == []
    assert pack([OBJECT], JOINED, tool_arguments="text").about.warnings == []
    without_calls = {"messages": OBJECT["messages"][:1] + OBJECT["messages"][3:]}
    assert pack([without_calls], JOINED).about.warnings == []


def test_the_form_of_arguments_is_part_of_the_identity_of_stored_splits(pack, tmp_path):
    def run(**options):
        return pack([TEXT], BOTH, token_store=tmp_path / "tokens", **options)

    first, again = run(), run()
    assert first.shards == again.shards
    assert (first.about.reused, again.about.reused) == (0, 1)
    as_text = run(tool_arguments="text")
    assert as_text.about.reused == 0
    assert as_text.shards != first.shards


@pytest.mark.parametrize("result", [{"temp": 20}, [1, {"a": None}], 20, True])
@pytest.mark.parametrize("control_tokens", ["keep", "literal", "error"])
def test_results_that_are_no_text_are_packed_as_their_json_text(pack, result, control_tokens):
    rows = [make_row({"a": 1}, result=value) for value in (result, json.dumps(result))]
    one, other = (pack([row], TO_JSON, control_tokens=control_tokens).shards for row in rows)
    assert one == other


def test_a_template_that_takes_parts_alone_packs_texts(pack):
    parts_alone = CHATML.replace("{{ m.content }}", "{{ m.content[0].text }}").replace("CALL", "")
    rows = [
        {"messages": [{"role": role, "content": f"{role} {n}"} for role in ("user", "assistant")]}
        for n in range(40)
    ]
    one, other = (
        mtpack.open_shards(pack(rows, template).output)
        for template in (parts_alone, CHATML.replace("CALL", ""))
    )
    ids = [[row["input_ids"].tolist() for row in shards] for shards in (one, other)]
    assert ids[0] == ids[1]


def test_an_error_of_a_template_does_not_quote_a_part_or_a_result(pack):
    refuses = "{{ raise_exception(messages[0].content[0].text if messages[0].content is not string "
    refuses += "else messages[0].content) }}"
    row = {"messages": [{"role": "user", "content": [{"type": "text", "text": "secret"}]}]}
    row["messages"].append({"role": "assistant", "content": "So."})
    with pytest.raises(mtpack.MtpackError) as error:
        pack([row], refuses)
    assert "secret" not in str(error.value)
