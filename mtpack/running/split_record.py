"""The result of tokenizing a split, and its form in a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mtpack.counts import Counts, RunCounts
from mtpack.input.dialogue import Origin, Reason, Reject
from mtpack.input.splits import Split
from mtpack.running.empty_run import EmptySplit


@dataclass(frozen=True, slots=True)
class SplitRecord:
    """The result of a `SplitTask`: the documents of a split, each of at most `seq_len` tokens.

    A worker numbers rows and lines from the start of the split; `place` adds what is before it.
    """

    key: str
    """That of the split."""
    first_file: str
    """That of the split."""
    file: Path | None
    """Holds its documents; None if they are in shards that an earlier run wrote. A file in a token
    store is shared with other runs."""
    counts: Counts
    """Those of its rows and of its documents."""
    run_counts: RunCounts
    rejects: list[Reject]
    seconds: Mapping[str, float]
    """The time it took, by stage."""
    warnings: frozenset[str] = field(default_factory=frozenset)
    empty: EmptySplit | None = None
    """Why it has no documents, if it has none."""
    fast_paths: frozenset[str] = field(default_factory=frozenset)
    """The fast paths that produced some of it."""
    content_sha256: str = ""
    """`SplitDigest.sha256`."""
    file_sha256s: list[tuple[str, str]] = field(default_factory=list)
    """`SplitDigest.files`."""
    own_files: tuple[Path, ...] = ()
    """Files of this split alone in the work area: not needed once its shards are written."""
    formats: list[tuple[str, str]] = field(default_factory=list)
    """Those of the split."""
    after_byte: int = 0
    """That of the split."""
    num_lines: int = 0
    """That of the split."""
    input_bytes: int = 0
    """That of the split."""
    source: int = 0
    """That of the split."""
    first_row: int = 0
    """The index of its first row in the input."""

    def place(self, first_row: int, lines_before: int) -> SplitRecord:
        """Return the record with the positions of rows in the input, and of lines in their files.

        first_row: the number of rows before the split. lines_before: the number of lines in the
        first `after_byte` bytes of its file.
        """
        rejects = [reject.place(first_row, lines_before) for reject in self.rejects]
        return replace(self, rejects=rejects, first_row=first_row)

    def as_dict(self) -> dict[str, Any]:
        """Return what `parse_split_record` needs, as JSON values. It names no file and no line."""
        return {
            "key": self.key,
            "sha256": self.content_sha256,
            "counts": self.counts.list_nonzero(),
            "rejects": dump_rejects(self.rejects, self.first_row),
            "warnings": sorted(self.warnings),
            "empty": asdict(self.empty) if self.empty else None,
            "fast_paths": sorted(self.fast_paths),
        }


def parse_split_record(
    stored: Mapping[str, Any],
    split: Split,
    file_sha256s: list[tuple[str, str]],
    seconds: Mapping[str, float],
) -> SplitRecord:
    """Return the record of a split whose documents are in shards already.

    stored: what `as_dict` returned for a split of the same content. split: with its rows in memory.
    file_sha256s, seconds: as in the record.
    """
    counts = Counts(**stored["counts"])
    accepted = counts.rows_read - sum(counts.rows_rejected.values())
    return SplitRecord(
        key=split.key,
        first_file=split.first_file,
        file=None,
        counts=counts,
        run_counts=RunCounts(reused=accepted, splits=1, splits_reused=1),
        rejects=parse_rejects(stored["rejects"], split),
        seconds=seconds,
        warnings=frozenset(stored["warnings"]),
        empty=EmptySplit(**stored["empty"]) if stored["empty"] else None,
        fast_paths=frozenset(stored["fast_paths"]),
        content_sha256=stored["sha256"],
        file_sha256s=file_sha256s,
        formats=split.formats,
        after_byte=split.after_byte,
        num_lines=split.num_lines,
        input_bytes=split.input_bytes,
        source=split.source,
    )


def dump_rejects(rejects: list[Reject], first_row: int = 0) -> list[list[Any]]:
    """Return rejected rows as JSON values, relative to the first row of their split.

    first_row: the number of rows before the split, if it is counted in the rejects.
    """
    return [[reject.row - first_row, reject.reason, reject.detail] for reject in rejects]


def parse_rejects(stored: list[list[Any]], split: Split) -> list[Reject]:
    """Return the rejected rows of a split from what `dump_rejects` returned."""
    if not stored:
        return []
    origins = [Origin(row.file, row.line, row.after_byte) for row in split.rows()]
    return [Reject(row, origins[row], Reason(reason), detail) for row, reason, detail in stored]
