"""The tasks of a dry run: what becomes of some rows, and which row is an example of a trouble."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from mtpack.counts import Counts
from mtpack.input.dialogue import Origin, Reject
from mtpack.input.splits import Split
from mtpack.running.pipeline import Pipeline, check_template
from mtpack.running.sample import split_rows
from mtpack.running.split_task import FittedSplit, estimate_rows, fit_documents
from mtpack.running.stopwatch import Stopwatch
from mtpack.running.tokenize_split import tokenize
from mtpack.token_batch import Int64, TokenBatch

Trouble = tuple[str, str]
"""The name of a field of `Counts` and a reason, as in `Counts.list_troubles`."""


@dataclass(frozen=True, slots=True)
class SampleTask:
    """The task of tokenizing a split of the sample, or of finding rows in it."""

    split: Split
    disabled: frozenset[str] = frozenset()
    """Fast paths that may not be used."""
    process_bytes: float = 0.0
    """As in `SplitContext`: that of the whole run, so that templates are recorded as in one."""
    shown: int = 0
    """Of how many rows to return a document."""
    examples_of: tuple[Trouble, ...] = ()
    """Only find a row for each of these."""

    def __str__(self) -> str:
        return str(self.split)


@dataclass(frozen=True, slots=True)
class SampleDocuments:
    """Documents of the sample that are shown."""

    batch: TokenBatch
    origins: tuple[Origin, ...]
    """(documents,): where the row of each is."""


@dataclass(frozen=True, slots=True)
class SampleRecord:
    """The result of a `SampleTask`."""

    counts: Counts
    lengths: Int64
    """(documents,): the number of tokens of each."""
    rejects: list[Reject]
    warnings: frozenset[str]
    formats: list[tuple[str, str]]
    seconds: Mapping[str, float]
    shown: SampleDocuments | None = None
    examples: dict[Trouble, Origin] = field(default_factory=dict)


def run_sample_task(pipeline: Pipeline, task: SampleTask) -> SampleRecord:
    """Run one `SampleTask` and return its result; raise FastPathFailedError."""
    watch = Stopwatch()
    pipeline = pipeline.without(task.disabled)
    split = task.split.read()
    watch.lap("read")
    check_template(pipeline)
    watch.restart()
    if task.examples_of:
        examples = _find_examples(pipeline, split, task)
        return SampleRecord(
            Counts(), np.empty(0, np.int64), [], frozenset(), [], watch.seconds, examples=examples
        )
    fitted = _fit(pipeline, split, task.process_bytes)
    watch.lap("tokenize")
    batch = fitted.batch
    return SampleRecord(
        counts=fitted.count(),
        lengths=batch.document_lengths,
        rejects=fitted.tokenized.rejects,
        warnings=fitted.tokenized.warnings,
        formats=split.formats,
        seconds=watch.seconds,
        shown=_take_documents(split, batch, task.shown) if task.shown else None,
    )


def _fit(pipeline: Pipeline, split: Split, process_bytes: float) -> FittedSplit:
    digest = split.digest()
    pipeline.begin_split(digest.sha256, estimate_rows(digest, process_bytes))
    watch = Stopwatch()
    return fit_documents(pipeline, split, tokenize(pipeline, split, watch), watch)


def _take_documents(split: Split, batch: TokenBatch, most: int) -> SampleDocuments:
    """Return the first document of each of the first rows that have one."""
    origins = [Origin(row.file, row.line, row.after_byte) for row in split.rows()]
    rows, firsts = np.unique(batch.document_rows, return_index=True)
    return SampleDocuments(
        batch.take(firsts[:most]), tuple(origins[row] for row in rows[:most].tolist())
    )


def _find_examples(pipeline: Pipeline, split: Split, task: SampleTask) -> dict[Trouble, Origin]:
    """Find the first row of each trouble, by halving: counts of rows add up."""
    origins = [Origin(row.file, row.line, row.after_byte) for row in split.rows()]
    rows = split_rows(split)
    found: dict[Trouble, Origin] = {}

    def find_troubles(start: int, end: int) -> set[Trouble]:
        part = replace(split, pieces=tuple(rows[start:end]))
        return {*_fit(pipeline, part, task.process_bytes).count().list_troubles()}

    def search(start: int, end: int, troubles: set[Trouble]) -> None:
        if end - start == 1:
            for trouble in troubles & find_troubles(start, end):
                found[trouble] = origins[start]
            return
        middle = (start + end) // 2
        before = troubles & find_troubles(start, middle)
        if before:
            search(start, middle, before)
        if after := troubles - before:
            search(middle, end, after)

    if rows:
        search(0, len(rows), {*task.examples_of})
    return found
