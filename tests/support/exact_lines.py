"""The rows of splits with the lines of their files, as the process that cuts the input counts."""

from collections.abc import Iterable

from mtpack.input.dialogue import Origin
from mtpack.input.splits import RawRow, Split


def rows_with_exact_lines(splits: Iterable[Split]) -> list[list[RawRow]]:
    """Return the rows of each split."""
    found, num_lines = [], 0
    for split in map(Split.read, splits):
        if not split.after_byte:
            num_lines = 0
        rows = []
        for row in split.rows():
            origin = Origin(row.file, row.line, row.after_byte).place(num_lines)
            rows.append(row._replace(line=origin.line, after_byte=origin.after_byte))
        found.append(rows)
        num_lines += split.num_lines
    return found
