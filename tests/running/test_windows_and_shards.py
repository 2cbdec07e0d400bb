"""From document files to shards: windows, the division into shards, and the shards' contents."""

from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mtpack.running.shard_task
from mtpack.counts import Counts, RunCounts
from mtpack.options import PackOptions
from mtpack.running.document_file import open_documents, save_batch
from mtpack.running.heartbeat import Heartbeat
from mtpack.running.shard_task import ShardTask, run_shard_task
from mtpack.running.split_record import SplitRecord
from mtpack.running.stopwatch import Stopwatch
from mtpack.running.windows import Windows
from mtpack.shards.arrow import sequences_per_batch, sequences_per_shard, write_shard
from mtpack.shards.dataset import OpenShard, open_shards
from mtpack.token_batch import TokenBatch, concatenate
from tests.conftest import examples
from tests.packing.test_columns import lay_out
from tests.support.builders import metadata_of
from tests.support.strategies import Document, Turn, as_batch, as_documents, token_batches

BATCH = as_batch([Document(0, [5, 6, 7], [Turn(1, 0, [(1, 3)])]), Document(0, [8, 9], [])])


def pipeline_of(options: PackOptions) -> Any:
    """Return the part of a pipeline that writing needs."""
    metadata = metadata_of(options.label_alignment, options.pad_documents_to, options.seq_len)
    return SimpleNamespace(options=options, shard_metadata=metadata, heartbeat=Heartbeat())


def split_of(file: Path, batch: TokenBatch, first_row: int = 0) -> SplitRecord:
    save_batch(file, replace(batch, document_rows=batch.document_rows - first_row))
    lengths = batch.document_lengths.astype(np.int32)
    found = Counts(), RunCounts(), [], lengths, {}
    return SplitRecord(file.name, "rows", file, *found, own_files=(file,), first_row=first_row)


def split_of_lengths(file: Path, lengths: list[int]) -> SplitRecord:
    file.touch()
    of_split = np.array(lengths, np.int32)
    return SplitRecord(
        file.name, "rows", file, Counts(), RunCounts(), [], of_split, {}, own_files=(file,)
    )


def windows_of(folder: Path, **options: Any) -> Windows:
    return Windows(PackOptions(**options), folder, Stopwatch())


def tasks_of(windows: Windows, splits: list[SplitRecord]) -> list[ShardTask]:
    return [task for split in splits for task in windows.add(split)] + windows.close()


def documents_in(task: ShardTask) -> list[tuple[str, int]]:
    """Return the documents of a shard: (file, index in the file)."""
    files = [task.files[file] for file in task.document_files]
    return list(zip(files, task.documents.tolist(), strict=True))


lists_of_lengths = st.lists(st.lists(st.integers(1, 8), max_size=12), max_size=8)


@given(lists_of_lengths, st.sampled_from(["1", "20", "100", "1Ki"]))
def test_every_document_of_every_split_is_in_exactly_one_shard(lengths, window):
    with TemporaryDirectory() as folder:
        splits = [
            split_of_lengths(Path(folder, str(number)), of_split)
            for number, of_split in enumerate(lengths)
        ]
        windows = windows_of(Path(folder), seq_len=8, window=window, shard_size="500B")
        tasks = tasks_of(windows, splits)
    expected = [
        (str(split.file), number)
        for split in splits
        for number in range(len(split.document_lengths))
    ]
    assert sorted(document for task in tasks for document in documents_in(task)) == sorted(expected)
    assert [task.number for task in tasks] == list(range(len(tasks)))
    assert windows.counts.sequences == sum(len(task.sequence_offsets) - 1 for task in tasks)


@given(lists_of_lengths.filter(any), st.integers(1, 60))
def test_a_window_has_the_splits_that_fit_and_a_split_that_never_fits_has_its_own(lengths, window):
    with TemporaryDirectory() as folder:
        splits = [
            split_of_lengths(Path(folder, str(number)), of_split)
            for number, of_split in enumerate(lengths)
        ]
        tasks = tasks_of(windows_of(Path(folder), seq_len=8, window=str(window)), splits)
    expected: list[list[str]] = [[]]
    tokens = 0
    for split, of_split in zip(splits, lengths, strict=True):
        if not of_split:
            continue
        if tokens and tokens + sum(of_split) > window:
            expected.append([])
            tokens = 0
        tokens += sum(of_split)
        expected[-1].append(str(split.file))
    found = [task.files for task in tasks]
    assert list(dict.fromkeys(map(tuple, found))) == list(map(tuple, expected))


def test_a_window_is_planned_when_the_next_split_does_not_fit(tmp_path):
    windows = windows_of(tmp_path, seq_len=8, window="16")
    splits = [split_of_lengths(tmp_path / str(number), [8]) for number in range(3)]
    assert [bool(windows.add(split)) for split in splits] == [False, False, True]
    assert len(windows.close()) == 1
    assert windows.close() == []


def test_the_files_of_a_window_are_removed_when_its_last_shard_is_written(tmp_path):
    one_sequence = "104B"
    windows = windows_of(tmp_path, seq_len=8, window="16", shard_size=one_sequence)
    splits = [split_of_lengths(tmp_path / str(number), [8, 8]) for number in range(2)]
    assert [task.number for task in tasks_of(windows, splits)] == [0, 1, 2, 3]
    left = []
    for shard in range(4):
        window = windows.finish_shard(shard)
        if window is not None:
            windows.remove_files(window)
        left.append(sorted(path.name for path in tmp_path.iterdir()))
    assert left == [["0", "1"], ["1"], ["1"], []]


