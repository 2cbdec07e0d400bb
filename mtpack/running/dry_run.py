"""Try a run on a sample of its input: what would be trained, and what it would take.

In: the inputs and options of a run. Out: a `DryRunReport`. Nothing is written. As in a run, rows
are rendered and tokenized in worker processes, because a template may hang.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from mtpack.counts import Counts
from mtpack.fast_path import REMEDIES, FastPathFailedError
from mtpack.input.dialogue import Origin, Reject
from mtpack.input.files import InputFile, describe_input
from mtpack.input.reading import SPLIT_BYTES
from mtpack.options import PackOptions
from mtpack.packing.columns import pad_lengths
from mtpack.packing.plan import plan_sequences
from mtpack.recipe.load import Config
from mtpack.running.callbacks import Callbacks
from mtpack.running.format_notices import FormatNotices
from mtpack.running.pack import prepare_output
from mtpack.running.pipeline import Pipeline, choose_engine, load_pipeline
from mtpack.running.run_inputs import InputName, Inputs, find_files, load_run
from mtpack.running.run_setup import estimate_text_bytes
from mtpack.running.runner import local_runner
from mtpack.running.sample import (
    WHOLE_BYTES,
    SampleSplit,
    draw_sample,
    limit_files,
    name_stratum,
    read_standard_input,
    read_whole,
)
from mtpack.running.sample_task import (
    SampleDocuments,
    SampleRecord,
    SampleTask,
    Trouble,
    run_sample_task,
)
from mtpack.running.table_process import table_process
from mtpack.shards.arrow import BYTES_PER_TOKEN
from mtpack.storage.urls import STANDARD_INPUT
from mtpack.token_batch import Int64
from mtpack.tokenizer.loading import LoadedTokenizer

_SHOWN = 2  # dialogues
_SECONDS = 5.0  # after that, no more of the sample is read
_DOCUMENTS_TO_PLAN = 20_000
# To assemble, hash and write a token on one core; a disk may be slower.
_SECONDS_PER_TOKEN = 4e-8


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEstimate:
    """What the whole run would do, as far as the sample shows. Without a sample, it is exact."""

    rows: int
    documents: int
    turns: int
    tokens: int
    loss_tokens: int
    sequences: int
    output_bytes: int
    """Of the shards, before compression."""
    seconds: float
    """On this machine with `workers`, without loading and without waiting for a disk. Too much
    where the sample is small, since the first rows that a process renders are slow."""
    workers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRunReport:
    """The result of a dry run."""

    seq_len: int
    tokenizer: LoadedTokenizer
    inputs: list[str]
    input_bytes: int | None
    """The size of all files, as they are stored; None if it is not known."""
    bytes_read: int
    """Those of the sample."""
    is_whole: bool
    """Whether the whole input was read."""
    starts: list[str]
    """Files of which only the first rows were read, because they can't be sought."""
    counts: Counts
    """Those of the sample; its sequences are those of a run on the sample alone."""
    shown: SampleDocuments | None
    """Documents of the first rows; None if there are none."""
    examples: dict[Trouble, Origin]
    """The first row in the sample for each of `counts.list_troubles()`."""
    rejects: dict[str, Reject]
    """The first rejected row in the sample for each reason."""
    warnings: list[str]
    estimate: RunEstimate | None
    """None if nothing in the sample is packed, or the size of the input is not known."""
    compression: str
    stops_at_bad_row: bool
    """Whether a run ends at a rejected row."""

    def as_dict(self) -> dict[str, Any]:
        """Return the object that `pack --dry-run --json` prints."""
        return {
            "inputs": self.inputs,
            "input_bytes": self.input_bytes,
            "bytes_read": self.bytes_read,
            "is_whole": self.is_whole,
            "first_rows_only": self.starts,
            "sample": asdict(self.counts),
            "examples": [
                {"count": name, "reason": reason, "file": origin.file, "row": str(origin)}
                for (name, reason), origin in self.examples.items()
            ],
            "rejects": {reason: str(reject) for reason, reject in self.rejects.items()},
            "warnings": self.warnings,
            "estimate": None if self.estimate is None else asdict(self.estimate),
        }


def dry_run(
    inputs: Inputs = (),
    *,
    config: Config | None = None,
    callbacks: Callbacks | None = None,
    **options: Any,
) -> DryRunReport:
    """Try a run on a sample and return the report; the arguments are those of `pack`.

    A small input is read as a whole. Nothing is written. Raises SetupError if the run could not
    start, and InputError if a file can't be read; bad rows are part of the report.
    """
    recipe = load_run(inputs, config, options)
    found = find_files(recipe)
    callbacks = callbacks or Callbacks()
    pipeline = load_pipeline(recipe.options, recipe.sources)
    _, warnings = prepare_output(pipeline, callbacks.warn)
    return _DryRun(pipeline, found, callbacks, warnings).run()


