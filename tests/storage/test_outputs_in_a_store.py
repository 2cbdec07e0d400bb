"""An output in a store holds what an output in a folder holds, whatever fails on the way."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import mtpack
from mtpack.shards.output_store import begin_output
from mtpack.storage import objects
from tests.conftest import SAMPLE_DATA
from tests.support.fault_proxy import DENIED, NO_UPLOAD
from tests.support.object_store import BUCKET, KEY_ID, SECRET

OUTPUT = f"s3://{BUCKET}/out"
OPTIONS = {"seq_len": 256, "workers": 1, "window": "4Ki", "shard_size": "32KiB"}


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> str:
    lines = (SAMPLE_DATA / "conversations_en.jsonl").read_text().splitlines(keepends=True)
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(lines[:120]))
    return str(path)


@pytest.fixture(scope="module")
def whole(rows, tmp_path_factory) -> dict[str, bytes]:
    """What the output holds on a disk, without the manifest."""
    folder = tmp_path_factory.mktemp("whole") / "packed"
    mtpack.pack(rows, output=str(folder), **OPTIONS)
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len([name for name in found if name.startswith("shard")]) >= 3
    return found


def pack(rows, output=OUTPUT, **options):
    lines = []
    callbacks = mtpack.Callbacks(warn=lines.append)
    return mtpack.pack(rows, output=output, callbacks=callbacks, **OPTIONS | options), lines


def assert_same(found: dict[str, bytes], expected: dict[str, bytes]) -> None:
    """Assert that two outputs are equal: their files, and the hashed part of their manifests."""
    assert found.keys() == expected.keys()
    manifests = [json.loads(files["manifest.json"]) for files in (found, expected)]
    assert manifests[0]["sha256"] == manifests[1]["sha256"]
    for name in found.keys() - {"manifest.json"}:
        assert found[name] == expected[name], name


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `mtpack pack` in a process of its own."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]
    command = [sys.executable, "-m", "mtpack", "pack", *arguments, *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_store_holds_the_same_objects_as_a_folder(store, rows, whole, tmp_path):
    report, lines = pack(rows)
    assert report.output == OUTPUT
    assert_same(store.read_folder("out"), whole)
    assert not list(tmp_path.glob("mtpack-*/*"))  # the work area is gone
    puts = [line for line in store.proxy.requests if line.startswith("PUT")]
    assert puts[-1].startswith(f"PUT /{BUCKET}/out/manifest.json")
    again, lines = pack(rows)
    assert lines[-1] == f"{OUTPUT}: already complete"
    assert again == report


KILLED = """
import os, signal, sys
import mtpack, mtpack.running.outputs as outputs
from tests.storage.test_outputs_in_a_store import OPTIONS
name, call, rows, output, work_dir = sys.argv[1:]
function, calls = getattr(outputs, name), 0
def count(*arguments, **named):
    global calls
    calls += 1
    if calls == int(call):
        os.kill(os.getpid(), signal.SIGKILL)
    return function(*arguments, **named)
