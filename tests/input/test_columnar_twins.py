"""The rows of ../shared/data/cases as tables: Parquet, Arrow, and folders that datasets saved.

A table has one type for each column, so every row has every key, some of them null. Rows without
nulls inside arguments and schemas are the same as in JSON; with them, the difference is counted.
"""

import json
from pathlib import Path

import pytest

import mtpack
from mtpack.input.dialogue import Reject
from mtpack.input.files import describe_input, find_inputs
from mtpack.input.reading import read_splits
from mtpack.input.rows import read_dialogue
from tests.conftest import SHARED, shared
from tests.support.file_kinds import TABLES

CASES = sorted(path.name for path in (SHARED / "data" / "cases").glob("*.jsonl"))
# Nothing that a column holds tells these nulls from the keys that other rows have.
WITH_NULLS = {"agent.jsonl": 3, "agent_fromds.jsonl": 3}
NOT_READ = ("dpo.jsonl", "kto.jsonl", "kto_sg.jsonl", "images_sg.jsonl", "nested.jsonl")
NOT_READ = (*NOT_READ, "other_key.jsonl")
SAME = [case for case in CASES if case not in WITH_NULLS]
PACKED = [case for case in SAME if case not in NOT_READ]

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared, which is not here")


def rows_of(case: str) -> list[dict]:
    text = shared(f"data/cases/{case}").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def write_twin(case: str, kind: str, folder: Path) -> Path:
    path = folder / f"{case.removesuffix('.jsonl')}.{kind}"
    TABLES[kind](path, rows_of(case))
    return path


def read(path: Path) -> list:
    """Return all rows of an input: what each dialogue holds, or why it is refused."""
    files = [describe_input(name, name) for name in find_inputs([str(path)])]
    raw_rows = [raw for split in read_splits(files) for raw in split.rows()]
    rows = [
        read_dialogue(number, ("rows", 1), raw.text, 2**20, raw.format)
        for number, raw in enumerate(raw_rows)
    ]
    return [(row.reason, row.detail) if isinstance(row, Reject) else row for row in rows]


def pack(paths: list[Path], output: Path) -> mtpack.PackReport:
    return mtpack.pack(
        [str(path) for path in paths],
        output=output,
        seq_len=512,
        workers=1,
        callbacks=mtpack.Callbacks(),
    )


@needs_shared
@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("case", SAME)
def test_the_rows_of_a_table_are_those_of_its_json_twin(case, kind, tmp_path):
    assert read(write_twin(case, kind, tmp_path)) == read(shared(f"data/cases/{case}"))


@needs_shared
def test_tables_give_the_shards_of_their_json_twins(tmp_path):
    as_json = pack([shared(f"data/cases/{case}") for case in PACKED], tmp_path / "json")
    assert as_json.as_dict()["nulls_dropped"] == 0
    for kind in TABLES:
        twins = [write_twin(case, kind, tmp_path) for case in PACKED]
        report = pack(twins, tmp_path / f"packed {kind}")
        assert report.shards == as_json.shards, kind
        assert report.tally == as_json.tally, kind


@needs_shared
@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("case", WITH_NULLS)
def test_rows_whose_arguments_or_schemas_lose_a_null_are_counted(case, kind, tmp_path):
    report = pack([write_twin(case, kind, tmp_path)], tmp_path / "packed")
    without = pack([shared("data/cases/agent.jsonl")], tmp_path / "json")
    assert report.shards == without.shards
    assert report.as_dict()["nulls_dropped"] == WITH_NULLS[case]
