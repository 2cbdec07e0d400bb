"""The output folder: one run at a time, a complete output or none, no other files touched."""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

import mtpack
import mtpack.running.pack
from mtpack.errors import InputError, SetupError
from mtpack.shards import manifest
from mtpack.shards.work_area import work_area
from mtpack.tokenizer.loading import EMBEDDED_FOLDER
from mtpack.verify.structure import check_structure
from tests.conftest import SAMPLE_DATA

SOURCE = SAMPLE_DATA / "conversations_en.jsonl"
BAD = SAMPLE_DATA / "bad" / "unknown_role.bot.jsonl"


def pack(output: Path, source: Path = SOURCE, **options) -> mtpack.PackReport:
    return mtpack.pack(source, output=output, **{"workers": 1, "seq_len": 1024, **options})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_second_run_into_the_same_folder_is_refused_while_the_first_writes(tmp_path):
    with work_area(tmp_path / "packed") as area:
        area.write_run_record({})
        with pytest.raises(SetupError, match="another run is writing"):
            pack(tmp_path / "packed")
        assert area.read_run_record() == {}
    pack(tmp_path / "packed")


def test_each_run_has_a_folder_of_its_own_for_unfinished_files(tmp_path):
    folders = []
    for _ in range(2):
        with work_area(tmp_path / "packed") as area:
            area.is_kept = True
            folders.append(area.unsynced)
    assert folders[0] != folders[1]
    assert folders[0].is_relative_to(tmp_path / "packed" / ".mtpack")


@pytest.mark.parametrize("step", range(6))
def test_a_run_that_failed_while_publishing_can_be_run_again(tmp_path, monkeypatch, step):
    output = tmp_path / "packed"
    pack(output)
    replace, calls = os.replace, []

    def fail_at_step(source, target):
        if Path(target).parent == output:
            calls.append(target)
        if len(calls) == step + 1:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr("os.replace", fail_at_step)
    if step < 5:  # one shard, rejects, two files of datasets, the manifest
        with pytest.raises(KeyboardInterrupt):
            pack(output, seq_len=512, overwrite=True)
        assert not (output / "manifest.json").exists()
    monkeypatch.setattr("os.replace", replace)
    pack(output, seq_len=512, overwrite=True)
    assert not (output / ".mtpack").exists()
    assert mtpack.open_shards(output).metadata.seq_len == 512


def test_all_files_of_an_output_are_synced_before_any_is_published(tmp_path, monkeypatch):
    synced, published = set(), []
    sync, replace = os.fsync, os.replace

    def spy_on_sync(descriptor):
        sync(descriptor)
        name = Path(os.readlink(f"/proc/self/fd/{descriptor}")).name
        synced.add(re.sub(r"\.[0-9a-f]{32}$", "", name))  # without that of an unfinished file

    def spy_on_replace(source, target):
        if Path(target).parent == tmp_path / "packed":
            published.append((Path(target).name, synced.copy()))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", spy_on_sync)
    monkeypatch.setattr(os, "replace", spy_on_replace)
    report = pack(tmp_path / "packed", shard_size="128KiB")
    assert len(report.shards) > 1
    names = {name for name, _ in published}
    assert names >= {*(shard.path for shard in report.shards), "rejects.jsonl", "manifest.json"}
    assert published[0][1] >= names


