"""Whole runs on a cluster of three nodes write the bytes of one local worker, whatever fails."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

import mtpack
from tests.conftest import ROOT, SAMPLE_DATA

pytest.importorskip("ray", reason="needs mtpack[ray]")
pytestmark = pytest.mark.xdist_group("ray")  # one cluster for all of them
OPTIONS: dict[str, Any] = {
    "seq_len": 512,
    "window": "200Ki",
    "on_error": "skip",
    "shard_size": "512KiB",
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> list[Path]:
    """Rows in files of several kinds, for about 14 splits; some are bad."""
    folder = tmp_path_factory.mktemp("input")
    files = sorted(SAMPLE_DATA.glob("conversations_*.jsonl"))
    text = b"".join(file.read_bytes() for file in files)
    rows = [json.loads(line) for line in text.splitlines()]
    plain = b'{"messages": 1}\n\n' + text
    (folder / "1-plain.jsonl").write_bytes(plain * 16)
    (folder / "2-packed.jsonl.gz").write_bytes(gzip.compress(plain * 5))
    (folder / "3-list.json").write_text(json.dumps(rows * 2))
    texts = [
        [{"role": turn["role"], "content": str(turn["content"])} for turn in row["messages"]]
        for row in rows
        if "messages" in row
    ]
    table = pa.table({"messages": texts * 3})
    pa.parquet.write_table(table, folder / "4-table.parquet", row_group_size=100)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory) -> dict[str, Any]:
    """The contents of the output of one local worker."""
    output = tmp_path_factory.mktemp("whole") / "packed"
    pack(output, inputs, workers=1)
    return contents(output)


def pack(output: Path, inputs: list[Path], **options: Any) -> mtpack.PackReport:
    return mtpack.pack(inputs, output=output, **{**OPTIONS, **options})


def contents(folder: Path) -> dict[str, Any]:
    """Return all that must be the same in every run; fail if there is anything else."""
    files: dict[str, Any] = {path.name: path.read_bytes() for path in folder.iterdir()}
    manifest = json.loads(files.pop("manifest.json"))
    listed = {*manifest["files"], *(shard["path"] for shard in manifest["shards"])}
    assert files.keys() == listed | {"recipe.toml"}
    del files["recipe.toml"]  # it names the input
    return files | {name: manifest[name] for name in ("run", "tally", "shards", "files", "sha256")}


def test_the_input_has_several_windows_and_rejects(whole):
    assert len(whole["shards"]) > 5
    assert whole["tally"]["rows_rejected"]


def test_a_run_on_ray_writes_the_same_bytes(cluster, inputs, whole, tmp_path):
    pack(tmp_path / "packed", inputs, executor="ray")
    assert contents(tmp_path / "packed") == whole


def test_a_run_that_loses_a_node_writes_the_same_bytes(
    disconnected, inputs, whole, tmp_path, capfd
):
    cluster = disconnected
    node = cluster.add_node(num_cpus=1)

    def remove_node(stage: str, amount: int) -> None:
        if node in cluster.worker_nodes:
            cluster.remove_node(node, allow_graceful=False)

    callbacks = mtpack.Callbacks(progress=remove_node)
    pack(tmp_path / "packed", inputs, callbacks=callbacks, executor="ray")
    assert contents(tmp_path / "packed") == whole
    assert capfd.readouterr() == ("", "")


@pytest.fixture(scope="module")
def killed(cluster, inputs, tmp_path_factory) -> Path:
    """The output of a run on Ray whose main process was killed in the middle."""
    output = tmp_path_factory.mktemp("killed") / "packed"
    code = "import sys; from tests.running.test_ray_runs import *; pack_for_a_while(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, cluster.address, output, *inputs],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert not (output / "manifest.json").exists()
    return output


def pack_for_a_while(address: str, output: str, *inputs: str) -> None:
    """Pack on Ray, and be killed when a shard is finished."""

    def be_killed(stage: str, amount: int) -> None:
        if stage == "write":
            os.kill(os.getpid(), signal.SIGKILL)

    callbacks = mtpack.Callbacks(progress=be_killed)
    options = {"executor": "ray", "ray_address": address}
    pack(Path(output), [Path(name) for name in inputs], callbacks=callbacks, **options)


@pytest.mark.parametrize("executor", ["ray", "local"])
def test_a_killed_run_is_continued_by_any_executor(
    cluster, inputs, whole, killed, tmp_path, executor
):
    output = tmp_path / "packed"
    shutil.copytree(killed, output)
    report = pack(output, inputs, executor=executor)
    assert contents(output) == whole
    assert report.about.splits_reused >= 2
    assert report.about.shards_resumed >= 1
