"""Run `pack`, from the inputs to a complete output folder."""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mtpack.counts import Counts, RunCounts
from mtpack.errors import InputError, SetupError
from mtpack.fast_path import REMEDIES, FastPathFailedError
from mtpack.input import reading
from mtpack.input.dialogue import Reject
from mtpack.input.files import (
    STANDARD_INPUT,
    FileKind,
    InputFile,
    describe_input,
    find_inputs,
    find_kind,
)
from mtpack.input.splits import Split
from mtpack.options import PackOptions, options_from
from mtpack.running.argument_warnings import list_argument_warnings
from mtpack.running.empty_run import EmptySplit, explain_empty_run
from mtpack.running.ending_warnings import list_ending_warnings
from mtpack.running.format_notices import FormatNotices
from mtpack.running.pipeline import Pipeline, choose_engine, load_pipeline
from mtpack.running.run_setup import RunSetup, read_first_rows
from mtpack.running.runner import LocalRunner, local_runner
from mtpack.running.shard_task import ShardTask, WrittenShard, run_shard_task
from mtpack.running.split_task import SplitRecord, SplitTask, run_split_task
from mtpack.running.stopwatch import Stopwatch
from mtpack.running.token_store import find_run_folder, holds_splits, measure_store
from mtpack.running.windows import Windows
from mtpack.shards.fsync import sync_in_background
from mtpack.shards.manifest import (
    MANIFEST,
    PackReport,
    RunIdentity,
    RunInfo,
    ShardRecord,
    is_manifest,
)
from mtpack.shards.output_folder import (
    find_complete_output,
    finish_publishing,
    holds_output,
    make_bad_row_error,
    publish,
    refuse_foreign_files,
)
from mtpack.shards.side_files import REJECTS, write_datasets_files, write_rejects
from mtpack.shards.work_area import WorkArea, empty_area, has_work_area, work_area
from mtpack.tokenizer.loading import EMBEDDED
from mtpack.version import __version__


@dataclass(frozen=True, slots=True)
class Callbacks:
    """Functions that a run calls to report its progress and its warnings."""

    progress: Callable[[str, int], None] = lambda stage, amount: None
    """(stage, amount): rows done in `tokenize`, sequences in `write`; negative for work undone."""
    warn: Callable[[str], None] = lambda text: None
    """(one line that the user should see)"""


def pack(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    callbacks: Callbacks | None = None,
    **options: Any,
) -> PackReport:
    """Pack dialogues into shards and return the report.

    inputs: files (docs/files.md has their kinds), folders, patterns, or `-`. options: those of
    `PackOptions`, by name. Raises SetupError if the run can't start, InputError for a bad row
    (unless `on_error="skip"`) and if nothing is left to pack.

    The work is done in worker processes. They are forked where that is safe; otherwise (on macOS,
    in programs that have threads) they are spawned and load everything themselves. They do not
    import the caller's script.
    """
    names = [inputs] if isinstance(inputs, str | os.PathLike) else list(inputs)
    chosen = options_from(options)
    found = find_inputs([os.fspath(name) for name in names], Path(chosen.output), chosen.split)
    _refuse_packed_folders(found)
    return _PackRun(chosen, callbacks or Callbacks()).pack(found)


def _refuse_packed_folders(names: list[str]) -> None:
    """Raise SetupError if an input is a shard in an output of mtpack."""
    tables = {os.path.dirname(name) for name in names if find_kind(name) == FileKind("arrow")}
    for folder in sorted(tables):
        if is_manifest(Path(folder) / MANIFEST):
            raise SetupError(
                f"{folder}: holds sequences that mtpack has packed; give the dialogues that they "
                "were packed from"
            )


@dataclass(slots=True)
class _RunState:
    """What a run has produced so far. Its size depends on the number of shards only."""

    counts: Counts = field(default_factory=Counts)
    run_counts: RunCounts = field(default_factory=RunCounts)
    shards: list[ShardRecord] = field(default_factory=list)
    warnings: set[str] = field(default_factory=set)
    first_reject: Reject | None = None
    empty: EmptySplit = field(default_factory=EmptySplit)
    """Why splits have no documents, for those that have none."""