def test_a_shard_that_cannot_be_synced_leaves_no_output(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.EIO, "the disk has failed")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises((OSError, SetupError), match="the disk has failed"):
        pack(tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


def test_the_manifest_has_the_sha256_of_every_other_file(tmp_path):
    report = pack(tmp_path / "packed")
    manifest = mtpack.open_shards(tmp_path / "packed").manifest
    found = contents(tmp_path / "packed")
    assert manifest.files.keys() == {"rejects.jsonl", "state.json", "dataset_info.json"}
    files = manifest.files | {"recipe.toml": report.about.recipe_sha256}
    assert files.keys() == found.keys() - {"manifest.json", *(each.path for each in report.shards)}
    for name, sha256 in files.items():
        assert hashlib.sha256(found[name]).hexdigest() == sha256


def test_a_folder_that_only_looks_like_an_output_is_not_touched(tmp_path):
    output = tmp_path / "site"
    output.mkdir()
    (output / "manifest.json").write_text('{"name": "my web app"}')
    (output / "state.json").write_text("{}")
    before = contents(output)
    with pytest.raises(SetupError, match="did not write"):
        pack(output, overwrite=True)
    assert contents(output) == before


@pytest.mark.parametrize("step", range(1, 4))
def test_a_failure_after_the_manifest_is_published_leaves_nothing_for_long(
    tmp_path, monkeypatch, step
):
    output, calls = tmp_path / "packed", []
    names = ("fsync", "unlink", "rmdir")

    def failing(function):
        def fail(*arguments, **more):
            if (output / "manifest.json").exists():
                calls.append(function)
                if len(calls) >= step:
                    raise OSError(errno.EIO, "the disk has failed")
            return function(*arguments, **more)

        return fail

    for name in names:
        monkeypatch.setattr(os, name, failing(getattr(os, name)))
    with contextlib.suppress(OSError):  # a name that may not be on the disk is an error
        pack(output)
    assert calls
    monkeypatch.undo()
    assert (output / ".mtpack").exists()
    pack(output)
    assert not (output / ".mtpack").exists()


def make_foreign(kind: str, path: Path) -> None:
    if kind == "file":
        path.write_text("mine")
    elif kind == "folder":
        path.mkdir()
        (path / "notes.txt").write_text("mine")
    elif kind == "folder with a run record of another program":
        path.mkdir()
        (path / "run.json").write_text("{}")
    elif kind == "link":
        path.with_name("elsewhere").mkdir()
        path.symlink_to(path.with_name("elsewhere"))
    elif kind == "link to nothing":
        path.symlink_to("nowhere")
    else:
        os.mkfifo(path)


@pytest.mark.parametrize("is_complete", [False, True])
@pytest.mark.parametrize(
    "kind",
    [
        "file",
        "folder",
        "folder with a run record of another program",
        "link",
        "link to nothing",
        "pipe",
    ],
)
def test_what_only_has_the_name_of_the_work_area_is_refused_by_name(tmp_path, kind, is_complete):
    output = tmp_path / "packed"
    if is_complete:
        pack(output)
    output.mkdir(exist_ok=True)
    make_foreign(kind, output / ".mtpack")
    with pytest.raises(SetupError) as refused:
        pack(output, seq_len=512, overwrite=True)
    assert str(refused.value).startswith(f"{output}/.mtpack: not a work area of mtpack")
    assert os.path.lexists(output / ".mtpack")
    if kind == "folder":
        assert (output / ".mtpack" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("names", [[], ["lock"], ["lock", "run.json.0123"]])
def test_a_work_area_without_a_run_record_yet_is_one(tmp_path, names):
    area = tmp_path / "packed" / ".mtpack"
    area.mkdir(parents=True)
    for name in names:
        (area / name).touch()
    pack(tmp_path / "packed")
    assert not area.exists()


def test_overwriting_removes_what_the_old_manifest_lists_and_nothing_else(tmp_path):
    output = tmp_path / "packed"
    pack(output, shard_size="128KiB")
    (output / "shard-99999.arrow").write_text("mine")
    pack(output, ipc_format="file", overwrite=True)
    assert {path.name for path in output.iterdir()} == {
        *("manifest.json", "rejects.jsonl", "recipe.toml", "shard-00000.arrow", "shard-99999.arrow")
    }


def test_the_old_output_is_readable_until_the_new_one_is_complete(tmp_path, monkeypatch):
    output, readable = tmp_path / "packed", []
    pack(output)
    publish = mtpack.running.outputs.publish

    def look_first(folder, area, *more):
        readable.append(mtpack.open_shards(output).metadata.seq_len)
        assert check_structure(mtpack.open_shards(output)).violation is None
        publish(folder, area, *more)

    monkeypatch.setattr(mtpack.running.outputs, "publish", look_first)
    pack(output, seq_len=512, overwrite=True)
    assert readable == [1024]
    assert mtpack.open_shards(output).metadata.seq_len == 512


def test_overwriting_keeps_files_that_do_not_belong_to_an_output(tmp_path):
    output = tmp_path / "packed"
    pack(output)
    (output / "shard-notes.arrow").write_text("mine")
    pack(output, seq_len=512, overwrite=True)
    assert (output / "shard-notes.arrow").read_text() == "mine"


def test_an_output_inside_the_input_folder_is_not_read_as_input(tmp_path):
    shutil.copy(SOURCE, tmp_path)
    pack(tmp_path / "packed", tmp_path)
    assert pack(tmp_path / "packed", tmp_path).tally.rows_read == 90


def test_a_complete_output_in_a_read_only_folder_is_reported_again(tmp_path, monkeypatch):
    pack(tmp_path / "packed")

    def refuse(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("os.mkdir", refuse)
    assert pack(tmp_path / "packed").tally.rows_read == 90


def test_an_output_that_skipped_bad_rows_is_refused_by_a_run_that_may_not_skip(tmp_path):
    pack(tmp_path / "packed", BAD, on_error="skip")
    with pytest.raises(InputError, match=r"line 3: unknown_role"):
        pack(tmp_path / "packed", BAD)
    assert pack(tmp_path / "packed", BAD, on_error="skip").tally.rows_rejected


def test_other_special_tokens_make_a_different_tokenizer(tmp_path):
    folder = tmp_path / "tokenizer"
    shutil.copytree(EMBEDDED_FOLDER, folder)
    pack(tmp_path / "packed", tokenizer=folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"bos_token": "<think>"}))
    with pytest.raises(SetupError, match="the tokenizer is different"):
        pack(tmp_path / "packed", tokenizer=folder)


def test_an_option_that_the_old_run_did_not_have_is_a_difference():
    def run(**options):
        return manifest.RunIdentity(
            options=options, inputs=[], tokenizer_sha256="", template_sha256=""
        )

    assert run(seq_len=1).difference(run(seq_len=1, new="yes")) == "its new is unset, not yes"
    assert run(seq_len=1).difference(run(seq_len=1)) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [("path", 5), ("bytes", "many"), ("rows", None), ("sha256", 1.5)],
)
def test_a_manifest_with_values_of_wrong_types_is_damaged(tmp_path, key, value):
    pack(tmp_path / "packed")
    path = tmp_path / "packed" / "manifest.json"
    whole = json.loads(path.read_text())
    whole["shards"][0][key] = value
    about, _ = whole.pop("about"), whole.pop("sha256")
    sha256 = hashlib.sha256(manifest._canonical_json(whole).encode()).hexdigest()
    whole |= {"about": about, "sha256": sha256}
    path.write_text(json.dumps(whole, sort_keys=True, indent=1) + "\n")
    with pytest.raises(InputError, match="damaged"):
        mtpack.open_shards(tmp_path / "packed")


