"""`--train-turns last`: loss on each dialogue's last turn alone."""

import json
from pathlib import Path

import pytest

import mtpack
from mtpack.input.dialogue import Origin, make_dialogue
from mtpack.template.render_dialogue import render_dialogue
from mtpack.template.tracing.replayer import Replayer
from mtpack.tokenizer.loading import load_tokenizer
from mtpack.verify.structure import check_structure
from tests.conftest import SAMPLE_DATA
from tests.template.test_chat_template import compile_source
from tests.test_cases import lines_of, sections_of

ROWS = [
    json.loads(line)
    for path in sorted(SAMPLE_DATA.glob("*.jsonl"))
    for line in path.read_text(encoding="utf-8").splitlines()
]
OFF = {"train": False, "loss": False, "weight": 0, "loss_weight": 0}
CASE = Path(__file__).parents[1] / "cases" / "train_turns_last.txt"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING = CHATML.replace("assistant\n", "assistant\n<think>")


def say(role: str, content: str = "So.", **fields) -> dict:
    return {"role": role, "content": content, **fields}


@pytest.fixture
def pack(tmp_path):
    numbers = iter(range(100))

    def pack_rows(rows: list[dict], template: str = "", **options) -> mtpack.PackReport:
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        path = folder / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        settings = {"seq_len": 1024, "workers": 1, **options}
        if template:
            settings["chat_template"] = folder / "template.jinja"
            settings["chat_template"].write_text(template, encoding="utf-8")
        return mtpack.pack(path, output=folder / "packed", **settings)

    return pack_rows


def switch_off_all_but_the_last_turn(row: dict) -> dict:
    messages = [dict(message) for message in row["messages"]]
    turns = [
        message
        for message in messages
        if message["role"] == "assistant" and all(message.get(name, True) for name in OFF)
    ]
    for message in turns[:-1]:
        message.update({name: OFF[name] for name in OFF if name in message} or {"train": False})
    return {**row, "messages": messages}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"merge": "never", "control_tokens": "literal"},
        {"template": THINKING, "on_error": "skip"},  # counts turns without a reasoning
        {"seq_len": 96, "overlong": "split"},  # reads the rows again
        {"seq_len": 96, "overlong": "error", "on_error": "skip"},
    ],
)
def test_the_output_is_as_if_the_rows_switched_all_other_turns_off(pack, tmp_path, options):
    switched = list(map(switch_off_all_but_the_last_turn, ROWS))
    expected = pack(switched, **options)
    found = pack(ROWS, train_turns="last", **options)
    assert found.shards == expected.shards
    assert found.tally == expected.tally
    assert bool(found.tally.reasoning_missing) == ("template" in options)
    assert check_structure(mtpack.open_shards(tmp_path / "1" / "packed")).violation is None
    rows_without_turn = sum(found.tally.rows_rejected.values()) + found.tally.rows_dropped.get(
        "no_turn", 0
    )
    assert found.tally.turns_read == len(ROWS) - rows_without_turn
    assert pack(ROWS, **options).shards != expected.shards


def test_nothing_is_repeated_where_the_template_rewrites_history(pack):
    case = sections_of(CASE.read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in lines_of(case["rows"]).splitlines()]
    options = {"template": case["template"], "seq_len": 128}
    all_turns = pack(rows, **options).tally
    assert all_turns.turns_own_document == 1
    assert all_turns.tokens > all_turns.tokens_if_merged
    last = pack(rows, train_turns="last", **options).tally
    assert (last.turns_packed, last.turns_own_document) == (2, 0)
    assert last.documents == last.rows_packed == 2
    assert last.tokens == last.tokens_if_merged


def test_the_last_turn_is_the_last_assistant_message_that_carries_loss():
    messages = [say("user"), say("assistant"), say("user"), say("assistant"), say("assistant")]
    origin = Origin("rows.jsonl", 1)
    for untrained, expected in [((), [4]), ((4,), [3]), ((3, 4), [1]), ((1, 3, 4), [])]:
        dialogue = make_dialogue(0, origin, messages, untrained=untrained)
        assert dialogue.train_last_turn().trained_messages() == expected


def test_texts_are_replayed_also_where_only_the_last_turn_is_trained():
    added_tokens = load_tokenizer(None).added_tokens
    template = compile_source(CHATML)
    replayer = Replayer(template, added_tokens, "auto")
    for number in range(6):
        messages = [say(role, f"{role} {number}") for role in ("user", "assistant") * 2]
        dialogue = make_dialogue(number, Origin("rows.jsonl", 1), messages)
        for each in (dialogue, dialogue.train_last_turn()):  # alike in all but their turns
            assert each.has_only_texts
            expected = render_dialogue(template, added_tokens, each, "auto")
            assert replayer.render_dialogue(each) == expected
    assert replayer.replayed >= 8


def test_outputs_with_all_and_with_the_last_turns_are_outputs_of_different_runs(pack, tmp_path):
    pack(ROWS)
    source, output = str(tmp_path / "0" / "rows.jsonl"), str(tmp_path / "0" / "packed")
    with pytest.raises(mtpack.SetupError, match="its train_turns is all, not last"):
        mtpack.pack(source, output=output, seq_len=1024, train_turns="last")
