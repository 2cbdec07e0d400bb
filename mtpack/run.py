"""One run of `pack`, from the inputs to a complete output folder."""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mtpack import __version__
from mtpack.errors import InputError
from mtpack.manifest import About, Manifest, PackReport, Run, ShardRecord, Tally
from mtpack.options import PackOptions, options_from
from mtpack.output import (
    find_complete,
    put_in_place,
    refuse_foreign,
    was_interrupted,
    work_area,
    write_datasets_files,
    write_rejects,
)
from mtpack.pipeline import Pipeline, load_pipeline
from mtpack.planning import Plan, plan_sequences
from mtpack.reading import (
    AUTO,
    STANDARD_INPUT,
    InputFile,
    Split,
    describe_input,
    find_inputs,
    read_splits,
)
from mtpack.runners.local import LocalRunner, local_runner
from mtpack.shard import rows_per_shard
from mtpack.stopwatch import Stopwatch
from mtpack.tokenizer.loading import EMBEDDED
from mtpack.tokenizing import FASTOKENS, REPLAY
from mtpack.turns import Int64, offsets_of
from mtpack.work import (
    ShardTask,
    ShortCutFailed,
    SplitRecord,
    SplitTask,
    places_taken,
    tokenize_split,
    write_one_shard,
)


@dataclass(frozen=True, slots=True)
class Listener:
    """What a run tells while it goes on."""

    progress: Callable[[str, int], None] = lambda stage, amount: None
    """(stage, how much more of it is done): rows of `tokenize`, sequences of `write`."""
    remark: Callable[[str], None] = lambda text: None
    """One line that the user should see."""


def pack(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    listener: Listener | None = None,
    **options: Any,
) -> PackReport:
    """Pack dialogues into shards and return the report.

    inputs: files (`.jsonl`, `.json`, `.jsonl.gz`, `.jsonl.zst`, `.parquet`), folders, patterns, or
    `-`. options: those of `PackOptions`, by name. Raises SetupError where the run can't start,
    InputError for a bad row (unless `on_error="skip"`) and where nothing is left to pack.

    Worker processes are spawned where they can't be forked (on macOS, and in a program that has other
    threads), so a script must call it under `if __name__ == "__main__":` unless `workers=1`.
    """
    names = [inputs] if isinstance(inputs, str | os.PathLike) else list(inputs)
    chosen = options_from(options)
    found = find_inputs([os.fspath(name) for name in names], Path(chosen.output))
    return _Run(chosen, listener or Listener()).pack(found)


class _ShortCutFailedError(Exception):
    """A short cut gave a wrong result."""

    def __init__(self, failed: ShortCutFailed, rows_done: int) -> None:
        super().__init__(failed.reason)
        self.failed = failed
        self.rows_done = rows_done


# What becomes of the run when a short cut fails, in words that follow the reason.
_REMEDIES = {
    REPLAY: "so all are rendered instead; please report this chat template to mtpack",
    FASTOKENS: "so tokenizers makes all ids instead; please report this tokenizer to mtpack",
}


