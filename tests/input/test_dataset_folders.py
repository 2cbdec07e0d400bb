"""Folders that `datasets.save_to_disk` made are read as data sets, or as splits of one."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pytest

import mtpack
from mtpack.errors import SetupError
from mtpack.input.files import describe_input, find_inputs
from mtpack.input.reading import read_splits
from tests.conftest import SAMPLE_DATA

SHARD = "data-00000-of-00001.arrow"


def write_shard(path: Path, *messages: str) -> None:
    table = pa.table({"messages": list(messages)})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


def save(folder: Path, shards: dict[str, list[str]], **state) -> Path:
    """Write a data set as `Dataset.save_to_disk` does, with these files."""
    folder.mkdir(parents=True)
    for name, messages in shards.items():
        write_shard(folder / name, *messages)
    state = {"_data_files": [{"filename": name} for name in shards], "_split": None, **state}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {}}))
    return folder


def save_splits(folder: Path, *names: str) -> Path:
    """Write a dict of data sets as `DatasetDict.save_to_disk` does; each has its name as a row."""
    for name in names:
        save(folder / name, {SHARD: [name]})
    folder.mkdir(exist_ok=True)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(names)}))
    return folder


def read(*inputs, **options) -> list[str]:
    """Return the `messages` of each row."""
    names = find_inputs(map(str, inputs), **options)
    splits = read_splits(describe_input(name, name) for name in names)
    return [json.loads(row.text)["messages"] for split in splits for row in split.rows()]


def refusal(*inputs, **options) -> str:
    with pytest.raises(SetupError) as caught:
        find_inputs(map(str, inputs), **options)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# Data sets


def test_the_files_of_a_data_set_are_read_in_the_order_of_its_state(tmp_path):
    folder = save(tmp_path / "saved", {"b.arrow": ["1", "2"], "a.arrow": ["3"], "c.arrow": ["4"]})
    write_shard(folder / "cache-0123456789abcdef.arrow", "a result that datasets keeps here")
    assert read(folder) == ["1", "2", "3", "4"]
    assert read(f"{folder}/") == ["1", "2", "3", "4"]


def test_data_sets_inside_of_a_folder_are_read_among_its_other_files(tmp_path):
    save(tmp_path / "b", {"2.arrow": ["b1"], "1.arrow": ["b2"]})
    save(tmp_path / "d" / "deep", {SHARD: ["d"]})
    write_shard(tmp_path / "a.arrow", "a")
    write_shard(tmp_path / "b-more.arrow", "b-more")
    (tmp_path / "c.jsonl").write_text('{"messages": "c"}')
    assert read(tmp_path) == ["a", "b1", "b2", "b-more", "c", "d"]


def test_the_splits_inside_of_a_folder_are_chosen_too(tmp_path):
    save_splits(tmp_path / "x", "train", "test")
    save_splits(tmp_path / "y", "test")
    assert read(tmp_path, split="test") == ["test", "test"]


def test_a_pattern_that_matches_a_data_set_reads_it_once(tmp_path):
    save(tmp_path / "one", {"2.arrow": ["1"], "1.arrow": ["2"]})
    save_splits(tmp_path / "two", "train")
    for pattern in ("*", "**", "[ot]*"):
        assert read(tmp_path / pattern) == ["1", "2", "train"]


def test_the_files_that_describe_a_data_set_are_never_rows(tmp_path):
    folder = save(tmp_path / "one", {SHARD: ["1"]})
    save_splits(tmp_path / "two", "train")
    assert read(folder / "*") == ["1"]
    message = f"{folder}/*.json: no such file; check the name or the pattern"
    assert refusal(folder / "*.json") == message
    assert refusal(tmp_path / "two" / "*.json").endswith("check the name or the pattern")


def test_the_description_next_to_arrow_files_in_a_cache_is_no_row(tmp_path):
    write_shard(tmp_path / "name-train.arrow", "1")
    (tmp_path / "dataset_info.json").write_text("{}")
    assert read(tmp_path) == ["1"]


def test_files_with_these_names_are_rows_where_there_is_no_data_set(tmp_path):
    for name in ("state.json", "dataset_info.json"):
        folder = tmp_path / name.split(".")[0]
        folder.mkdir()
        (folder / name).write_text('{"messages": "x"}')
        assert read(folder) == ["x"]


def test_a_data_set_below_the_output_is_not_read(tmp_path):
    save(tmp_path / "packed" / "saved", {SHARD: ["old"]})
    save(tmp_path / "saved", {SHARD: ["new"]})
    assert read(tmp_path, output=tmp_path / "packed") == ["new"]
    message = refusal(tmp_path / "packed", output=tmp_path / "packed")
    assert "the folder holds no input" in message


# Splits


def test_the_only_split_is_taken(tmp_path):
    assert read(save_splits(tmp_path / "saved", "train")) == ["train"]


def test_split_chooses_one_of_several(tmp_path):
    folder = save_splits(tmp_path / "saved", "train", "test")
    assert read(folder, split="train") == ["train"]
    assert read(folder, split="test") == ["test"]


def test_several_splits_without_a_choice_are_refused_with_their_names(tmp_path):
    folder = save_splits(tmp_path / "saved", "train", "test")
    assert refusal(folder) == f'{folder}: has the splits "train", "test"; choose one with --split'


def test_a_split_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    folder = save_splits(tmp_path / "saved", "train", "test")
    message = f'{folder}: has no split "dev"; it has "train", "test"'
    assert refusal(folder, split="dev") == message


def test_split_is_refused_if_no_input_has_splits(tmp_path):
    saved = save(tmp_path / "in" / "saved", {SHARD: ["1"]})
    (tmp_path / "rows.jsonl").write_text("")
    message = (
        "--split train: no input has splits to choose from; leave it out (it is for folders that "
        "datasets saved with several splits)"
    )
    for given in (saved, tmp_path / "in", tmp_path / "rows.jsonl", tmp_path / "*.jsonl", "-"):
        assert refusal(given, split="train") == message


def test_split_chooses_next_to_inputs_without_splits(tmp_path):
    folder = save_splits(tmp_path / "both" / "saved", "train", "test")
    rows = tmp_path / "both" / "rows.jsonl"
    rows.write_text("")
    chosen = [str(rows), str(folder / "train" / SHARD)]
    assert find_inputs([str(tmp_path / "both")], split="train") == chosen
    assert find_inputs([str(rows), str(folder)], split="train") == chosen


# Folders that can't be read as they are


@pytest.mark.parametrize("name", ["../x.arrow", "/x.arrow", "a/../../x.arrow", "x.jsonl", "", 7])
def test_a_state_that_names_other_files_than_arrow_files_inside_is_refused(tmp_path, name):
    write_shard(tmp_path / "x.arrow", "secret")
    folder = save(tmp_path / "saved", {SHARD: ["1"]}, _data_files=[{"filename": name}])
    shown = json.dumps(name) if isinstance(name, str) else "a number"
    assert refusal(folder) == (
        f"{folder}/state.json: names {shown}, which is no Arrow file in this folder; "
        "save the data set again"
    )


def test_a_missing_file_of_a_data_set_is_refused(tmp_path):
    folder = save(tmp_path / "saved", {SHARD: ["1"]})
    (folder / SHARD).unlink()
    message = f"{folder}/{SHARD}: no such file, but state.json names it; restore it"
    assert refusal(folder) == message


@pytest.mark.parametrize("files", [None, [], "x", {}])
def test_a_state_without_files_is_refused(tmp_path, files):
    folder = save(tmp_path / "saved", {SHARD: ["1"]}, _data_files=files)
    message = f"{folder}/state.json: names no data files; save the data set again"
    assert refusal(folder) == message


@pytest.mark.parametrize(
    "state", [{"_indices_data_files": [{"filename": "indices.arrow"}]}, {"_indices_files": ["x"]}]
)
def test_an_indices_mapping_is_refused_with_the_remedy(tmp_path, state):
    message = (
        "an older datasets saved it with an indices mapping, so its files hold other rows than "
        "the data set; load it, call flatten_indices() and save it again"
    )
    folder = save(tmp_path / "by_state", {SHARD: ["1"]}, **state)
    assert refusal(folder) == f"{folder}: {message}"
    folder = save(tmp_path / "by_file", {SHARD: ["1"]})
    write_shard(folder / "indices.arrow", "0")
    assert refusal(folder) == f"{folder}: {message}"


@pytest.mark.parametrize("splits", [None, [], "train", [1], ["train", "../../x"], ["/"], ["."]])
def test_a_dict_that_names_no_splits_inside_is_refused(tmp_path, splits):
    folder = save_splits(tmp_path / "saved", "train")
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": splits}))
    assert refusal(folder) == (
        f"{folder}/dataset_dict.json: must name the splits, which lie in this folder; "
        "save the data set again"
    )


def test_a_missing_folder_of_a_split_is_refused(tmp_path):
    folder = save_splits(tmp_path / "saved", "train")
    shutil.rmtree(folder / "train")
    message = f"{folder}/train/state.json: can't be read (No such file or directory)"
    assert refusal(folder) == message


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "not JSON (column 1: Input is a zero-length, empty document)"),
        (b"{", "not JSON (column 2: unexpected end of data)"),
        (b"\xff", "not JSON (byte 1 is not UTF-8; convert the file)"),
        (b"[" * 10**6, "not JSON (nested more than 100 levels deep)"),
        (b"[]", "must hold a JSON object"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_state_that_is_no_json_object_is_refused(tmp_path, content, problem):
    folder = save(tmp_path / "saved", {SHARD: ["1"]})
    (folder / "state.json").write_bytes(content)
    message = f"{folder}/state.json: {problem}; save the data set again"
    assert refusal(folder) == message


def test_the_output_of_a_run_is_refused_as_input(tmp_path):
    for ipc_format in ("stream", "file"):
        packed = tmp_path / ipc_format
        options = {"workers": 1, "seq_len": 1024, "ipc_format": ipc_format}
        mtpack.pack(SAMPLE_DATA / "formats" / "messages.jsonl", output=packed, **options)
        for given in (packed, packed / "shard-00000.arrow", tmp_path / ipc_format / "*"):
            with pytest.raises(SetupError) as caught:
                mtpack.pack(given, output=tmp_path / "again", workers=1)
            assert str(caught.value) == (
                f"{packed}: holds sequences that mtpack has packed; give the dialogues that they "
                "were packed from"
            )