@dataclass(slots=True)
class _DryRun:
    """One dry run."""

    pipeline: Pipeline
    found: list[InputName]
    callbacks: Callbacks
    warnings: list[str]
    disabled: frozenset[str] = frozenset()
    """The fast paths that failed."""
    samples: list[SampleSplit] = field(default_factory=list)
    is_whole: bool = True
    process_bytes: float = 0.0
    """As in `SplitContext`."""

    def run(self) -> DryRunReport:
        options = self.pipeline.options
        files = self._read_sample()
        text_bytes = sum(map(estimate_text_bytes, files))
        self.process_bytes = text_bytes / options.num_workers
        texts = _list_texts(self.samples[0]) if self.samples else []
        self.pipeline, refused = choose_engine(self.pipeline, text_bytes, texts)
        if refused is not None:
            self.callbacks.warn(refused)
        while True:
            try:
                records, examples = self._tokenize()
                break
            except FastPathFailedError as error:
                if error.fast_path in self.disabled:  # a bug: without this, it would never end
                    raise
                self.callbacks.warn(f"warning: {error}, {REMEDIES[error.fast_path]}")
                self.disabled |= {error.fast_path}
        formats = FormatNotices(self.callbacks.warn)
        for sample, record in zip(self.samples, records, strict=False):
            formats.add(record.formats, self.pipeline.sources[sample.split.source].row_format)
        return self._report(files, records, examples)

    def _read_sample(self) -> list[InputFile]:
        """Read the whole input if it is small, otherwise a sample.

        Returns the files, with the sizes of what a run reads of them.
        """
        options = self.pipeline.read_options
        found = [each for each in self.found if each.name != STANDARD_INPUT]
        all_files = [describe_input(name, name, source) for name, source in found]
        for name, source in self.found:
            if name == STANDARD_INPUT:
                sample, self.is_whole = read_standard_input(options[source], source=source)
                self.samples.append(sample)
        with table_process(all_files) as call_table:
            files = limit_files(all_files, options, call_table)
            if sum(map(estimate_text_bytes, files)) <= WHOLE_BYTES:
                self.samples += read_whole(all_files, options, call_table)
                return files
            self.is_whole = False
            end = time.monotonic() + _SECONDS
            seed = self.pipeline.options.seed
            for sample in draw_sample(files, options, call_table, seed):
                self.samples.append(sample)
                if time.monotonic() > end:
                    break
        return files

    def _tokenize(self) -> tuple[list[SampleRecord], dict[Trouble, Origin]]:
        """Tokenize the sample, as far as the time allows, and find examples of its troubles."""
        num_workers = max(1, min(self.pipeline.options.num_workers, len(self.samples)))
        with ExitStack() as stack:
            runner = stack.enter_context(local_runner(self.pipeline, num_workers))
            records = [*runner.run(run_sample_task, self._list_tasks())]
            tasks = self._list_searches(records)
            found = [*runner.run(run_sample_task, tasks)]
        examples: dict[Trouble, Origin] = {}
        for record in found:
            examples |= record.examples
        return records, examples

    def _list_tasks(self) -> Iterator[SampleTask]:
        end = time.monotonic() + _SECONDS
        for number, sample in enumerate(self.samples):
            if number and time.monotonic() > end:
                self.is_whole = False
                return
            yield SampleTask(sample.split, self.disabled, self.process_bytes, shown=_SHOWN)

    def _list_searches(self, records: list[SampleRecord]) -> Iterator[SampleTask]:
        """Yield a task for each split that has the first row of some troubles."""
        known: set[Trouble] = set()
        for sample, record in zip(self.samples, records, strict=False):
            troubles = [
                trouble
                for trouble in record.counts.list_troubles()
                if trouble not in known and trouble[0] != "rows_rejected"
            ]
            known.update(troubles)
            if troubles:
                wanted = tuple(troubles)
                yield SampleTask(
                    sample.split, self.disabled, self.process_bytes, examples_of=wanted
                )

    def _report(
        self, files: list[InputFile], records: list[SampleRecord], examples: dict[Trouble, Origin]
    ) -> DryRunReport:
        samples, options = self.samples[: len(records)], self.pipeline.options
        counts = sum((record.counts for record in records), Counts())
        rejects: dict[str, Reject] = {}
        for record in records:
            for reject in record.rejects:
                rejects.setdefault(str(reject.reason), reject)
        lengths = np.concatenate([np.empty(0, np.int64), *(record.lengths for record in records)])
        names = [name for name, _ in self.found]
        sizes = {} if STANDARD_INPUT in names and not self.is_whole else _sum_sizes(files)
        bytes_read = sum(sample.split.input_bytes for sample in samples)
        input_bytes = bytes_read if self.is_whole else sizes.get("")
        estimate = None
        text_bytes = sum(map(estimate_text_bytes, files))
        if len(lengths) and input_bytes is not None:
            scales = _find_scales(samples, sizes, is_whole=self.is_whole)
            estimate = _estimate(options, records, scales, lengths, text_bytes)
        shown = next((each.shown for each in records if each.shown and each.shown.origins), None)
        warnings = sorted(frozenset().union(*(record.warnings for record in records)))
        return DryRunReport(
            seq_len=options.seq_len,
            tokenizer=self.pipeline.tokenizer,
            inputs=names,
            input_bytes=input_bytes,
            bytes_read=bytes_read,
            is_whole=self.is_whole,
            starts=[*dict.fromkeys(each.split.first_file for each in samples if each.is_start)],
            counts=counts + _plan(options, lengths),
            shown=shown,
            examples=examples,
            rejects=rejects,
            warnings=[*self.warnings, *warnings],
            estimate=estimate,
            compression=options.compression,
            stops_at_bad_row=options.on_error == "fail",
        )


