"""Check 1, structure: every law of a shard, for every sequence, and the manifest's figures.

`files.py` comes before it: it compares the files of the output with the manifest.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mtpack.shards.dataset import Shards
from mtpack.shards.manifest import MANIFEST, Manifest
from mtpack.token_batch import WEIGHT_UNITS, Int32, Int64
from mtpack.verify.batch import BatchViolation, ColumnBatch
from mtpack.verify.files import Violation
from mtpack.verify.laws import LAWS


@dataclass(frozen=True, slots=True)
class StructureReport:
    """The result of the structure check."""

    violation: Violation | None
    """The first violation; the check stops there. None if every law holds."""
    rows: int
    """The number of sequences that keep every law of a shard."""


class _Totals:
    """Totals of the shards and the list of all turns, to compare with the manifest."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(
            ("sequences", "documents", "turns_packed", "tokens", "loss_tokens", "weight_units"), 0
        )
        self.turn_dialogues: list[Int64] = []
        self.turn_messages: list[Int32] = []
        self.turn_num: list[Int32] = []

    def add(self, batch: ColumnBatch) -> None:
        columns = batch.columns
        self.counts["sequences"] += batch.num_sequences
        self.counts["documents"] += int(np.count_nonzero(batch.is_document))
        self.counts["turns_packed"] += len(columns.turn_starts)
        self.counts["tokens"] += int(columns.document_lengths.sum(dtype=np.int64))
        self.counts["loss_tokens"] += len(batch.loss_positions)
        if columns.turn_bent is not None:
            self.counts["bent"] = self.counts.get("bent", 0) + int(columns.turn_bent.sum())
        if columns.turn_weights is not None:
            weight = columns.turn_weights.sum(dtype=np.float64)
            self.counts["weight_units"] += int(weight * WEIGHT_UNITS)
        self.turn_dialogues.append(columns.dialogue_ids[batch.turn_entries])
        self.turn_messages.append(columns.turn_messages)
        self.turn_num.append(columns.turn_num)


def check_structure(shards: Shards) -> StructureReport:
    """Check every sequence against every law, then the figures of the manifest, if there is one.

    For a record batch, the first broken law is reported, at the first sequence that breaks it.
    """
    totals = _Totals()
    violation = _check_batches(shards, totals) or _find_repeated_turn(shards, totals)
    if violation is None and shards.manifest is not None:
        violation = _check_tally(shards.manifest, totals)
    return StructureReport(violation, totals.counts["sequences"])


def _check_batches(shards: Shards, totals: _Totals) -> Violation | None:
    """Check all record batches in order up to the first violation, and add up the sound ones."""
    for shard in shards.opened:
        for columns in shard.map_again():
            batch = ColumnBatch(columns, shards.metadata)
            broken = find_first_violation(batch)
            if broken is not None:
                law, found = broken
                row = totals.counts["sequences"] + found.row
                return Violation(str(shard.path), row, found.position, law, found.detail)
            totals.add(batch)
    if totals.counts["sequences"]:
        return None
    path = str(shards.opened[0].path)
    return Violation(path, None, None, "sequences", "0 sequences; expected at least 1")


def find_first_violation(batch: ColumnBatch) -> tuple[str, BatchViolation] | None:
    """Return the name of the first broken law and its violation, or None if all laws hold."""
    for name, law in LAWS.items():
        violation = law(batch)
        if violation is not None:
            return name, violation
    return None


def _find_repeated_turn(shards: Shards, totals: _Totals) -> Violation | None:
    """Check that no turn is trained twice: (dialogue, message) is unique over all shards."""
    dialogues = np.concatenate(totals.turn_dialogues)
    messages = np.concatenate(totals.turn_messages)
    order = np.lexsort((messages, dialogues))  # stable: the later one stays after the earlier one
    same = (np.diff(dialogues[order]) == 0) & (np.diff(messages[order]) == 0)
    if not same.any():
        return None
    turn = int(order[1:][same].min())
    ends = np.cumsum(np.concatenate(totals.turn_num), dtype=np.int64)
    row = int(np.searchsorted(ends, turn, side="right"))
    in_row = shards[row]
    position = int(in_row["turn_starts"][turn - int(ends[row]) + in_row["turn_num"]])
    shard_ends = np.cumsum([shard.num_rows for shard in shards.opened])
    shard = shards.opened[int(np.searchsorted(shard_ends, row, side="right"))]
    detail = f"message {messages[turn]} of dialogue {dialogues[turn]} is trained a second time"
    return Violation(str(shard.path), row, position, "turn_unique", detail)


def _check_tally(manifest: Manifest, totals: _Totals) -> Violation | None:
    tally = manifest.report.tally
    found = {
        **totals.counts,
        "rows_packed": len(np.unique(np.concatenate(totals.turn_dialogues))),
    }
    for name, count in found.items():
        recorded = getattr(tally, name)
        if recorded != count:
            path = str(Path(manifest.report.output) / MANIFEST)
            detail = f"the manifest records {recorded:,} {name}; the shards hold {count:,}"
            return Violation(path, None, None, "tally", detail)
    return None
