"""The benchmarks run; what they measure is for docs, never for a test."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner
from hypothesis import given

import mtpack
from benchmarks.compare import main
from benchmarks.memory import private_bytes, run_watched
from benchmarks.planning import best_fit_decreasing
from benchmarks.rendering import read_dialogues
from benchmarks.scaling import write_copies
from benchmarks.table import LINES, STAGES, Line, ratios
from tests.conftest import ROOT, SAMPLE_DATA
from tests.support.strategies import cases


def planning_benchmark(*arguments):
    """The lines below the header, as lists of columns."""
    command = [sys.executable, ROOT / "benchmarks" / "planning.py", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    header, *lines = done.stdout.splitlines()
    assert header.split()[:5] == ["lengths", "seq_len", "documents", "sequences", "bound"]
    return [line.split() for line in lines]


EMBEDDED = ROOT / "mtpack" / "tokenizer" / "embedded"


def test_the_planning_benchmark_runs_on_a_small_input():
    (line,) = planning_benchmark(SAMPLE_DATA / "conversations_en.jsonl", "--seq-len", 1024)
    assert line[:2] == ["input", "1,024"]


def test_the_planning_benchmark_draws_lengths_where_there_is_no_input():
    lines = planning_benchmark(
        *("--kind", "short", "--kind", "equal", "--documents", 2000),
        *("--seq-len", 1024, "--seq-len", 65_536),
    )
    assert [line[:3] for line in lines] == [
        ["short", "1,024", "2,000"],
        ["short", "65,536", "2,000"],
        ["equal", "1,024", "2,000"],
        ["equal", "65,536", "2,000"],
    ]


@given(cases)
def test_best_fit_decreasing_is_counted_as_if_documents_were_placed_one_by_one(case):
    lengths, seq_len = case
    rooms = []
    for length in sorted(lengths.tolist(), reverse=True):
        room = min((room for room in rooms if room >= length), default=None)
        if room is not None:
            rooms.remove(room)
        rooms.append((seq_len if room is None else room) - length)
    assert best_fit_decreasing(lengths, seq_len) == len(rooms)


def test_the_rendering_benchmark_runs_on_a_small_input():
    command = [sys.executable, ROOT / "benchmarks" / "rendering.py"]
    command += [SAMPLE_DATA / "conversations_en.jsonl", "--dialogues", "20"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    ways = [line.split()[0] for line in done.stdout.splitlines()[1:]]
    assert ways[:4] == ["f-string", "jinja2", "replay", "render"]


def training_template() -> str:
    """Mark what an assistant writes in the embedded template."""
    template = (EMBEDDED / "chat_template.jinja").read_text()
    first, last = "{%- if message.reasoning_content %}", "{{- '<|im_end|>\\n' }}\n    {%- else %}"
    assert template.count(first) == template.count(last) == 1
    return template.replace(first, "{%- generation %}" + first).replace(
        last, last.replace("\n", "\n        {%- endgeneration %}\n", 1)
    )


def compare(tmp_path, *options: str) -> tuple[str, dict]:
    """Run the comparison on some rows; return what it prints and what it keeps."""
    rows = (SAMPLE_DATA / "conversations_en.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "rows.jsonl").write_text("".join(rows[:30]))
    (tmp_path / "training.jinja").write_text(training_template())
    command = [sys.executable, "-m", "benchmarks.compare", tmp_path / "rows.jsonl"]
    command += ["--tokenizer", EMBEDDED, "--training-template", tmp_path / "training.jinja"]
    command += ["--seq-len", "1024", "--rounds", "1", "--json", tmp_path / "figures.json"]
    done = subprocess.run(
        [*command, *options], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((tmp_path / "figures.json").read_text())


def test_one_command_measures_every_line_of_the_table(tmp_path):
    printed, kept = compare(tmp_path, "--trl-rows", "20")
    rows = [line for line in printed.splitlines() if line.startswith("|")]
    table = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    for line in LINES:
        (row,) = [row for row in table if row[0:4:3] == [line.name, line.against_name]]
        assert "-" not in row[1:3] + row[4:6]
    assert all(f"| {stage} " in printed for stage in STAGES)
    assert all(len(values) == 1 for values in kept["figures"].values())
    assert kept["figures"]["tokenizers.tokens"] == kept["figures"]["fastokens.tokens"]


def test_the_comparison_can_be_of_some_ways_alone(tmp_path):
    _, kept = compare(tmp_path, "--only", "tokenizers,planning", "--rounds", "2", "--workers", "1")
    assert {name.split(".")[0] for name in kept["figures"]} == {"tokenizers", "plan", "bfd"}
    assert len(kept["figures"]["tokenizers"]) == 2


def test_trls_way_asks_for_its_template_before_anything_runs():
    arguments = [str(SAMPLE_DATA / "conversations_en.jsonl"), "--tokenizer", str(EMBEDDED)]
    result = CliRunner().invoke(main, [*arguments, "--only", "tokenizers,trl"])
    assert result.exit_code == 2
    assert "--training-template" in result.output


def test_copies_are_as_many_rows_of_other_texts(tmp_path):
    dialogues = read_dialogues((str(SAMPLE_DATA / "conversations_en.jsonl"),))[:5]
    write_copies(dialogues, 10, tmp_path / "copies.jsonl")
    with open(tmp_path / "copies.jsonl", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    openings = [row["messages"][0]["content"] for row in rows]
    assert len(openings) == len(set(openings)) == 50


def test_a_ratio_is_of_two_figures_of_the_same_round():
    rounds = {"fast": [4.0, 9.0], "slow": [2.0, 3.0]}
    assert ratios(Line("", "fast", "", "slow"), rounds) == [2, 3]
    assert ratios(Line("", "slow", "", "fast", inverted=True), rounds) == [2, 3]
    assert ratios(Line("", "fast", "", "unknown"), rounds) == []


HOLD = "held = bytearray(40 * 2**20); print('held', flush=True); sys.stdin.read()"


def test_memory_is_counted_over_all_processes_of_a_command():
    start_another = f"subprocess.Popen([sys.executable, '-c', {'import sys; ' + HOLD!r}])"
    code = f"import subprocess, sys; another = {start_another}; {HOLD}; another.wait()"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert [process.stdout.readline() for _ in range(2)] == [b"held\n"] * 2
        assert 80 * 2**20 < private_bytes(process.pid) < 160 * 2**20
        process.stdin.close()


def test_a_command_under_watch_gives_what_it_prints_or_fails():
    watched = run_watched([sys.executable, "-c", "print('done')"])
    assert watched.stdout == b"done\n"
    assert watched.peak_bytes > 0
    with pytest.raises(subprocess.CalledProcessError):
        run_watched([sys.executable, "-c", "raise SystemExit(1)"])


@pytest.mark.parametrize("packed", [False, True])
def test_the_loss_benchmark_runs_small_on_the_cpu(tmp_path, packed):
    pytest.importorskip("torch")
    from benchmarks.loss import main as compare_losses

    arguments = ["--device", "cpu", "--vocabulary", "300", "--hidden", "8", "--tokens", "256"]
    if packed:
        source = str(SAMPLE_DATA / "conversations_en.jsonl")
        mtpack.pack(source, output=str(tmp_path / "packed"), seq_len=128, workers=1)
        arguments.append(str(tmp_path / "packed"))
    result = CliRunner().invoke(compare_losses, [*arguments, "--rounds", "2"])
    assert result.exit_code == 0, result.output
    assert "vocabulary 300, hidden 8, 256 tokens, bfloat16, loss tokens" in result.output
    rows = [line.split("|") for line in result.output.splitlines() if line.startswith("|")]
    assert [row[1].strip() for row in rows[2:6]] == [
        "full logits, cross_entropy",
        "mtpack, turn mean",
        "mtpack, token mean",
        "turn weights",
    ]


def test_made_up_turns_train_the_share_that_is_asked_for():
    torch = pytest.importorskip("torch")
    from benchmarks.loss import made_up_turns

    batch = made_up_turns(100_000, 0.3)
    assert float(batch["loss_mask"].double().mean()) == pytest.approx(0.3, abs=0.01)
    turns = (batch["loss_mask"] / batch["loss_token_num"].double()).sum()
    assert torch.isclose(turns, batch["turn_num"].double().sum())
