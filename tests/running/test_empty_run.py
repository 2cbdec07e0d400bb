"""A run with nothing to pack says why, by reason, and what would help."""

import json
import re
from itertools import count

import pytest
from click.testing import CliRunner

import mtpack
from mtpack.cli import main
from mtpack.errors import InputError
from mtpack.running.empty_run import EmptySplit


def say(role: str, content: str = "So.", **fields) -> dict:
    return {"role": role, "content": content, **fields}


def make_row(*messages: dict) -> dict:
    return {"messages": list(messages)}


ANSWERED = make_row(say("user"), say("assistant", "Because it is."))
UNANSWERED = make_row(say("user"), say("user"))
OFF = make_row(say("user"), say("assistant", train=False))
INVALID = make_row({"content": "no role"})
# A system message, turns of different lengths, and the shortest turn not in the first row.
LONG = [
    make_row(say("system", "Be brief. " * 4), *[say("user", "Why?"), say("assistant")] * 3),
    make_row(say("user", "Why? " * 9), say("assistant", "It is so. " * 9)),
    make_row(say("user", "Why?"), say("assistant", "So. " * 9), say("user"), say("assistant")),
]


@pytest.fixture
def pack(tmp_path):
    numbers = count()

    def pack_rows(rows: list[dict], **options) -> mtpack.PackReport:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        output = tmp_path / f"packed {next(numbers)}"
        return mtpack.pack(path, output=output, **{"workers": 1, "on_error": "skip", **options})

    return pack_rows


@pytest.fixture
def explain(pack, tmp_path):
    def explain_rows(rows: list[dict], **options) -> str:
        with pytest.raises(InputError) as raised:
            pack(rows, **options)
        text = str(raised.value).replace(f"{tmp_path / 'rows.jsonl'}", "ROWS")
        assert text.startswith("ROWS: ")
        return text.removeprefix("ROWS: ")

    return explain_rows


@pytest.mark.parametrize("policy", ["turns", "split", "truncate", "drop", "error"])
@pytest.mark.parametrize("options", [{}, {"pad_documents_to": 4, "merge": "never"}])
def test_with_the_sequence_length_that_is_named_a_turn_is_packed_and_with_less_none(
    pack, explain, policy, options
):
    multiple = options.get("pad_documents_to", 1)
    text = explain(LONG, seq_len=4, overlong=policy, **options)
    (number,) = re.findall(r"the shortest (?:row )?needs (?:--seq-len )?([\d,]+)", text)
    needed = int(number.replace(",", ""))
    assert pack(LONG, seq_len=needed, overlong=policy, **options).tally.turns_packed > 0
    again = explain(LONG, seq_len=needed - multiple, overlong=policy, **options)
    assert number in again


SKIPS_EMPTY = (
    "{% for m in messages %}{% if m.content %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
EMPTY = make_row(say("user"), say("assistant", ""))
SWITCHES = (
    'remove the switches ("train": false, "weight": 0), or switch messages on ("train": true)'
)
SPLIT = "choose --seq-len {} or larger, or --overlong split, which leaves out earlier messages"


@pytest.mark.parametrize(
    ("rows", "reasons", "remedy"),
    [
        (
            [UNANSWERED] * 2,
            "no row has an assistant message",
            "add the answers that the model should learn",
        ),
        ([OFF], "no assistant message carries loss", SWITCHES),
        (
            [UNANSWERED, OFF, OFF],
            "1 row has no assistant message; in 2 rows, no assistant message carries loss",
            SWITCHES,
        ),
        (
            [*[ANSWERED] * 2, UNANSWERED],
            "1 row has no assistant message; every turn is beyond --seq-len 4; "
            "the shortest needs 16",
            SPLIT.format(16),
        ),
        (
            [EMPTY],
            "no turn has a token that carries loss",
            "the chat template writes nothing that the model could generate there; choose another "
            "--chat-template",
        ),
        (
            [EMPTY, ANSWERED],
            "1 turn has no token that carries loss; 1 turn is beyond --seq-len 4; "
            "the shortest needs 16",
            SPLIT.format(16),
        ),
    ],
)
def test_each_reason_is_named_with_the_remedy_for_the_most_frequent_one(
    explain, tmp_path, rows, reasons, remedy
):
    template = tmp_path / "template.jinja"
    template.write_text(SKIPS_EMPTY, encoding="utf-8")
    text = explain(rows, seq_len=4, chat_template=template)
    assert text.splitlines() == [f"nothing to pack: {reasons}", remedy]


def test_what_is_known_of_several_splits_adds_up():
    found = EmptySplit(1, 2, None) + EmptySplit(3, 4, 30) + EmptySplit(0, 0, 50) + EmptySplit()
    assert found == EmptySplit(4, 6, 30)
    assert EmptySplit() + EmptySplit() == EmptySplit()


def test_rejected_rows_are_counted_by_reason_and_the_first_is_shown(explain):
    reasons, first = explain([UNANSWERED, INVALID, INVALID, OFF]).splitlines()
    assert reasons.startswith("nothing to pack: 2 rows are rejected (unknown_role 2); 1 row has")
    assert first.startswith("ROWS line 2: unknown_role: ")
    reasons, _ = explain([INVALID] * 2).splitlines()
    assert reasons == "nothing to pack: every row is rejected (unknown_role 2)"


def test_an_input_without_rows_is_named(explain):
    assert explain([]) == "no rows, so nothing to pack"


def test_only_the_last_turns_are_beyond_the_sequence_if_only_they_are_trained(explain):
    row = make_row(*[say("user", "Why?"), say("assistant")] * 3)
    assert "the shortest needs 13" in explain([row], seq_len=4)
    assert "the shortest needs 41" in explain([row], seq_len=16, train_turns="last")
    assert "the shortest needs 13" in explain(
        [row], seq_len=4, train_turns="last", overlong="split"
    )


def test_a_stored_split_explains_the_same(explain, tmp_path):
    rows = [*LONG, UNANSWERED, OFF]
    options = {"seq_len": 4, "token_store": tmp_path / "tokens"}
    assert explain(rows, **options) == explain(rows, **options) == explain(rows, seq_len=4)


def test_a_report_with_overlong_turns_names_the_remedy(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in [*LONG, ANSWERED]))
    command = ["pack", str(rows), "--workers", "1", "-o", str(tmp_path / "packed"), "--seq-len"]
    shown = CliRunner().invoke(main, [*command, "16"]).stdout
    assert "left out: overlong 6; a larger --seq-len keeps more" in " ".join(shown.split())
    shown = CliRunner().invoke(main, [*command, "512", "--overwrite"]).stdout
    assert "--seq-len" not in shown
