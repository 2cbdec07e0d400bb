"""One attempt to turn the whole input of a run into shards in the work area."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from mtpack.counts import Counts, RunCounts
from mtpack.input import reading
from mtpack.input.dialogue import Reject
from mtpack.input.input_hashes import InputHashes
from mtpack.running.callbacks import Callbacks, RunProgress
from mtpack.running.earlier_work import commit_window, find_earlier_work
from mtpack.running.empty_run import EmptySplit
from mtpack.running.executors import Runner
from mtpack.running.format_notices import FormatNotices
from mtpack.running.pipeline import Pipeline
from mtpack.running.plan_task import PlannedWindow, PlanTask, run_plan_task
from mtpack.running.run_record import hash_run
from mtpack.running.run_setup import RunSetup
from mtpack.running.section_task import SectionRecord, SectionTask, run_section_task
from mtpack.running.shard_task import ShardTask, WrittenShard, run_shard_task
from mtpack.running.split_record import SplitRecord
from mtpack.running.split_task import SplitContext, SplitTask, run_split_task
from mtpack.running.stopwatch import Stopwatch
from mtpack.running.windows import Windows
from mtpack.shards.manifest import ShardRecord
from mtpack.shards.output_folder import make_bad_row_error
from mtpack.shards.side_files import REJECTS, write_rejects

_Task = SplitTask | SectionTask | PlanTask | ShardTask
_Result = SplitRecord | SectionRecord | PlannedWindow | WrittenShard
# For each thread that commits shards: a disk or a store that is slower than the workers stops them.
_COMMITS_AHEAD = 3


@dataclass(slots=True)
class RunState:
    """What a run has produced so far. Its size depends on the number of shards and files only."""

    counts: Counts = field(default_factory=Counts)
    by_source: list[Counts] = field(default_factory=list)
    """The counts of each source, without sequences."""
    run_counts: RunCounts = field(default_factory=RunCounts)
    shards: dict[int, ShardRecord] = field(default_factory=dict)
    """By number."""
    warnings: set[str] = field(default_factory=set)
    first_reject: Reject | None = None
    empty: EmptySplit = field(default_factory=EmptySplit)
    """Why splits have no documents, for those that have none."""
    hashes: InputHashes = field(default_factory=InputHashes)
    bytes_done: int = 0
    """Of the input files, as in `RunProgress`."""
    bytes_reused: int = 0
    is_tokenized: bool = False


class Attempt:
    """One attempt: it takes what is in the work area, and makes what is missing.

    A first run is an attempt that finds nothing.
    """

    def __init__(
        self,
        setup: RunSetup,
        disabled: Collection[str],
        callbacks: Callbacks,
        watch: Stopwatch,
        formats: FormatNotices,
    ) -> None:
        """Look at what is there; disabled: the fast paths that may not be used."""
        self.progress: Counter[str] = Counter()
        """The progress reported so far, by stage."""
        self._setup = setup
        self._callbacks = callbacks
        self._watch = watch
        self._formats = formats
        self._input_bytes = sum(file.num_bytes for file in setup.files)
        self._area = setup.area.path.absolute()  # tasks may run in another working folder
        self._options = setup.pipeline.options
        shards = setup.output.find_shards(setup.area, disabled)
        self._earlier = find_earlier_work(self._area, setup.own_store, shards)
        unsynced = setup.area.unsynced.absolute()
        unsynced.mkdir(parents=True, exist_ok=True)
        store = setup.shared_store or setup.own_store
        store.mkdir(parents=True, exist_ok=True)
        self._context = SplitContext(
            folder=unsynced,
            store=store.absolute(),
            is_own_store=setup.shared_store is None,
            disabled=frozenset(disabled),
            process_bytes=setup.input_bytes / setup.num_workers,
        )
        run_sha256 = hash_run(setup.pipeline)
        self._windows = Windows(self._options, unsynced, self._earlier, run_sha256)
        self._state = RunState(by_source=[Counts() for _ in setup.pipeline.sources])
        self._num_lines = 0  # in the part of the current file that was read so far
        self._files_with_rows: set[str] = set()
        self._is_changed = False
        self._commits: deque[tuple[WrittenShard, Future[Mapping[str, float]]]] = deque()
        self._removals: deque[Future[None]] = deque()

    def run(self, runner: Runner, threads: Executor, call_table: reading.TableCall) -> RunState:
        """Tokenize all splits, plan each window as soon as it is full, and write its shards.

        threads: where shards are synced, because a disk takes as long for one as a core does.
        call_table: reads tables, in this process or in another.
        Raises FastPathFailedError, StaleWindowError, InputError, and OSError.
        """
        self._report_status()
        with open(self._area / REJECTS, "w", encoding="utf-8") as rejects:
            for result in self._run_tasks(runner, call_table):
                if isinstance(result, SplitRecord):
                    self._add_split(result, rejects)
                elif isinstance(result, SectionRecord):
                    for split in result.splits:
                        self._add_split(split, rejects)
                    if result.error is not None:
                        raise result.error
                elif isinstance(result, PlannedWindow):
                    self._watch.add(result.seconds)
                    self._windows.add_plan(result)
                else:
                    self._commit(result, threads)
                self._finish_shards(threads)
                self._report_status()
        self._finish_shards(threads, wait=True)
        for removal in self._removals:
            removal.result()
        self._report_status()
        self._state.counts += self._windows.counts
        for file in self._setup.files:
            if file.name not in self._files_with_rows and not self._has_all_rows(file.source):
                self._callbacks.warn(f"{file.name}: holds no rows")
        return self._state

    def _has_all_rows(self, source: int) -> bool:
        """Return whether a source has all the rows that are read of it (`max-rows`)."""
        most = self._setup.pipeline.sources[source].max_rows
        return most is not None and self._state.by_source[source].rows_read >= most

    def _run_tasks(self, runner: Runner, call_table: reading.TableCall) -> Iterator[_Result]:
        """Yield the results of all tasks. Each has to be added before the next one is asked for."""
        yield from runner.run(run_task, self._list_tasks(call_table, sends_rows=runner.sends_rows))
        self._state.is_tokenized = True
        self._windows.close()
        while self._windows.has_tasks:  # shards are there only after their plan
            yield from runner.run(run_task, self._windows.take_tasks())

    def _list_tasks(self, call_table: reading.TableCall, *, sends_rows: bool) -> Iterator[_Task]:
        """Yield the tasks of all sections, and between them those of windows.

        sends_rows: whether this process reads the sections that are not one split.
        """
        options = self._setup.pipeline.read_options
        for section in reading.cut_sources(self._setup.files, options, call_table):
            if not (section.is_split or sends_rows):
                yield from self._windows.take_tasks()
                written = self._earlier.find_written_in(section.number)
                yield SectionTask(section, self._context, written)
                continue
            for split in reading.read_section(section, options[section.source], call_table):
                yield from self._windows.take_tasks()
                yield SplitTask(split, self._context, self._earlier.find_written(split.key))

    def _add_split(self, result: SplitRecord, rejects: TextIO) -> None:
        """Add the result of the next split; raise InputError for a bad row, unless `skip`."""
        if not result.after_byte:
            self._num_lines = 0
        num_lines, self._num_lines = self._num_lines, self._num_lines + result.num_lines
        result = result.place(self._state.counts.rows_read, num_lines)
        self._formats.add(result.formats, self._setup.pipeline.sources[result.source].row_format)
        self._files_with_rows.update(name for name, _ in result.file_sha256s)
        if result.rejects and self._options.on_error == "fail":
            raise make_bad_row_error(str(result.rejects[0]))
        self._setup.area.is_kept = True
        state = self._state
        self._compare_with_earlier(result)
        state.counts += result.counts
        state.by_source[result.source] += result.counts
        state.run_counts += result.run_counts
        state.warnings |= result.warnings
        state.empty += result.empty or EmptySplit()
        state.first_reject = state.first_reject or next(iter(result.rejects), None)
        state.hashes.add(result.file_sha256s)
        state.bytes_done += result.input_bytes
        state.bytes_reused += result.input_bytes * result.run_counts.splits_reused
        self._watch.add(result.seconds)
        self._report_progress("tokenize", result.counts.rows_read)
        write_rejects(rejects, result.rejects)
        self._windows.add(result)

    def _compare_with_earlier(self, result: SplitRecord) -> None:
        """Report an input that has changed, and remove what is left of this split otherwise."""
        contents = self._earlier.list_contents(result.key)
        if contents and result.content_sha256 not in contents and not self._is_changed:
            self._is_changed = True
            self._callbacks.warn(
                f"{result.first_file}: the input has changed here since the earlier run"
            )
        for path in self._earlier.split_files.get(result.key, ()):
            if path not in result.own_files:
                path.unlink(missing_ok=True)

    def _commit(self, written: WrittenShard, threads: Executor) -> None:
        window = self._windows.describe_window(written.number)
        setup = self._setup
        future = threads.submit(setup.output.commit_shard, setup.area, written, *window)
        self._commits.append((written, future))
        self._watch.add(written.seconds)

    def _finish_shards(self, threads: Executor, *, wait: bool = False) -> None:
        """Finish shards that are on the disk; wait: also those that are on their way there."""
        while self._windows.taken:
            self._state.run_counts += RunCounts(shards_resumed=1)
            self._finish(self._windows.taken.popleft(), threads)
        most = _COMMITS_AHEAD * self._options.num_workers
        while self._commits and (wait or len(self._commits) > most or self._commits[0][1].done()):
            written, future = self._commits.popleft()
            self._watch.add(future.result())
            self._finish(written, threads)
        while self._removals and self._removals[0].done():
            self._removals.popleft().result()

    def _finish(self, written: WrittenShard, threads: Executor) -> None:
        """Note that a shard is on the disk, and perhaps all of its window."""
        self._state.shards[written.number] = written.record
        self._report_progress("write", written.record.rows)
        window = self._windows.finish_shard(written.number)
        if window is not None:
            if self._earlier.windows.get(window.number) != window:
                self._watch.restart()
                commit_window(self._area, window, self._windows.describe_splits(window))
                self._watch.lap("record")
            # To remove two files for each split would take this process most of its time.
            self._removals.append(threads.submit(remove, self._windows.forget(window)))

    def _report_status(self) -> None:
        state = self._state
        status = RunProgress(
            input_bytes=self._input_bytes,
            bytes_done=state.bytes_done,
            bytes_reused=state.bytes_reused,
            is_tokenized=state.is_tokenized,
            counts=state.counts,
            sequences_planned=self._windows.counts.sequences,
            sequences_written=self.progress["write"],
        )
        self._callbacks.status(status)

    def _report_progress(self, stage: str, amount: int) -> None:
        self.progress[stage] += amount
        self._callbacks.progress(stage, amount)

    def undo_progress(self) -> None:
        """Report that nothing of this attempt counts."""
        for stage, amount in self.progress.items():
            self._callbacks.progress(stage, -amount)


def remove(files: Iterable[Path]) -> None:
    """Remove files; raise OSError."""
    for file in files:
        file.unlink(missing_ok=True)


def run_task(pipeline: Pipeline, task: _Task) -> _Result:
    """Run one task of any kind and return its result."""
    match task:
        case SplitTask():
            return run_split_task(pipeline, task)
        case SectionTask():
            return run_section_task(pipeline, task)
        case PlanTask():
            return run_plan_task(pipeline, task)
        case ShardTask():
            return run_shard_task(pipeline, task)
