"""One run of `pack`, from the inputs to a complete output folder."""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from mtpack.errors import InputError
from mtpack.input.dialogue import Reject
from mtpack.input.files import (
    STANDARD_INPUT,
    InputFile,
    describe_input,
    find_inputs,
    suffix_of,
)
from mtpack.input.reading import SPLIT_BYTES, read_splits
from mtpack.options import PackOptions, options_from
from mtpack.running.format_notices import FormatNotices
from mtpack.running.pipeline import Pipeline, load_pipeline, with_engine
from mtpack.running.runner import LocalRunner, local_runner
from mtpack.running.shard_task import ShardTask, WrittenShard, write_one_shard
from mtpack.running.split_cache import folder_of_run, size_of
from mtpack.running.split_task import (
    FastPathMismatch,
    SplitRecord,
    SplitTask,
    tokenize_split,
)
from mtpack.running.stopwatch import Stopwatch
from mtpack.running.tokenize_split import REPLAY
from mtpack.running.windows import Windows
from mtpack.shards.fsync import syncing
from mtpack.shards.manifest import Manifest, PackReport, RunIdentity, RunInfo, ShardRecord, Tally
from mtpack.shards.output_folder import (
    REJECTS,
    find_complete,
    publish,
    refuse_foreign,
    was_interrupted,
    work_area,
    write_datasets_files,
    write_rejects,
)
from mtpack.tokenizer.engines import FASTOKENS, TOKENIZERS
from mtpack.tokenizer.loading import EMBEDDED
from mtpack.version import __version__


@dataclass(frozen=True, slots=True)
class Callbacks:
    """What a run tells while it goes on."""

    progress: Callable[[str, int], None] = lambda stage, amount: None
    """(stage, how much more of it is done): rows of `tokenize`, sequences of `write`."""
    warn: Callable[[str], None] = lambda text: None
    """One line that the user should see."""


def pack(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    callbacks: Callbacks | None = None,
    **options: Any,
) -> PackReport:
    """Pack dialogues into shards and return the report.

    inputs: files (`.jsonl`, `.json`, `.jsonl.gz`, `.jsonl.zst`, `.parquet`), folders, patterns, or
    `-`. options: those of `PackOptions`, by name. Raises SetupError where the run can't start,
    InputError for a bad row (unless `on_error="skip"`) and where nothing is left to pack.

    Where workers can't be forked (on macOS, in programs that have threads) they are spawned, so a
    script must call it under `if __name__ == "__main__":` unless `workers=1`.
    """
    names = [inputs] if isinstance(inputs, str | os.PathLike) else list(inputs)
    chosen = options_from(options)
    found = find_inputs([os.fspath(name) for name in names], Path(chosen.output))
    return _PackRun(chosen, callbacks or Callbacks()).pack(found)


class _FastPathMismatchError(Exception):
    """A short cut gave a wrong result."""

    def __init__(self, failed: FastPathMismatch, done: Counter[str]) -> None:
        super().__init__(failed.reason)
        self.failed = failed
        self.done = done


# What becomes of the run when a short cut fails, in words that follow the reason.
_REMEDIES = {
    REPLAY: "so all are rendered instead; please report this chat template to mtpack",
    FASTOKENS: "so tokenizers makes all ids instead; please report this tokenizer to mtpack",
}


@dataclass(frozen=True, slots=True)
class _Job:
    """What there is to do, and what it is done with."""

    files: list[InputFile]
    area: Path
    """The work area."""
    pipeline: Pipeline
    store: Path | None
    """Where splits that are tokenized as in this run are kept, if anywhere."""

    @property
    def input_bytes(self) -> int:
        """About how many bytes of text the input holds."""
        return sum(map(_bytes_of_text, self.files))


@dataclass(slots=True)
class _Done:
    """What has become of the input so far; it grows with the number of shards alone."""

    tokenizer_engine: str
    """What made the ids."""
    counts: Counter[str] = field(default_factory=Counter)
    shards: list[ShardRecord] = field(default_factory=list)
    warnings: set[str] = field(default_factory=set)
    first_reject: Reject | None = None
    progress: Counter[str] = field(default_factory=Counter)
    """What the callbacks has been told, by stage."""


