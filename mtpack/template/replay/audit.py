"""Which replayed dialogues are rendered for real as well, to be compared."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

_SHARE_OF_TIME = 0.03
_ONE_IN = 16


@dataclass(slots=True)
class Audit:
    """A seeded sample of rows, as many as 3% of this process's time allow."""

    seed: int
    spent: float = 0.0
    """Seconds."""
    _started: float = field(default_factory=time.perf_counter)

    def is_due(self, row: int) -> bool:
        """Return whether a row is to be audited."""
        drawn = zlib.crc32(row.to_bytes(8, "little"), self.seed & 0xFFFFFFFF)
        if drawn % _ONE_IN:
            return False
        return self.spent <= _SHARE_OF_TIME * (time.perf_counter() - self._started)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count the time of an audit."""
        begun = time.perf_counter()
        yield
        self.spent += time.perf_counter() - begun
