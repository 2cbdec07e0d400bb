"""The shards depend on input, options and seed, not on workers, engines or compression of files."""

import gzip
import json
import random

import pyarrow as pa
import pytest

import mtpack
from mtpack.running.pack import Callbacks
from tests.conftest import SAMPLE_DATA


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Write a file of several splits, with rows of all kinds; some are bad."""
    choose = random.Random(4)
    files = sorted(SAMPLE_DATA.glob("*.jsonl"))
    lines = [line for file in files for line in file.read_bytes().splitlines(keepends=True)]
    lines = [line for line in lines if b'"messages"' in line]
    text = b""
    while len(text) < 3 * 2**20:
        text += b'{"messages": 1}\n\n' + b"".join(choose.choices(lines, k=300))
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_bytes(text)
    return path


@pytest.fixture(scope="module")
def pack(tmp_path_factory, rows):
    def pack_rows(path=rows, **options):
        output = tmp_path_factory.mktemp("output") / "packed"
        settings = {"seq_len": 512, "window": "200Ki", "on_error": "skip", **options}
        report = mtpack.pack(path, output=output, callbacks=Callbacks(), **settings)
        rejects = (output / "rejects.jsonl").read_text().splitlines()
        lines = [(json.loads(reject)["row"], json.loads(reject)["line"]) for reject in rejects]
        assert report.tally.rows_rejected == {"invalid_row": len(lines)}
        return report.shards, report.tally, lines

    return pack_rows


@pytest.fixture(scope="module")
def expected(pack):
    return pack(workers=1, tokenizer_engine="tokenizers")


def test_the_input_has_several_shards_many_rows_and_rejects(expected):
    shards, tally, rejected_lines = expected
    assert len(shards) > 2
    assert tally.rows_packed > 1000
    assert len(rejected_lines) > 2


@pytest.mark.parametrize("workers", [2, 7])
@pytest.mark.parametrize("engine", ["tokenizers", "fastokens"])
def test_workers_and_engine_do_not_change_the_output(pack, expected, workers, engine):
    assert pack(workers=workers, tokenizer_engine=engine) == expected


@pytest.fixture(scope="module")
def expected_window(pack):
    return pack(workers=2, window="64Mi")


@pytest.mark.parametrize("packed", ["gz", "zst"])
@pytest.mark.parametrize("workers", [1, 3])
def test_compressed_files_of_the_same_rows_give_the_same_output_in_one_window(
    tmp_path, pack, rows, expected_window, packed, workers
):
    path = tmp_path / f"rows.jsonl.{packed}"
    if packed == "gz":
        path.write_bytes(gzip.compress(rows.read_bytes()))
    else:
        with pa.CompressedOutputStream(str(path), "zstd") as stream:
            stream.write(rows.read_bytes())
    found = pack(path, workers=workers, tokenizer_engine="fastokens", window="64Mi")
    assert found == expected_window


def test_stored_splits_give_the_same_output(tmp_path, pack, expected):
    for _ in range(2):
        assert pack(workers=2, token_store=tmp_path / "store") == expected
