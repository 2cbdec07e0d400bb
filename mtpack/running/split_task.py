"""The task that makes token batches from rows: tokenize one split, in any process.

What it needs in addition to the task is loaded once per process (`pipeline.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mtpack.counts import Counts, RunCounts
from mtpack.documents.overlong import (
    SuffixRenderer,
    apply_overlong_policy,
    find_needed_seq_len,
)
from mtpack.input.dialogue import Dialogue, Reason, Reject
from mtpack.input.splits import Split
from mtpack.running.document_file import save_batch
from mtpack.running.empty_run import EmptySplit, describe_empty_split
from mtpack.running.pipeline import Pipeline, check_template
from mtpack.running.stopwatch import Stopwatch
from mtpack.running.token_store import find_split, store_split
from mtpack.running.tokenize_split import TokenizedSplit, read_rows, set_activity, tokenize
from mtpack.token_batch import Int32, TokenBatch


@dataclass(frozen=True, slots=True)
class SplitTask:
    """The task of reading, rendering and tokenizing one split."""

    split: Split
    file: Path
    """Where its documents are written."""
    disabled: frozenset[str] = frozenset()
    """Fast paths (`REPLAY`, `FASTOKENS`) that may not be used."""
    store: Path | None = None
    """The folder where tokenized splits are looked up and stored, if any."""
    process_rows: int = 0
    """The estimated number of rows that each process gets in the run."""

    def __str__(self) -> str:
        files = {piece.file: None for piece in self.split.pieces}
        first_row = f"row {self.split.first_row + 1:,} of the input"
        return f"{next(iter(files), 'the input')}: the split that starts at {first_row}"


@dataclass(frozen=True, slots=True)
class SplitRecord:
    """The result of a `SplitTask`: the documents of a split, each of at most `seq_len` tokens."""

    file: Path
    """Holds its documents. A file in `SplitTask.store` is shared with other runs."""
    first_row: int
    """The index of its first row in the input."""
    counts: Counts
    run_counts: RunCounts
    rejects: list[Reject]
    document_lengths: Int32
    """(documents,): tokens, without padding."""
    seconds: Mapping[str, float]
    """The time it took, by stage."""
    warnings: frozenset[str] = field(default_factory=frozenset)
    empty: EmptySplit | None = None
    """Why it has no documents, if it has none."""


def run_split_task(pipeline: Pipeline, task: SplitTask) -> SplitRecord:
    """Run one `SplitTask` and return its result; raise FastPathFailedError."""
    watch = Stopwatch()
    split = task.split
    pipeline = pipeline.without(task.disabled)
    if pipeline.renderer.replayer is not None:
        pipeline.renderer.replayer.budget.num_dialogues = task.process_rows
    tokenized, stored_file = _load_or_tokenize(pipeline, task, watch)
    batch, needed_seq_len = _apply_overlong(pipeline, split, tokenized.batch)
    if pipeline.options.overlong == "error" and batch is not tokenized.batch:
        rejected = {*tokenized.batch.document_rows.tolist()} - {*batch.document_rows.tolist()}
        tokenized = tokenize(pipeline, split, watch, rejected)  # no count may include them
        batch, stored_file = tokenized.batch, None
    file = stored_file
    if file is None or batch is not tokenized.batch:
        file = task.file
        save_batch(file, batch, split.first_row)
    empty = None
    if not batch.num_documents:
        rows = read_rows(split, pipeline)
        empty = describe_empty_split(rows, tokenized.row_turns, needed_seq_len)
        pipeline.heartbeat.end()  # rows with template arguments begin a step
    watch.lap("tokenize")
    return SplitRecord(
        file=file,
        first_row=split.first_row,
        counts=_count(tokenized, batch, split.first_row),
        run_counts=tokenized.run_counts,
        rejects=tokenized.rejects,
        document_lengths=batch.document_lengths.astype(np.int32),
        seconds=watch.seconds,
        warnings=tokenized.warnings,
        empty=empty,
    )


def _load_or_tokenize(
    pipeline: Pipeline, task: SplitTask, watch: Stopwatch
) -> tuple[TokenizedSplit, Path | None]:
    """Return the split before the overlong policy, and the stored file that holds it, if any."""
    if task.store is None:
        check_template(pipeline)
        return tokenize(pipeline, task.split, watch), None
    file = task.store / task.split.content_sha256()
    tokenized = find_split(file, task.split, task.disabled)
    watch.lap("read")
    if tokenized is None:
        check_template(pipeline)
        tokenized = tokenize(pipeline, task.split, watch)
        store_split(file, task.split, tokenized)
    return tokenized, file


def _apply_overlong(
    pipeline: Pipeline, split: Split, batch: TokenBatch
) -> tuple[TokenBatch, int | None]:
    """Apply the policy of `--overlong`, which may render parts of dialogues again.

    Returns the documents that fit and, if there are none, the sequence length that a turn needs.
    """
    options = pipeline.options
    dialogues: dict[int, Dialogue] = {}

    def dialogue_of(row: int) -> Dialogue:
        if not dialogues:  # read on demand: most splits need none
            rows = read_rows(split, pipeline)
            read = [row for row in rows if isinstance(row, Dialogue)]
            dialogues.update((dialogue.row, dialogue) for dialogue in read)
        set_activity(pipeline, dialogues[row])
        return dialogues[row]

    suffixes = SuffixRenderer(pipeline.renderer, pipeline.encoders, dialogue_of, options.seq_len)
    fitting = apply_overlong_policy(batch, options.seq_len, options.overlong, suffixes.render)
    pipeline.heartbeat.end()
    if fitting.num_documents:
        return fitting, None
    return fitting, find_needed_seq_len(batch, options.overlong, suffixes.shortest)


def _count(tokenized: TokenizedSplit, batch: TokenBatch, first_row: int) -> Counts:
    """Count every row and turn of a split; batch: its documents after the overlong policy."""
    row_turns = tokenized.row_turns
    is_packed = np.zeros(len(row_turns), dtype=np.bool_)
    is_packed[batch.document_rows - first_row] = True
    rows = Counts(
        rows_read=len(row_turns),
        rows_packed=int(is_packed.sum()),
        rows_dropped={
            "no_turn": int((row_turns == 0).sum()),
            "no_turn_left": int(((row_turns > 0) & ~is_packed).sum()),
        },
        rows_rejected=Counter(str(reject.reason) for reject in tokenized.rejects),
        turns_read=int(row_turns[row_turns > 0].sum()),
        turns_dropped={str(Reason.OVERLONG): tokenized.batch.num_turns - batch.num_turns},
    )
    return tokenized.counts + rows + Counts.of(batch)
