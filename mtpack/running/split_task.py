"""The task that makes token batches from rows: tokenize one split, in any process.

What it needs in addition to the task is loaded once per process (`pipeline.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mtpack.documents.overlong import OverlongResult, apply_overlong_policy, suffix_renderer
from mtpack.input.dialogue import Dialogue, Reject
from mtpack.input.splits import Split
from mtpack.running.document_file import save_batch
from mtpack.running.pipeline import Pipeline, check_template
from mtpack.running.stopwatch import Stopwatch
from mtpack.running.token_store import find_split, store_split
from mtpack.running.tokenize_split import (
    REPLAY,
    TokenizedSplit,
    read_rows,
    set_activity,
    tokenize,
)
from mtpack.token_batch import Int32, Int64, TokenBatch, TurnFlag
from mtpack.tokenizer.engines import FASTOKENS, EngineFailedError

_FLAG_COUNTS = {
    "turns_own_document": TurnFlag.OWN_DOCUMENT,
    "prompt_differs": TurnFlag.PROMPT_DIFFERS,
    "no_eot": TurnFlag.NO_EOT,
    "unproven": TurnFlag.UNPROVEN,
    "bent": TurnFlag.BENT,
}


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


@dataclass(frozen=True, slots=True)
class SplitRecord:
    """The result of a `SplitTask`: the documents of a split, each of at most `seq_len` tokens."""

    file: Path
    """Holds its documents. A file in `SplitTask.store` is shared with other runs."""
    first_row: int
    """The index of its first row in the input."""
    counts: Counter[str]
    rejects: list[Reject]
    document_lengths: Int32
    """(documents,): tokens, without padding."""
    seconds: Mapping[str, float]
    """The time it took, by stage."""
    warnings: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True, slots=True)
class FastPathMismatch:
    """Returned instead of a `SplitRecord`: a fast path gave a wrong result, so it is discarded."""

    fast_path: str
    """`REPLAY` or `FASTOKENS`."""
    reason: str
    """One line for the user."""
    counts: Counter[str]
    """What its audit counted: `audited` and `audit_mismatches`, at least."""


def run_split_task(pipeline: Pipeline, task: SplitTask) -> SplitRecord | FastPathMismatch:
    """Run one `SplitTask` and return its result."""
    watch = Stopwatch()
    split = task.split
    try:
        tokenized, stored_file = _load_or_tokenize(pipeline, task, watch)
        fitted = _apply_overlong(pipeline, split, tokenized.batch)
        if fitted.rejected_rows:  # no count may include them
            stored_file = None
            tokenized = tokenize(
                pipeline,
                split,
                watch,
                disabled=task.disabled,
                overlong=fitted.rejected_rows,
            )
            fitted = _apply_overlong(pipeline, split, tokenized.batch)
    except EngineFailedError as error:
        return FastPathMismatch(FASTOKENS, str(error), Counter(audited=1, audit_mismatches=1))
    if tokenized.counts["audit_mismatches"]:
        reason = "a replayed dialogue differs from its render"
        return FastPathMismatch(REPLAY, reason, tokenized.counts)
    file = stored_file
    if file is None or fitted.batch is not tokenized.batch:
        file = task.file
        save_batch(file, fitted.batch, split.first_row)
    rows = fitted.batch.document_rows - split.first_row
    watch.lap("tokenize")
    return SplitRecord(
        file=file,
        first_row=split.first_row,
        counts=_count(tokenized, fitted, rows),
        rejects=tokenized.rejects,
        document_lengths=fitted.batch.document_lengths.astype(np.int32),
        seconds=watch.seconds,
        warnings=tokenized.warnings,
    )


def _load_or_tokenize(
    pipeline: Pipeline, task: SplitTask, watch: Stopwatch
) -> tuple[TokenizedSplit, Path | None]:
    """Return the split before the overlong policy, and the stored file that holds it, if any."""
    file = None
    if task.store is not None:
        file = task.store / task.split.content_sha256()
        found = find_split(file, task.split, task.disabled)
        watch.lap("read")
        if found is not None:
            found.tokenized.counts["reused"] = found.tokenized.num_accepted
            return found
    check_template(pipeline)
    tokenized = tokenize(pipeline, task.split, watch, disabled=task.disabled)
    if file is None or tokenized.counts["audit_mismatches"]:
        return tokenized, None
    store_split(file, task.split, tokenized)
    return tokenized, file


def _apply_overlong(pipeline: Pipeline, split: Split, batch: TokenBatch) -> OverlongResult:
    """Apply the policy of `--overlong`, which may render parts of dialogues again."""
    options = pipeline.options
    dialogues: dict[int, Dialogue] = {}

    def dialogue_of(row: int) -> Dialogue:
        if not dialogues:  # read on demand: most splits need none
            read = [row for row in read_rows(split) if isinstance(row, Dialogue)]
            dialogues.update((dialogue.row, dialogue) for dialogue in read)
        set_activity(pipeline, dialogues[row])
        return dialogues[row]

    def render_suffix(row: int, message: int) -> TokenBatch | None:
        encoder = pipeline.encoders.reference  # loaded on demand: stored splits rarely need it
        make = suffix_renderer(pipeline.renderer, encoder, dialogue_of, options.seq_len)
        return make(row, message)

    fitted = apply_overlong_policy(batch, options.seq_len, options.overlong, render_suffix)
    pipeline.heartbeat.end()
    return fitted


def _count(tokenized: TokenizedSplit, fitted: OverlongResult, document_rows: Int64) -> Counter[str]:
    """Count every row and turn of a split; document_rows: (documents,), within the split."""
    batch, row_turns = fitted.batch, tokenized.row_turns
    is_packed = np.zeros(len(row_turns), dtype=np.bool_)
    is_packed[document_rows] = True
    counts = tokenized.counts + fitted.counts
    for reject in tokenized.rejects:
        counts[f"rows_rejected.{reject.reason}"] += 1
    numbers = {
        "rows_read": len(row_turns),
        "rows_packed": np.count_nonzero(is_packed),
        "rows_dropped.no_turn": np.count_nonzero(row_turns == 0),
        "rows_dropped.no_turn_left": np.count_nonzero((row_turns > 0) & ~is_packed),
        "documents": batch.num_documents,
        "turns_read": row_turns[row_turns > 0].sum(),
        "turns_packed": batch.num_turns,
        "tokens": len(batch.ids),
        "loss_tokens": batch.loss_token_num.sum(),
    }
    for name, flag in _FLAG_COUNTS.items():
        numbers[name] = np.count_nonzero(batch.turn_flags & flag)
    counts.update({name: int(number) for name, number in numbers.items()})
    return counts
