"""Inputs in a store give the shards that the same files on a disk give."""

import gzip
import json
import platform
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import mtpack
from mtpack.running import ray_entry
from tests.support.object_store import BUCKET

ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"question {row} " * (1 + row % 7)},
            {"role": "assistant", "content": f"answer {row} " * (1 + row % 5)},
        ]
    }
    for row in range(240)
]


def write_inputs(folder: Path) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    (folder / "more").mkdir(parents=True)
    (folder / "rows.jsonl").write_bytes(lines)
    (folder / "more" / "rows.jsonl.gz").write_bytes(gzip.compress(lines[: len(lines) // 2]))
    (folder / "list.json").write_text(json.dumps(ROWS[:50], indent=1))
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "rows.parquet", row_group_size=80)
    with pa.ipc.new_stream(folder / "rows.arrow", pa.Table.from_pylist(ROWS).schema) as stream:
        stream.write_table(pa.Table.from_pylist(ROWS[:100]))
    with pa.CompressedOutputStream(folder / "rows.jsonl.zst", "zstd") as stream:
        stream.write(lines)


def pack(inputs, output, **options):
    named = {"seq_len": 512, "workers": 1, "window": "8Ki", "on_error": "skip", **options}
    lines = []
    callbacks = mtpack.Callbacks(warn=lines.append)
    return mtpack.pack(inputs, output=str(output), callbacks=callbacks, **named), lines


def contents(folder: Path) -> dict[str, bytes]:
    names = [path for path in folder.iterdir() if path.suffix == ".arrow"]
    return {path.name: path.read_bytes() for path in names}


@pytest.mark.parametrize(
    "chosen",
    [
        "",
        "/rows.parquet",
        *(
            pytest.param(name, marks=pytest.mark.oracle)
            for name in ("/more/rows.jsonl.gz", "/rows.arrow", "/**/rows.jsonl*")
        ),
    ],
)
def test_files_in_a_store_give_the_same_shards_as_on_a_disk(store, tmp_path, chosen):
    write_inputs(tmp_path / "in")
    url = store.put_folder(tmp_path / "in", "in")
    pack(f"{tmp_path}/in{chosen}", tmp_path / "local")
    pack(f"{url}{chosen}", tmp_path / "packed")
    assert contents(tmp_path / "packed") == contents(tmp_path / "local") != {}


def test_a_data_set_that_datasets_saved_is_read_from_a_store(store, tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(ROWS[:60]).save_to_disk(tmp_path / "in" / "saved", num_shards=2)
    url = store.put_folder(tmp_path / "in", "in")
    pack(f"{tmp_path}/in", tmp_path / "local")
    pack(url, tmp_path / "packed")
    assert contents(tmp_path / "packed") == contents(tmp_path / "local")


def test_listing_a_folder_is_enough_to_describe_its_files(store, tmp_path):
    write_inputs(tmp_path / "in")
    url = store.put_folder(tmp_path / "in" / "more", "in")
    from mtpack.input.files import describe_input, find_inputs

    store.proxy.requests.clear()
    described = [describe_input(name, name) for name in find_inputs([url])]
    sizes = [(tmp_path / "in/more/rows.jsonl.gz").stat().st_size]
    assert [file.num_bytes for file in described] == sizes
    assert len([line for line in store.proxy.requests if ".gz" in line]) == 0


def test_an_object_that_is_replaced_during_the_run_ends_it(store, tmp_path, monkeypatch):
    from mtpack.input.files import check_unchanged, describe_input

    url = store.put("rows.jsonl", b"1\n")
    before = describe_input(url, url)
    check_unchanged(url, url, before.modified_ns)
    store.put("rows.jsonl", b"2\n")  # of the same size, in the same second
    with pytest.raises(mtpack.InputError, match=f"{url}: changed during the run"):
        check_unchanged(url, url, before.modified_ns)


def test_a_file_url_is_the_file(tmp_path):
    write_inputs(tmp_path / "in put")
    pack(str(tmp_path / "in put/rows.jsonl"), tmp_path / "local")
    report, _ = pack(f"file://{tmp_path}/in%20put/rows.jsonl", f"file://{tmp_path}/packed")
    assert contents(tmp_path / "packed") == contents(tmp_path / "local")
    assert report.about.inputs == [str(tmp_path / "in put/rows.jsonl")]


@pytest.mark.parametrize("kind", ["cut answer", "error"])
def test_an_input_that_fails_is_read_again_or_named(store, tmp_path, kind):
    write_inputs(tmp_path / "in")
    url = store.put("in/rows.jsonl", (tmp_path / "in/rows.jsonl").read_bytes())
    pack(f"{tmp_path}/in/rows.jsonl", tmp_path / "local")
    store.proxy.add("GET .*rows", kind, times=1)
    pack(url, tmp_path / "packed")
    assert contents(tmp_path / "packed") == contents(tmp_path / "local")
    store.proxy.add("GET .*rows", kind)
    with pytest.raises(mtpack.InputError, match=f"{url}: can't be read"):
        pack(url, tmp_path / "other")


@pytest.mark.parametrize("scheme", ["gs", "hf"])
def test_other_stores_take_the_same_path(tmp_path, monkeypatch, scheme):
    """Their servers can't be reached by a test: another store of fsspec stands for them."""
    memory = pytest.importorskip("fsspec.implementations.memory")
    other = type("Other", (memory.MemoryFileSystem,), {"protocol": scheme, "store": {}})
    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, scheme, other)
    write_inputs(tmp_path / "in")
    for path in (tmp_path / "in").rglob("*.*"):
        name = path.relative_to(tmp_path / "in")
        other().pipe_file(f"bucket/in/{name}", path.read_bytes())
    pack(f"{tmp_path}/in/**/rows.jsonl*", tmp_path / "local")
    pack(f"{scheme}://bucket/in/**/rows.jsonl*", tmp_path / "packed")
    assert contents(tmp_path / "packed") == contents(tmp_path / "local")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("az://bucket/rows.jsonl", "az://bucket/rows.jsonl: unknown kind of URL"),
        ("s3:///rows.jsonl", "s3:///rows.jsonl: names no bucket"),
        ("s3://KEY:SECRET@bucket/rows.jsonl", r"s3://\*\*\*@bucket/rows.jsonl: a URL must hold no"),
        ("s3://bucket/rows.jsonl?X-Key=SECRET", r"s3://bucket/rows.jsonl\?\*\*\*: a URL must hold"),
        ("file://host/rows.jsonl", "file://host/rows.jsonl: write it as file:///folder/file"),
    ],
)
def test_a_url_that_can_not_be_used_is_refused_without_its_credentials(tmp_path, name, line):
    with pytest.raises(mtpack.SetupError, match=line) as raised:
        pack(name, tmp_path / "packed")
    assert "SECRET" not in str(raised.value)


