"""A recipe holds every option and every source; what is wrong in it is named by file and key."""

import json
import os
import tomllib
from dataclasses import fields
from pathlib import Path

import datasets
import pytest
from click.testing import CliRunner, Result

import mtpack
from mtpack.cli import main
from mtpack.errors import SetupError
from mtpack.options import PackOptions, choices
from mtpack.recipe.load import load_recipe
from mtpack.recipe.sources import Mix, Source, Validation
from mtpack.recipe.values import name_key
from mtpack.recipe.write import format_recipe

ROW = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A working folder with data; recipes lie in runs/."""
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(f"{json.dumps(ROW)}\n" * 3)
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "blank.jsonl").write_text("\n\n")
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(text: str) -> str:
    Path("runs/run.toml").write_text(text)
    return "runs/run.toml"


def run(*arguments: str, **environment: str) -> Result:
    result = CliRunner().invoke(main, ["pack", *arguments], env=environment)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def load(text: str, *inputs: str, **given):
    return load_recipe(write(text), inputs, given)


def other_value(option) -> object:
    """Return a value of an option that is not the one by default, as TOML has it."""
    special = {"seq_len": 64, "pad_documents_to": 2, "date": "2025-12-31", "window": "1Mi"}
    if option.name in special:
        return special[option.name]
    if "size" in option.metadata:
        return "100MiB"
    if choices(option):
        return choices(option)[-1]
    if isinstance(option.default, bool):
        return True
    if isinstance(option.default, int):
        return option.default + 1
    return ["x=1"] if isinstance(option.default, tuple) else "some"


@pytest.mark.parametrize("option", fields(PackOptions), ids=lambda option: option.name)
def test_every_option_is_a_key(folder, option):
    value = other_value(option)
    more = {"ray_address": 'executor = "ray"\n'}.get(option.name, "")
    recipe = load(f"{more}{name_key(option.name)} = {json.dumps(value)}\n", "a.jsonl")
    expected = f"runs/{value}" if option.metadata.get("metavar") == "DIR" else value
    found = getattr(recipe.options, option.name)
    assert found == (tuple(expected) if isinstance(expected, list) else expected)


def test_every_key_of_a_source_is_read(folder):
    recipe = load("""
