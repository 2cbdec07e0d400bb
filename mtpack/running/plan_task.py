"""The task that plans a window from the lengths of its documents, in any process."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mtpack.packing.columns import pad_lengths
from mtpack.packing.plan import plan_sequences
from mtpack.running.document_file import read_lengths
from mtpack.running.pipeline import Pipeline
from mtpack.running.plan_file import StoredPlan, save_plan
from mtpack.running.stopwatch import Stopwatch
from mtpack.token_batch import Int32, offsets_from_lengths, segment_ids


@dataclass(frozen=True, slots=True)
class PlanTask:
    """The task of planning one window."""

    window: int
    """The number of the window."""
    file: Path
    """Where the plan is written, in the work area."""
    files: list[str]
    """The document files of the splits of the window, in their order."""
    first_rows: list[int]
    """The index of the first row of each split."""

    def __str__(self) -> str:
        return f"planning window {self.window}"


@dataclass(frozen=True, slots=True)
class PlannedWindow:
    """The result of a `PlanTask`; the plan itself is in a file in the work area."""

    window: int
    """The number of the window."""
    sequences: int
    sequences_lower_bound: int
    """No plan for its documents can have fewer sequences."""
    seconds: Mapping[str, float]
    """The time it took, by stage."""


def run_plan_task(pipeline: Pipeline, task: PlanTask) -> PlannedWindow:
    """Run one `PlanTask` and return its result."""
    watch = Stopwatch()
    options = pipeline.options
    # The planner bounds its work by itself, so the step needs no limit on its CPU time.
    pipeline.heartbeat.begin(str(task), effort=math.inf)
    lengths_of_files = [read_lengths(file) for file in task.files]
    file_offsets = offsets_from_lengths(np.array(list(map(len, lengths_of_files))))
    lengths = pad_lengths(np.concatenate(lengths_of_files), options.pad_documents_to)
    del lengths_of_files
    plan = plan_sequences(lengths, options.seq_len, options.packing, (options.seed, task.window))
    document_files: Int32 = segment_ids(file_offsets).astype(np.int32)[plan.documents]
    save_plan(
        task.file,
        StoredPlan(
            files=task.files,
            first_rows=np.array(task.first_rows, dtype=np.int64),
            sequence_offsets=plan.sequence_offsets,
            document_files=document_files,
            documents=(plan.documents - file_offsets[document_files]).astype(np.int32),
        ),
    )
    pipeline.heartbeat.end()
    watch.lap("plan")
    return PlannedWindow(task.window, plan.num_sequences, plan.lower_bound, watch.seconds)
