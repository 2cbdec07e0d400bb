"""The sources of a run, as the report of pack and inspect show them: only if there are several."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from mtpack.cli import main
from mtpack.counts import Counts
from mtpack.report.source_view import show_sources, show_sources_briefly
from mtpack.shards.manifest import SourceRecord
from tests.support.inspected import plain_console, text_of


def row(number: int) -> dict:
    words = "word " * number
    return {
        "messages": [
            {"role": "user", "content": f"Question {number}"},
            {"role": "assistant", "content": words},
        ]
    }


@pytest.fixture
def recipe(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, count in (("few", 3), ("many", 9)):
        Path(f"{name}.jsonl").write_text("".join(f"{json.dumps(row(n))}\n" for n in range(count)))
    Path("run.toml").write_text(
        "seq-len = 64\n[[source]]\nname = 'few'\npath = 'few.jsonl'\n"
        "[[source]]\nname = 'many'\npath = 'many.jsonl'\n"
    )
    return Path("run.toml")


def show(*arguments: str) -> str:
    result = CliRunner().invoke(main, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def cells(text: str, name: str) -> list[list[str]]:
    """Return the cells of the lines that begin with a name."""
    lines = (line.split() for line in text.splitlines())
    return [line for line in lines if line[:1] == [name]]


def test_pack_and_inspect_show_each_source_with_its_shares(recipe):
    packed = show("pack", "--config", str(recipe), "--quiet")
    found = json.loads(show("inspect", "packed", "--json"))["sources"]
    assert [source["dialogue_ids"] for source in found] == [[0, 3], [3, 12]]
    few, many = found
    whole = few["tokens"] + many["tokens"]
    counts, shares = cells(packed, "few")
    assert counts == ["few", "3", "0", "3", str(few["tokens"]), str(few["loss_tokens"])]
    assert shares[1:3] == [f"{few['tokens'] / whole:.1%}", "25.0%"]
    assert cells(show("inspect", "packed", "--full"), "few") == [counts, shares]
    ((name, dialogues, turns, tokens, turn_mean, _, dialogue_mean),) = cells(
        overview := show("inspect", "packed"), "many"
    )
    assert (name, dialogues, turns, tokens) == ("many", "9", "9", str(many["tokens"]))
    assert (turn_mean, dialogue_mean) == ("75.0%", "75.0%")
    assert len(overview.splitlines()) <= 23 + 5  # at least six lengths are shown
    assert max(map(len, overview.splitlines())) <= 80


def test_the_shares_of_sources_follow_the_weights_of_their_turns(recipe):
    recipe.write_text(f"turn-weights = true\n{recipe.read_text()}weight = 0.5\n")
    packed = show("pack", "--config", str(recipe), "--quiet")
    _, shares = cells(packed, "few")
    assert shares[2:] == ["40.0%"]  # 3 turns of 3 + 9 / 2
    assert cells(show("inspect", "packed"), "many")[0][-1] == "60.0%"


def test_a_run_with_one_source_shows_none(recipe):
    assert "Sources" not in show("pack", "few.jsonl", "--seq-len", "64", "-o", "one", "--quiet")
    assert "Sources" not in show("inspect", "one")
    assert json.loads(show("inspect", "one", "--json"))["sources"] == []


def test_long_names_and_large_numbers_fit_into_80_columns():
    counts = Counts(
        rows_read=123_456_789,
        rows_packed=123_456_780,
        turns_packed=1_234_567_890,
        tokens=123_456_789_012,
        loss_tokens=98_765_432_109,
        documents=123_456_789,
    )
    sources = [
        SourceRecord(
            name=f"{number}: a name with\x1b[31m " + "x" * 90, first_dialogue=0, counts=counts
        )
        for number in range(2)
    ]
    for view in (show_sources, show_sources_briefly):
        console = plain_console()
        view(sources, console)
        text = text_of(console)
        assert max(map(len, text.splitlines())) <= 80
        assert "\x1b[31m" not in text
        assert "123.5 G" in text
        assert "123,456,78" in text
        assert "50.0%" in text
