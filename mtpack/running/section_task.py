"""The task that reads a section of the input and tokenizes its splits, one after the other.

It is for runners that do not send rows: the process that cuts the input does not read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mtpack.errors import InputError
from mtpack.input.reading import Section, read_section
from mtpack.running.pipeline import Pipeline
from mtpack.running.split_record import SplitRecord
from mtpack.running.split_task import SplitContext, SplitTask, run_split_task


@dataclass(frozen=True, slots=True)
class SectionTask:
    """The task of reading a section that is not one split, and of tokenizing its splits."""

    section: Section
    context: SplitContext
    written: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """`SplitTask.written` of its splits, by key."""

    def __str__(self) -> str:
        return str(self.section)


@dataclass(frozen=True, slots=True)
class SectionRecord:
    """The result of a `SectionTask`."""

    splits: list[SplitRecord]
    error: InputError | None = None
    """Why the section can't be read further. The run ends with it, after these splits."""


def run_section_task(pipeline: Pipeline, task: SectionTask) -> SectionRecord:
    """Run one `SectionTask` and return its result; raise FastPathFailedError."""
    records: list[SplitRecord] = []
    pipeline.heartbeat.begin(f"{task.section}: reading")
    try:
        for split in read_section(task.section, pipeline.read_options[task.section.source]):
            written = task.written.get(split.key)
            record = run_split_task(pipeline, SplitTask(split, task.context, written))
            records.append(record)
            if record.rejects and pipeline.options.on_error == "fail":
                break
            pipeline.heartbeat.begin(f"{task.section}: reading")
    except InputError as error:
        return SectionRecord(records, error)
    return SectionRecord(records)