@dataclass(slots=True)
class _PackRun:
    """One run of `pack`: its options, callbacks and stopwatch, and a method for each step."""

    options: PackOptions
    callbacks: Callbacks
    watch: Stopwatch = field(default_factory=Stopwatch)
    disabled: set[str] = field(default_factory=set)
    """The fast paths that failed in this run."""
    progress: Counter[str] = field(default_factory=Counter)
    """The progress reported since the last fast path failed, by stage."""
    argument_warnings: list[str] = field(default_factory=list)

    def pack(self, names: list[str]) -> PackReport:
        pipeline = load_pipeline(self.options)
        self.watch.lap("start")
        if pipeline.tokenizer.source == EMBEDDED:
            self.callbacks.warn(
                "using the small tokenizer that comes with mtpack; "
                "choose your model's with --tokenizer"
            )
        self.argument_warnings = list_argument_warnings(
            pipeline.template, self.options.template_arg
        )
        for warning in self.argument_warnings:
            self.callbacks.warn(f"warning: {warning}")
        output = Path(self.options.output)
        refuse_foreign_files(output, holds_output, "-o")
        if self.options.token_store is not None:
            refuse_foreign_files(Path(self.options.token_store), holds_splits, "--token-store")
        with ExitStack() as stack:
            area = None
            if STANDARD_INPUT in names or has_work_area(output):
                area = stack.enter_context(self._work_area(output))
            files = [describe_input(name, self._spool(name, area)) for name in names]
            described = _describe_run(self.options, files, pipeline)
            complete = find_complete_output(
                output,
                described,
                overwrite=self.options.overwrite,
                on_error=self.options.on_error,
            )
            if complete is not None:
                self.callbacks.warn(f"{output}: already complete")
                if area is not None:
                    area.is_kept = False
                return complete
            if area is None:
                area = stack.enter_context(self._work_area(output))
            self.watch.lap("read")
            store = find_run_folder(pipeline)
            setup = self._choose_engine(RunSetup(files, area, pipeline, store))
            self.watch.lap("start")
            return self._write_output(output, setup, described)

    def _choose_engine(self, setup: RunSetup) -> RunSetup:
        # Splits in the token store are most likely those of this run: then no engine is needed.
        is_stored = setup.store is not None and setup.store.exists()
        sample_texts = None if is_stored else read_first_rows(setup.files)
        pipeline, refused = choose_engine(setup.pipeline, setup.input_bytes, sample_texts)
        if refused is not None:
            self.callbacks.warn(refused)
        return replace(setup, pipeline=pipeline)

    @contextmanager
    def _work_area(self, output: Path) -> Iterator[WorkArea]:
        """Provide the work area; what an earlier run completed there moves to the output first."""
        was_left = has_work_area(output)
        with work_area(output) as area:
            try:
                if finish_publishing(output, area.path):
                    self.callbacks.warn(f"{output}: completed what an earlier run had left to do")
                elif was_left:
                    self.callbacks.warn(f"{output}: an earlier run did not complete; starting over")
                empty_area(area.path)
                area.is_kept = False
                area.write_run_record({"mtpack_version": __version__})
            except OSError as error:
                raise SetupError(f"{output}: can't be written to ({error.strerror})") from error
            yield area

    def _spool(self, name: str, area: WorkArea | None) -> str | Path:
        """Return a path to read an input from; standard input is copied to the work area.

        It can be read only once.
        """
        if name != STANDARD_INPUT or area is None:
            return name
        path = area.path / "standard-input.jsonl"
        with open(path, "wb") as spool:
            shutil.copyfileobj(sys.stdin.buffer, spool)
        return path

    def _write_output(self, output: Path, setup: RunSetup, run: RunIdentity) -> PackReport:
        state = self._pack_all(setup)
        if not state.counts.documents:
            raise InputError(
                explain_empty_run(
                    setup.files, self.options, state.counts, state.empty, state.first_reject
                )
            )
        report = self._report(setup, state)
        if self.options.ipc_format == "stream":
            write_datasets_files(setup.area.path, report.shards, setup.pipeline.shard_metadata)
        setup.area.is_kept = True  # once complete, it may hold the only copy of some files
        publish(output, setup.area.path, run, report)
        setup.area.is_kept = False
        return report

    def _pack_all(self, setup: RunSetup) -> _RunState:
        """Turn the whole input into shards.

        If a fast path fails, the workers end, so that none of them writes another shard, and all
        splits are made again without that fast path.
        """
        formats = FormatNotices(self.options.row_format, self.callbacks.warn)
        while True:
            try:
                with (
                    sync_in_background(self.options.num_workers) as sync,
                    local_runner(setup.pipeline, setup.num_workers) as runner,
                ):
                    self.watch.lap("start")
                    state = self._pack_splits(setup, runner, sync, formats)
                break
            except FastPathFailedError as error:
                if error.fast_path in self.disabled:  # a bug: without this, it would never end
                    raise
                self.callbacks.warn(f"warning: {error}, {REMEDIES[error.fast_path]}")
                for stage, amount in self.progress.items():
                    self.callbacks.progress(stage, -amount)
                self.progress.clear()
                self.disabled.add(error.fast_path)
        formats.report_totals()
        return state

    def _pack_splits(
        self,
        setup: RunSetup,
        runner: LocalRunner,
        sync: Callable[[Path], None],
        formats: FormatNotices,
    ) -> _RunState:
        """Tokenize all splits, and write the shards of each window as soon as it is full."""
        files_with_rows: set[str] = set()
        state = _RunState()
        windows = Windows(self.options, setup.area.path, self.watch)
        ready: deque[ShardTask] = deque()
        disabled = frozenset(self.disabled)
        kind = "-".join(["split", *sorted(disabled)])
        num_splits = max(1.0, setup.input_bytes / reading.SPLIT_BYTES / setup.num_workers)

        def tasks() -> Iterator[SplitTask | ShardTask]:
            for split in self._read_splits(setup):
                files_with_rows.update(piece.file for piece in split.pieces)
                formats.add(split)
                while ready:
                    yield ready.popleft()
                file = setup.area.path / f"{kind}-{split.number:07d}"
                process_rows = int(split.num_rows * num_splits)
                yield SplitTask(split, file, disabled, setup.store, process_rows)

        def add_shard(written: WrittenShard) -> None:
            sync(setup.area.path / written.record.path)
            state.shards.append(written.record)
            windows.remove_unneeded_files(written.number)
            self.watch.add(written.seconds)
            self._report_progress("write", written.record.rows)

        with open(setup.area.path / REJECTS, "w", encoding="utf-8") as rejects:
            for result in runner.run(run_task, tasks()):
                if isinstance(result, WrittenShard):
                    add_shard(result)
                    continue
                self._add_split(result, state)
                write_rejects(rejects, result.rejects)
                ready += windows.add(result)
        ready += windows.close()
        for written in runner.run(run_shard_task, ready):
            add_shard(written)
        state.counts += windows.counts
        for file in setup.files:
            if file.name not in files_with_rows:
                self.callbacks.warn(f"{file.name}: holds no rows")
        return state

    def _read_splits(self, setup: RunSetup) -> Iterator[Split]:
        options = self.options
        return reading.read_splits(
            setup.files, row_format=options.row_format, more_columns=options.message_columns
        )

    def _add_split(self, result: SplitRecord, state: _RunState) -> None:
        """Add the result of a split to `state`; raise InputError for a bad row, unless `skip`."""
        if result.rejects and self.options.on_error == "fail":
            raise make_bad_row_error(str(result.rejects[0]))
        state.counts += result.counts
        state.run_counts += result.run_counts
        state.warnings |= result.warnings
        state.empty += result.empty or EmptySplit()
        state.first_reject = state.first_reject or next(iter(result.rejects), None)
        self.watch.add(result.seconds)
        self._report_progress("tokenize", result.counts.rows_read)

    def _report_progress(self, stage: str, amount: int) -> None:
        self.progress[stage] += amount
        self.callbacks.progress(stage, amount)

    def _report(self, setup: RunSetup, state: _RunState) -> PackReport:
        state.counts.check()
        failed = len(self.disabled)
        run_counts = state.run_counts + RunCounts(audited=failed, audit_mismatches=failed)
        endings = list_ending_warnings(state.counts, setup.pipeline.template_source)
        warnings = sorted(state.warnings | endings)
        for warning in warnings:  # those of arguments came before the first row
            self.callbacks.warn(f"warning: {warning}")
        seconds = {**self.watch.seconds, "total": self.watch.total - self.watch.seconds["start"]}
        about = RunInfo(
            mtpack_version=__version__,
            tokenizer=setup.pipeline.tokenizer.source,
            inputs=[file.name for file in setup.files],
            seconds={stage: round(amount, 3) for stage, amount in seconds.items()},
            warnings=[*self.argument_warnings, *warnings],
            tokenizer_engine=setup.pipeline.without(self.disabled).options.tokenizer_engine,
            token_store_bytes=measure_store(self.options.token_store),
            **asdict(run_counts),
        )
        return PackReport(
            output=self.options.output,
            seq_len=self.options.seq_len,
            tally=state.counts,
            shards=state.shards,
            about=about,
        )


def _describe_run(options: PackOptions, files: list[InputFile], pipeline: Pipeline) -> RunIdentity:
    """Return all that the contents of the output depend on."""
    return RunIdentity(
        options=options.output_options(),
        inputs=[{"bytes": file.num_bytes, "sha256": file.sha256} for file in files],
        tokenizer_sha256=pipeline.tokenizer.sha256,
        template_sha256=pipeline.template.sha256,
    )


def run_task(pipeline: Pipeline, task: SplitTask | ShardTask) -> SplitRecord | WrittenShard:
    """Run one task of either kind and return its result."""
    if isinstance(task, ShardTask):
        return run_shard_task(pipeline, task)
    return run_split_task(pipeline, task)
