"""The benchmarks run. Their figures are for docs; no test asserts them."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given

import mtpack
from benchmarks import release_candidate
from benchmarks.compare import WAYS, main
from benchmarks.encode_program import CALLS
from benchmarks.executors import Costs, estimate
from benchmarks.memory import find_processes, measure_private_bytes, run_watched
from benchmarks.old_version import CASES, Case
from benchmarks.planning import count_best_fit_decreasing
from benchmarks.release_candidate import Case as CandidateCase
from benchmarks.release_candidate import Library, compare_tokens
from benchmarks.rendering import read_dialogues
from benchmarks.scaling import write_copies
from benchmarks.setting import Setting
from benchmarks.table import LINES, STAGES, Line, compute_ratios
from mtpack.input.files import describe_input
from mtpack.input.reading import read_splits
from mtpack.options import PackOptions
from mtpack.running.pipeline import load_pipeline
from mtpack.tokenizer.loading import load_tokenizer
from tests.conftest import ROOT, SAMPLE_DATA
from tests.support.strategies import cases


def run_planning_benchmark(*arguments):
    """Return the lines below the header, as lists of columns."""
    command = [sys.executable, ROOT / "benchmarks" / "planning.py", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    header, *lines = done.stdout.splitlines()
    assert header.split()[:5] == ["lengths", "seq_len", "documents", "sequences", "bound"]
    return [line.split() for line in lines]


EMBEDDED = ROOT / "mtpack" / "tokenizer" / "embedded"


def test_the_planning_benchmark_runs_on_a_small_input():
    (line,) = run_planning_benchmark(SAMPLE_DATA / "conversations_en.jsonl", "--seq-len", 1024)
    assert line[:2] == ["input", "1,024"]


def test_the_planning_benchmark_draws_lengths_without_an_input():
    lines = run_planning_benchmark(
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
def test_the_count_of_best_fit_decreasing_equals_that_of_placing_documents_one_by_one(case):
    lengths, seq_len = case
    rooms = []
    for length in sorted(lengths.tolist(), reverse=True):
        room = min((room for room in rooms if room >= length), default=None)
        if room is not None:
            rooms.remove(room)
        rooms.append((seq_len if room is None else room) - length)
    assert count_best_fit_decreasing(lengths, seq_len) == len(rooms)


def test_the_rendering_benchmark_runs_on_a_small_input():
    command = [sys.executable, ROOT / "benchmarks" / "rendering.py"]
    command += [SAMPLE_DATA / "conversations_en.jsonl", "--dialogues", "20"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    ways = [line.split()[0] for line in done.stdout.splitlines()[1:]]
    assert ways[:4] == ["f-string", "jinja2", "replay", "render"]


def test_the_learning_benchmark_runs_on_a_small_input(tmp_path):
    lines = (SAMPLE_DATA / "conversations_en.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "rows.jsonl").write_text("".join(lines[:10]))
    command = [sys.executable, "-m", "benchmarks.learning", tmp_path / "rows.jsonl"]
    done = subprocess.run(
        [*command, "--rounds", "1"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    rows = [line.split("|") for line in done.stdout.splitlines() if line.startswith("|")]
    names = [row[1].strip().rpartition(": ")[2] for row in rows[2:]]
    assert names == ["replay", "unlimited"]
    assert all(float(row[5]) > 0 for row in rows[2:])


def build_training_template() -> str:
    """Mark the assistant's text in the embedded template."""
    template = (EMBEDDED / "chat_template.jinja").read_text()
    first, last = "{%- if message.reasoning_content %}", "{{- '<|im_end|>\\n' }}\n    {%- else %}"
    assert template.count(first) == template.count(last) == 1
    return template.replace(first, "{%- generation %}" + first).replace(
        last, last.replace("\n", "\n        {%- endgeneration %}\n", 1)
    )