def test_a_shard_with_a_null_inside_a_column_is_refused(tmp_path):
    pack(tmp_path / "packed")
    path = next((tmp_path / "packed").glob("*.arrow"))
    table = pa.ipc.open_stream(path.read_bytes()).read_all()
    labels = table.column("labels").combine_chunks()
    values = labels.flatten().to_pylist()
    values[7] = None
    broken = pa.FixedSizeListArray.from_arrays(pa.array(values, pa.int32()), 1024)
    field = table.schema.field("labels")
    table = table.set_column(table.schema.get_field_index("labels"), field, broken)
    alone = tmp_path / "alone.arrow"
    with pa.OSFile(str(alone), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(InputError, match="nulls"):
        mtpack.open_shards(alone)


def test_python_callers_may_pass_paths_numbers_and_mappings(tmp_path):
    report = pack(
        tmp_path / "packed",
        tokenizer=EMBEDDED_FOLDER,
        window=10_000,
        shard_size=2**20,
        template_arg={"enable_thinking": False},
    )
    json.dumps(report.as_dict())
    with pytest.raises(SetupError, match="sequence_length: no such option"):
        pack(tmp_path / "packed", sequence_length=5)


def test_a_file_name_that_is_not_utf8_is_kept_in_the_manifest(tmp_path):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jsonl")
    shutil.copy(SOURCE, name)
    pack(tmp_path / "packed", name)
    assert mtpack.open_shards(tmp_path / "packed").manifest.report.about.inputs == [name]


def handle_interrupts() -> None:
    """As in a terminal, also where the tests run in the background of a shell."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_a_run_that_gets_a_signal(tmp_path, number):
    source = tmp_path / "rows.jsonl"
    source.write_bytes(SOURCE.read_bytes() * 200)
    command = [sys.executable, "-m", "mtpack", "pack", str(source), "--workers", "2"]
    with subprocess.Popen(
        [*command, "-o", str(tmp_path / "packed")],
        stderr=subprocess.PIPE,
        preexec_fn=handle_interrupts,
    ) as process:
        while len(children_of(process.pid)) < 2:
            assert process.poll() is None
            os.sched_yield()
        process.send_signal(number)
        errors = process.stderr.read().decode()  # ends with the last process that holds the pipe
    if number != signal.SIGKILL:  # a killed parent can't stop a child from writing a traceback
        assert "Traceback" not in errors
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number)
    assert [file.name for file in (tmp_path / "packed").iterdir()] == [".mtpack"]


def children_of(process: int) -> list[int]:
    path = Path(f"/proc/{process}/task/{process}/children")
    if not path.exists():
        pytest.skip("needs /proc to list processes")
    return [int(child) for child in path.read_text().split()]
