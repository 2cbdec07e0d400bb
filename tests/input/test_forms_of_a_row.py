"""A row means the same in every form and in every kind of file, and no part of it is unread."""

import json
import random
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mtpack
from mtpack.input.dialogue import Dialogue, Origin, Reason, Reject
from mtpack.input.files import describe_input, find_inputs
from mtpack.input.reading import read_splits
from mtpack.input.rows import RowOptions, read_dialogue
from tests.conftest import examples
from tests.support.file_kinds import FILE_KINDS, TABLES
from tests.support.plain_rows import (
    PlainRow,
    describe,
    describe_dialogue,
    plain_rows,
    write_plainly,
)
from tests.support.row_forms import CALL_ROLES, FORMS, SWITCHES, write_switch

ORIGIN = Origin("rows.jsonl", 1)
# A template that writes everything that a dialogue has.
TEMPLATE = (
    "{% if tools %}TOOLS {{ tools | tojson }}{% endif %}"
    "{% if enable_thinking is defined %}THINKING {{ enable_thinking }}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }} "
    "{{ c.function.arguments | tojson }}</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def read(row: Any) -> Dialogue | Reject:
    return read_dialogue(0, ORIGIN, json.dumps(row).encode(), 2**20)


def read_file(path: Path) -> list[Dialogue | Reject]:
    files = [describe_input(name, name) for name in find_inputs([str(path)])]
    return [
        read_dialogue(0, Origin(row.file, row.line), row.text, 2**20, row.format)
        for split in read_splits(files)
        for row in split.rows()
    ]


def pack(path: Path, output: Path) -> mtpack.PackReport:
    template = output.with_suffix(".jinja")
    template.write_text(TEMPLATE, encoding="utf-8")
    options = {"seq_len": 512, "overlong": "split", "workers": 1, "callbacks": mtpack.Callbacks()}
    return mtpack.pack(path, output=output, chat_template=template, **options)


def pack_rows(rows: list[Any], folder: Path) -> mtpack.PackReport:
    folder.mkdir()
    FILE_KINDS["lines.jsonl"](folder / "rows.jsonl", rows)
    return pack(folder / "rows.jsonl", folder / "packed")


# Forms


@pytest.mark.parametrize("form", FORMS)
@given(plain_rows(), st.data())
def test_a_row_means_the_same_in_every_form(form, rows, data):
    def pick(ways):
        return data.draw(st.sampled_from(ways))

    for row in rows:
        for written in (write_plainly(row), FORMS[form](row, pick)):
            if written is not None:
                dialogue = read(written)
                assert isinstance(dialogue, Dialogue), (dialogue, written)
                assert describe_dialogue(dialogue) == describe(row), written


@settings(max_examples=examples(8))
@given(st.lists(plain_rows(max_size=2), min_size=6, max_size=6), st.integers())
def test_a_row_gives_the_same_shards_in_every_form(lists, seed):
    rows = [row for listed in lists for row in listed]
    pick = random.Random(seed).choice
    expected: dict[tuple[int, ...], Any] = {}
    with TemporaryDirectory() as temporary:
        for number, (form, write) in enumerate(FORMS.items()):
            written = [write(row, pick) for row in rows]
            said = tuple(index for index, value in enumerate(written) if value is not None)
            if not said:
                continue
            if said not in expected:
                plain = [write_plainly(rows[index]) for index in said]
                expected[said] = pack_rows(plain, Path(temporary, f"plain {number}")).shards
            folder = Path(temporary, str(number))
            report = pack_rows([written[index] for index in said], folder)
            assert report.shards == expected[said], form


# Kinds of files


@pytest.mark.parametrize("kind", FILE_KINDS)
@settings(max_examples=examples(40))
@given(plain_rows())
def test_rows_mean_the_same_in_every_kind_of_file(kind, rows):
    with TemporaryDirectory() as temporary:
        path = Path(temporary, kind)
        FILE_KINDS[kind](path, list(map(write_plainly, rows)))
        dialogues = read_file(path)
    assert not [dialogue for dialogue in dialogues if isinstance(dialogue, Reject)]
    assert list(map(describe_dialogue, dialogues)) == list(map(describe, rows))


@pytest.mark.parametrize("form", [form for form in FORMS if form != "a bare list"])
@settings(max_examples=examples(40))
@given(plain_rows(), st.data(), st.sampled_from(sorted(TABLES)))
def test_a_table_has_the_rows_of_every_form(form, rows, data, kind):
    def pick(ways):
        return data.draw(st.sampled_from(ways))

    written = [(row, FORMS[form](row, pick)) for row in rows]
    said = [(row, value) for row, value in written if value is not None]
    if said:
        with TemporaryDirectory() as temporary:
            path = Path(temporary, kind)
            TABLES[kind](path, [value for _, value in said])
            dialogues = read_file(path)
        assert not [dialogue for dialogue in dialogues if isinstance(dialogue, Reject)]
        assert list(map(describe_dialogue, dialogues)) == [describe(row) for row, _ in said]


@settings(max_examples=examples(12))
@given(plain_rows())
def test_a_row_gives_the_same_shards_in_every_kind_of_file(rows):
    written = list(map(write_plainly, rows))
    with TemporaryDirectory() as temporary:
        expected = pack_rows(written, Path(temporary, "expected"))
        for number, (kind, write) in enumerate(FILE_KINDS.items()):
            write(Path(temporary, kind), written)
            report = pack(Path(temporary, kind), Path(temporary, str(number)))
            assert report.shards == expected.shards, kind


@given(plain_rows(max_size=1), st.sampled_from((None, 1)))
def test_a_json_file_may_hold_one_object_over_several_lines(rows, indent):
    with TemporaryDirectory() as temporary:
        path = Path(temporary, "one.json")
        path.write_text(json.dumps(write_plainly(rows[0]), indent=indent), encoding="utf-8")
        (dialogue,) = read_file(path)
    assert describe_dialogue(dialogue) == describe(rows[0])


@given(plain_rows(max_size=1), st.sampled_from(("dialog", "data.dialog", "a.b.c")))
def test_messages_under_another_name_are_read_with_its_name(rows, name):
    written = write_plainly(rows[0])
    *outer, key = name.split(".")
    written[key] = written.pop("messages")
    for holder in reversed(outer):
        written = {holder: written}
    options = RowOptions(messages_key=name)
    dialogue = read_dialogue(0, ORIGIN, json.dumps(written).encode(), 2**20, None, options)
    assert isinstance(dialogue, Dialogue), (dialogue, written)
    assert describe_dialogue(dialogue) == describe(rows[0])


# Keys that are never read

_keys = st.text(min_size=1, max_size=4).map(lambda text: f"zz {text}")
_unknown = st.recursive(
    st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=3,
)


def list_places(row: Any) -> list[tuple[str, dict]]:
    """Return every object of a row that may have a key that is not read, with its name."""
    places: list[tuple[str, dict]] = [] if isinstance(row, list) else [("", row)]
    key = "conversations" if "conversations" in row else "conversation"
    messages = row if isinstance(row, list) else row.get("messages", row.get(key, []))
    for message in messages:
        places.append(("messages.", message))
        if isinstance(message.get("content"), list):
            places += [("messages.content.", part) for part in message["content"]]
        for call in message.get("tool_calls") or []:
            places += [
                ("messages.tool_calls.", call),
                ("messages.tool_calls.function.", call["function"]),
            ]
    return places


FORMS_WITH_OBJECTS = [form for form in FORMS if "JSON" not in form]


def add_unknown_key(form: str, row, pick, key: str, value: Any) -> tuple[Any, str] | None:
    """Return a row in a form with a key somewhere that is not read, and the key's full name."""
    written = FORMS[form](row, pick)
    if written is None:
        return None
    written = json.loads(json.dumps(written))
    where, place = pick(list_places(written))
    place[key] = value
    return written, where + key


@pytest.mark.parametrize("form", FORMS_WITH_OBJECTS)
@given(plain_rows(max_size=1), st.data(), _keys, _unknown)
def test_a_key_that_is_never_read_is_named(form, rows, data, key, value):
    def pick(ways):
        return data.draw(st.sampled_from(ways))

    changed = add_unknown_key(form, rows[0], pick, key, value)
    if changed is not None:
        written, name = changed
        dialogue = read(written)
        assert isinstance(dialogue, Dialogue), (dialogue, written)
        assert describe_dialogue(dialogue) == describe(rows[0]) | {"unread": (name,)}, written


CALL = {"name": "add", "arguments": {}}
PLACES = {
    "mood": {"content": "Hi", "mood": 1},
    "content.mood": {"content": [{"type": "text", "text": "Hi", "mood": 1}]},
    "content.signature": {
        "content": [
            {"type": "thinking", "thinking": "So", "signature": "s"},
            {"type": "text", "text": "Hi"},
        ]
    },
    "tool_calls.mood": {"tool_calls": [{"type": "function", "function": CALL, "mood": 1}]},
    "tool_calls.function.mood": {"tool_calls": [{"function": {**CALL, "mood": 1}}]},
}


@pytest.mark.parametrize("name", PLACES)
def test_a_key_of_each_part_of_a_message_is_named(name):
    answer = {"role": "assistant", **PLACES[name]}
    dialogue = read({"messages": [{"role": "user", "content": "Hello"}, answer]})
    assert isinstance(dialogue, Dialogue), dialogue
    assert dialogue.unread == (f"messages.{name}",)


def has_turn(row: PlainRow) -> bool:
    """Return whether a row has a message to train; a run without one has no report."""
    return any(each.role == "assistant" and each.trained is not False for each in row.messages)


@settings(max_examples=examples(8))
@given(
    st.lists(plain_rows(max_size=1), min_size=8, max_size=8),
    st.integers(),
    st.from_regex("zz[a-z]{0,8}", fullmatch=True),  # the report cuts and escapes other names
    _unknown,
)
def test_a_key_that_is_never_read_is_counted_in_the_report(lists, seed, key, value):
    pick = random.Random(seed).choice
    rows = [row for (row,) in lists if has_turn(row)]
    with TemporaryDirectory() as temporary:
        for number, form in enumerate(FORMS_WITH_OBJECTS):
            changed = [add_unknown_key(form, row, pick, key, value) for row in rows]
            found = [pair for pair in changed if pair is not None]
            if found:
                counts: dict[str, int] = {}
                for _, name in found:
                    counts[name] = counts.get(name, 0) + 1
                report = pack_rows([row for row, _ in found], Path(temporary, str(number)))
                assert report.as_dict()["never_read"] == dict(sorted(counts.items())), form


@pytest.mark.parametrize("kind", FILE_KINDS)
@settings(max_examples=examples(20))
@given(plain_rows(), st.sampled_from(("source", "zz", "a.b")))
def test_a_key_that_is_never_read_is_named_in_every_kind_of_file(kind, rows, key):
    written = [{**write_plainly(row), key: "web"} for row in rows]
    with TemporaryDirectory() as temporary:
        path = Path(temporary, kind)
        FILE_KINDS[kind](path, written)
        dialogues = read_file(path)
    assert [dialogue.unread for dialogue in dialogues] == [(key,)] * len(rows)


def test_a_key_that_the_template_reads_counts_as_read(tmp_path):
    rows = [
        {
            "messages": [
                {"role": "user", "content": "Hello", "mood": "glad"},
                {"role": "assistant", "content": "Hi", "mood": "calm", "seed": 1},
            ],
            "source": "web",
        }
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(rows[0]), encoding="utf-8")
    template = tmp_path / "template.jinja"
    found = []
    for text in (TEMPLATE, TEMPLATE.replace("{{ m.content }}", "{{ m.mood }} {{ m.content }}")):
        template.write_text(text, encoding="utf-8")
        report = mtpack.pack(
            path,
            output=tmp_path / f"packed {len(found)}",
            chat_template=template,
            seq_len=256,
            workers=1,
            callbacks=mtpack.Callbacks(),
        )
        found.append(report.as_dict()["never_read"])
    assert found == [
        {"messages.mood": 1, "messages.seed": 1, "source": 1},
        {"messages.seed": 1, "source": 1},
    ]


# Contradicting loss switches

_switches = st.sampled_from(sorted(SWITCHES))
_forms_of_messages = st.sampled_from(("messages", "bare list", "sharegpt", "call"))


@given(_switches, _switches, st.booleans(), _forms_of_messages, st.randoms())
def test_contradicting_loss_switches_are_refused(name, other, trained, form, randoms):
    switches = {
        name: write_switch(name, trained, randoms.choice),
        other: write_switch(other, not trained, randoms.choice),
    }
    if name == other:
        return
    reject = read(make_row(form, switches))
    assert isinstance(reject, Reject), switches
    assert reject.reason == Reason.INVALID_LOSS_SWITCH
    assert f"{name}" in reject.detail
    assert f"{other}" in reject.detail


@given(
    st.lists(_switches, min_size=1, unique=True), st.booleans(), _forms_of_messages, st.randoms()
)
def test_loss_switches_that_agree_are_taken(names, trained, form, randoms):
    switches = {name: write_switch(name, trained, randoms.choice) for name in names}
    dialogue = read(make_row(form, switches))
    assert isinstance(dialogue, Dialogue), (dialogue, switches)
    assert dialogue.trained_messages() == ([1] if trained else [])
    assert dialogue.unread == ()


@given(_switches, _switches, st.booleans(), st.sampled_from(CALL_ROLES), st.randoms())
def test_contradicting_loss_switches_of_joined_messages_are_refused(
    name, other, trained, role, randoms
):
    call = {"role": role, "content": '{"name": "add", "arguments": {}}'}
    messages = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi", name: write_switch(name, trained, randoms.choice)},
        {**call, other: write_switch(other, not trained, randoms.choice)},
    ]
    reject = read({"messages": messages})
    assert isinstance(reject, Reject), messages
    assert reject.reason == Reason.INVALID_LOSS_SWITCH


def make_row(form: str, fields: dict[str, Any]) -> Any:
    """Return a row of a question and an answer with more fields."""
    question, answer = {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}
    if form == "call":
        answer = {"role": "tool_call", "content": '{"name": "add", "arguments": {}}'}
    if form == "sharegpt":
        answer = {"from": "gpt", "value": "Hi"}
        return {"conversations": [{"from": "human", "value": "Hello"}, {**answer, **fields}]}
    messages = [question, {**answer, **fields}]
    return messages if form == "bare list" else {"messages": messages}
