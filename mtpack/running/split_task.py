"""The task that makes token batches from rows: tokenize one split, in any process.

What it needs in addition to the task is loaded once per process (`pipeline.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mtpack.counts import Counts
from mtpack.documents.overlong import (
    SuffixRenderer,
    apply_overlong_policy,
    find_needed_seq_len,
)
from mtpack.input.dialogue import Dialogue, Reason
from mtpack.input.splits import Split
from mtpack.running.document_file import save_batch
from mtpack.running.empty_run import describe_empty_split
from mtpack.running.pipeline import Pipeline, check_template
from mtpack.running.split_record import SplitRecord, parse_split_record
from mtpack.running.stopwatch import Stopwatch
from mtpack.running.token_store import find_split, record_path, store_split
from mtpack.running.tokenize_split import TokenizedSplit, read_rows, set_activity, tokenize
from mtpack.token_batch import TokenBatch


@dataclass(frozen=True, slots=True)
class SplitTask:
    """The task of reading, rendering and tokenizing one split."""

    split: Split
    file: Path
    """Where its documents are written if the overlong policy changes them."""
    store: Path
    """The folder where tokenized splits are looked up and stored."""
    is_own_store: bool = True
    """Whether the store is that of this run alone, in the work area."""
    disabled: frozenset[str] = frozenset()
    """Fast paths (`REPLAY`, `FASTOKENS`) that may not be used."""
    process_rows: int = 0
    """The estimated number of rows that each process gets in the run."""
    written: Mapping[str, Any] | None = None
    """The record of the split whose documents are in shards of an earlier run, if any."""

    def __str__(self) -> str:
        files = {piece.file: None for piece in self.split.pieces}
        first_row = f"row {self.split.first_row + 1:,} of the input"
        return f"{next(iter(files), 'the input')}: the split that starts at {first_row}"


def run_split_task(pipeline: Pipeline, task: SplitTask) -> SplitRecord:
    """Run one `SplitTask` and return its result; raise FastPathFailedError."""
    watch = Stopwatch()
    split = task.split.read()
    file_sha256s = split.file_sha256s()
    content = file_sha256s[0][1] if len(file_sha256s) == 1 else split.content_sha256()
    watch.lap("read")
    if task.written is not None and task.written["sha256"] == content:
        return parse_split_record(task.written, split, file_sha256s, watch.seconds)
    pipeline = pipeline.without(task.disabled)
    if pipeline.renderer.replayer is not None:
        pipeline.renderer.replayer.budget.num_dialogues = task.process_rows
    entry = task.store / (f"{split.number:07d}-{content}" if task.is_own_store else content)
    own_files = [entry, record_path(entry)] if task.is_own_store else []
    tokenized = _load_or_tokenize(pipeline, split, entry, task.disabled, watch)
    file, fast_paths = entry, tokenized.fast_paths
    batch, needed_seq_len = _apply_overlong(pipeline, split, tokenized.batch)
    if batch is not tokenized.batch:
        if pipeline.options.overlong == "error":
            rejected = {*tokenized.batch.document_rows.tolist()} - {*batch.document_rows.tolist()}
            tokenized = tokenize(pipeline, split, watch, rejected)  # no count may include them
            batch = tokenized.batch
        file, fast_paths = task.file, fast_paths | pipeline.fast_paths
        save_batch(file, batch, split.first_row)
        own_files.append(file)
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
        seconds=watch.seconds,
        warnings=tokenized.warnings,
        empty=empty,
        fast_paths=fast_paths,
        content_sha256=content,
        file_sha256s=file_sha256s,
        own_files=tuple(own_files),
    )


def _load_or_tokenize(
    pipeline: Pipeline, split: Split, entry: Path, disabled: Collection[str], watch: Stopwatch
) -> TokenizedSplit:
    """Return the split before the overlong policy; it is then stored at `entry`."""
    tokenized = find_split(entry, split, disabled)
    watch.lap("read")
    if tokenized is None:
        check_template(pipeline)
        tokenized = tokenize(pipeline, split, watch)
        watch.lap("tokenize")
        store_split(entry, split, tokenized)
        watch.lap("store")
    return tokenized


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
