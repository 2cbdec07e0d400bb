"""Rejected rows have their exact row and line, whoever counted them."""

import gzip
import json
import random
from pathlib import Path

import pytest

import mtpack
from mtpack.input import reading
from mtpack.running.callbacks import Callbacks

GOOD = {"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Yes?"}]}


def write_lines(path: Path, seed: int) -> list[int]:
    """Write good, bad and blank lines, and return the numbers of the lines with bad rows."""
    draw = random.Random(seed)
    good = json.dumps(GOOD).encode()
    lines = [draw.choice([good, good, good, b"bad", b"", b"  "]) for _ in range(300)]
    content = b"\xef\xbb\xbf" + b"\n".join([good, *lines])
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return [number for number, line in enumerate(lines, 2) if line == b"bad"]


@pytest.fixture
def files(tmp_path, monkeypatch) -> dict[Path, list[int]]:
    """Files of several ranges, and the lines of their bad rows."""
    monkeypatch.setattr(reading, "SPLIT_BYTES", 2000)
    names = ["a.jsonl", "b.jsonl.gz", "c.jsonl", "d.jsonl"]
    return {tmp_path / name: write_lines(tmp_path / name, seed) for seed, name in enumerate(names)}


def pack(files, output: Path, **options):
    return mtpack.pack(
        list(files), output=output, workers=2, seq_len=512, callbacks=Callbacks(), **options
    )


def rejected(output: Path) -> list[tuple[str, int]]:
    records = map(json.loads, (output / "rejects.jsonl").read_text().splitlines())
    return [(record["file"], record["line"]) for record in records]


def lines_of(files) -> list[tuple[str, int]]:
    return [(str(path), line) for path, lines in files.items() for line in lines]


def test_rejects_have_the_lines_of_their_files(files, tmp_path):
    report = pack(files, tmp_path / "packed", on_error="skip")
    assert rejected(tmp_path / "packed") == lines_of(files)
    records = map(json.loads, (tmp_path / "packed" / "rejects.jsonl").read_text().splitlines())
    rows = [record["row"] for record in records]
    assert rows == sorted(set(rows))
    assert report.tally.rows_read > rows[-1] >= 4 * 100


def test_rejects_of_stored_splits_have_the_lines_of_their_files(files, tmp_path):
    store = tmp_path / "store"
    for name in ("first", "again"):
        report = pack(files, tmp_path / name, on_error="skip", token_store=store)
    assert report.about.splits_reused == report.about.splits > 10
    assert rejected(tmp_path / "again") == rejected(tmp_path / "first") == lines_of(files)


def test_a_file_that_is_named_twice_is_counted_twice(files, tmp_path):
    first = next(iter(files))
    pack([first, first], tmp_path / "packed", on_error="skip")
    assert rejected(tmp_path / "packed") == [(str(first), line) for line in files[first]] * 2


def test_the_error_of_a_bad_row_names_its_line(files, tmp_path):
    content = (json.dumps(GOOD) + "\n") * 200
    (tmp_path / "late.jsonl").write_text(content + "bad\n")
    with pytest.raises(mtpack.InputError, match=r"late\.jsonl line 201: "):
        pack([tmp_path / "late.jsonl"], tmp_path / "packed")


def test_rejects_of_windows_of_an_earlier_run_have_the_lines_of_their_files(
    files, tmp_path, monkeypatch
):
    def stop(*_) -> None:
        raise KeyboardInterrupt

    output = tmp_path / "packed"
    with monkeypatch.context() as patch:
        patch.setattr("mtpack.running.pack.list_ending_warnings", stop)
        with pytest.raises(KeyboardInterrupt):
            pack(files, output, on_error="skip", window="1Ki")
    report = pack(files, output, on_error="skip", window="1Ki")
    assert report.about.shards_resumed == len(report.shards) > 3
    assert report.about.splits_reused == report.about.splits
    assert rejected(output) == lines_of(files)
