"""Options: aliases are accepted wherever a value is, and what an option decides follows from it."""

from dataclasses import fields, replace

import pytest
from click.testing import CliRunner

import mtpack
from mtpack.cli import main
from mtpack.errors import SetupError
from mtpack.options import PackOptions, choices, flag
from mtpack.shards.manifest import MANIFEST, Manifest, RunIdentity, read_manifest
from tests.conftest import SAMPLE_DATA

SOURCE = str(SAMPLE_DATA / "conversations_en.jsonl")
ALIASES = [
    (option, alias, value)
    for option in fields(PackOptions)
    for alias, value in option.metadata.get("aliases", {}).items()
]
each_alias = pytest.mark.parametrize(("option", "alias", "value"), ALIASES)


def stored_packing(folder) -> str:
    return mtpack.open_shards(folder).manifest.run.options["packing"]


def run_identity(**options) -> RunIdentity:
    return RunIdentity(options=options, inputs=[], tokenizer_sha256="", template_sha256="")


def test_optimal_is_an_alias_of_dense_which_is_the_default():
    assert [(option.name, alias, value) for option, alias, value in ALIASES] == [
        ("packing", "optimal", "dense")
    ]
    assert PackOptions().packing == "dense"


@each_alias
def test_an_alias_gives_the_same_options_as_its_value(option, alias, value):
    assert value in choices(option)
    assert alias not in choices(option)
    by_alias = PackOptions(**{option.name: alias})
    assert by_alias == PackOptions(**{option.name: value})
    assert getattr(by_alias, option.name) == value


@each_alias
def test_help_and_errors_show_values_but_no_alias(option, alias, value):
    shown = " ".join(CliRunner().invoke(main, ["pack", "--help"]).stdout.split())
    assert f"{flag(option.name)} [{'|'.join(choices(option))}]" in shown
    assert alias not in shown
    refused = CliRunner().invoke(main, ["pack", SOURCE, flag(option.name), "neither"])
    assert refused.exit_code == 2
    assert value in refused.stderr
    assert alias not in refused.stderr
    with pytest.raises(mtpack.SetupError, match=f"must be one of {', '.join(choices(option))}$"):
        PackOptions(**{option.name: "neither"})


def test_python_the_command_line_and_the_environment_accept_an_alias(tmp_path):
    mtpack.pack(SOURCE, output=str(tmp_path / "python"), packing="optimal", workers=1)
    arguments = ["pack", SOURCE, "--workers", "1", "-o"]
    by_flag = [*arguments, str(tmp_path / "flag"), "--packing", "optimal"]
    by_environment = [*arguments, str(tmp_path / "environment")]
    environment = {"MTPACK_PACK_PACKING": "optimal"}
    assert CliRunner().invoke(main, by_flag).exit_code == 0
    assert CliRunner().invoke(main, by_environment, env=environment).exit_code == 0
    for folder in ("python", "flag", "environment"):
        assert stored_packing(tmp_path / folder) == "dense"


def test_an_alias_in_an_old_manifest_counts_as_the_same_options():
    old = run_identity(packing="optimal")
    assert old.difference(run_identity(packing="dense")) is None
    assert old.difference(run_identity(packing="none")) == "its packing is dense, not none"


def test_a_run_takes_the_complete_output_that_an_old_mtpack_wrote(tmp_path):
    folder = tmp_path / "packed"
    mtpack.pack(SOURCE, output=str(folder), workers=1)
    manifest = read_manifest(folder)
    old = replace(manifest.run, options=manifest.run.options | {"packing": "optimal"})
    Manifest(old, manifest.report).write(folder / MANIFEST)
    assert mtpack.pack(SOURCE, output=str(folder), workers=1) == read_manifest(folder).report
    assert stored_packing(folder) == "optimal"  # nothing was written again


def test_stored_splits_depend_on_the_options_that_change_tokens():
    names = {"template_arg", "merge", "train_turns", "tool_arguments", "control_tokens", "date"}
    names |= {"messages_key", "turn_weights"}
    assert PackOptions().split_options().keys() == names
    assert PackOptions().output_options().keys() > names


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_a_compressed_shard_has_no_sequences_that_readers_refuse(compression):
    longest = 7_340_032
    assert PackOptions(seq_len=longest, compression=compression).seq_len == longest
    assert PackOptions(seq_len=2**24).seq_len == 2**24  # without compression
    with pytest.raises(SetupError) as refused:
        PackOptions(seq_len=longest + 1, compression=compression)
    assert str(refused.value) == (
        f"--compression {compression} allows at most --seq-len 7340032; "
        "choose a shorter one, or --compression none"
    )
