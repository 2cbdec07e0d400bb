"""The result of a check, and the type of progress callbacks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

ReportProgress = Callable[[str, float], None]
"""Called with the name of each check when it begins, and with the seconds that it may take (0 if
that was not estimated)."""


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check, and of its parts if it has parts."""

    ok: bool | None
    """None if the check was not done: it had nothing to compare."""
    value: float | None = None
    """For the structure, the number of broken laws found (the check stops at the first). For other
    checks, the largest relative difference found. None if the check was not done, or if a
    number is not finite."""
    tolerance: float | None = None
    """The largest value that passes."""
    detail: str = ""
    """Why there is no value."""
    parts: dict[str, Check] = field(default_factory=dict)

    @classmethod
    def compare(cls, value: float, tolerance: float) -> Check:
        """Return the result for a value; one that is not finite fails."""
        if not math.isfinite(value):
            return cls(False, None, tolerance, "a loss or gradient is not a finite number")
        return cls(value <= tolerance, value, tolerance)

    @classmethod
    def not_done(cls, reason: str) -> Check:
        """Return the result of a check that compared nothing."""
        return cls(None, detail=reason)

    @classmethod
    def combine(cls, parts: dict[str, Check]) -> Check:
        """Combine several checks into one, with the result of the worst part.

        A failed part is worse than one that was not done, and that is worse than one that passed.
        """
        worst = max(parts.values(), key=_rank)
        return cls(worst.ok, worst.value, worst.tolerance, worst.detail, parts)

    def as_dict(self) -> dict[str, Any]:
        """Return the object that `verify --json` prints."""
        found: dict[str, Any] = {"ok": self.ok, "value": self.value, "tolerance": self.tolerance}
        if self.detail:
            found["detail"] = self.detail
        if self.parts:
            found["parts"] = {name: part.as_dict() for name, part in self.parts.items()}
        return found


def _rank(check: Check) -> tuple[int, float]:
    """Return a key that sorts results from good to bad."""
    severity = {True: 0, None: 1, False: 2}[check.ok]
    if check.value is None or not check.tolerance:
        return severity, math.inf
    return severity, check.value / check.tolerance
