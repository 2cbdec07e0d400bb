"""What the README says is so: its commands run, its options exist, its training step is right."""

import re
import shlex
import subprocess
from dataclasses import fields

import pytest
from click.testing import CliRunner

import mtpack
from mtpack.cli import main
from mtpack.options import PackOptions, flag
from tests.conftest import ROOT, SAMPLE_DATA

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_first_command_packs_the_sample_data_and_shows_it(tmp_path):
    (tmp_path / "sample_data").symlink_to(SAMPLE_DATA)
    commands = [
        command
        for command in blocks("bash")[0].strip().split(" && ")
        if command.startswith("mtpack")
    ]
    assert [shlex.split(command)[1] for command in commands] == ["pack", "inspect"]
    done = subprocess.run(
        ["bash", "-ec", "\n".join(commands)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "320" in done.stdout


def test_every_option_is_documented_and_has_a_help_text():
    page = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    shown = CliRunner().invoke(main, ["pack", "--help"]).stdout
    for option in fields(PackOptions):
        assert f"`{flag(option.name)}`" in page or f", {flag(option.name)}`" in page
        assert flag(option.name) in shown
        assert option.metadata["help"].split()[0] in shown


def test_an_option_can_be_set_by_environment(tmp_path):
    arguments = [
        "pack",
        str(SAMPLE_DATA / "conversations_en.jsonl"),
        "-o",
        str(tmp_path / "packed"),
    ]
    result = CliRunner().invoke(main, arguments, env={"MTPACK_PACK_SEQ_LEN": "512"})
    assert result.exit_code == 0, result.output
    assert mtpack.open_shards(tmp_path / "packed").metadata.seq_len == 512


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")  # no GPU
def test_the_trainer_logs_the_mean_over_the_turns_of_a_step(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from tests.support.one_sample_per_turn import compute_mean_over_turns

    rows = (SAMPLE_DATA / "conversations_en.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "rows.jsonl").write_text("".join(rows[:8]))
    monkeypatch.chdir(tmp_path)
    mtpack.pack("rows.jsonl", output="my_packed", seq_len=1024, workers=1)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=8192,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=0.3,  # so that turns differ in their loss
    )
    model = transformers.LlamaForCausalLM(config)
    sequences = mtpack.open_shards("my_packed")
    assert 2 < len(sequences) <= 8  # several micro-batches, and no more than a step takes
    with torch.no_grad():
        expected = compute_mean_over_turns(model, list(sequences)).item()
    (training,) = [block for block in blocks("python") if "TurnMeanTrainer" in block]
    names = {"model": model}
    exec(training.replace('"trained", ', '"trained", use_cpu=True, '), names)
    assert names["trainer"].state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-5)