def compare(tmp_path, *options: str) -> tuple[str, dict]:
    """Run the comparison on some rows; return its output and its JSON file."""
    rows = (SAMPLE_DATA / "conversations_en.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "rows.jsonl").write_text("".join(rows[:30]))
    (tmp_path / "training.jinja").write_text(build_training_template())
    command = [sys.executable, "-m", "benchmarks.compare", tmp_path / "rows.jsonl"]
    command += ["--tokenizer", EMBEDDED, "--training-template", tmp_path / "training.jinja"]
    command += ["--seq-len", "1024", "--rounds", "1", "--json", tmp_path / "figures.json"]
    done = subprocess.run(
        [*command, *options], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((tmp_path / "figures.json").read_text())


def test_one_command_measures_every_line_of_the_table(tmp_path):
    """All ways but those that read the output, which start processes that import datasets."""
    names = ",".join(WAYS.keys() - {"rows", "batches"})
    printed, saved = compare(tmp_path, "--trl-rows", "20", "--only", names)
    rows = [line for line in printed.splitlines() if line.startswith("|")]
    table = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    for line in LINES:
        figures = f"{line.figure} {line.against}"
        if not figures.startswith(("rows.", "batches.")) and "old." not in figures:
            (row,) = [row for row in table if row[0:4:3] == [line.name, line.against_name]]
            assert "-" not in row[1:3] + row[4:6]
    assert all(f"| {stage} " in printed for stage in STAGES)
    figures = saved["ways"]["figures"]
    assert all(len(values) == 1 for values in figures.values())
    assert figures["tokenizers.tokens"] == figures["fastokens.tokens"]


def test_the_ways_to_read_rows_and_batches_measure_their_lines(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)  # not of this process
    from benchmarks.batches import load_all_ways
    from benchmarks.rows import read_all_ways

    source = SAMPLE_DATA / "conversations_en.jsonl"
    mtpack.pack(source, output=str(tmp_path / "packed"), seq_len=1024, workers=1)
    figures = read_all_ways(tmp_path / "packed", 0.01)
    figures |= load_all_ways(tmp_path / "packed", 0, 0.01)
    named = {name for line in LINES for name in (line.figure, line.against or "")}
    assert figures.keys() >= {name for name in named if name.startswith(("rows.", "batches."))}
    assert all(figure > 0 for figure in figures.values())


def test_only_measures_the_named_ways(tmp_path):
    _, saved = compare(tmp_path, "--only", "tokenizers,planning", "--rounds", "2", "--workers", "1")
    figures = saved["ways"]["figures"]
    assert {name.split(".")[0] for name in figures} == {"tokenizers", "plan", "bfd"}
    assert len(figures["tokenizers"]) == 2


@pytest.fixture(scope="module")
def compared_with_old(tmp_path_factory) -> tuple[str, dict]:
    """Compare this version with itself; return the output and the JSON file."""
    other = str(SAMPLE_DATA / "conversations_zh.jsonl")
    options = ("--old", sys.executable, "--cases", "one-worker", "--also", other)
    return compare(tmp_path_factory.mktemp("compared"), *options, "--only", "repack")


def test_old_compares_another_installed_version_with_this_one(compared_with_old):
    printed, content = compared_with_old
    saved = content["old"]
    old, new = saved["versions"]["old"], saved["versions"]["new"]
    assert old == new
    assert Path(old["package"], "cli.py").is_file()
    cases = ("one-worker", "conversations_zh.jsonl")
    times = {f"{case}.{time}" for case in cases for time in ("cpu", "wall")}
    assert saved["figures"].keys() == {
        f"{name}.{time}" for name in saved["versions"] for time in times
    }
    assert all(len(values) == 1 and values[0] > 0 for values in saved["figures"].values())
    for name, ratio in saved["ratios"].items():
        expected = saved["medians"][f"new.{name}"] / saved["medians"][f"old.{name}"]
        assert ratio == {"median": expected, "min": expected, "max": expected}
    assert saved["ratios"].keys() == times
    assert saved["same_shards"] == dict.fromkeys(cases, True)
    assert all(f"{case}: shards: the same bytes" in printed for case in cases)
    assert all(f"{case}: CPU time, new" in printed for case in cases)


def test_the_named_ways_are_measured_for_both_versions_with_old(compared_with_old):
    printed, content = compared_with_old
    names = {f"{version}pack.{run}" for version in ("", "old.") for run in ("first", "again")}
    assert content["ways"]["figures"].keys() == names
    assert printed.count("| pack again, tokens kept") == 3
    assert "| first, old " in printed


def read_rows(case: Case) -> list[bytes]:
    files = [describe_input(str(path), str(path)) for path in case.inputs]
    return [row.text for split in read_splits(files) for row in split.rows()]


def test_the_cases_of_two_versions_have_the_same_rows(tmp_path):
    source = SAMPLE_DATA / "conversations_en.jsonl"
    defaults = dict.fromkeys(("chat_template", "training_template", "trl_rows", "old"))
    setting = Setting(
        inputs=(str(source),),
        tokenizer=EMBEDDED,
        seq_len=1024,
        workers=1,
        read_seconds=1,
        folder=tmp_path,
        **defaults,
    )
    for case in CASES.values():
        assert read_rows(case(setting)) == source.read_bytes().splitlines()


def test_an_old_python_without_mtpack_is_a_usage_error(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    arguments = [str(SAMPLE_DATA / "conversations_en.jsonl"), "--old", str(python)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "cannot import mtpack" in " ".join(result.output.split())


def test_the_way_of_trl_without_its_template_is_refused_before_anything_runs():
    arguments = [str(SAMPLE_DATA / "conversations_en.jsonl"), "--tokenizer", str(EMBEDDED)]
    result = CliRunner().invoke(main, [*arguments, "--only", "tokenizers,trl"])
    assert result.exit_code == 2
    assert "--training-template" in result.output


def test_copies_have_the_same_number_of_rows_with_different_texts(tmp_path):
    pipeline = load_pipeline(PackOptions())
    dialogues = read_dialogues((str(SAMPLE_DATA / "conversations_en.jsonl"),), pipeline)[:5]
    write_copies(dialogues, 10, tmp_path / "copies.jsonl")
    with open(tmp_path / "copies.jsonl", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    openings = [row["messages"][0]["content"] for row in rows]
    assert len(openings) == len(set(openings)) == 50


def test_a_ratio_divides_two_figures_of_the_same_round():
    rounds = {"fast": [4.0, 9.0], "slow": [2.0, 3.0]}
    assert compute_ratios(Line("", "fast", "", "slow"), rounds) == [2, 3]
    assert compute_ratios(Line("", "slow", "", "fast", inverted=True), rounds) == [2, 3]
    assert compute_ratios(Line("", "fast", "", "unknown"), rounds) == []


def compare_candidate(folder: Path, *options: str):
    """Run the comparison with an environment that has the installed version, as the candidate."""
    python = folder / "environment" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    arguments = [str(SAMPLE_DATA / "conversations_en.jsonl"), "--megabytes", "0.01"]
    arguments += ["--environment", str(folder / "environment"), "--rounds", "1", *options]
    return CliRunner().invoke(release_candidate.main, arguments)


def test_the_release_candidate_benchmark_compares_the_libraries_of_two_environments(tmp_path):
    file = tmp_path / "figures.json"
    options = ("--version", version("tokenizers"), "--json", str(file))
    result = compare_candidate(tmp_path, *options)
    assert result.exit_code == 0, result.output
    assert f"tokenizers {version('tokenizers')} lacks: nothing" in result.output
    saved = json.loads(file.read_text())
    assert [found["library"] for found in saved["comparisons"]] == ["fastokens", "candidate"]
    for found in saved["comparisons"]:
        assert {found[name].split()[0] for name in ("data", "adversarial", "positions")} == {"0"}
    assert saved["comparisons"][1]["offsets"].startswith("0 of ")
    for answers in saved["answers"]["embedded"].values():
        assert all(answer[name] > 0 for answer in answers for name in ("load", "first", "again"))


def test_an_environment_with_another_version_than_the_named_one_is_refused(tmp_path):
    result = compare_candidate(tmp_path, "--version", "0.0.1")
    assert result.exit_code == 2
    assert "not 0.0.1" in result.output


class ChangedLibrary(Library):
    """A library with another id in the second text, and another offset in the third."""

    def encode(self, tokenizer, texts, tokens=None):
        answer = super().encode(tokenizer, texts, tokens)
        found = json.loads(tokens.read_text())
        found["ids"][1][0] += 1
        found["offsets"][2][0][1] += 1
        tokens.write_text(json.dumps(found))
        return answer


def test_other_tokens_of_a_candidate_are_counted(tmp_path):
    reference, changed = (
        kind("x", sys.executable, "tokenizers") for kind in (Library, ChangedLibrary)
    )
    case = CandidateCase(load_tokenizer(None), ["Hello", "World", "again"], ["é"], tmp_path)
    (found,) = compare_tokens([reference, changed], case)
    assert found.data == "1 of 3"
    assert found.adversarial == "0 of 1"
    assert found.offsets == "1 of 3"


def test_the_calls_to_look_for_in_a_candidate_are_those_of_the_package():
    sources = [path.read_text() for path in (ROOT / "mtpack").rglob("*.py")]
    used = {name for source in sources for name in re.findall(r"\bbackend\.(\w+)", source)}
    of_tokenizer = {name.split(".")[1] for name in CALLS if name.startswith("Tokenizer.")}
    assert used - {"encode_batch_flat"} <= of_tokenizer  # that one is of fastokens
    assert all(name.split(".")[-1] in " ".join(sources) for name in CALLS)


def measure_interruptions(*options: str) -> str:
    command = [sys.executable, "-m", "benchmarks.interruptions", *options]
    command += [str(SAMPLE_DATA / "conversations_en.jsonl"), "--seq-len", "1024"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_interruptions_benchmark_kills_and_continues_a_run(tmp_path):
    printed = measure_interruptions("--kills", "1", "--workers", "1", "--folder", str(tmp_path))
    assert "rounds: 1, identical: 1," in printed
    assert "with leftovers: 0, with an exit status other than 0: 0" in printed
    assert list(tmp_path.iterdir()) == []


def test_the_interruptions_benchmark_measures_what_they_cost(tmp_path):
    printed = measure_interruptions("--overhead", "--pairs", "1", "--folder", str(tmp_path))
    parts = [line.split("|")[1:-1] for line in printed.splitlines() if line.startswith("|")][2:]
    assert len(parts) == 5
    assert all(float(seconds) >= 0 for _, seconds, _ in parts)
    assert re.search(r"sync and hash nothing: \d\.\d{3} times the time .*, 1 pairs", printed)


def test_large_runs_are_limited_by_workers_storage_or_the_main_process():
    costs = Costs(worker=1e-7, main=1e-3, unit_bytes=1e5, stored_bytes=4.0)
    few = estimate(costs, 1e12, nodes=10, cores=32, storage_bandwidth=1e11)
    assert (few.workers, few.main, few.storage) == pytest.approx((312.5, 1e4, 40))
    assert few.seconds == few.main
    assert estimate(costs, 1e12, 1, 1, 1e11).seconds == pytest.approx(1e5)
    assert estimate(costs, 1e12, 1000, 32, 1e6).seconds == pytest.approx(4e6)


def test_an_ended_or_foreign_process_is_not_one_of_a_session():
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True
    ) as process:
        assert find_processes(process.pid) == [process.pid]
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # ended, but not collected
        assert find_processes(process.pid) == []


HOLD = "held = bytearray(40 * 2**20); print('held', flush=True); sys.stdin.read()"


def test_memory_is_summed_over_all_processes_of_a_command():
    start_another = f"subprocess.Popen([sys.executable, '-c', {'import sys; ' + HOLD!r}])"
    code = f"import subprocess, sys; another = {start_another}; {HOLD}; another.wait()"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert [process.stdout.readline() for _ in range(2)] == [b"held\n"] * 2
        assert 80 * 2**20 < measure_private_bytes(process.pid) < 160 * 2**20
        process.stdin.close()


def test_a_watched_command_returns_its_output_or_raises():
    # It works for a while, so that it has not ended before the first sample on a busy machine.
    watched = run_watched([sys.executable, "-c", "sum(range(10**7)); print('done')"])
    assert watched.stdout == b"done\n"
    assert watched.peak_bytes > 0
    with pytest.raises(subprocess.CalledProcessError):
        run_watched([sys.executable, "-c", "raise SystemExit(1)"])


@pytest.mark.parametrize("packed", [False, True])
def test_the_loss_benchmark_runs_on_the_cpu_with_small_sizes(tmp_path, packed):
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


def test_generated_turns_have_the_requested_share_of_loss_tokens():
    torch = pytest.importorskip("torch")
    from benchmarks.loss import generate_turns

    batch = generate_turns(100_000, 0.3)
    assert float(batch["loss_mask"].double().mean()) == pytest.approx(0.3, abs=0.01)
    turns = (batch["loss_mask"] / batch["loss_token_num"].double()).sum()
    assert torch.isclose(turns, batch["turn_num"].double().sum())
