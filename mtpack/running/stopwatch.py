"""Measure seconds by stage."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping


class Stopwatch:
    """Sums the seconds between laps, by the stage that each lap names."""

    def __init__(self) -> None:
        """Start the first lap."""
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.started = self._last = time.perf_counter()

    def restart(self) -> None:
        """Discard the time since the last lap."""
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Add the time since the last lap or restart to `stage`."""
        now = time.perf_counter()
        self.seconds[stage] += now - self._last
        self._last = now

    def add(self, seconds: Mapping[str, float]) -> None:
        """Add the seconds by stage of another stopwatch."""
        for stage, amount in seconds.items():
            self.seconds[stage] += amount

    @property
    def total(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.started