def _list_texts(sample: SampleSplit) -> list[str]:
    return [(row.text or b"").decode(errors="replace") for row in sample.split.rows()]


def _plan(options: PackOptions, lengths: Int64) -> Counts:
    """Return the sequences that a run on these documents alone needs."""
    if not len(lengths):
        return Counts()
    padded = pad_lengths(lengths, options.pad_documents_to)
    plan = plan_sequences(padded, options.seq_len, options.packing, (options.seed, 0))
    return Counts(sequences=plan.num_sequences, sequences_lower_bound=plan.lower_bound)


def _sum_sizes(files: list[InputFile]) -> dict[str, int]:
    """Return the number of bytes of all files by `SampleSplit.stratum`."""
    sizes = {"": sum(file.num_bytes for file in files)}
    for file in files:
        stratum = name_stratum(file)
        sizes[stratum] = sizes.get(stratum, 0) + file.num_bytes
    return sizes


def _find_scales(
    samples: list[SampleSplit], sizes: dict[str, int], *, is_whole: bool
) -> list[float]:
    """Return how many rows of the input each row of a split of the sample stands for."""
    if is_whole:
        return [1.0] * len(samples)
    read: dict[str, int] = {}
    for sample in samples:
        read[sample.stratum] = read.get(sample.stratum, 0) + sample.split.input_bytes
    return [
        max(1.0, sizes.get(sample.stratum, 0) / max(1, read[sample.stratum])) for sample in samples
    ]


def _estimate(
    options: PackOptions,
    records: list[SampleRecord],
    scales: list[float],
    lengths: Int64,
    text_bytes: int,
) -> RunEstimate:
    """Return what the whole run would do; text_bytes: the estimated size of its text."""

    def add_up(amounts: list[float]) -> float:
        return sum(scale * amount for scale, amount in zip(scales, amounts, strict=True))

    def count(name: str) -> int:
        return round(add_up([getattr(record.counts, name) for record in records]))

    documents, tokens = count("documents"), count("tokens")
    repeats = min(documents, _DOCUMENTS_TO_PLAN) // len(lengths)
    planned = np.tile(lengths, max(1, repeats))  # a longer input fills its sequences better
    sequences = _plan(options, planned).sequences * documents / len(planned)
    workers = min(options.num_workers, 1 + int(text_bytes) // SPLIT_BYTES)
    seconds = [sum(record.seconds.values()) for record in records]
    rates = [
        each / record.counts.tokens
        for each, record in zip(seconds, records, strict=True)
        if record.counts.tokens
    ]
    rate = sorted(rates)[len(rates) // 4]  # the first ones are slow: the template is recorded then
    unseen_tokens = tokens - sum(record.counts.tokens for record in records)
    all_seconds = sum(seconds) + rate * unseen_tokens + tokens * _SECONDS_PER_TOKEN
    return RunEstimate(
        rows=count("rows_read"),
        documents=documents,
        turns=count("turns_packed"),
        tokens=tokens,
        loss_tokens=count("loss_tokens"),
        sequences=round(sequences),
        output_bytes=round(sequences) * options.seq_len * BYTES_PER_TOKEN,
        seconds=round(all_seconds / workers, 1),
        workers=workers,
    )
