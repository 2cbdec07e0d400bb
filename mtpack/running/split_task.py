"""The task that makes token batches from rows: tokenize one split, in any process.

What it needs in addition to the task is loaded once per process (`pipeline.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from mtpack.counts import Counts
from mtpack.documents.overlong import (
    SuffixRenderer,
    apply_overlong_policy,
    find_needed_seq_len,
)
from mtpack.documents.plain_text import cut_texts
from mtpack.input.dialogue import Dialogue, Reason
from mtpack.input.splits import Split, SplitDigest
from mtpack.running.document_file import save_batch
from mtpack.running.empty_run import EmptySplit, describe_empty_split
from mtpack.running.pipeline import Pipeline, check_template
from mtpack.running.row_reader import RowReader, set_activity
from mtpack.running.split_record import SplitRecord, parse_split_record
from mtpack.running.stopwatch import Stopwatch
from mtpack.running.token_store import find_split, record_path, store_split
from mtpack.running.tokenize_split import TokenizedSplit, tokenize
from mtpack.token_batch import TokenBatch


@dataclass(frozen=True, slots=True)
class SplitContext:
    """What the tasks of all splits of an attempt have in common."""

    folder: Path
    """Where documents are written that the overlong policy has changed."""
    store: Path
    """The folder where tokenized splits are looked up and stored."""
    is_own_store: bool = True
    """Whether the store is that of this run alone, in the work area."""
    disabled: frozenset[str] = frozenset()
    """Fast paths (`REPLAY`, `FASTOKENS`) that may not be used."""
    process_bytes: float = 0.0
    """The estimated number of bytes of text that each process gets in the run."""

    def name_file(self, key: str) -> Path:
        """Return where the documents of a split are written if the overlong policy changes them."""
        return self.folder / "-".join(["split", *sorted(self.disabled), key])

    def name_entry(self, key: str, sha256: str) -> Path:
        """Return where a tokenized split is stored; sha256: its digest."""
        return self.store / (f"{key}-{sha256}" if self.is_own_store else sha256)


@dataclass(frozen=True, slots=True)
class SplitTask:
    """The task of reading, rendering and tokenizing one split."""

    split: Split
    context: SplitContext
    written: Mapping[str, Any] | None = None
    """The record of the split whose documents are in shards of an earlier run, if any."""

    def __str__(self) -> str:
        return str(self.split)


def estimate_rows(digest: SplitDigest, process_bytes: float) -> int:
    """Return the estimated number of rows that each process gets in a run, from those of a split.

    process_bytes: as in `SplitContext`.
    """
    share = process_bytes / max(1, digest.num_bytes)
    return int(digest.num_rows * max(1.0, share))


def run_split_task(pipeline: Pipeline, task: SplitTask) -> SplitRecord:
    """Run one `SplitTask` and return its result; raise FastPathFailedError."""
    watch = Stopwatch()
    split, context = task.split.read(), task.context
    digest = split.digest()
    watch.lap("read")
    if task.written is not None and task.written["sha256"] == digest.sha256:
        return parse_split_record(task.written, split, digest.files, watch.seconds)
    pipeline = pipeline.without(context.disabled)
    pipeline.begin_split(digest.sha256, estimate_rows(digest, context.process_bytes))
    entry = context.name_entry(split.key, digest.sha256)
    own_files = [entry, record_path(entry)] if context.is_own_store else []
    tokenized = find_split(entry, split, digest.num_rows, context.disabled)
    watch.lap("read")
    if tokenized is None:
        tokenized = _tokenize_and_store(pipeline, split, entry, watch)
    fitted = fit_documents(pipeline, split, tokenized, watch)
    file, fast_paths = entry, tokenized.fast_paths
    if fitted.batch is not tokenized.batch:
        file, fast_paths = context.name_file(split.key), fast_paths | pipeline.fast_paths
        save_batch(file, fitted.batch)
        own_files.append(file)
    empty = None
    if not fitted.batch.num_documents:
        empty = _describe_empty(pipeline, split, fitted)
    watch.lap("tokenize")
    return SplitRecord(
        key=split.key,
        first_file=split.first_file,
        file=file,
        counts=fitted.count(),
        run_counts=fitted.tokenized.run_counts,
        rejects=fitted.tokenized.rejects,
        seconds=watch.seconds,
        warnings=fitted.tokenized.warnings,
        empty=empty,
        fast_paths=fast_paths,
        content_sha256=digest.sha256,
        file_sha256s=digest.files,
        own_files=tuple(own_files),
        formats=split.formats,
        after_byte=split.after_byte,
        num_lines=split.num_lines,
        input_bytes=split.input_bytes,
        source=split.source,
    )


def _tokenize_and_store(
    pipeline: Pipeline, split: Split, entry: Path, watch: Stopwatch
) -> TokenizedSplit:
    """Return the split before the overlong policy; it is then stored at `entry`."""
    check_template(pipeline)
    tokenized = tokenize(pipeline, split, watch)
    watch.lap("tokenize")
    store_split(entry, tokenized)
    watch.lap("store")
    return tokenized


@dataclass(frozen=True, slots=True)
class FittedSplit:
    """The rows of a split as documents that fit into a sequence."""

    tokenized: TokenizedSplit
    """The split before the overlong policy."""
    batch: TokenBatch
    needed_seq_len: int | None
    """If there are no documents, the sequence length that a turn needs; None if none would help."""

    def count(self) -> Counts:
        """Count every row and turn."""
        return _count(self.tokenized, self.batch)


def fit_documents(
    pipeline: Pipeline, split: Split, tokenized: TokenizedSplit, watch: Stopwatch
) -> FittedSplit:
    """Apply the policy of `--overlong` to a tokenized split."""
    batch, needed_seq_len = _apply_overlong(pipeline, split, tokenized.batch)
    if batch is not tokenized.batch and pipeline.options.overlong == "error":
        rejected = {*tokenized.batch.document_rows.tolist()} - {*batch.document_rows.tolist()}
        tokenized = tokenize(pipeline, split, watch, rejected)  # no count may include them
        batch = tokenized.batch
    return FittedSplit(tokenized, batch, needed_seq_len)


def _apply_overlong(
    pipeline: Pipeline, split: Split, batch: TokenBatch
) -> tuple[TokenBatch, int | None]:
    """Apply the policy of `--overlong`, which may render parts of dialogues again.

    Returns the documents that fit and, if there are none, the sequence length that a turn needs.
    """
    options = pipeline.options
    open_reader = lru_cache(maxsize=1)(partial(RowReader, split, pipeline))  # most splits need none

    @lru_cache(maxsize=1)  # several turns of a dialogue may be too long
    def dialogue_of(row: int) -> Dialogue:
        dialogue = open_reader().read(row)
        assert isinstance(dialogue, Dialogue)
        set_activity(pipeline, dialogue)
        return dialogue

    if pipeline.sources[split.source].is_text and options.overlong == "split":
        return cut_texts(batch, options.seq_len), None
    suffixes = SuffixRenderer(pipeline.renderer, pipeline.encoders, dialogue_of, options.seq_len)
    fitting = apply_overlong_policy(batch, options.seq_len, options.overlong, suffixes.render)
    pipeline.heartbeat.end()
    if fitting.num_documents:
        return fitting, None
    return fitting, find_needed_seq_len(batch, options.overlong, suffixes.shortest)


def _describe_empty(pipeline: Pipeline, split: Split, fitted: FittedSplit) -> EmptySplit:
    rows = RowReader(split, pipeline).read_all()
    row_turns, needed_seq_len = fitted.tokenized.row_turns, fitted.needed_seq_len
    empty = describe_empty_split(rows, row_turns, needed_seq_len)
    pipeline.heartbeat.end()  # rows with template arguments begin a step
    return empty


def _count(tokenized: TokenizedSplit, batch: TokenBatch) -> Counts:
    """Count every row and turn of a split; batch: its documents after the overlong policy."""
    row_turns = tokenized.row_turns
    added = max(0, batch.num_turns - tokenized.batch.num_turns)  # those of texts that were cut
    is_packed = np.zeros(len(row_turns), dtype=np.bool_)
    is_packed[batch.document_rows] = True
    rows = Counts(
        rows_read=len(row_turns),
        rows_packed=int(is_packed.sum()),
        rows_dropped={
            "no_turn": int((row_turns == 0).sum()),
            "no_turn_left": int(((row_turns > 0) & ~is_packed).sum()),
        },
        rows_rejected=Counter(str(reject.reason) for reject in tokenized.rejects),
        turns_read=int(row_turns[row_turns > 0].sum()) + added,
        turns_dropped={str(Reason.OVERLONG): tokenized.batch.num_turns - batch.num_turns + added},
    )
    return tokenized.counts + rows + Counts.of(batch)
