"""The report of a dry run, as an 80 column terminal without colour shows it."""

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from mtpack.cli import main
from mtpack.report.dry_run_view import show_dry_run
from mtpack.running.callbacks import Callbacks
from mtpack.running.dry_run import DryRunReport, dry_run
from tests.conftest import SAMPLE_DATA

ROWS = [
    {
        "messages": [
            {"role": "user", "content": "What is the capital of Peru?"},
            {"role": "assistant", "content": "Lima."},
            {"role": "user", "content": "And of Chile?"},
            {"role": "assistant", "content": "Santiago.\nIt lies below the Andes."},
        ],
        "source": "atlas",
    },
    {"messages": [{"role": "user", "content": "Is anybody there?"}]},
    {"messages": []},
]


@pytest.fixture
def report_of(tmp_path, monkeypatch):
    """Return a function that returns the report of a dry run on some rows."""
    monkeypatch.chdir(tmp_path)

    def run(rows: list, **options) -> DryRunReport:
        text = "".join(f"{json.dumps(row)}\n" for row in rows)
        (tmp_path / "rows.jsonl").write_text(text, encoding="utf-8")
        settings = {"seq_len": 256, "workers": 1} | options
        report = dry_run("rows.jsonl", callbacks=Callbacks(), **settings)
        if report.estimate is None:
            return report
        return replace(report, estimate=replace(report.estimate, seconds=75.0))

    return run


def show(report: DryRunReport) -> str:
    console = Console(width=80, force_terminal=False, file=io.StringIO())
    show_dry_run(report, console)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


EXPECTED = """\
Dry run: nothing was written.
Read: all of 1 input file, 339 B.

What is trained in the first dialogues
⟦…⟧ is trained, ⏎ is a trained line break, ×1/n is the weight of each token

── rows.jsonl line 1: 52 tokens ────────────────────────────────────────────────
<|im_start|>user
What is the capital of Peru?<|im_end|>
<|im_start|>assistant
⟦Lima.<|im_end|>⟧ [message 1: ×1/5]
<|im_start|>user
And of Chile?<|im_end|>
<|im_start|>assistant
⟦Santiago.⏎
It lies below the Andes.<|im_end|>⟧ [message 3: ×1/14]

The input
rows        3  1 packed; left out: invalid_row 1, no_turn 1
turns       2  all packed
documents   1  in sequences, each a dialogue or a piece of one
tokens     52  36.5% carry loss
sequences   1  of 256 tokens, 20.31% filled; at least 1 are needed

What to know, and the first row of each
rows dropped   1  rows: no message carries loss (no_turn)
                  first: rows.jsonl line 2
rows rejected  1  first: rows.jsonl line 3: invalid_row: "messages" must be a
                  list of messages, found an empty list
never read     1  rows: source
                  first: rows.jsonl line 1
                  Neither mtpack nor the chat template reads these keys
                  (docs/rows.md)

The whole run
It would stop at the first bad row; --on-error skip leaves bad rows out.
3 rows, 1 document, 2 turns, 52 tokens,
1 sequence of 256 tokens: 3.2 KiB
about 1:15 min with 1 worker on this machine, if its disk keeps up

Next: the same command without --dry-run
"""


def test_the_report_answers_what_is_trained_what_is_wrong_and_what_it_takes(report_of):
    assert show(report_of(ROWS)) == EXPECTED.rstrip()


def list_all(folder: Path) -> set[tuple[str, int]]:
    return {(str(path), path.stat().st_mtime_ns) for path in folder.rglob("*")}


def test_the_command_writes_nothing_anywhere(tmp_path):
    folder = tmp_path / "folder"
    temporary = tmp_path / "temporary"
    folder.mkdir()
    temporary.mkdir()
    before = list_all(folder)
    command = [
        sys.executable,
        "-m",
        "mtpack",
        "pack",
        str(SAMPLE_DATA / "conversations_en.jsonl"),
        "--dry-run",
    ]
    command += ["--token-store", "store", "--work-dir", "work"]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "Dry run: nothing was written.")
    assert list_all(folder) == before
    assert not [*temporary.iterdir()]


def test_the_report_can_be_json(report_of):
    report_of(ROWS)
    result = CliRunner().invoke(main, ["pack", "rows.jsonl", "--dry-run", "--json", "--quiet"])
    found = json.loads(result.stdout)
    assert found["sample"]["rows_read"] == found["estimate"]["rows"] == 3
    row = "rows.jsonl line 1"
    example = {"count": "never_read", "reason": "source", "file": "rows.jsonl", "row": row}
    assert example in found["examples"]


def test_a_sample_says_that_it_is_one(report_of):
    report = replace(report_of(ROWS), is_whole=False, input_bytes=2**30, starts=["a.gz", "b.gz"])
    lines = show(report).splitlines()
    assert lines[1] == "Read: a sample of 1 input file, 0.0 of 1.0 GiB. --seed draws another one."
    assert lines[2] == "Of files that can't be sought, only the first rows: a.gz, b.gz"
    assert "about 1 sequence of 256 tokens: 3.2 KiB" in lines
    lines = show(replace(report, input_bytes=None, estimate=None)).splitlines()
    assert lines[1].endswith("; how much follows is not known.")
    assert "It can't be estimated, since the size of the input is not known." in lines


def test_without_a_document_there_is_nothing_to_show(report_of):
    text = show(report_of(ROWS[1:]))
    assert "Nothing of what was read would be packed." in text
    assert "What is trained" not in text


def test_long_texts_and_dialogues_are_shortened(report_of):
    messages = []
    for number in range(7):
        messages.append({"role": "user", "content": f"question {number} " + "long " * 400})
        messages.append({"role": "assistant", "content": f"answer {number} " + "word " * 300})
    text = show(report_of([{"messages": messages}], seq_len=16384))
    assert len(text.splitlines()) < 100
    assert "answer 3" in text
    assert "answer 4" not in text
    assert "… 3 more turns …" in text
    assert "characters …" in text


def test_nothing_in_the_data_reaches_the_terminal_as_a_control(report_of):
    evil = "\x1b[2J\x07\u202e[bold]"
    rows = [
        {"messages": [{"role": "user", "content": evil}, {"role": "assistant", "content": evil}]}
    ]
    rows[0][evil] = 1
    text = show(report_of(rows))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "\u202e" not in text
    assert "[bold]" in text
