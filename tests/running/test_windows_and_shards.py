"""From document files to shards: windows, their plans, the division into shards, and their
contents."""

from dataclasses import replace
from itertools import accumulate, chain, pairwise
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
from mtpack.packing.plan import plan_sequences
from mtpack.running.attempt import remove
from mtpack.running.document_file import open_documents, save_batch
from mtpack.running.earlier_work import EarlierWork, FinishedShard
from mtpack.running.heartbeat import Heartbeat
from mtpack.running.plan_file import StoredPlan, open_plan, save_plan
from mtpack.running.plan_task import PlanTask, run_plan_task
from mtpack.running.shard_task import ShardTask, run_shard_task
from mtpack.running.split_record import SplitRecord
from mtpack.running.windows import StaleWindowError, Windows
from mtpack.shards.arrow import (
    ShardMetadata,
    sequences_per_batch,
    sequences_per_shard,
    write_shard,
)
from mtpack.shards.dataset import OpenShard, open_shards
from mtpack.shards.manifest import ShardRecord
from mtpack.token_batch import TokenBatch, concatenate
from tests.conftest import examples
from tests.packing.test_columns import EXTRA_COLUMNS, lay_out
from tests.support.builders import metadata_of
from tests.support.strategies import Document, Turn, as_batch, as_documents, batches_of_a_run

BATCH = as_batch([Document(0, [5, 6, 7], [Turn(1, 0, [(1, 3)])]), Document(0, [8, 9], [])])


def pipeline_of(options: PackOptions) -> Any:
    """Return the part of a pipeline that writing needs."""
    return SimpleNamespace(
        options=options, shard_metadata=layout_of(options), heartbeat=Heartbeat()
    )


def layout_of(options: PackOptions) -> ShardMetadata:
    layout = options.label_alignment, options.pad_documents_to, options.seq_len
    return metadata_of(*layout, extra_columns=EXTRA_COLUMNS)


def split_of(file: Path, batch: TokenBatch, first_row: int = 0) -> SplitRecord:
    save_batch(file, replace(batch, document_rows=batch.document_rows - first_row))
    counts = Counts(documents=batch.num_documents, tokens=len(batch.ids))
    record = SplitRecord(file.name, "rows", file, counts, RunCounts(), [], {}, own_files=(file,))
    return record.place(first_row, 0)


def split_of_lengths(file: Path, lengths: list[int]) -> SplitRecord:
    return split_of(file, as_batch([Document(0, [5] * length, []) for length in lengths]))


def add_all(windows: Windows, splits: list[SplitRecord]) -> None:
    for split in splits:
        windows.add(split)
    windows.close()


def plan_all(options: PackOptions, windows: Windows) -> list[ShardTask]:
    """Run the tasks that plan windows, and return those that write shards."""
    shards = []
    while windows.has_tasks:
        for task in windows.take_tasks():
            if isinstance(task, PlanTask):
                windows.add_plan(run_plan_task(pipeline_of(options), task))
            else:
                shards.append(task)
    return shards


def tasks_of(
    folder: Path, splits: list[SplitRecord], options: PackOptions
) -> tuple[Windows, list[ShardTask]]:
    """Return the windows of splits, and the tasks that write their shards."""
    windows = Windows(options, folder)
    add_all(windows, splits)
    return windows, plan_all(options, windows)


def sequences_in(task: ShardTask) -> list[list[tuple[str, int]]]:
    """Return the documents of each sequence of a shard: (file, index in the file)."""
    plan = open_plan(task.plan)
    numbers = zip(plan.document_files.tolist(), plan.documents.tolist(), strict=True)
    documents = [(plan.files[file], number) for file, number in numbers]
    end = task.first_sequence + task.num_sequences
    offsets = plan.sequence_offsets.tolist()[task.first_sequence : end + 1]
    return [documents[first:last] for first, last in pairwise(offsets)]


lists_of_lengths = st.lists(st.lists(st.integers(1, 8), max_size=12), max_size=8)


@given(lists_of_lengths, st.sampled_from(["1", "20", "100", "1Ki"]))
def test_every_document_of_every_split_is_in_exactly_one_shard(lengths, window):
    with TemporaryDirectory() as folder:
        splits = [
            split_of_lengths(Path(folder, str(number)), of_split)
            for number, of_split in enumerate(lengths)
        ]
        options = PackOptions(seq_len=8, window=window, shard_size="500B")
        windows, tasks = tasks_of(Path(folder), splits, options)
        sequences = [sequence for task in tasks for sequence in sequences_in(task)]
    expected = [
        (str(split.file), number) for split in splits for number in range(split.counts.documents)
    ]
    assert sorted(chain(*sequences)) == sorted(expected)
    assert [task.number for task in tasks] == list(range(len(tasks)))
    assert windows.counts.sequences == len(sequences)