@dataclass(slots=True)
class _PackRun:
    """What the steps of a run share."""

    options: PackOptions
    callbacks: Callbacks
    watch: Stopwatch = field(default_factory=Stopwatch)

    def pack(self, names: list[str]) -> PackReport:
        pipeline = load_pipeline(self.options)
        self.watch.lap("start")
        if pipeline.tokenizer.source == EMBEDDED:
            self.callbacks.warn(
                "using the small tokenizer that ships with mtpack; "
                "name your model's with --tokenizer"
            )
        output = Path(self.options.output)
        refuse_foreign(output)
        with ExitStack() as stack:
            area = None
            if STANDARD_INPUT in names:  # it can be read only once, so it is kept for the run
                area = stack.enter_context(self._work_area(output))
            files = [describe_input(name, _spooled(name, area)) for name in names]
            described = _describe_run(self.options, files, pipeline)
            complete = find_complete(
                output,
                described,
                overwrite=self.options.overwrite,
                on_error=self.options.on_error,
            )
            if complete is not None:
                self.callbacks.warn(f"{output}: already complete")
                return complete
            if area is None:
                area = stack.enter_context(self._work_area(output))
            self.watch.lap("read")
            job = self._with_engine(_Job(files, area, pipeline, self._store(pipeline)))
            self.watch.lap("start")
            return self._write_output(output, job, described)

    def _store(self, pipeline: Pipeline) -> Path | None:
        if self.options.token_store is None:
            return None
        return folder_of_run(Path(self.options.token_store), pipeline)

    def _with_engine(self, job: _Job) -> _Job:
        # Where splits are stored already, they most likely are those of this run.
        is_stored = job.store is not None and job.store.exists()
        own_texts = None if is_stored else _first_rows(job.files)
        pipeline, refused = with_engine(job.pipeline, job.input_bytes, own_texts)
        if refused is not None:
            self.callbacks.warn(refused)
        return replace(job, pipeline=pipeline)

    @contextmanager
    def _work_area(self, output: Path) -> Iterator[Path]:
        if was_interrupted(output):
            self.callbacks.warn(f"{output}: an earlier run did not complete; starting over")
        with work_area(output) as area:
            yield area

    def _write_output(self, output: Path, job: _Job, run: RunIdentity) -> PackReport:
        done = self._pack_all(job)
        if not done.counts["documents"]:
            raise InputError(_nothing_to_pack(job.files, done.first_reject, Tally.of(done.counts)))
        report = self._report(job, done)
        if self.options.ipc_format == "stream":
            write_datasets_files(job.area, report.shards, job.pipeline.shard_metadata)
        publish(output, job.area, Manifest(run, report))
        return report

    def _pack_all(self, job: _Job) -> _Done:
        """Turn the whole input into shards.

        Should a short cut turn out to be wrong, nothing that it did is kept, and its workers end,
        so that none of them writes another shard.
        """
        formats = FormatNotices(self.options.format, self.callbacks.warn)
        disabled: dict[str, Counter[str]] = {}  # and what their audits counted
        while True:
            try:
                with (
                    syncing(self.options.num_workers) as sync,
                    local_runner(job.pipeline) as runner,
                ):
                    if job.input_bytes > SPLIT_BYTES * self.options.num_workers:
                        runner.start()
                        self.watch.lap("start")
                    done = self._pack_splits(job, runner, sync, formats, frozenset(disabled))
                break
            except _FastPathMismatchError as error:
                failed = error.failed
                self.callbacks.warn(f"warning: {failed.reason}, {_REMEDIES[failed.fast_path]}")
                for stage, amount in error.done.items():
                    self.callbacks.progress(stage, -amount)
                disabled[failed.fast_path] = failed.counts
        if FASTOKENS in disabled:
            done.tokenizer_engine = TOKENIZERS
        for counts in disabled.values():
            for name in ("audited", "audit_mismatches"):
                done.counts[name] += counts[name]
        formats.sum_up()
        return done

    def _pack_splits(
        self,
        job: _Job,
        runner: LocalRunner,
        sync: Callable[[Path], None],
        formats: FormatNotices,
        disabled: frozenset[str],
    ) -> _Done:
        """Tokenize split by split, and write the shards of every window as soon as it is full."""
        files_with_rows: set[str] = set()
        done = _Done(job.pipeline.options.tokenizer_engine)
        windows = Windows(self.options, job.area, self.watch)
        ready: deque[ShardTask] = deque()
        kind = "-".join(["split", *sorted(disabled)])

        def tasks() -> Iterator[SplitTask | ShardTask]:
            for split in read_splits(job.files, row_format=self.options.format):
                files_with_rows.update(piece.file for piece in split.pieces)
                formats.note(split)
                while ready:
                    yield ready.popleft()
                file = job.area / f"{kind}-{split.number:07d}"
                yield SplitTask(split, file, disabled, job.store)

        def take_shard(written: WrittenShard) -> None:
            sync(job.area / written.record.path)
            done.shards.append(written.record)
            windows.forget(written.number)
            self.watch.add(written.seconds)
            self._report_progress(done, "write", written.record.rows)

        with open(job.area / REJECTS, "w", encoding="utf-8") as rejects:
            for result in runner.run(run_unit, tasks()):
                if isinstance(result, WrittenShard):
                    take_shard(result)
                    continue
                record = self._take_split(result, done)
                write_rejects(rejects, record.rejects)
                ready += windows.add(record)
        ready += windows.close()
        for written in runner.run(write_one_shard, ready):
            take_shard(written)
        done.counts.update(windows.counts)
        for file in job.files:
            if file.name not in files_with_rows:
                self.callbacks.warn(f"{file.name}: holds no rows")
        return done

    def _take_split(self, result: SplitRecord | FastPathMismatch, done: _Done) -> SplitRecord:
        """Count what became of a split; stop at the first bad row if told so."""
        if isinstance(result, FastPathMismatch):
            raise _FastPathMismatchError(result, done.progress)
        if result.rejects and self.options.on_error == "fail":
            raise InputError(
                f"{result.rejects[0]}\n"
                "repair or remove the row, or go on without such rows: --on-error skip"
            )
        done.counts.update(result.counts)
        done.warnings |= result.warnings
        done.first_reject = done.first_reject or next(iter(result.rejects), None)
        self.watch.add(result.seconds)
        self._report_progress(done, "tokenize", result.counts["rows_read"])
        return result

    def _report_progress(self, done: _Done, stage: str, amount: int) -> None:
        done.progress[stage] += amount
        self.callbacks.progress(stage, amount)

    def _report(self, job: _Job, done: _Done) -> PackReport:
        counts = done.counts
        tally = Tally.of(counts)
        tally.check()
        warnings = sorted(done.warnings)
        for warning in warnings:
            self.callbacks.warn(f"warning: {warning}")
        seconds = {**self.watch.seconds, "total": self.watch.total - self.watch.seconds["start"]}
        about = RunInfo(
            mtpack_version=__version__,
            tokenizer=job.pipeline.tokenizer.source,
            inputs=[file.name for file in job.files],
            seconds={stage: round(amount, 3) for stage, amount in seconds.items()},
            warnings=warnings,
            tokenizer_engine=done.tokenizer_engine,
            rendered=counts["rendered"],
            replayed=counts["replayed"],
            reused=counts["reused"],
            token_store_bytes=size_of(self.options.token_store),
            audited=counts["audited"],
            audit_mismatches=counts["audit_mismatches"],
        )
        return PackReport(
            output=self.options.output,
            seq_len=self.options.seq_len,
            tally=tally,
            shards=done.shards,
            about=about,
        )


