"""The audit of a fast path: the reference computes some of its results again, to compare them.

It is a check on a sample. It can find that a fast path is wrong; it can't prove that it is right.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(slots=True)
class Audit:
    """Draws the rows to audit, by a seed, within a share of this process's time."""

    seed: int
    one_in: int = 16
    """On average, one row in this many is drawn."""
    share: float = 0.02
    """The audit may take this share of the time since the first call of `is_due`."""
    spent: float = 0.0
    """Seconds that the audit took so far."""
    done: int = 0
    """The number of comparisons so far."""
    _started: float | None = None
    """The time of the first call of `is_due`."""

    def is_due(self, row: int) -> bool:
        """Return whether a row must be audited."""
        if self._started is None:
            self._started = time.perf_counter()
        drawn = zlib.crc32(row.to_bytes(8, "little"), self.seed & 0xFFFFFFFF)
        if drawn % self.one_in:
            return False
        return self.spent <= self.share * (time.perf_counter() - self._started)

    @contextmanager
    def measure(self) -> Iterator[None]:
        """Count a comparison and the time that it takes."""
        start = time.perf_counter()
        yield
        self.spent += time.perf_counter() - start
        self.done += 1
