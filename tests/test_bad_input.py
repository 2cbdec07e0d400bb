"""Bad input gives one or two lines: what is wrong, where, what to do. No partial output is left."""

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import mtpack.running.split_task
from mtpack.cli import main
from mtpack.tokenizer.loading import EMBEDDED_FOLDER
from tests.conftest import SAMPLE_DATA

GOOD_ROW = json.dumps(
    {
        "messages": [
            {"role": "user", "content": "Is the kettle on?"},
            {"role": "assistant", "content": "Yes, it is."},
        ]
    }
)
WARNINGS = ("the small tokenizer that comes", ": read as ")
BAD_FILES = sorted((SAMPLE_DATA / "bad").glob("*.jsonl"))


def run(*arguments: str | Path) -> Result:
    """Run the command in this process; an exception other than SystemExit is a bug."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def refuse(status: int, *arguments: str | Path) -> str:
    """Run a command that must fail, and return its error text without warnings."""
    result = run(*arguments)
    assert result.exit_code == status, result.output
    lines = result.stderr.splitlines()
    while lines and any(warning in lines[0] for warning in WARNINGS):
        lines.pop(0)
    assert 1 <= len(lines) <= 2, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    return "\n".join(lines)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.jsonl"
    path.write_text(f"{GOOD_ROW}\n" * 3)
    return path


@pytest.mark.parametrize("path", BAD_FILES, ids=lambda path: path.stem)
def test_a_bad_row_is_named_with_file_line_and_reason(path, tmp_path):
    said = refuse(1, "pack", path, "-o", tmp_path / "packed")
    reason = path.name.split(".")[0]
    assert f"{path} line 3: {reason}: " in said
    assert "--on-error skip" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", BAD_FILES, ids=lambda path: path.stem)
def test_a_skipped_bad_row_is_in_the_rejects_and_in_the_counts(path, tmp_path):
    output = tmp_path / "packed"
    result = run("pack", path, "-o", output, "--on-error", "skip", "--json", "--quiet")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    reason = path.name.split(".")[0]
    assert (report["rows_read"], report["rows_packed"]) == (3, 2)
    assert report["rows_rejected"] == {reason: 1}
    (reject,) = map(json.loads, (output / "rejects.jsonl").read_text().splitlines())
    assert reject.pop("detail")
    assert reject == {"row": 1, "file": str(path), "line": 3, "reason": reason}
    packed_rows = {
        number
        for row in mtpack.open_shards(output)
        for number in row["dialogue_ids"].tolist()
        if number >= 0
    }
    assert packed_rows == {0, 2}


def test_a_line_above_the_limit_is_skipped_and_named(tmp_path, monkeypatch):
    path = tmp_path / "long.jsonl"
    path.write_text(f'{GOOD_ROW}\n{{"messages": "{"x" * 2**26}"}}\n{GOOD_ROW}\n')
    output = tmp_path / "packed"
    said = refuse(1, "pack", path, "-o", output)
    assert f"{path} line 2: line_too_long: longer than 67,108,864 bytes" in said
    assert run("pack", path, "-o", output, "--on-error", "skip", "--quiet").exit_code == 0
    assert json.loads((output / "rejects.jsonl").read_text())["line"] == 2


def test_the_first_bad_row_is_named_for_any_number_of_workers(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    filler = json.loads(GOOD_ROW)
    filler["messages"][0]["content"] = "words " * 20_000
    bad = '{"messages": []}'
    rows = [json.dumps(filler)] * 60
    rows[30] = rows[55] = bad
    path.write_text("\n".join(rows))
    for workers in ("1", "3"):
        said = refuse(1, "pack", path, "-o", tmp_path / workers, "--workers", workers)
        assert f"{path} line 31: invalid_row" in said


def test_a_missing_file_is_named(tmp_path):
    said = refuse(2, "pack", tmp_path / "nowhere.jsonl")
    assert "nowhere.jsonl: no such file" in said


def test_an_empty_file_has_nothing_to_pack(tmp_path):
    (tmp_path / "empty.jsonl").write_bytes(b"")
    said = refuse(1, "pack", tmp_path / "empty.jsonl", "-o", tmp_path / "packed")
    assert "empty.jsonl" in said
    assert "no rows" in said


def test_an_empty_file_among_others_gives_a_warning(good, tmp_path):
    (tmp_path / "empty.jsonl").write_bytes(b"\n\n")
    result = run("pack", good, tmp_path / "empty.jsonl", "-o", tmp_path / "packed")
    assert result.exit_code == 0
    assert "empty.jsonl: holds no rows" in result.stderr


def test_an_input_without_a_trained_turn_gives_no_output(tmp_path):
    path = tmp_path / "users.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "Hello?"}]}\n')
    said = refuse(1, "pack", path, "-o", tmp_path / "packed")
    assert "nothing to pack: no row has an assistant message" in said
    assert not (tmp_path / "packed").exists()


def test_a_folder_without_inputs_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing here")
    said = refuse(2, "pack", tmp_path)
    assert "holds no input" in said
    assert ".jsonl, .ndjson, .json (also with .gz or .zst), .parquet" in said


def test_an_unknown_kind_of_file_is_refused(tmp_path):
    (tmp_path / "rows.csv").write_text("a,b\n")
    assert "unknown kind of file" in refuse(2, "pack", tmp_path / "rows.csv")


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--merge", "sometimes", "'auto', 'always', 'never'"),
        ("--overlong", "cut", "'turns', 'split', 'truncate', 'drop', 'error'"),
        ("--seq-len", "many", "not a valid integer"),
        ("--seq-len", "1", "at least 2"),
        ("--seed", "-1", "at least 0"),
        ("--shard-size", "big", "write it as 256MiB"),
        ("--window", "0", "write it as 256Mi"),
        ("--date", "today", "write it as 2026-01-01"),
        ("--pad-documents-to", "3", "not a multiple"),
        ("--template-arg", "thinking", "KEY=VALUE"),
        ("--tokenizer", "./nowhere", "no such tokenizer"),
        ("--chat-template", "nowhere.jinja", "there is no such chat template"),
    ],
)
def test_a_wrong_option_value_is_refused_with_the_valid_values(option, value, expected, good):
    assert expected in refuse(2, "pack", good, option, value)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["pack"], "Missing argument 'INPUT...'; see mtpack pack --help"),
        (["pack", "--sequences", "4"], "No such option"),
        (["unpack"], "No such command 'unpack'"),
    ],
)
def test_a_wrong_command_line_gives_one_line(arguments, expected):
    assert expected in refuse(2, *arguments)


def test_the_output_of_another_run_is_refused_and_named(good, tmp_path):
    output = tmp_path / "packed"
    assert run("pack", good, "-o", output).exit_code == 0
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    said = refuse(2, "pack", good, "-o", output, "--seq-len", "512")
    assert "its seq_len is 4096, not 512" in said
    assert "--overwrite" in said
    good.write_text(f"{GOOD_ROW}\n" * 4)
    assert "the input is different" in refuse(2, "pack", good, "-o", output)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before


def test_an_overwrite_that_fails_leaves_the_old_output_unchanged(good, tmp_path):
    output = tmp_path / "packed"
    assert run("pack", good, "-o", output).exit_code == 0
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    good.write_text("{}\n")
    refuse(1, "pack", good, "-o", output, "--overwrite")
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before


def test_a_folder_of_foreign_files_is_refused_even_with_overwrite(good, tmp_path):
    output = tmp_path / "thesis"
    output.mkdir()
    (output / "chapter.tex").write_text("years of work")
    said = refuse(2, "pack", good, "-o", output, "--overwrite")
    assert "did not write, such as chapter.tex" in said
    assert [path.name for path in output.iterdir()] == ["chapter.tex"]


def test_an_output_that_is_a_file_is_refused(good):
    assert "not a folder" in refuse(2, "pack", good, "-o", good)


def test_a_tokenizer_without_a_template_is_refused_with_the_remedy(good, tmp_path):
    shutil.copy(EMBEDDED_FOLDER / "tokenizer.json", tmp_path)
    said = refuse(2, "pack", good, "--tokenizer", tmp_path / "tokenizer.json")
    assert "no chat template; name one with --chat-template" in said


def test_an_error_raised_by_the_template_refuses_the_row_with_its_message(good, tmp_path):
    template = tmp_path / "strict.jinja"
    template.write_text(
        "{% for message in messages %}{% if message.role == 'assistant' %}"
        "{{ raise_exception('assistants must be silent') }}{% endif %}{% endfor %}"
    )
    said = refuse(1, "pack", good, "-o", tmp_path / "packed", "--chat-template", template)
    assert f"{good} line 1: template_raised: " in said
    assert "assistants must be silent" in said


def test_a_template_whose_turns_cannot_be_found_is_refused(good, tmp_path):
    template = tmp_path / "twice.jinja"
    template.write_text("{% for message in messages %}{{ message.content }}{% endfor %}" * 2)
    said = refuse(2, "pack", good, "-o", tmp_path / "packed", "--chat-template", template)
    assert "can't find where the chat template writes an assistant message" in said


def test_a_template_with_a_syntax_error_is_refused_with_its_line(good, tmp_path):
    template = tmp_path / "broken.jinja"
    template.write_text("{{ bos_token }}\n{% for message in messages %}")
    said = refuse(2, "pack", good, "--chat-template", template)
    assert "broken.jinja line 2: the chat template is not valid" in said


def test_with_overlong_error_a_dialogue_that_is_too_long_is_a_bad_row(tmp_path):
    long_row = json.loads(GOOD_ROW)
    long_row["messages"][1]["content"] = "word " * 200
    path = tmp_path / "long.jsonl"
    path.write_text(f"{GOOD_ROW}\n{json.dumps(long_row)}\n")
    arguments = ("pack", path, "-o", tmp_path / "packed", "--seq-len", "64", "--overlong", "error")
    assert f"{path} line 2: overlong: longer than 64 tokens" in refuse(1, *arguments)
    result = run(*arguments, "--on-error", "skip", "--json")
    report = json.loads(result.stdout)
    assert report["rows_rejected"] == {"overlong": 1}
    assert (report["turns_read"], report["turns_packed"]) == (1, 1)


def test_a_truncated_archive_is_named(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(f"{GOOD_ROW}\n".encode() * 1000)[:-20])
    said = refuse(1, "pack", path, "-o", tmp_path / "packed")
    assert f"{path}: damaged or truncated" in said
    assert not (tmp_path / "packed").exists()


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_a_path_that_is_not_an_output_is_refused(command, tmp_path, good):
    assert "no such shard or output folder" in refuse(2, command, tmp_path / "nowhere")
    assert "no manifest.json" in refuse(2, command, tmp_path)
    assert "not a shard that can be read" in refuse(1, command, good)


def test_a_damaged_shard_is_named(good, tmp_path):
    output = tmp_path / "packed"
    assert run("pack", good, "-o", output).exit_code == 0
    shard = output / "shard-00000.arrow"
    shard.write_bytes(shard.read_bytes()[:-1000])
    assert "the manifest records" in refuse(1, "inspect", output)


def test_a_wrong_row_number_is_refused(good, tmp_path):
    output = tmp_path / "packed"
    assert run("pack", good, "-o", output).exit_code == 0
    assert "out of range" in refuse(2, "inspect", output, "--row", "7")


def test_cuda_without_a_cuda_device_gives_one_clear_line(good, tmp_path):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    output = tmp_path / "packed"
    assert run("pack", good, "-o", output).exit_code == 0
    assert "CUDA" in refuse(2, "verify", output, "--device", "cuda")


def test_the_command_in_a_separate_process_shows_no_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mtpack", "pack", "nowhere.jsonl"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "mtpack: nowhere.jsonl: no such file; check the name or the pattern\n"
