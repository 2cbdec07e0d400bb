"""`--work-dir`: what is not finished lies elsewhere, perhaps on another disk."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

import mtpack
from tests.conftest import SAMPLE_DATA

OPTIONS = {"seq_len": 256, "workers": 1, "shard_size": "64KiB"}


@pytest.fixture
def rows(tmp_path) -> str:
    lines = (SAMPLE_DATA / "conversations_en.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "rows.jsonl").write_text("".join(lines[:80]))
    return str(tmp_path / "rows.jsonl")


@pytest.fixture(params=["same disk", "other disk"])
def work_dir(request, tmp_path):
    if request.param == "same disk":
        yield tmp_path / "work"
        return
    memory = Path("/dev/shm")
    if not memory.is_dir() or os.stat(memory).st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("needs a second file system at /dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory))
    yield folder
    shutil.rmtree(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"
    }


def test_the_output_is_the_same_and_nothing_is_left(rows, tmp_path, work_dir):
    mtpack.pack(rows, output=tmp_path / "usual", **OPTIONS)
    mtpack.pack(rows, output=tmp_path / "packed", work_dir=work_dir, **OPTIONS)
    assert contents(tmp_path / "packed") == contents(tmp_path / "usual")
    assert list(work_dir.iterdir()) == []


def test_an_interrupted_run_continues_with_what_is_in_both_places(
    rows, tmp_path, work_dir, monkeypatch
):
    mtpack.pack(rows, output=tmp_path / "usual", **OPTIONS)
    commit, calls = mtpack.running.outputs.commit_shard, []

    def commit_two(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise OSError(5, "the disk fails")
        return commit(*arguments)

    output = tmp_path / "packed"
    monkeypatch.setattr(mtpack.running.outputs, "commit_shard", commit_two)
    with pytest.raises(OSError, match="the disk fails"):
        mtpack.pack(rows, output=output, work_dir=work_dir, **OPTIONS)
    monkeypatch.undo()
    assert [path.name for path in output.iterdir()] == [".mtpack"]
    assert not (output / ".mtpack" / "splits").exists()
    assert len(list(work_dir.rglob("splits/*/*"))) == 2
    report = mtpack.pack(rows, output=output, work_dir=work_dir, **OPTIONS)
    assert report.about.shards_resumed >= 2
    assert report.about.splits_reused == report.about.splits
    assert contents(output) == contents(tmp_path / "usual")
    assert list(work_dir.iterdir()) == []


def test_one_folder_serves_several_outputs_and_each_output_one_run(rows, tmp_path):
    from mtpack.shards.work_area import work_area

    with work_area(tmp_path / "first", tmp_path / "work"):
        with pytest.raises(mtpack.SetupError, match="first: another run is writing to it"):
            mtpack.pack(rows, output=tmp_path / "first", work_dir=tmp_path / "other", **OPTIONS)
        mtpack.pack(rows, output=tmp_path / "second", work_dir=tmp_path / "work", **OPTIONS)
    assert list((tmp_path / "work").iterdir()) == []
