"""An output in a store is read as one in a folder: a shard is fetched when it is first used."""

import json
import os
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

import mtpack
from mtpack.cli import main
from mtpack.user_cache import find_cache_folder
from tests.conftest import SAMPLE_DATA
from tests.support.object_store import BUCKET

OUTPUT = f"s3://{BUCKET}/out"


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed") / "out"
    lines = (SAMPLE_DATA / "conversations_en.jsonl").read_text().splitlines(keepends=True)
    (folder.parent / "rows.jsonl").write_text("".join(lines[:60]))
    rows = str(folder.parent / "rows.jsonl")
    mtpack.pack(rows, output=str(folder), seq_len=256, workers=1, shard_size="16KiB")
    return folder


@pytest.fixture
def output(store, packed):
    assert store.put_folder(packed, "out") == OUTPUT
    store.proxy.requests.clear()
    return OUTPUT


def list_fetched(store) -> list[str]:
    """Return the names of the shards that were read since the last call."""
    names = {line.split("/")[-1] for line in store.proxy.requests if line.startswith("GET")}
    store.proxy.requests.clear()
    return sorted(name for name in names if name.endswith(".arrow"))


def test_a_shard_is_fetched_at_its_first_use_and_then_mapped(store, output, packed, tmp_path):
    local, stored = mtpack.open_shards(packed), mtpack.open_shards(output)
    assert list_fetched(store) == ["shard-00000.arrow"]
    assert len(stored) == len(local)
    last = stored[-1]
    assert list_fetched(store) == [local.opened[-1].path.name]
    for name, values in local[-1].items():
        assert np.array_equal(last[name], values)
    for row, expected in zip(stored, local, strict=True):
        assert np.array_equal(row["input_ids"], expected["input_ids"])
    list_fetched(store)
    again = mtpack.open_shards(output)
    assert np.array_equal(again[0]["input_ids"], local[0]["input_ids"])
    assert list_fetched(store) == []
    assert find_cache_folder() == tmp_path / "cache" / "mtpack"
    assert len(os.listdir(find_cache_folder())) == len(local.opened)


def test_single_shards_are_read_by_their_urls(output, packed):
    urls = [f"{output}/{name}" for name in ("shard-00001.arrow", "shard-00000.arrow")]
    stored = mtpack.open_shards(urls)
    local = mtpack.open_shards([packed / "shard-00001.arrow", packed / "shard-00000.arrow"])
    assert [row["turn_num"] for row in stored] == [row["turn_num"] for row in local]
    with pytest.raises(mtpack.InputError, match=f"{output}/shard-77777.arrow: can't be read"):
        mtpack.open_shards(f"{output}/shard-77777.arrow")


def test_a_changed_shard_is_refused_and_found(store, output):
    content = store.get("out/shard-00001.arrow")
    list(mtpack.open_shards(output))  # now all are in the cache
    store.put("out/shard-00001.arrow", content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    verified = CliRunner().invoke(main, ["verify", output, "--json"])
    assert verified.exit_code == 1
    violation = json.loads(verified.stdout)["violation"]
    assert violation["shard"] == f"{output}/shard-00001.arrow"
    assert violation["law"] == "sha256"
    shutil.rmtree(find_cache_folder())
    with pytest.raises(mtpack.InputError, match="which is not that in the manifest"):
        list(mtpack.open_shards(output))


def test_inspect_and_verify_read_from_a_store(output, packed):
    shown = [
        CliRunner().invoke(main, ["inspect", str(where), "--json"]) for where in (output, packed)
    ]
    assert shown[0].exit_code == 0, shown[0].output
    assert json.loads(shown[0].stdout) == json.loads(shown[1].stdout)
    verified = CliRunner().invoke(main, ["verify", output, "--json"])
    assert verified.exit_code == 0, (verified.output, verified.exception)
    assert json.loads(verified.stdout)["ok"]


def test_what_is_not_a_complete_output_is_refused_by_name(store, output):
    for url in (f"s3://{BUCKET}/nothing", f"s3://{BUCKET}"):
        with pytest.raises(mtpack.SetupError, match=f"{url}: no manifest.json"):
            mtpack.open_shards(url)
    with pytest.raises(mtpack.InputError, match="no such bucket"):
        mtpack.open_shards("s3://no-bucket/out")
    store.client.delete_object(Bucket=BUCKET, Key="out/shard-00001.arrow")
    with pytest.raises(mtpack.InputError, match=f"{output}/shard-00001.arrow: is missing"):
        mtpack.open_shards(output)


@pytest.mark.parametrize("kind", ["error", "cut answer"])
def test_a_fetch_that_fails_is_tried_again_and_then_named(store, output, packed, kind):
    store.proxy.add("GET .*shard-00000", kind, times=1)
    assert len(mtpack.open_shards(output)) == len(mtpack.open_shards(packed))
    store.proxy.add("GET .*shard-00001", kind)
    with pytest.raises(mtpack.InputError, match=f"{output}/shard-00001.arrow: can't be read"):
        list(mtpack.open_shards(output))
    assert len(os.listdir(find_cache_folder())) == 1