@given(lists_of_lengths.filter(any), st.integers(1, 60))
def test_a_window_has_the_splits_that_fit_and_a_split_that_never_fits_has_its_own(lengths, window):
    with TemporaryDirectory() as folder:
        splits = [
            split_of_lengths(Path(folder, str(number)), of_split)
            for number, of_split in enumerate(lengths)
        ]
        _, tasks = tasks_of(Path(folder), splits, PackOptions(seq_len=8, window=str(window)))
        found = [open_plan(task.plan).files for task in tasks]
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
    assert list(dict.fromkeys(map(tuple, found))) == list(map(tuple, expected))


def test_a_window_is_planned_when_the_next_split_does_not_fit(tmp_path):
    windows = Windows(PackOptions(seq_len=8, window="16"), tmp_path)
    has_tasks = []
    for number in range(3):
        windows.add(split_of_lengths(tmp_path / str(number), [8]))
        has_tasks.append(windows.has_tasks)
    assert has_tasks == [False, False, True]
    assert [task.window for task in windows.take_tasks()] == [0]
    windows.close()
    assert [task.window for task in windows.take_tasks()] == [1]
    windows.close()
    assert not windows.has_tasks


def test_a_window_need_not_wait_for_the_plan_of_the_one_before_but_its_shards_do(tmp_path):
    options = PackOptions(seq_len=8, window="8")
    windows = Windows(options, tmp_path)
    add_all(windows, [split_of_lengths(tmp_path / str(number), [8]) for number in range(2)])
    plans = list(windows.take_tasks())
    assert [task.window for task in plans] == [0, 1]
    second, first = (run_plan_task(pipeline_of(options), task) for task in reversed(plans))
    windows.add_plan(second)
    assert not windows.has_tasks
    windows.add_plan(first)
    assert [(task.number, task.plan) for task in windows.take_tasks()] == [
        (number, plan.file) for number, plan in enumerate(plans)
    ]


def finish_all(windows: Windows, shards: list[ShardTask]) -> EarlierWork:
    """Finish shards, and return what another run finds of their windows."""
    found = EarlierWork()
    for task in shards:
        sha256, fast_paths = windows.describe_window(task.number)
        record = ShardRecord(f"shard-{task.number:05d}.arrow", task.num_sequences, 0, "")
        found.shards[task.number] = FinishedShard(sha256, record, fast_paths)
        window = windows.finish_shard(task.number)
        if window is not None:
            found.windows[window.number] = window
            remove(windows.forget(window))
    return found


def two_windows(folder: Path, *contents: str, earlier: EarlierWork | None = None) -> Windows:
    """Return two windows of one split each, whose contents have these digests."""
    windows = Windows(PackOptions(seq_len=8, window="8"), folder, earlier)
    splits = [split_of_lengths(folder / content, [8]) for content in contents]
    add_all(
        windows,
        [
            replace(split, content_sha256=content, fast_paths=frozenset({f"fast {content}"}))
            for split, content in zip(splits, contents, strict=True)
        ],
    )
    return windows


def test_a_window_that_an_earlier_run_has_finished_is_not_planned_again(tmp_path):
    first = two_windows(tmp_path, "a", "b")
    earlier = finish_all(first, plan_all(PackOptions(seq_len=8), first))
    second = two_windows(tmp_path, "a", "b", earlier=earlier)
    assert not second.has_tasks
    assert [shard.number for shard in second.taken] == [0, 1]
    assert second.counts == first.counts
    changed = two_windows(tmp_path, "a", "c", earlier=earlier)
    assert [task.window for task in changed.take_tasks()] == [1]


def test_shards_depend_on_all_splits_and_fast_paths_of_their_window_and_of_those_before(tmp_path):
    windows = two_windows(tmp_path, "a", "b")
    earlier = finish_all(windows, plan_all(PackOptions(seq_len=8), windows))
    assert earlier.shards[0].fast_paths == {"fast a"}
    assert earlier.shards[1].fast_paths == {"fast a", "fast b"}
    changed = two_windows(tmp_path, "c", "b", earlier=earlier)
    assert [task.window for task in changed.take_tasks()] == [0, 1]


def test_a_window_whose_documents_are_only_in_shards_of_other_splits_is_stale(tmp_path):
    windows = Windows(PackOptions(seq_len=8), tmp_path)
    windows.add(split_of_lengths(tmp_path / "0", [8]))
    windows.add(replace(split_of_lengths(tmp_path / "1", [8]), file=None))
    with pytest.raises(StaleWindowError):
        windows.close()


def test_planning_is_a_step_without_a_limit_on_its_cpu_time(tmp_path):
    steps = []

    class Recorded(Heartbeat):
        def begin(self, what: str, effort: float = 1.0) -> None:
            steps.append((what, effort))

    options = PackOptions(seq_len=8)
    windows = Windows(options, tmp_path)
    add_all(windows, [split_of_lengths(tmp_path / "0", [8])])
    (task,) = windows.take_tasks()
    pipeline = pipeline_of(options)
    pipeline.heartbeat = Recorded()
    planned = run_plan_task(pipeline, task)
    assert steps == [("planning window 0", float("inf"))]
    assert planned.seconds.keys() == {"plan"}