def _bytes_of_text(file: InputFile) -> int:
    """Return about how many bytes of text a file holds."""
    is_packed = file.name.endswith((".gz", ".zst", ".parquet"))
    return file.num_bytes * (4 if is_packed else 1)


def _first_rows(files: list[InputFile]) -> Iterator[str]:
    """Yield the first rows of the first file of lines, as they stand there."""
    of_lines = (file for file in files if (suffix_of(file.name) or ".jsonl").startswith(".jsonl"))
    for split in islice(read_splits(islice(of_lines, 1)), 1):
        for row in split.rows():
            yield (row.text or b"").decode(errors="replace")


def _spooled(name: str, area: Path | None) -> str | Path:
    """Return where an input can be read; what comes from standard input is put into a file."""
    if name != STANDARD_INPUT or area is None:
        return name
    path = area / "standard-input.jsonl"
    with open(path, "xb") as spool:
        shutil.copyfileobj(sys.stdin.buffer, spool)
    return path


def _describe_run(options: PackOptions, files: list[InputFile], pipeline: Pipeline) -> RunIdentity:
    return RunIdentity(
        options=options.output_options(),
        inputs=[{"bytes": file.num_bytes, "sha256": file.sha256} for file in files],
        tokenizer_sha256=pipeline.tokenizer.sha256,
        template_sha256=pipeline.template.sha256,
    )


def run_unit(
    pipeline: Pipeline, task: SplitTask | ShardTask
) -> SplitRecord | FastPathMismatch | WrittenShard:
    """Run one unit of work of either kind."""
    if isinstance(task, ShardTask):
        return write_one_shard(pipeline, task)
    return tokenize_split(pipeline, task)


def _nothing_to_pack(files: list[InputFile], first_reject: Reject | None, tally: Tally) -> str:
    names = ", ".join(file.name for file in files[:3]) + (", ..." if len(files) > 3 else "")
    if not tally.rows_read:
        return f"{names}: no rows, so nothing to pack"
    reasons = {**tally.rows_rejected, **tally.rows_dropped}
    told = ", ".join(f"{reason} {count:,}" for reason, count in reasons.items())
    first = f"\n{first_reject}" if first_reject else ""
    none = f"none of {tally.rows_read:,} rows has a turn left"
    return f"{names}: nothing to pack; {none} ({told}){first}"
