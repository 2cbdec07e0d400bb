"""What a user is told of formats that were not named but looked up in the files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from mtpack.input.reading import AUTO
from mtpack.input.splits import Split


@dataclass(slots=True)
class FormatNotices:
    """Says which format files were told to be in: the first file of each format, then how many."""

    chosen: str
    warn: Callable[[str], None]
    files: set[str] = field(default_factory=set)
    """Whose format is known."""
    num_files: Counter[str] = field(default_factory=Counter)
    """By format."""

    def note(self, split: Split) -> None:
        """Look at the rows that are about to be packed."""
        for file, told in dict.fromkeys((piece.file, piece.format) for piece in split.pieces):
            if told is None or file in self.files:
                continue
            if self._is_worth_saying(told) and not self.num_files[told]:
                self.warn(f"{file}: read as {told} (choose otherwise with --format)")
            self.files.add(file)
            self.num_files[told] += 1

    def sum_up(self) -> None:
        """Count the files that were told to be in a format after the first of them was named."""
        for row_format, count in self.num_files.items():
            if self._is_worth_saying(row_format) and count > 1:
                self.warn(f"{count:,} files read as {row_format}")

    def _is_worth_saying(self, row_format: str) -> bool:
        return self.chosen == AUTO and row_format != "messages"