def test_a_split_without_documents_is_in_no_shard_and_its_file_goes_with_its_window(tmp_path):
    windows = windows_of(tmp_path, seq_len=8)
    assert tasks_of(windows, [split_of_lengths(tmp_path / "empty", [])]) == []
    (task,) = tasks_of(windows, [split_of_lengths(tmp_path / "full", [8])])
    assert task.files == [str(tmp_path / "full")]
    windows.remove_files(windows.finish_shard(0))
    assert not list(tmp_path.iterdir())


def test_a_shard_is_a_64th_of_all_sequences_within_bounds():
    def megabytes(num_sequences: int, shard_size: int = 256 * 2**20) -> float:
        batch_sequences = sequences_per_batch(4096, shard_size, "none")
        sequences = sequences_per_shard(num_sequences, 4096, shard_size, batch_sequences)
        assert sequences % batch_sequences == 0
        return sequences * 4096 * 13 / 2**20

    assert 4 < megabytes(1) <= 8
    assert 4 < megabytes(1400) <= 8  # nine shards
    assert 48 < megabytes(2**16) <= 52  # a window of 256 Mi tokens: 64 shards
    assert 250 < megabytes(2**20) <= 256
    assert megabytes(2**20, 4096 * 13) == 4096 * 13 / 2**20


@settings(max_examples=examples(50))
@given(st.data(), st.lists(token_batches(min_documents=1), min_size=1, max_size=3))
def test_shards_are_as_simple_loops_lay_them_out(data, batches):
    options = PackOptions(
        seq_len=128,
        packing=data.draw(st.sampled_from(["dense", "none"])),
        pad_documents_to=data.draw(st.sampled_from([1, 4])),
        label_alignment=data.draw(st.sampled_from(["aligned", "shifted"])),
        ipc_format=data.draw(st.sampled_from(["stream", "file"])),
    )
    assert_as_laid_out_by_loops(batches, options)


@pytest.mark.parametrize(
    ("options", "shards", "record_batches"),
    [({"shard_size": "4KiB"}, 5, 5), ({"compression": "lz4"}, 1, 3), ({"window": "10"}, 3, 3)],
)
def test_shards_and_record_batches_continue_where_the_previous_ones_end(
    options, shards, record_batches
):
    batches = [replace(BATCH, document_rows=BATCH.document_rows + row) for row in range(5)]
    found = assert_as_laid_out_by_loops(
        batches, PackOptions(seq_len=128, packing="none", **options)
    )
    assert [len(found), sum(len(shard.batches) for shard in found)] == [shards, record_batches]


def assert_as_laid_out_by_loops(batches: list[TokenBatch], options: PackOptions) -> list[OpenShard]:
    """Plan and write splits, compare the shards with `lay_out` of the same plan, return them."""
    layout = metadata_of(options.label_alignment, options.pad_documents_to, options.seq_len)
    with TemporaryDirectory() as folder:
        splits = [
            split_of(Path(folder, str(number)), batch, int(batch.document_rows[0]))
            for number, batch in enumerate(batches)
        ]
        tasks = tasks_of(Windows(options, Path(folder), Stopwatch()), splits)
        written = [run_shard_task(pipeline_of(options), task) for task in tasks]
        paths = [Path(folder, shard.record.path) for shard in written]
        assert [shard.record.bytes for shard in written] == [path.stat().st_size for path in paths]
        shards = open_shards(paths)
        rows = list(shards)
    first = list(accumulate((batch.num_documents for batch in batches), initial=0))
    plan = [
        [first[int(Path(file).name)] + number for file, number in documents_in(task)[start:end]]
        for task in tasks
        for start, end in pairwise(task.sequence_offsets)
    ]
    expected = lay_out(as_documents(concatenate(batches)), plan, layout)
    for name, values in expected.items():
        assert [np.asarray(row[name]).tolist() for row in rows] == values, name
    return shards.opened


def test_a_shard_that_is_written_again_replaces_the_first(tmp_path):
    options = PackOptions(seq_len=8)
    windows = Windows(options, tmp_path, Stopwatch())
    (task,) = tasks_of(windows, [split_of(tmp_path / "split", BATCH)])
    first = run_shard_task(pipeline_of(options), task)
    (tmp_path / "shard-00000.arrow").write_bytes(b"half of one")
    assert run_shard_task(pipeline_of(options), task).record == first.record
    assert {path.name for path in tmp_path.iterdir()} == {"split", "shard-00000.arrow"}


def test_a_shard_that_fails_leaves_no_file(tmp_path):
    def batches():
        raise MemoryError
        yield

    with pytest.raises(MemoryError):
        write_shard(
            tmp_path / "shard", batches(), metadata_of(), ipc_format="stream", compression="none"
        )
    assert not list(tmp_path.iterdir())


def test_each_document_file_is_opened_once_and_few_are_open_at_a_time(tmp_path, monkeypatch):
    opened = []

    def counted(path):
        opened.append(path)
        return open_documents(path)

    monkeypatch.setattr(mtpack.running.shard_task, "open_documents", counted)
    options = PackOptions(seq_len=8, packing="none")
    splits = [split_of(tmp_path / str(number), BATCH) for number in range(5)]
    (task,) = tasks_of(Windows(options, tmp_path, Stopwatch()), splits)
    once = run_shard_task(pipeline_of(options), task)
    assert sorted(opened) == sorted(task.files)
    monkeypatch.setattr(mtpack.running.shard_task, "_MAX_OPEN_FILES", 1)
    assert run_shard_task(pipeline_of(options), task).record == once.record
