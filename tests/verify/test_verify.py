"""`verify` as a whole: its report in a terminal and as JSON, if the checks pass or fail."""

from __future__ import annotations

import errno
import io
import json
import math

import pytest
from click.testing import CliRunner
from rich.console import Console

from mtpack.cli import main
from mtpack.errors import SetupError
from mtpack.report.verify_view import show
from mtpack.verify import verify
from tests.support.builders import (
    columns_of_sequences,
    hand_made_sequences,
    metadata_of,
    open_sequences,
    random_sequences,
    tally_of,
    weigh_turns,
    write_columns,
    write_output,
)

torch = pytest.importorskip("torch")

from mtpack.verify import computing, ranks  # noqa: E402
from mtpack.verify.check import Check  # noqa: E402


def shown(report) -> str:
    """Return the report as an 80 column terminal shows it."""
    console = Console(file=io.StringIO(), width=80)
    show(report, console)
    return console.file.getvalue()


def words_of(text: str) -> str:
    """Return a text with single spaces: where a terminal wraps a line does not matter."""
    return " ".join(text.split())


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """Return an output folder whose manifest has notices about turns."""
    metadata = metadata_of()
    columns = columns_of_sequences(hand_made_sequences(), metadata)
    folder = tmp_path_factory.mktemp("verify") / "out"
    return write_output(folder, [columns], metadata, tally_of([columns], bent=3, no_eot=2))


@pytest.fixture(scope="module")
def report(output):
    """Return the report of all checks of that output, with real processes."""
    return verify.verify(output, "cpu")


@pytest.fixture
def no_ranks(monkeypatch):
    """Start no processes, because that takes seconds."""

    def refuse(*_, **__):
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(ranks, "spawn", refuse)


def test_every_check_is_reported_with_its_value_and_tolerance(report):
    assert report.ok
    printed = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert {"ok", "rows", "checks", "loss", "device"} <= printed.keys()
    assert (printed["ok"], printed["rows"], printed["device"]) == (True, 3, "cpu")
    assert (printed["dtype"], printed["model"]) == ("float64", "built in")
    assert list(printed["checks"]) == ["structure", "equivalence", "invariance", "isolation"]
    for check in printed["checks"].values():
        assert {"ok", "value", "tolerance"} <= check.keys()
        assert check["tolerance"] <= 1e-10
        for part in check.get("parts", {}).values():
            assert part["value"] <= check["value"]
    divisions = ["context_parallel", "data_parallel", "micro_batches"]
    assert sorted(printed["checks"]["invariance"]["parts"]) == divisions
    assert list(printed["loss"]) == ["turn_mean", "token_mean", "dialogue_mean"]
    assert all(math.isfinite(loss) for loss in printed["loss"].values())
    assert printed["covered"]["invariance"]["data_parallel_ranks"] == 2
    assert sum(one["turns"] for one in printed["weights"]) == 9


def test_an_output_with_weights_passes_every_check(tmp_path):
    open_sequences(tmp_path, weigh_turns(hand_made_sequences(), 512, 3072, 100))
    report = verify.verify(tmp_path / "out", "cpu")
    assert report.ok
    (tmp_path / "plain").mkdir()
    open_sequences(tmp_path / "plain", hand_made_sequences())
    plain = verify.verify(tmp_path / "plain" / "out", "cpu")
    for mean in ("turn_mean", "token_mean", "dialogue_mean"):
        weighted_loss, loss = (each.as_dict()["loss"][mean] for each in (report, plain))
        assert weighted_loss != pytest.approx(loss, rel=1e-4)


def test_the_output_shows_the_coverage_and_what_is_not_proven(report):
    output = shown(report)
    words = words_of(output)
    assert "FAILED" not in words
    assert "hashes were not checked" not in words
    assert "3 of 3 sequences, 5 of 5 documents, 9 of 9 turns" in words
    assert "2 processes over gloo" in words
    assert "files every file of the output but `about` in the manifest" in words
    assert "bent 3 turns: merged although the chat template rewrites history" in words
    assert "no_eot 2 turns: no control token ends them" in words
    assert "unproven" not in words
    assert all(len(line) <= 80 for line in output.splitlines())


