"""`verify` compares the files of an output with its manifest before it reads anything in them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

import mtpack
from mtpack.errors import InputError
from mtpack.shards.manifest import MANIFEST
from mtpack.verify import verify
from tests.conftest import SAMPLE_DATA
from tests.support.builders import (
    PAD_ID,
    columns_of_sequences,
    hand_made_sequences,
    metadata_of,
    write_columns,
    write_output,
)

SIDE_FILES = ["rejects.jsonl", "state.json", "dataset_info.json"]


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files") / "packed"
    source = SAMPLE_DATA / "bad" / "unknown_role.bot.jsonl"
    mtpack.pack(source, output=folder, seq_len=1024, workers=1, on_error="skip")
    return folder


@pytest.fixture
def output(packed, tmp_path) -> Path:
    return shutil.copytree(packed, tmp_path / "packed")


@pytest.fixture(autouse=True)
def structure_only(monkeypatch):
    """Make `verify` check the structure alone, as without torch."""
    monkeypatch.setattr(verify, "find_spec", lambda name: None)


def violation_of(folder: Path):
    report = verify.verify(folder)
    assert report.ok is (report.violation is None)
    return report.violation


def change_byte(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_an_untouched_output_passes(output):
    assert violation_of(output) is None


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99, 1])
def test_a_flipped_byte_of_a_shard_is_found_by_its_hash_wherever_it_is(output, share):
    shard = output / "shard-00000.arrow"
    change_byte(shard, int(share * (shard.stat().st_size - 1)))
    violation = violation_of(output)
    assert (violation.law, violation.shard, violation.row) == ("sha256", str(shard), None)
    assert "restore the file from a copy, or pack the data again" in violation.detail


@pytest.mark.parametrize("name", SIDE_FILES)
def test_any_change_of_a_side_file_is_found(output, name):
    original = (output / name).read_bytes()
    for changed in (original + b" ", original[:-1], original.replace(b"e", b"E", 1), b""):
        (output / name).write_bytes(changed)
        violation = violation_of(output)
        assert (violation.law, violation.shard) == ("sha256", str(output / name))
    (output / name).unlink()
    violation = violation_of(output)
    assert (violation.law, violation.shard) == ("files", str(output / name))
    assert "restore the file" in violation.detail


def test_a_shard_that_the_manifest_does_not_list_is_found(output):
    shutil.copy(output / "shard-00000.arrow", output / "shard-00001.arrow")
    violation = violation_of(output)
    assert (violation.law, violation.shard) == ("files", str(output / "shard-00001.arrow"))
    assert "move it away" in violation.detail


def test_files_that_have_no_name_of_an_output_are_not_its_concern(output):
    (output / "notes.txt").write_text("mine")
    (output / "shard-notes.arrow").write_text("mine")
    assert violation_of(output) is None


@pytest.mark.parametrize(
    ("change", "found"),
    [(Path.unlink, "is missing"), (lambda path: path.write_bytes(b"short"), "has 5 bytes")],
    ids=["missing", "short"],
)
@pytest.mark.parametrize("read", [verify.verify, mtpack.open_shards], ids=["verify", "open"])
def test_a_missing_or_short_shard_is_named_with_what_to_do(output, change, found, read):
    change(output / "shard-00000.arrow")
    with pytest.raises(InputError, match=f"shard-00000.arrow: {found}; .*; restore the file from"):
        read(output)


def about_of(text: str) -> tuple[int, int]:
    start = text.index('\n "about"')
    return start, text.index("\n }", start)


def test_any_changed_byte_of_the_manifest_outside_about_is_refused(output):
    path = output / MANIFEST
    original = path.read_bytes()
    start, end = about_of(original.decode())
    # Every 7th position of a manifest of some thousand bytes, and both ends of each part.
    for position in {*range(0, start, 7), *range(end + 2, len(original), 7), len(original) - 1}:
        change_byte(path, position)
        with pytest.raises(InputError, match=r"manifest\.json: "):
            verify.verify(output)
        path.write_bytes(original)


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda whole: json.dumps(whole),
        lambda whole: json.dumps(whole, indent=1, sort_keys=True),
        lambda whole: json.dumps(whole, indent=1, sort_keys=True) + "\n\n",
        lambda whole: '{\n "tally": {},' + json.dumps(whole, indent=1, sort_keys=True)[1:] + "\n",
    ],
    ids=["other_spaces", "no_newline", "two_newlines", "a_key_twice"],
)
def test_a_manifest_with_the_same_values_in_another_text_is_refused(output, rewrite):
    path = output / MANIFEST
    path.write_text(rewrite(json.loads(path.read_text())))
    with pytest.raises(InputError, match="changed since it was written"):
        verify.verify(output)


def test_a_change_of_about_passes_and_verify_says_that_it_is_not_covered(output):
    path = output / MANIFEST
    whole = json.loads(path.read_text())
    whole["about"]["tokenizer"] = "another name"
    path.write_text(json.dumps(whole, indent=1, sort_keys=True) + "\n")
    assert violation_of(output) is None


def write_shard(path: Path, metadata) -> Path:
    made = columns_of_sequences(hand_made_sequences(), metadata_of(pad_documents_to=8))
    write_columns(path, made, metadata)
    return path


def metadata_with(**changes):
    return replace(metadata_of(pad_documents_to=8), **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pad_id": -1}, "its mtpack metadata is damaged"),
        ({"pad_id": PAD_ID + 1}, "pad_id is 1, but there are other ids in the padding"),
        ({"pad_documents_to": 16}, "pad_documents_to is 16, but a document"),
        ({"label_alignment": "shifted"}, "label_alignment is shifted, but the labels"),
        ({"label_alignment": "left"}, "its mtpack metadata is damaged"),
        ({"tokenizer_sha256": None}, "its mtpack metadata is damaged"),
        ({"template_sha256": 7}, "its mtpack metadata is damaged"),
    ],
    ids=str,
)
def test_a_shard_whose_metadata_contradicts_its_columns_is_refused_by_name(
    tmp_path, changes, message
):
    path = write_shard(tmp_path / "shard.arrow", metadata_with(**changes))
    with pytest.raises(InputError, match=rf"shard\.arrow: .*{message}"):
        mtpack.open_shards(path)
    if "damaged" in message:
        with pytest.raises(InputError, match=message):
            verify.verify(path)
    else:
        assert violation_of(path) is not None


@pytest.mark.parametrize("version", [0, 3, True, 1.0, "1", None], ids=repr)
def test_a_shard_of_an_unknown_format_version_is_refused_by_name(tmp_path, version):
    path = write_shard(tmp_path / "shard.arrow", metadata_with())
    before = json.dumps("format_version").encode() + b": 1,"
    after = f'"format_version": {json.dumps(version)},'.encode()
    rewrite_metadata(path, lambda text: text.replace(before, after))
    for read in (mtpack.open_shards, verify.verify):
        with pytest.raises(InputError, match=r"shard\.arrow: format version .*reads version 1"):
            read(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(b'"seq_len": 32', b'"seq_len": 64'),
        lambda text: text.replace(b'"seq_len": 32', b'"seq_len": 16, "seq_len": 32'),
        lambda text: text + b" ",
        lambda text: text.replace(b'"seq_len": 32', b'"seq_len": 32.0'),
        lambda text: b"",
        lambda text: b"[" * 100_000,
    ],
    ids=["other_length", "key_twice", "space", "fraction", "empty", "deep"],
)
def test_metadata_that_mtpack_did_not_write_is_refused(tmp_path, change):
    path = write_shard(tmp_path / "shard.arrow", metadata_with())
    rewrite_metadata(path, change)
    for read in (mtpack.open_shards, verify.verify):
        with pytest.raises(InputError, match=r"shard\.arrow: (its mtpack metadata|does not have)"):
            read(path)


def rewrite_metadata(path: Path, change) -> None:
    table = pa.ipc.open_stream(path.read_bytes()).read_all()
    schema = table.schema.with_metadata({b"mtpack": change(table.schema.metadata[b"mtpack"])})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        writer.write_table(table.cast(schema))


@pytest.mark.parametrize("name", ["tokenizer_sha256", "template_sha256"])
def test_a_shard_of_another_tokenizer_or_template_than_the_manifest_is_refused(tmp_path, name):
    metadata = metadata_of()
    columns = columns_of_sequences(hand_made_sequences(), metadata)
    folder = write_output(tmp_path / "out", [columns], metadata)
    other = replace(metadata, **{name: "f" * 64})
    write_columns(folder / "shard-00000.arrow", columns, other)  # of the same size
    with pytest.raises(InputError, match=f"shard-00000.arrow: its {name} is f+, but the manifest"):
        mtpack.open_shards(folder)
    assert violation_of(folder).law == "sha256"
