"""Rows that set variables of the template, in whole runs: shards and counts."""

import json

import pytest

import mtpack
from mtpack.counts import OTHER_KEYS

TEMPLATE = (
    "{{ motto }}{% for d in documents or [] %}[{{ d.text }}]{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content and (enable_thinking is not defined or enable_thinking) %}"
    "<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
    "{% endif %}"
)


@pytest.fixture
def pack(tmp_path):
    numbers = iter(range(100))

    def pack_rows(rows: list[dict], template: str = TEMPLATE, **options) -> mtpack.PackReport:
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        path = folder / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        (folder / "template.jinja").write_text(template, encoding="utf-8")
        settings = {"seq_len": 256, "workers": 1, **options}
        return mtpack.pack(
            path, output=folder / "packed", chat_template=folder / "template.jinja", **settings
        )

    return pack_rows


def make_row(number: int = 0, **fields) -> dict:
    return {
        "messages": [
            {"role": "user", "content": f"Why {number}? " * 3},
            {"role": "assistant", "content": f"So {number}."},
            {"role": "user", "content": "And now?"},
            {"role": "assistant", "content": "Now.", "reasoning_content": f"Now {number}?"},
        ],
        **fields,
    }


NUMBERS = range(40)


@pytest.mark.parametrize(
    "options", [{}, {"merge": "never"}, {"overlong": "split", "seq_len": 40}, {"workers": 2}]
)
def test_rows_with_a_switch_give_the_shards_and_counts_of_a_run_with_it(pack, options):
    alone = pack([make_row(i) for i in NUMBERS], template_arg=["enable_thinking=false"], **options)
    switched = pack([make_row(i, enable_thinking=False) for i in NUMBERS], **options)
    in_kwargs = pack(
        [make_row(i, chat_template_kwargs={"enable_thinking": False}) for i in NUMBERS],
        template_arg=["enable_thinking=true"],
        **options,
    )
    assert alone.shards == switched.shards == in_kwargs.shards
    assert alone.tally == switched.tally == in_kwargs.tally
    assert switched.tally.content_dropped == {"assistant.reasoning_content": len(NUMBERS)}
    assert switched.tally.rows_in_mode == {}


def test_the_result_does_not_depend_on_the_workers(pack, monkeypatch):
    monkeypatch.setattr("mtpack.input.reading.SPLIT_BYTES", 4096)
    kwargs = [
        None,
        {"enable_thinking": False},
        {"enable_thinking": True},
        {"motto": "Be brief, and kind. "},
        {"documents": [{"text": "a walrus"}]},
        {"other": 1},
    ]
    rows = [make_row(i, chat_template_kwargs=kwargs[i % 6], id=i) for i in range(120)]
    one, two = (pack(rows, workers=workers) for workers in (1, 2))
    assert one.shards == two.shards
    assert one.tally == two.tally
    assert one.tally.never_read == {"chat_template_kwargs.other": 20, "id": 120}
    assert one.tally.content_dropped == {"assistant.reasoning_content": 20}


def test_the_template_gets_messages_in_the_forms_that_it_takes_with_the_arguments(pack):
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if parts %}{{ m.content[0].text }}"
        "{% else %}{{ m.content + '' }}{% endif %}<|im_end|>\n{% endfor %}"
    )
    rows = [make_row(i) for i in NUMBERS]
    in_parts = [row | {"chat_template_kwargs": {"parts": True}} for row in rows]
    plain, mixed = pack(rows, source), pack(in_parts, source)
    assert plain.shards == mixed.shards


def test_a_row_whose_arguments_hide_its_call_is_rejected(pack):
    source = TEMPLATE.replace("<|im_end|>", "{{ '' if plain else m.tool_calls or '' }}<|im_end|>")
    call = {"type": "function", "function": {"name": "find", "arguments": {"what": "eel"}}}
    called = {"role": "assistant", "content": "", "tool_calls": [call]}
    row = {"messages": [{"role": "user", "content": "Where?"}, called]}
    rows = [row, row | {"chat_template_kwargs": {"plain": True}}]
    assert pack(rows, source, on_error="skip").tally.rows_rejected == {"tools_not_shown": 1}


def test_a_stored_split_has_the_keys_that_are_never_read(pack, tmp_path):
    rows = [make_row(i, source="web") for i in NUMBERS]
    first, second = (pack(rows, token_store=tmp_path / "store") for _ in range(2))
    assert second.about.reused == len(NUMBERS)
    assert first.tally.never_read == second.tally.never_read == {"source": len(NUMBERS)}


def test_of_many_keys_a_hundred_are_named(pack):
    rows = [make_row(i, **{f"key {i} {j}": 1 for j in range(10)}, z=1) for i in NUMBERS]
    never_read = pack(rows).tally.never_read
    assert len(never_read) == 101
    assert never_read["z"] == len(NUMBERS)
    assert sum(never_read.values()) == 11 * len(NUMBERS)
    assert never_read[OTHER_KEYS] == 10 * len(NUMBERS) - 99


def test_no_name_in_the_counts_is_long(pack):
    text = "My name is Ana, and I live at number 7 of this road."
    messages = [
        {"role": "user", "content": "Why?", text: 1},
        {"role": "assistant", "content": "So."},
    ]
    never_read = pack([{"messages": messages, text: 1}]).tally.never_read
    assert never_read == {text[:29] + "...": 1, f"messages.{text[:29]}...": 1}


def test_a_rejected_row_has_no_keys_that_are_never_read(pack):
    rows = [make_row(source="web"), {"messages": [], "source": "web"}]
    assert pack(rows, on_error="skip").tally.never_read == {"source": 1}
