"""Notify the user of row formats that were detected in the files, not chosen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from mtpack.input.reading import AUTO

_USUAL = "messages"


@dataclass(slots=True)
class FormatNotices:
    """Reports the detected formats: the first file of each format, then how many files have it."""

    warn: Callable[[str], None]
    files: set[str] = field(default_factory=set)
    """The names of the files whose format is known."""
    num_files: Counter[str] = field(default_factory=Counter)
    """The number of files by format."""

    def add(self, formats: Iterable[tuple[str, str]], chosen: str) -> None:
        """Report the formats of the files of a split, if they were detected and are new.

        formats: `Split.formats`. chosen: the format of their source, or `auto`.
        """
        for file, row_format in formats if chosen == AUTO else ():
            if file in self.files:
                continue
            if row_format != _USUAL and not self.num_files[row_format]:
                self.warn(f"{file}: read as {row_format} (choose another format with --format)")
            self.files.add(file)
            self.num_files[row_format] += 1

    def report_totals(self) -> None:
        """Report how many files have each detected format, where it is more than one."""
        for row_format, count in self.num_files.items():
            if row_format != _USUAL and count > 1:
                self.warn(f"{count:,} files read as {row_format}")