def test_a_machine_that_starts_no_processes_is_reported_in_one_line(output, no_ranks):
    report = verify.verify(output, "cpu")
    assert not report.ok
    invariance = json.loads(json.dumps(report.as_dict()))["checks"]["invariance"]
    assert {name: part["ok"] for name, part in invariance["parts"].items()} == {
        "micro_batches": True,
        "context_parallel": True,
        "data_parallel": None,
    }
    assert (invariance["ok"], invariance["value"]) == (None, None)
    assert "its processes can't be run: " in invariance["detail"]
    assert f"data parallel: not done, because {invariance['detail']}" in words_of(shown(report))


def test_two_runs_give_exactly_the_same_report(output, no_ranks):
    assert verify.verify(output, "cpu") == verify.verify(output, "cpu")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_checks_pass_in_lower_precision(output, no_ranks, dtype):
    report = verify.verify(output, "cpu", dtype=dtype)
    assert not any(check.ok is False for check in report.checks.values()), report.checks
    assert report.checks["equivalence"].tolerance <= {"float32": 1e-5, "bfloat16": 2e-2}[dtype]


def test_a_single_shard_can_be_checked(tmp_path, no_ranks):
    metadata = metadata_of("shifted")
    columns = columns_of_sequences(hand_made_sequences()[:1], metadata)
    write_columns(tmp_path / "shard.arrow", columns, metadata)
    report = verify.verify([tmp_path / "shard.arrow"], "cpu")
    assert report.checks["equivalence"].ok
    assert "hashes were not checked" in words_of(shown(report))


def broken_shard(tmp_path):
    metadata = metadata_of()
    columns = columns_of_sequences(hand_made_sequences(), metadata)
    columns.loss_token_num[1, columns.turn_starts[3]] += 1
    write_columns(tmp_path / "shard.arrow", columns, metadata)
    return tmp_path / "shard.arrow"


def test_a_violation_is_shown_with_its_position_and_stops_the_checks(tmp_path):
    path = broken_shard(tmp_path)
    report = verify.verify([path], "cpu")
    assert not report.ok
    assert list(report.checks) == ["structure"]
    assert report.as_dict()["loss"] == dict.fromkeys(("turn_mean", "token_mean", "dialogue_mean"))
    assert report.as_dict()["violation"]["row"] == 1
    words = words_of(shown(report))
    assert f"{path}, sequence 1, position 3:" in words
    assert "loss_token_num" in words
    assert "FAILED" in words
    assert "hashes were not checked" in words


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_cuda_device_is_reported_in_one_line(tmp_path):
    with pytest.raises(SetupError, match=r"^--device cuda: [^\n]*$"):
        verify.verify(tmp_path, "cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("dtype", "ceiling"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_the_checks_pass_on_cuda(tmp_path, dtype, ceiling):
    sequences = random_sequences(0, 700, [[150, 300, 249], [600, 90], [80, 500]])
    open_sequences(tmp_path, sequences, seq_len=700)
    report = verify.verify(tmp_path / "out", "cuda", dtype=dtype)
    assert report.ok, report.checks
    assert report.device == "cuda"
    assert "data_parallel" in report.checks["invariance"].parts
    assert report.checks["equivalence"].tolerance <= ceiling


def test_without_torch_only_the_structure_is_checked(output, monkeypatch):
    monkeypatch.setattr(verify, "find_spec", lambda name: None)
    report = verify.verify(output, "auto")
    assert report.ok
    assert list(report.checks) == ["structure"]
    assert report.missing_extra is not None
    assert "pip install 'mtpack[torch]'" in report.missing_extra
    assert "turn_mean_loss" not in shown(report)
    result = CliRunner().invoke(main, ["verify", str(output)])
    assert result.exit_code == 2
    assert "structure" in result.stdout
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("as_json", [True, False])
def test_a_check_that_compared_nothing_is_named_as_not_done_with_status_1(
    tmp_path, monkeypatch, as_json
):
    """Each sequence has one document, so no document has another one to see."""
    monkeypatch.setattr(computing, "compare_ranks", lambda *_: Check.compare(0.0, 1e-10))
    open_sequences(tmp_path, random_sequences(0, 64, [[60]] * 9), seq_len=64)
    command = ["verify", str(tmp_path / "out"), "--device", "cpu", *(["--json"] * as_json)]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 1
    reason = "no sequence of the sample has two documents"
    if as_json:
        printed = json.loads(result.stdout)
        isolation = printed["checks"]["isolation"]
        assert (printed["ok"], isolation["ok"], isolation["value"]) == (False, None, None)
        assert isolation["detail"] == reason
        assert printed["checks"]["equivalence"]["ok"]
    else:
        words = words_of(result.stdout)
        assert f"documents: not done, because {reason}" in words
        assert "FAILED" not in words