def test_a_plan_depends_on_padded_lengths_the_seed_and_the_number_of_the_window(tmp_path):
    options = PackOptions(seq_len=8, seed=7, pad_documents_to=4)
    split = split_of_lengths(tmp_path / "split", [1, 5, 4, 3, 2, 8] * 5)
    task = PlanTask(3, tmp_path / "plan", [str(split.file)], [0])
    run_plan_task(pipeline_of(options), task)
    expected = plan_sequences(np.array([4, 8, 4, 4, 4, 8] * 5), 8, "dense", (7, 3))
    assert open_plan(task.file).documents.tolist() == expected.documents.tolist()


def test_a_plan_is_read_as_it_was_written(tmp_path):
    plan = StoredPlan(
        files=["split", "/\udcff \n é"],
        first_rows=np.array([0, 2**40]),
        sequence_offsets=np.array([0, 1, 3]),
        document_files=np.array([1, 0, 1], np.int32),
        documents=np.array([5, 2**31 - 1, 0], np.int32),
    )
    save_plan(tmp_path / "plan", plan)
    found = open_plan(tmp_path / "plan")
    assert found.files == plan.files
    for values, expected in zip(found[1:], plan[1:], strict=True):
        assert (values.dtype, values.tolist()) == (expected.dtype, expected.tolist())


def test_the_files_of_a_window_are_removed_when_its_last_shard_is_written(tmp_path):
    one_sequence = "104B"
    splits = [split_of_lengths(tmp_path / str(number), [8, 8]) for number in range(2)]
    options = PackOptions(seq_len=8, window="16", shard_size=one_sequence)
    windows, tasks = tasks_of(tmp_path, splits, options)
    assert [task.number for task in tasks] == [0, 1, 2, 3]
    left = []
    for shard in range(4):
        window = windows.finish_shard(shard)
        if window is not None:
            remove(windows.forget(window))
        left.append(sorted(path.name[:10] for path in tmp_path.iterdir()))
    assert left == [
        ["0", "1", "plan-00000", "plan-00001"],
        ["1", "plan-00001"],
        ["1", "plan-00001"],
        [],
    ]


def test_a_split_without_documents_is_in_no_shard_and_its_file_goes_with_its_window(tmp_path):
    options = PackOptions(seq_len=8)
    windows = Windows(options, tmp_path)
    add_all(windows, [split_of_lengths(tmp_path / "empty", [])])
    assert not windows.has_tasks
    add_all(windows, [split_of_lengths(tmp_path / "full", [8])])
    (task,) = plan_all(options, windows)
    assert open_plan(task.plan).files == [str(tmp_path / "full")]
    remove(windows.forget(windows.finish_shard(0)))
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
@given(st.data(), batches_of_a_run(min_size=1))
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
    layout = layout_of(options)
    with TemporaryDirectory() as folder:
        splits = [
            split_of(Path(folder, str(number)), batch, int(batch.document_rows[0]))
            for number, batch in enumerate(batches)
        ]
        _, tasks = tasks_of(Path(folder), splits, options)
        written = [run_shard_task(pipeline_of(options), task) for task in tasks]
        paths = [Path(folder, shard.record.path) for shard in written]
        assert [shard.record.bytes for shard in written] == [path.stat().st_size for path in paths]
        shards = open_shards(paths)
        rows = list(shards)
        sequences = [sequence for task in tasks for sequence in sequences_in(task)]
    first = list(accumulate((batch.num_documents for batch in batches), initial=0))
    plan = [
        [first[int(Path(file).name)] + number for file, number in sequence]
        for sequence in sequences
    ]
    expected = lay_out(as_documents(concatenate(batches)), plan, layout)
    for name, values in expected.items():
        assert [np.asarray(row[name]).tolist() for row in rows] == values, name
    return shards.opened


def test_a_shard_that_is_written_again_replaces_the_first(tmp_path):
    options = PackOptions(seq_len=8)
    _, (task,) = tasks_of(tmp_path, [split_of(tmp_path / "split", BATCH)], options)
    first = run_shard_task(pipeline_of(options), task)
    (tmp_path / "shard-00000.arrow").write_bytes(b"half of one")
    assert run_shard_task(pipeline_of(options), task).record == first.record
    names = {"split", "shard-00000.arrow", task.plan.name}
    assert {path.name for path in tmp_path.iterdir()} == names


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
    _, (task,) = tasks_of(tmp_path, splits, options)
    once = run_shard_task(pipeline_of(options), task)
    assert sorted(opened) == sorted(str(split.file) for split in splits)
    monkeypatch.setattr(mtpack.running.shard_task, "_MAX_OPEN_FILES", 1)
    assert run_shard_task(pipeline_of(options), task).record == once.record
