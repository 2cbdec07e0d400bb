"""The units of work of a run: tokenize one split, write one shard. Each runs in any process.

What they need beside their task is loaded once a process (`pipeline.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mtpack.assembling import assemble, padded_lengths
from mtpack.dialogue import Dialogue, Reject
from mtpack.manifest import ShardRecord
from mtpack.options import PackOptions
from mtpack.overlong import Fitted, fit, piece_maker
from mtpack.pipeline import Pipeline
from mtpack.reading import Split
from mtpack.shard import rows_per_batch, write_shard
from mtpack.stopwatch import Stopwatch
from mtpack.token_store import open_batch, save_batch
from mtpack.tokenizer.engines import EngineFailedError
from mtpack.tokenizing import (
    FASTOKENS,
    REPLAY,
    TokenizedSplit,
    read_dialogues,
    say_rendering,
    tokenize,
)
from mtpack.turns import Int32, Int64, TokenBatch, TurnFlag, concatenate

_FLAG_COUNTS = {
    "turns_own_document": TurnFlag.OWN_DOCUMENT,
    "prompt_differs": TurnFlag.PROMPT_DIFFERS,
    "no_eot": TurnFlag.NO_EOT,
    "unproven": TurnFlag.UNPROVEN,
    "bent": TurnFlag.BENT,
}


@dataclass(frozen=True, slots=True)
class SplitTask:
    """Read, render and tokenize one split, and keep its documents in a file."""

    split: Split
    file: Path
    distrusted: frozenset[str] = frozenset()
    """Short cuts (`REPLAY`, `FASTOKENS`) that may not be taken."""


@dataclass(frozen=True, slots=True)
class SplitRecord:
    """What became of a split."""

    file: Path
    first_row: int
    counts: Counter[str]
    rejects: list[Reject]
    document_lengths: Int32
    """(documents,): tokens, without padding."""
    seconds: Mapping[str, float]
    warnings: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True, slots=True)
class ShortCutFailed:
    """Instead of a `SplitRecord`: a short cut gave a wrong result, so none of it is trusted."""

    short_cut: str
    reason: str
    """One line."""
    counts: Counter[str]
    """Of its audit."""


def tokenize_split(pipeline: Pipeline, task: SplitTask) -> SplitRecord | ShortCutFailed:
    """Run one `SplitTask`."""
    watch = Stopwatch()
    split = task.split
    try:
        tokenized = tokenize(pipeline, split, watch, distrusted=task.distrusted)
        fitted = _fit(pipeline, split, tokenized.batch)
        if fitted.rejected_rows:  # they leave no trace in any count
            tokenized = tokenize(
                pipeline,
                split,
                watch,
                distrusted=task.distrusted,
                overlong=fitted.rejected_rows,
            )
            fitted = _fit(pipeline, split, tokenized.batch)
    except EngineFailedError as error:
        return ShortCutFailed(FASTOKENS, str(error), Counter(audited=1, audit_mismatches=1))
    if tokenized.counts["audit_mismatches"]:
        reason = "a dialogue filled in by replay differs from its render"
        return ShortCutFailed(REPLAY, reason, tokenized.counts)
    rows = fitted.batch.document_rows - split.first_row
    save_batch(task.file, fitted.batch)
    watch.lap("tokenize")
    return SplitRecord(
        file=task.file,
        first_row=split.first_row,
        counts=_count(tokenized, fitted, rows),
        rejects=tokenized.rejects,
        document_lengths=fitted.batch.document_lengths.astype(np.int32),
        seconds=watch.seconds,
        warnings=tokenized.warnings,
    )


def _fit(pipeline: Pipeline, split: Split, batch: TokenBatch) -> Fitted:
    """Apply the policy of `--overlong`, which may render parts of dialogues anew."""
    options = pipeline.options
    dialogues: dict[int, Dialogue] = {}

    def dialogue_of(row: int) -> Dialogue:
        if not dialogues:  # most splits need none
            dialogues.update((dialogue.row, dialogue) for dialogue in read_dialogues(split)[0])
        say_rendering(pipeline, dialogues[row])
        return dialogues[row]

    encoder = pipeline.encoders.reference
    make_piece = piece_maker(pipeline.renderer, encoder, dialogue_of, options.seq_len)
    fitted = fit(batch, options.seq_len, options.overlong, make_piece)
    pipeline.activity.end()
    return fitted


def _count(tokenized: TokenizedSplit, fitted: Fitted, document_rows: Int64) -> Counter[str]:
    """Account for every row and turn of a split; document_rows: within the split."""
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


@dataclass(frozen=True, slots=True)
class ShardTask:
    """Assemble and write one shard."""

    number: int
    folder: Path
    pieces: list[tuple[Path, Int64]]
    """Split files, and which of their documents to take."""
    order: Int64
    """(documents,): which of the taken documents comes first, second, ..."""
    sequence_offsets: Int64
    """(sequences + 1,)"""


@dataclass(frozen=True, slots=True)
class WrittenShard:
    """A shard in the work area, and the seconds that it took."""

    record: ShardRecord
    seconds: Mapping[str, float]


def write_one_shard(pipeline: Pipeline, task: ShardTask) -> WrittenShard:
    """Run one `ShardTask`."""
    watch = Stopwatch()
    options = pipeline.options
    batch = concatenate([open_batch(file).take(documents) for file, documents in task.pieces])
    metadata = pipeline.shard_metadata
    columns = assemble(batch.take(task.order), task.sequence_offsets, metadata.layout)
    watch.lap("assemble")
    name = f"shard-{task.number:05d}.arrow"
    (task.folder / name).unlink(missing_ok=True)  # half of it, by a worker that died
    sha256 = write_shard(
        task.folder / name,
        columns,
        metadata,
        ipc_format=options.ipc_format,
        compression=options.compression,
        batch_rows=rows_per_batch(options.seq_len, options.shard_bytes, options.compression),
    )
    watch.lap("write")
    size = (task.folder / name).stat().st_size
    return WrittenShard(
        ShardRecord(name, len(task.sequence_offsets) - 1, size, sha256), watch.seconds
    )


def places_taken(record: SplitRecord, options: PackOptions) -> Int64:
    """Return how many places of a sequence each document of a split takes, (documents,)."""
    return padded_lengths(record.document_lengths.astype(np.int64), options.pad_documents_to)
