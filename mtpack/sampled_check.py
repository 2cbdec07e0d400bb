"""Which of the results that a fast way gave are made the slow way as well, to be compared.

An audit detects by sample: it can find that a fast way is wrong, not show that it never is.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(slots=True)
class Audit:
    """A seeded sample of rows, as many as a share of this process's time allows."""

    seed: int
    one_in: int = 16
    """Of how many rows one is drawn."""
    share: float = 0.02
    """Of the time since it was first asked."""
    spent: float = 0.0
    """Seconds."""
    done: int = 0
    """Audits so far."""
    _started: float | None = None

    def is_due(self, row: int) -> bool:
        """Return whether a row is to be audited."""
        if self._started is None:
            self._started = time.perf_counter()
        drawn = zlib.crc32(row.to_bytes(8, "little"), self.seed & 0xFFFFFFFF)
        if drawn % self.one_in:
            return False
        return self.spent <= self.share * (time.perf_counter() - self._started)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count the time of an audit."""
        begun = time.perf_counter()
        yield
        self.spent += time.perf_counter() - begun
        self.done += 1