split = "train"
turn-weights = true
[[source]]
path = ["../a.jsonl", "../*.parquet", "s3://bucket/rows.jsonl", "-", "/data"]
name = "first"
format = "messages"
messages-key = "data.turns"
split = "test"
epochs = 2.5
max-rows = 7
system = "Be brief."
template-args = { enable_thinking = false, day = 2026-01-01 }
weight = 0.5
share = 0.3
[[source]]
path = "../b.jsonl"
[mix]
by = "turns"
total = 100
[validation]
size = "1%"
path = "../held.jsonl"
""")
    first, second = recipe.sources
    assert first == Source(
        path=("a.jsonl", "*.parquet", "s3://bucket/rows.jsonl", "-", "/data"),
        name="first",
        format="messages",
        messages_key="data.turns",
        split="test",
        epochs=2.5,
        max_rows=7,
        system="Be brief.",
        template_args={"enable_thinking": False, "day": "2026-01-01"},
        weight=0.5,
        share=0.3,
    )
    assert second == Source(path=("b.jsonl",), name="source-2", format="auto", split="train")
    assert recipe.mix == Mix(by="turns", total=100)
    assert recipe.validation == Validation(size="1%", path=("held.jsonl",))


BAD = [
    ("seq-lenn = 4096", "seq-lenn; did you mean seq-len?"),
    ("seq_len = 4096", "seq_len; did you mean seq-len?"),
    ("colour = 1", "colour; mtpack pack --help lists the options"),
    ('seq-len = "4096"', "seq-len: must be an integer, found text"),
    ("seq-len = true", "seq-len: must be an integer, found true"),
    ("seq-len = 1", "seq-len 1: must be an integer of at least 2"),
    ('merge = "sometimes"', "merge sometimes: must be one of auto, always, never"),
    ("merge = 1", "merge: must be one of auto, always, never, found 1"),
    ('overwrite = "yes"', "overwrite: must be true or false, found text"),
    ("tokenizer = ['a']", "tokenizer: must be text, found a list"),
    ('template-arg = "x"', "template-arg: write each as KEY=VALUE, or write a table"),
    ("template-arg = [1]", "template-arg: must be text, or a list of texts, found 1"),
    ('shard-size = "big"', "shard-size big: not a size; write it as 256MiB or 1GiB"),
    ('date = "soon"', "date soon: not a date; write it as 2026-01-01"),
    ("seq-len = 5\npad-documents-to = 2", "--seq-len 5 is not a multiple of"),
    ("seq-len =", "not a recipe in TOML (Invalid value (at end of document))"),
    ("source = 1", "source: write each source under its own [[source]]"),
    ("[source]\npath = '../a.jsonl'", "source: write each source under its own [[source]]"),
    ("source = [1]", "source 1: must be a table, found 1"),
    ("[[source]]\nname = 'x'", 'source 1 "x": path: is missing; name the files of the source'),
    (
        "[[source]]\npath = []",
        "source 1: path: must be text, or a list of texts; the list is empty",
    ),
    ("[[source]]\npath = ''", "source 1: path: must be text, or a list of texts, found ''"),
    ("[[source]]\npath = 3", "source 1: path: must be text, or a list of texts, found 3"),
    ("[[source]]\npaths = 'a'", "source 1: no such key: paths; did you mean path?"),
    (
        "[[source]]\npath = '../a.jsonl'\nname = 'x'\n[[source]]\npath = '../gone.jsonl'",
        'source 2 "source-2": path: gone.jsonl: no such file; check the name or the pattern',
    ),
    (
        "[[source]]\npath = '../a.jsonl'\nname = 'x'\n[[source]]\npath = '../b.jsonl'\nname = 'x'",
        'source 1 "x": name: another source has it; choose another one',
    ),
    (
        "[[source]]\npath = '../a.jsonl'\nname = 'x'\n[[source]]\npath = '../empty.jsonl'",
        'source 2 "source-2": path: its files hold no rows; name others, or remove the source',
    ),
    (
        "[[source]]\npath = '../a.jsonl'\nname = 'x'\n[[source]]\npath = '../blank.jsonl'",
        'source 2 "source-2": path: its files hold no rows; name others, or remove the source',
    ),
    *(
        (f"[[source]]\npath = '../a.jsonl'\n{line}", f"source 1: {said}")
        for line, said in [
            ("name = ''", "name: must be text, found ''"),
            ('name = "a\\nb"', "name: must be printable and have at most 100 characters"),
            ("epochs = 0", "epochs: must be a number above 0, found 0"),
            ("epochs = -1.5", "epochs: must be a number above 0, found -1.5"),
            ("epochs = inf", "epochs: must be a number above 0, found inf"),
            ("epochs = '3'", "epochs: must be a number above 0, found text"),
            ("share = 1.5", "share: must be a number above 0 and at most 1, found 1.5"),
            ("share = 0", "share: must be a number above 0 and at most 1, found 0"),
            ("max-rows = 0", "max-rows: must be an integer of at least 1, found 0"),
            ("max-rows = 1.5", "max-rows: must be an integer of at least 1, found 1.5"),
            ("weight = true", "weight: must be a number from 1/1024 to 16,384, found true"),
            ("weight = 0.0005", "weight: must be a number from 1/1024 to 16,384, found 0.0005"),
            ("weight = 16385", "weight: must be a number from 1/1024 to 16,384, found 16385"),
            ("weight = 2", "weight has no meaning without turn-weights = true (--turn-weights)"),
            ("system = 1", "system: must be text, found 1"),
            ("template-args = 1", "template-args: must be a table, found 1"),
            ("template-args = { messages = 1 }", "template-args: 'messages' can't be set; remove"),
            ("template-args = { x = nan }", "template-args.x: JSON has no such value"),
            ("format = 'csv'", "format: must be one of auto, messages, sharegpt, alpaca, text"),
            (
                "format = 'alpaca'\nmessages-key = 'x'",
                'messages-key has no meaning with format = "alpaca"; leave one of them out',
            ),
            (
                "format = 'text'\nsystem = 'x'",
                'system has no meaning with format = "text", which is not rendered',
            ),
            ("epochs = 2", "epochs: not possible yet; leave it out"),
        ]
    ),
    ("[mix]\nby = 'bytes'", "mix: by: must be one of tokens, turns, rows, found text"),
    ("[mix]\ntotal = 0", "mix: total: must be an integer of at least 1, found 0"),
    ("[mix]\nweights = 1", "mix: no such key: weights; there are by, total"),
    ("[validation]\nsize = '101%'", "validation: size: must be a number of rows, or a percentage"),
    ("[validation]\nsize = 0", "validation: size: must be a number of rows, or a percentage"),
    ("mix = 3", "mix: must be a table, found 3"),
    ("seq-len = 64", "source: is missing; name the files to pack under [[source]]"),
]


@pytest.mark.parametrize(("text", "said"), BAD, ids=[text for text, _ in BAD])
def test_what_is_wrong_in_a_recipe_is_named_by_file_and_key(folder, text, said):
    result = run("--config", write(text), "--workers", "1", "-o", "packed", "--quiet")
    assert result.exit_code in (1, 2), result.output
    assert "runs/run.toml: " in result.stderr
    assert said in result.stderr
    assert len(result.stderr.splitlines()) <= 2
    assert not Path("packed").exists()


def test_a_recipe_may_be_a_pipe_that_can_be_read_once(folder):
    reader, writer = os.pipe()
    os.write(writer, f'[[source]]\npath = "{folder}/a.jsonl"\n'.encode())
    os.close(writer)
    result = run("--config", f"/dev/fd/{reader}", "--workers", "1", "-o", "packed", "--quiet")
    assert result.exit_code == 0, result.output
    os.close(reader)


def test_a_recipe_that_is_not_there_is_named(folder):
    assert "runs/no.toml: can't be read (No such file" in run("--config", "runs/no.toml").stderr


def test_a_command_needs_an_input_or_a_recipe(folder):
    result = run()
    assert result.exit_code == 2
    assert "Missing argument 'INPUT...'; see" in result.stderr


def test_sources_and_inputs_of_the_command_are_not_mixed(folder):
    result = run("b.jsonl", "--config", write("[[source]]\npath = '../a.jsonl'"))
    assert (
        "source: the recipe has sources, and the command names the input b.jsonl" in result.stderr
    )


def test_the_command_wins_over_the_environment_and_that_over_the_recipe(folder):
    text = 'seq-len = 64\nseed = 3\ndate = 2025-01-01\n[[source]]\npath = "../a.jsonl"'
    arguments = ["--config", write(text), "--seq-len", "128", "--print-config"]
    result = run(*arguments, MTPACK_PACK_SEED="5", MTPACK_PACK_SEQ_LEN="256")
    found = tomllib.loads(result.stdout)
    assert (found["seq-len"], found["seed"], found["date"]) == (128, 5, "2025-01-01")


def test_a_value_by_default_on_the_command_wins_too(folder):
    result = run("--config", write("seq-len = 64"), "--seq-len", "4096", "--print-config")
    assert tomllib.loads(result.stdout)["seq-len"] == 4096


def test_the_recipe_of_a_command_stands_for_it(folder):
    arguments = ["a.jsonl", "*.jsonl", "--seq-len", "64", "--template-arg", "x=1", "--overwrite"]
    shown = run(*arguments, "--print-config").stdout
    Path("same.toml").write_text(shown)
    again = load_recipe("same.toml", (), {})
    given = {"seq_len": 64, "template_arg": ("x=1",), "overwrite": True}
    assert again.options == load_recipe(None, ["a.jsonl", "*.jsonl"], given).options
    assert again.sources == load_recipe(None, ["a.jsonl", "*.jsonl"], given).sources
    assert format_recipe(again) == shown


def test_paths_are_relative_to_the_folder_of_the_recipe(folder):
    Path("model").mkdir()
    text = 'tokenizer = "../model"\noutput = "out"\nwork-dir = "/scratch"\ntoken-store = "../t"'
    options = load(text, "a.jsonl").options
    assert (options.tokenizer, options.output) == ("model", "runs/out")
    assert (options.work_dir, options.token_store) == ("/scratch", "t")
    assert load('tokenizer = "model"', "a.jsonl").options.tokenizer == "model"  # of the Hub


def test_python_takes_a_recipe_as_a_file_or_as_a_dict(folder):
    path = write('seq-len = 64\noutput = "../one"\nworkers = 1\n[[source]]\npath = "../a.jsonl"')
    from_file = mtpack.pack(config=path)
    tables = {"seq-len": 64, "source": [{"path": "a.jsonl"}]}
    from_dict = mtpack.pack(config=tables, output="two", workers=1)
    assert from_dict.shards == from_file.shards
    with pytest.raises(SetupError, match=r"^config: no such key: seq_len; did you mean seq-len"):
        mtpack.pack(config={"seq_len": 64})


def test_standard_input_is_read_once_over_all_sources(folder):
    result = run("--config", write("[[source]]\npath='-'\n[[source]]\npath='-'"))
    said = "runs/run.toml: -: standard input can be read only once; give it once\n"
    assert result.stderr.endswith(said)


def test_the_split_of_the_run_is_for_the_sources_that_have_splits(folder):
    data = datasets.Dataset.from_list([ROW, ROW])
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk("saved")
    sources = "[[source]]\npath = '../saved'\n[[source]]\npath = '../a.jsonl'\n"
    config = write(f"split = 'train'\n{sources}")
    report = mtpack.pack(config=config, output="packed", workers=1)
    assert [source.counts.rows_read for source in report.sources] == [2, 3]
    config = write("split = 'train'\n" + sources.replace("saved", "b.jsonl"))
    with pytest.raises(SetupError, match=r"^runs/run\.toml: --split train: no input has splits"):
        mtpack.pack(config=config, output="other")
    config = write(f"{sources}split = 'train'\n")
    with pytest.raises(SetupError, match=r'source 1 "source-1": path: saved: has the splits'):
        mtpack.pack(config=config, output="other")


def test_the_recipe_is_read_from_the_folder_it_lies_in_whatever_the_working_folder(folder):
    path = write('[[source]]\npath = "../a.jsonl"')
    os.chdir("runs")
    recipe = load_recipe("run.toml", (), {})
    assert recipe.sources[0].path == ("../a.jsonl",)
    assert load_recipe(f"../{path}", (), {}).sources[0].path == ("../a.jsonl",)