@dataclass(slots=True)
class _Run:
    """What the steps of a run share."""

    options: PackOptions
    listener: Listener
    watch: Stopwatch = field(default_factory=Stopwatch)

    def pack(self, names: list[str]) -> PackReport:
        pipeline = load_pipeline(self.options)
        if pipeline.tokenizer.source == EMBEDDED:
            self.listener.remark(
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
                self.listener.remark(f"{output}: already complete")
                return complete
            if area is None:
                area = stack.enter_context(self._work_area(output))
            return self._write_output(output, area, files, described, pipeline)

    @contextmanager
    def _work_area(self, output: Path) -> Iterator[Path]:
        if was_interrupted(output):
            self.listener.remark(f"{output}: an earlier run did not complete; starting over")
        with work_area(output) as area:
            yield area

    def _write_output(
        self, output: Path, area: Path, files: list[InputFile], run: Run, pipeline: Pipeline
    ) -> PackReport:
        with local_runner(pipeline) as runner:
            records = self._tokenize(files, area, runner)
            counts = sum((record.counts for record in records), Counter[str]())
            if not counts["documents"]:
                raise InputError(_nothing_to_pack(files, records, Tally.of(counts)))
            shards = self._write_shards(records, counts, area, runner)
        report = self._report(pipeline, files, records, counts, shards)
        write_rejects(area, (reject for record in records for reject in record.rejects))
        if self.options.ipc_format == "stream":
            write_datasets_files(area, shards, pipeline.shard_metadata)
        put_in_place(output, area, Manifest(run, report))
        return report

    def _tokenize(
        self, files: list[InputFile], area: Path, runner: LocalRunner
    ) -> list[SplitRecord]:
        """Read, render and tokenize the whole input.

        Should a short cut turn out to be wrong, nothing that it did is kept.
        """
        formats = _Formats(self.options.format, self.listener.remark)
        distrusted: dict[str, Counter[str]] = {}  # and what their audits counted
        while True:
            try:
                trusting = frozenset(distrusted)
                records = self._tokenize_splits(files, area, runner, formats, trusting)
                break
            except _ShortCutFailedError as error:
                failed = error.failed
                self.listener.remark(f"warning: {failed.reason}, {_REMEDIES[failed.short_cut]}")
                self.listener.progress("tokenize", -error.rows_done)
                distrusted[failed.short_cut] = failed.counts
        for counts in distrusted.values():
            for name in ("audited", "audit_mismatches"):
                records[0].counts[name] += counts[name]
        formats.sum_up()
        return records

    def _tokenize_splits(
        self,
        files: list[InputFile],
        area: Path,
        runner: LocalRunner,
        formats: _Formats,
        distrusted: frozenset[str],
    ) -> list[SplitRecord]:
        """Tokenize split by split; stop at the first bad row if told so."""
        rows_by_file: Counter[str] = Counter()
        kind = "-".join(["split", *sorted(distrusted)])

        def tasks() -> Iterator[SplitTask]:
            for split in read_splits(files, row_format=self.options.format):
                rows_by_file.update(row.file for row in split.rows)
                formats.note(split)
                yield SplitTask(split, area / f"{kind}-{split.number:07d}.arrow", distrusted)

        records: list[SplitRecord] = []
        for record in runner.run(tokenize_split, tasks()):
            if isinstance(record, ShortCutFailed):
                rows_done = sum(done.counts["rows_read"] for done in records)
                raise _ShortCutFailedError(record, rows_done)
            if record.rejects and self.options.on_error == "fail":
                raise InputError(
                    f"{record.rejects[0]}\n"
                    "repair or remove the row, or go on without such rows: --on-error skip"
                )
            records.append(record)
            self.watch.add(record.seconds)
            self.listener.progress("tokenize", record.counts["rows_read"])
        for file in files:
            if not rows_by_file[file.name]:
                self.listener.remark(f"{file.name}: holds no rows")
        return records

    def _write_shards(
        self, records: list[SplitRecord], counts: Counter[str], area: Path, runner: LocalRunner
    ) -> list[ShardRecord]:
        """Plan window by window and write the shards; count sequences and their lower bound."""

        def tasks() -> Iterator[ShardTask]:
            number = 0
            for window, splits in enumerate(_windows(records, self.options.window_tokens)):
                self.watch.restart()
                lengths = np.concatenate([places_taken(split, self.options) for split in splits])
                seed = (self.options.seed, window)
                plan = plan_sequences(lengths, self.options.seq_len, self.options.packing, seed)
                self.watch.lap("plan")
                counts["sequences"] += plan.num_sequences
                counts["sequences_lower_bound"] += plan.lower_bound
                for task in self._cut_into_shards(splits, plan, area, number):
                    yield task
                    number += 1

        shards = []
        for written in runner.run(write_one_shard, tasks()):
            shards.append(written.record)
            self.watch.add(written.seconds)
            self.listener.progress("write", written.record.rows)
        return shards

    def _cut_into_shards(
        self, splits: list[SplitRecord], plan: Plan, area: Path, number: int
    ) -> Iterator[ShardTask]:
        split_offsets = offsets_of(np.array([len(split.document_lengths) for split in splits]))
        step = rows_per_shard(self.options.seq_len, self.options.shard_bytes)
        for first in range(0, plan.num_sequences, step):
            offsets = plan.sequence_offsets[first : first + step + 1]
            documents = plan.documents[offsets[0] : offsets[-1]]
            # Each split gives its documents in the order in which they stand in its file.
            by_place = np.argsort(documents)
            order = np.empty_like(by_place)
            order[by_place] = np.arange(len(by_place))
            pieces = _by_split(splits, split_offsets, documents[by_place])
            yield ShardTask(number, area, pieces, order, offsets - offsets[0])
            number += 1

    def _report(
        self,
        pipeline: Pipeline,
        files: list[InputFile],
        records: list[SplitRecord],
        counts: Counter[str],
        shards: list[ShardRecord],
    ) -> PackReport:
        tally = Tally.of(counts)
        tally.check()
        warnings = sorted(frozenset[str]().union(*(record.warnings for record in records)))
        for warning in warnings:
            self.listener.remark(f"warning: {warning}")
        seconds = {**self.watch.seconds, "total": self.watch.total}
        about = About(
            mtpack_version=__version__,
            tokenizer=pipeline.tokenizer.source,
            inputs=[file.name for file in files],
            seconds={stage: round(amount, 3) for stage, amount in seconds.items()},
            warnings=warnings,
            rendered=counts["rendered"],
            replayed=counts["replayed"],
            audited=counts["audited"],
            audit_mismatches=counts["audit_mismatches"],
        )
        return PackReport(
            output=self.options.output,
            seq_len=self.options.seq_len,
            tally=tally,
            shards=shards,
            about=about,
        )


@dataclass(slots=True)
class _Formats:
    """Says which format files were told to be in: the first file of each format, then how many."""

    chosen: str
    remark: Callable[[str], None]
    by_file: dict[str, str] = field(default_factory=dict)

    def note(self, split: Split) -> None:
        """Look at the rows that are about to be packed."""
        for row in split.rows:
            if row.format is None or row.file in self.by_file:
                continue
            if self._is_worth_saying(row.format) and row.format not in self.by_file.values():
                self.remark(f"{row.file}: read as {row.format} (choose otherwise with --format)")
            self.by_file[row.file] = row.format

    def sum_up(self) -> None:
        """Count the files that were told to be in a format after the first of them was named."""
        for row_format, count in Counter(self.by_file.values()).items():
            if self._is_worth_saying(row_format) and count > 1:
                self.remark(f"{count:,} files read as {row_format}")

    def _is_worth_saying(self, row_format: str) -> bool:
        return self.chosen == AUTO and row_format != "messages"


def _spooled(name: str, area: Path | None) -> Path:
    """Return where an input can be read; what comes from standard input is put into a file."""
    if name != STANDARD_INPUT or area is None:
        return Path(name)
    path = area / "standard-input.jsonl"
    with open(path, "xb") as spool:
        shutil.copyfileobj(sys.stdin.buffer, spool)
    return path


def _describe_run(options: PackOptions, files: list[InputFile], pipeline: Pipeline) -> Run:
    return Run(
        options=options.that_change_output(),
        inputs=[{"bytes": file.num_bytes, "sha256": file.sha256} for file in files],
        tokenizer_sha256=pipeline.tokenizer.sha256,
        template_sha256=pipeline.template.sha256,
    )


def _windows(records: list[SplitRecord], window_tokens: int) -> Iterator[list[SplitRecord]]:
    """Group consecutive splits into windows of at most that many tokens, one split at least."""
    window: list[SplitRecord] = []
    tokens = 0
    for record in records:
        if window and tokens + record.counts["tokens"] > window_tokens:
            yield window
            window, tokens = [], 0
        window.append(record)
        tokens += record.counts["tokens"]
    if window:
        yield window


def _by_split(
    splits: list[SplitRecord], split_offsets: Int64, documents: Int64
) -> list[tuple[Path, Int64]]:
    """Tell for ascending documents of a window which documents of which split they are."""
    cuts = np.searchsorted(documents, split_offsets)
    return [
        (split.file, documents[start:end] - offset)
        for split, start, end, offset in zip(
            splits, cuts[:-1], cuts[1:], split_offsets[:-1], strict=True
        )
        if start < end
    ]


def _nothing_to_pack(files: list[InputFile], records: list[SplitRecord], tally: Tally) -> str:
    names = ", ".join(file.name for file in files[:3]) + (", ..." if len(files) > 3 else "")
    if not tally.rows_read:
        return f"{names}: no rows, so nothing to pack"
    reasons = {**tally.rows_rejected, **tally.rows_dropped}
    told = ", ".join(f"{reason} {count:,}" for reason, count in reasons.items())
    first = next((f"\n{record.rejects[0]}" for record in records if record.rejects), "")
    none = f"none of {tally.rows_read:,} rows has a turn left"
    return f"{names}: nothing to pack; {none} ({told}){first}"