def test_what_is_not_there_is_named(store, tmp_path):
    for name, line in (
        (f"s3://{BUCKET}/no.jsonl", "no input is there; check the name or the pattern"),
        ("s3://no-bucket/rows.jsonl", "no such bucket; check its name, or create it"),
        ("s3://no-bucket/*.jsonl", "no such bucket; check its name, or create it"),
    ):
        with pytest.raises(mtpack.SetupError) as raised:
            pack(name, tmp_path / "packed")
        assert str(raised.value).startswith(f"{name}: {line}")


def test_without_the_client_a_line_says_what_to_install(tmp_path, monkeypatch):
    for scheme, extra in (("s3", "s3"), ("gs", "gcs"), ("hf", "hub")):
        monkeypatch.setitem(sys.modules, "fsspec", None)
        with pytest.raises(mtpack.SetupError, match=rf"pip install 'mtpack\[{extra}\]'"):
            pack(f"{scheme}://bucket/rows.jsonl", tmp_path / "packed")


def test_a_ray_node_that_cannot_read_an_input_is_named(store, tmp_path):
    token = tmp_path / "token"
    token.write_text("of this run")
    versions, where = ray_entry.list_versions(), (str(token), "of this run")
    url = "s3://no-such-bucket/rows.jsonl"
    kind, text = next(ray_entry.run_group(versions, where, [url], b"", b""))
    assert kind == ray_entry.REFUSED
    assert text.startswith(f"Ray node {platform.node()}: can't read {url}: no such ")