setattr(outputs, name, count)
mtpack.pack(rows, output=output, work_dir=work_dir, **OPTIONS)
"""


def kill_at(name: str, call: int, rows: str, work_dir: Path, output: str = OUTPUT) -> None:
    command = [sys.executable, "-c", KILLED, name, str(call), rows, output, str(work_dir)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("name", "call", "is_lost"),
    [("upload_shard", 3, False), ("upload_shard", 3, True), ("publish_to_store", 1, False)],
)
def test_a_killed_run_is_continued(store, rows, whole, tmp_path, name, call, is_lost):
    kill_at(name, call, rows, tmp_path / "work")
    assert "out/manifest.json" not in store.list_names()
    finished = {each: store.get(each) for each in store.list_names("out/shard")}
    assert len(finished) >= call - 1
    other = tmp_path / ("other" if is_lost else "work")
    store.proxy.requests.clear()
    report, _ = pack(rows, work_dir=str(other))
    assert report.about.shards_resumed == len(finished)
    if not is_lost:
        assert report.about.splits_reused == report.about.splits
    for each in finished:
        assert not [
            line for line in store.proxy.requests if line.startswith(f"PUT /{BUCKET}/{each}")
        ]
    assert_same(store.read_folder("out"), whole)
    assert not list(other.iterdir())


def test_a_shard_that_was_replaced_is_written_again(store, rows, whole, tmp_path):
    kill_at("upload_shard", 3, rows, tmp_path / "work")
    name = store.list_names("out/shard")[0]
    store.put(name, b"x" * len(store.get(name)))
    report, _ = pack(rows, work_dir=str(tmp_path / "work"))
    assert report.about.shards_resumed == 1
    assert_same(store.read_folder("out"), whole)


def test_a_run_stops_before_its_manifest_if_another_one_has_begun(store, rows, monkeypatch):
    publish = mtpack.running.outputs.publish_to_store

    def begin_another(*arguments):
        begin_output(OUTPUT)
        publish(*arguments)

    monkeypatch.setattr(mtpack.running.outputs, "publish_to_store", begin_another)
    with pytest.raises(mtpack.MtpackError, match=f"{OUTPUT}: another run has begun to write to it"):
        pack(rows)
    assert "out/manifest.json" not in store.list_names()
    monkeypatch.undo()


def test_two_runs_with_one_work_dir_are_refused(store, rows, tmp_path):
    from mtpack.shards.work_area import stored_work_area

    with (
        stored_work_area(OUTPUT, tmp_path / "work"),
        pytest.raises(mtpack.SetupError, match=f"{OUTPUT}: another run is writing to it"),
    ):
        pack(rows, work_dir=str(tmp_path / "work"))


def test_overwriting_leaves_the_new_output_alone(store, rows, whole):
    pack(rows, shard_size="16KiB")
    assert len(store.list_names("out/")) > len(whole)
    store.put("out/notes.txt", b"mine")
    with pytest.raises(mtpack.SetupError, match="holds the complete output of another run"):
        pack(rows)
    pack(rows, overwrite=True)
    found = store.read_folder("out")
    assert found.pop("notes.txt") == b"mine"
    assert_same(found, whole)


def test_objects_of_others_are_not_touched(store, rows):
    store.put("out/notes.txt", b"mine")
    with pytest.raises(mtpack.SetupError, match="did not write, such as notes"):
        pack(rows)
    assert store.list_names() == ["out/notes.txt"]


def test_the_parts_of_an_upload_that_was_killed_are_removed_by_the_next_run(store, rows):
    store.client.create_multipart_upload(Bucket=BUCKET, Key="out/shard-00000.arrow")
    store.client.create_multipart_upload(Bucket=BUCKET, Key="other/shard-00000.arrow")
    pack(rows)
    assert [key for key, _ in store.list_uploads()] == ["other/shard-00000.arrow"]


FAULTS = {
    "a PUT that fails": ("PUT .*shard-00001", "error", {"status": 500}),
    "a PUT that fails once": ("PUT .*shard-00001", "error", {"status": 500, "times": 1}),
    "SlowDown for a while": ("PUT .*shard", "error", {"times": 3}),
    "SlowDown for ever": ("PUT .*shard-00001", "error", {}),
    "a connection that is cut": ("PUT .*shard-00001", "cut request", {"times": 1}),
    "connections that are cut": ("PUT .*shard-00001", "cut request", {}),
    "an answer that is lost": ("PUT .*shard-00001", "lost answer", {"times": 1}),
    "a slow answer": ("PUT .*shard-00001", "slow", {"seconds": 1.0, "times": 1}),
    "no answer": ("PUT .*state.json", "silent", {"seconds": 2.2}),
    "a manifest that fails": ("PUT .*manifest", "error", {}),
    "no permission": ("PUT .*shard", "error", {"status": 403, "body": DENIED}),
}


LESS_OFTEN = (
    "a PUT that fails once",
    "SlowDown for ever",
    "connections that are cut",
    "a slow answer",
    "a manifest that fails",
)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, marks=[pytest.mark.oracle] if fault in LESS_OFTEN else [])
        for fault in FAULTS
    ],
)
def test_after_a_fault_the_output_is_right_or_the_run_can_be_continued(
    store, rows, whole, tmp_path, fault
):
    pattern, kind, more = FAULTS[fault]
    store.proxy.add(pattern, kind, **more)
    try:
        pack(rows, work_dir=str(tmp_path / "work"))
    except (mtpack.MtpackError, OSError) as error:
        assert "times" not in more
        assert "out/manifest.json" not in store.list_names()
        text = str(error)
        assert OUTPUT in text
        assert text.count("\n") <= 1
        assert KEY_ID not in text
        assert SECRET not in text
        store.proxy.faults.clear()
        pack(rows, work_dir=str(tmp_path / "work"))
    else:
        assert "times" in more
    assert_same(store.read_folder("out"), whole)
    assert not store.list_uploads()


def test_a_large_shard_is_sent_in_parts_which_a_failure_removes(store, tmp_path):
    (tmp_path / "large").write_bytes(os.urandom(1000) * 40_000)
    url = f"s3://{BUCKET}/large"
    store.proxy.add("PUT .*partNumber=2", "error", status=403, body=DENIED, times=1)
    with pytest.raises(PermissionError):
        objects.upload_file(tmp_path / "large", url, {})
    assert store.list_names() == store.list_uploads() == []
    store.proxy.add("POST .*uploadId", "lost answer", times=1)  # the upload is complete by then
    store.proxy.add("POST .*uploadId", "error", status=404, body=NO_UPLOAD)
    objects.upload_file(tmp_path / "large", url, {"name": "value"})
    assert store.get("large") == (tmp_path / "large").read_bytes()
    assert objects.read_metadata(url)[1]["name"] == "value"


def test_no_credentials_are_in_a_message_or_in_the_output(store, rows, tmp_path):
    url = store.put("in/rows.jsonl", Path(rows).read_bytes())
    done = run_command(url, "-o", OUTPUT, "--json")
    assert done.returncode == 0, done.stderr
    texts = [done.stdout, done.stderr, store.get("out/manifest.json").decode()]
    assert url in texts[2]
    store.proxy.add("PUT", "error", status=403, body=DENIED)
    failed = run_command(url, "-o", f"s3://{BUCKET}/other")
    assert failed.returncode == 2
    assert failed.stderr.count("\n") <= 3
    assert "can't be written to: access denied" in failed.stderr
    for text in (*texts, failed.stderr):
        assert KEY_ID not in text
        assert SECRET not in text
        assert "Traceback" not in text


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("InvalidAccessKeyId", "wrong or expired credentials; check the environment"),
        ("SignatureDoesNotMatch", "wrong or expired credentials; check the environment"),
        ("AccessDenied", "access denied; check what these credentials may do"),
    ],
)
def test_credentials_that_a_store_refuses_are_named_in_a_line(store, rows, code, line):
    body = f"<Error><Code>{code}</Code><Message>The key {KEY_ID}</Message></Error>".encode()
    store.proxy.add("GET", "error", status=403, body=body)
    with pytest.raises(mtpack.SetupError, match=f"{OUTPUT}.*: {line}") as raised:
        pack(rows)
    assert KEY_ID not in str(raised.value)


def test_without_credentials_a_line_says_where_they_are_looked_for(store, rows, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(mtpack.SetupError, match="no credentials; set them in the environment"):
        pack(rows)


def test_an_output_in_a_missing_bucket_is_refused_by_name(store, rows):
    with pytest.raises(mtpack.SetupError, match="no such bucket"):
        pack(rows, output="s3://no-bucket/out")


def test_an_output_below_its_input_is_no_input_of_the_next_run(store, rows):
    store.put("in/rows.jsonl", Path(rows).read_bytes())
    pack(f"s3://{BUCKET}/in", output=f"s3://{BUCKET}/in/out")
    _, lines = pack(f"s3://{BUCKET}/in", output=f"s3://{BUCKET}/in/out")
    assert lines[-1] == f"s3://{BUCKET}/in/out: already complete"


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"work_dir": "s3://bucket/work"}, "--work-dir s3://bucket/work: must be a folder"),
        ({"token_store": "gs://bucket/work"}, "--token-store gs://bucket/work: must be a folder"),
        ({"executor": "ray"}, "needs --work-dir: a folder that all nodes share"),
    ],
)
def test_what_has_to_be_a_folder_of_the_machine_is_named(rows, options, line):
    with pytest.raises(mtpack.SetupError, match=line):
        pack(rows, **options)


def test_hf_takes_no_output(rows):
    with pytest.raises(mtpack.SetupError, match="hf://user/out: outputs can't be written there"):
        pack(rows, output="hf://user/out")
