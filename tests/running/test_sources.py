"""Runs with several sources: what may differ between them, and what is counted of each."""

import json
import random
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import mtpack
from mtpack.counts import Counts
from mtpack.errors import InputError, SetupError
from mtpack.running.dry_run import dry_run
from mtpack.running.runner import LocalRunner
from mtpack.shards.manifest import read_manifest
from mtpack.verify.files import find_changed_file
from mtpack.verify.structure import check_structure
from tests.support.file_kinds import FILE_KINDS

TEMPLATE = (
    "{% if mode %}[{{ mode }}]{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SEQ_LEN = 64


def make_rows(name: str, count: int, **more: Any) -> list[dict[str, Any]]:
    return [
        {
            "messages": [
                {"role": "user", "content": f"{name} asks {number}?"},
                {"role": "assistant", "content": f"{name} says {'so ' * (number % 40)}."},
            ],
            **more,
        }
        for number in range(count)
    ]


def write(path: str, rows: list[dict[str, Any]]) -> str:
    Path(path).write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def pack(sources: list[dict[str, Any]], output: str, **options: Any) -> mtpack.PackReport:
    config = {"chat-template": "template.jinja", "source": sources}
    settings = {"seq_len": SEQ_LEN, "workers": 1, **options}
    return mtpack.pack(config=config, output=output, **settings)


def contents(folder: str) -> dict[str, bytes]:
    """Return the files of an output that are the same for the same rows."""
    paths = [*Path(folder).glob("*.arrow"), Path(folder, "state.json")]
    return {path.name: path.read_bytes() for path in paths}


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("template.jinja").write_text(TEMPLATE)


@pytest.fixture
def mixed() -> list[dict[str, Any]]:
    """Sources of which each is read in another way."""
    system = {"role": "system", "content": "Own."}
    named = [{"data": {"turns": row["messages"]}} for row in make_rows("named", 30)]
    with_system = make_rows("system", 20)
    for row in with_system[::3]:
        row["messages"].insert(0, system)
    for row in with_system[1::4]:  # a switch stays with its message
        row["messages"][1]["train"] = False
        row["messages"] += make_rows("later", 1)[0]["messages"]
    with_args = make_rows("args", 20)
    with_args[4]["chat_template_kwargs"] = {"mode": "own"}
    texts = [{"text": f"Page {number}. {'and ' * (number % 50)}"} for number in range(20)]
    texts[3]["text"] = " "
    return [
        {"name": "plain", "path": write("plain.jsonl", make_rows("plain", 50)), "max-rows": 25},
        {"name": "named", "path": write("named.jsonl", named), "messages-key": "data.turns"},
        {"name": "system", "path": write("system.jsonl", with_system), "system": "Be brief."},
        {"name": "args", "path": write("args.jsonl", with_args), "template-args": {"mode": "x"}},
        {"name": "texts", "path": write("texts.jsonl", texts), "format": "text"},
    ]


def test_what_a_source_says_is_as_if_its_rows_said_it(mixed):
    rows = make_rows("plain", 25) + make_rows("named", 30)
    for row in [json.loads(line) for line in Path("system.jsonl").read_text().splitlines()]:
        if row["messages"][0]["role"] != "system":
            row["system"] = "Be brief."
        rows.append(row)
    for row in make_rows("args", 20):
        rows.append(row | {"chat_template_kwargs": {"mode": "x"}})
    rows[-16]["chat_template_kwargs"] = {"mode": "own"}
    by_source = pack(mixed[:4], "by_source")
    by_row = pack([{"path": write("all.jsonl", rows)}], "by_row")
    assert by_source.tally == by_row.tally
    assert contents("by_source") == contents("by_row")


def test_the_weight_of_a_source_multiplies_those_of_its_messages():
    rows = make_rows("a", 4)
    rows[1]["messages"][1]["weight"] = 0.25
    path = write("a.jsonl", rows)
    plain = write("plain.jsonl", make_rows("b", 2))
    texts = write("texts.jsonl", [{"text": "Some words."}])
    sources = [
        {"path": path, "weight": 0.5, "system": "Be brief."},
        {"path": plain, "weight": 3},
        {"path": texts, "weight": 2, "format": "text"},
    ]
    pack(sources, "packed", turn_weights=True)
    shards = mtpack.open_shards("packed")
    weights = {}
    for row in shards:
        dialogues = row["dialogue_ids"][row["dialogue_ids"] >= 0].tolist()  # each has one turn
        weights |= dict(zip(dialogues, row["turn_weights"].tolist(), strict=True))
    assert weights == {0: 0.5, 1: 0.125, 2: 0.5, 3: 0.5, 4: 3, 5: 3, 6: 2}
    assert check_structure(shards).violation is None


def test_the_parts_of_a_long_text_have_the_weight_of_their_source():
    long = write("long.jsonl", [{"text": "one two three " * 200}])
    short = write("short.jsonl", [{"text": "Some words."}])
    sources = [{"path": long, "weight": 0.5}, {"path": short, "weight": 2}]
    pack(sources, "packed", turn_weights=True, format="text", overlong="split")
    shards = mtpack.open_shards("packed")
    found: dict[int, set[float]] = {}
    for row in shards:
        dialogues = row["dialogue_ids"][row["dialogue_ids"] >= 0].tolist()  # each has one turn
        for dialogue, weight in zip(dialogues, row["turn_weights"].tolist(), strict=True):
            found.setdefault(dialogue, set()).add(weight)
    assert found == {0: {0.5}, 1: {2.0}}
    assert check_structure(shards).violation is None


def test_one_source_without_a_name_is_the_input_of_the_command():
    path = write("a.jsonl", make_rows("a", 20))
    pack([{"path": path}], "recipe")
    mtpack.pack(path, output="command", chat_template="template.jinja", seq_len=SEQ_LEN)
    one, other = (json.loads(Path(f, "manifest.json").read_text()) for f in ("recipe", "command"))
    assert one.pop("about") != other.pop("about")
    assert one == other
    assert "sources" not in one
    assert "sources" not in one["run"]


def test_counts_by_source_add_up_to_the_whole(mixed):
    report = pack(mixed, "packed")
    assert [source.name for source in report.sources] == [source["name"] for source in mixed]
    total = sum((source.counts for source in report.sources), Counts())
    for field in fields(Counts):
        if not field.name.startswith("sequences"):
            assert getattr(total, field.name) == getattr(report.tally, field.name), field.name
    for source in report.sources:
        source.counts.check()
    assert read_manifest(Path("packed")).report.sources == report.sources
    assert json.loads(json.dumps(report.as_dict()))["sources"][1]["dialogue_ids"] == [25, 55]


def test_the_dialogue_ids_of_a_source_follow_those_of_the_one_before(mixed):
    report = pack(mixed, "packed")
    shards = mtpack.open_shards("packed")
    found = {int(each) for row in shards for each in row["dialogue_ids"]} - {-1}
    first = 0
    for source in report.sources:
        assert source.first_dialogue == first
        first += source.counts.rows_read
        own = {number for number in found if source.first_dialogue <= number < first}
        assert len(own) == source.counts.rows_packed
    assert first == report.tally.rows_read
    assert check_structure(shards).violation is None


@pytest.mark.parametrize("options", [{"workers": 3}, {"tokenizer_engine": "tokenizers"}])
def test_the_bytes_do_not_depend_on_how_the_run_is_done(mixed, monkeypatch, options):
    pack(mixed, "one")
    monkeypatch.setattr("mtpack.input.reading.SPLIT_BYTES", 700)
    pack(mixed, "other", **options)
    assert contents("one") == contents("other")
    one, other = (read_manifest(Path(folder)) for folder in ("one", "other"))
    assert one.report.sources == other.report.sources
    assert Path("one/recipe.toml").read_bytes() == Path("other/recipe.toml").read_bytes()


@pytest.mark.parametrize("kind", ["lines.jsonl.gz", "list.json", "table.parquet", "stream.arrow"])
def test_the_bytes_do_not_depend_on_who_reads_a_source(kind, mixed, monkeypatch):
    monkeypatch.setattr("mtpack.input.reading.SPLIT_BYTES", 700)
    FILE_KINDS[kind](Path(kind), make_rows("whole", 40))
    sources = [{"name": "whole", "path": kind, "max-rows": 33, "system": "S."}, *mixed]
    report = pack(sources, "sent")
    assert report.sources[0].counts.rows_read == 33
    monkeypatch.setattr(LocalRunner, "sends_rows", False)
    read = pack(sources, "read")
    assert contents("sent") == contents("read")
    assert read.sources == report.sources


def test_a_dry_run_shows_what_a_run_on_the_recipe_gives(mixed):
    config = {"chat-template": "template.jinja", "source": mixed}
    tried = dry_run(config=config, seq_len=SEQ_LEN, workers=1, output="packed")
    report = pack(mixed, "packed")
    assert tried.is_whole
    for name in ("rows_read", "rows_packed", "turns_packed", "tokens", "loss_tokens"):
        assert getattr(tried.counts, name) == getattr(report.tally, name), name


def test_a_dry_run_on_a_sample_estimates_no_more_rows_than_are_read(monkeypatch):
    monkeypatch.setattr("mtpack.running.dry_run.WHOLE_BYTES", 5_000)
    FILE_KINDS["lines.jsonl.gz"](Path("a.jsonl.gz"), make_rows("a", 900))
    paths = {"a": "a.jsonl.gz", "b": write("b.jsonl", make_rows("b", 900))}
    sources = [{"name": name, "path": path, "max-rows": 300} for name, path in paths.items()]
    config = {"chat-template": "template.jinja", "source": sources}
    estimate = dry_run(config=config, workers=1, output="packed").estimate
    assert estimate is not None
    assert 450 <= estimate.rows <= 1_200  # of 1,800 rows, 600 are read


def test_the_recipe_of_an_output_gives_the_same_output(mixed):
    pack(mixed, "first", on_error="skip", seed=3)
    mtpack.pack(config="first/recipe.toml", output="again", workers=2)
    assert contents("first") == contents("again")
    assert Path("first/recipe.toml").read_bytes() == Path("again/recipe.toml").read_bytes()
    again = mtpack.pack(config="first/recipe.toml")  # its output is the one that it lies in
    assert again.output == "first"
    assert find_changed_file(Path("first"), read_manifest(Path("first"))) is None


def test_verify_finds_a_recipe_that_was_changed(mixed):
    pack(mixed, "packed")
    Path("packed/recipe.toml").write_text("seed = 1\n")
    violation = find_changed_file(Path("packed"), read_manifest(Path("packed")))
    assert violation is not None
    assert (violation.shard, violation.law) == ("packed/recipe.toml", "sha256")


@pytest.mark.parametrize(
    "change",
    [{"system": "Other."}, {"template-args": {"mode": "y"}}, {"max-rows": 7}, {"name": "other"}],
)
def test_another_way_to_read_a_source_is_another_run(mixed, change):
    pack(mixed, "packed", token_store="tokens")
    changed = [*mixed[:2], mixed[2] | change, *mixed[3:]]
    with pytest.raises(SetupError, match=r"another run \(its sources are different\)"):
        pack(changed, "packed")
    pack(changed, "stored", token_store="tokens")
    pack(changed, "fresh")
    assert contents("stored") == contents("fresh")


def test_rows_that_move_to_another_source_are_another_run():
    for name, rows in (
        ("a", make_rows("a", 9)),
        ("b", make_rows("a", 9)),
        ("c", make_rows("c", 9)),
    ):
        write(f"{name}.jsonl", rows)
    named = [{"name": "x", "path": ["a.jsonl"]}, {"name": "y", "path": ["b.jsonl", "c.jsonl"]}]
    moved = [{"name": "x", "path": ["a.jsonl", "b.jsonl"]}, {"name": "y", "path": ["c.jsonl"]}]
    pack(named, "packed")
    with pytest.raises(SetupError, match="the input is different"):
        pack(moved, "packed")


def test_a_run_that_a_bad_row_stopped_is_continued(mixed, monkeypatch):
    monkeypatch.setattr("mtpack.input.reading.SPLIT_BYTES", 700)
    with open("args.jsonl", "a") as file:
        file.write("nope\n")
    with pytest.raises(InputError, match=r"args\.jsonl line 21"):
        pack(mixed, "packed")
    report = pack(mixed, "packed", on_error="skip")
    assert report.about.splits_reused > 5
    pack(mixed, "fresh", on_error="skip")
    assert contents("packed") == contents("fresh")
    assert report.sources == read_manifest(Path("fresh")).report.sources
    assert dict(report.sources[3].counts.rows_rejected) == {"invalid_json": 1}


def test_a_source_is_read_in_its_own_format_and_others_in_theirs(mixed):
    rows = [{"instruction": "Add 1 and 1.", "output": "2"} for _ in range(5)]
    alpaca = {"name": "alpaca", "path": write("alpaca.jsonl", rows), "format": "alpaca"}
    report = pack([mixed[0], alpaca], "packed", format="messages")
    assert [source.counts.rows_packed for source in report.sources] == [25, 5]
    with pytest.raises(InputError, match=r"alpaca\.jsonl line 1: other_format"):
        pack([mixed[0], {key: alpaca[key] for key in ("name", "path")}], "no", format="messages")


def test_a_variable_that_the_template_never_reads_changes_nothing_but_is_named():
    path = write("a.jsonl", make_rows("a", 9))
    warnings: list[str] = []
    callbacks = mtpack.Callbacks(warn=warnings.append)
    source = {"name": "x", "path": path, "template-args": {"mod": 1}}
    report = pack([source], "packed", callbacks=callbacks)
    said = 'warning: source "x": template-args: the chat template never reads "mod"; did you mean '
    assert any(line.startswith(said) for line in warnings)
    assert not report.tally.never_read
    pack([{"path": path}], "plain")
    assert contents("packed") == contents("plain")


def test_random_sources_are_accounted_for():
    draw = random.Random(0)
    sources = []
    for number in range(8):
        rows = make_rows(f"s{number}", draw.randint(1, 60))
        source = {"name": f"s{number}", "path": write(f"s{number}.jsonl", rows)}
        if draw.random() < 0.5:
            source["max-rows"] = draw.randint(1, 70)
        source["expected"] = min(len(rows), source.get("max-rows", len(rows)))
        sources.append(source)
    expected = [source.pop("expected") for source in sources]
    report = pack(sources, "packed")
    assert [source.counts.rows_read for source in report.sources] == expected
    assert report.tally.rows_read == sum(expected)
