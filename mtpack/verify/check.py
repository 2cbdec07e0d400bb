"""The result of a check, and the type of progress callbacks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

ReportProgress = Callable[[str], None]
"""Called with the name of each stage when it begins, to show progress."""


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check, and of its parts if it has parts."""

    value: float
    """For the structure, the number of broken laws found (the check stops at the first). For other
    checks, the largest relative difference found."""
    tolerance: float
    parts: dict[str, Check] = field(default_factory=dict)

    @classmethod
    def of(cls, parts: dict[str, Check]) -> Check:
        """Combine several checks into one: it has the value and the tolerance of the worst part."""
        worst = max(parts.values(), key=lambda part: (not part.ok, part.value / part.tolerance))
        return cls(worst.value, worst.tolerance, parts)

    @property
    def ok(self) -> bool:
        """Whether the value is within the tolerance; NaN is not."""
        return self.value <= self.tolerance

    def as_dict(self) -> dict[str, Any]:
        """Return the object that `verify --json` prints; a NaN or an infinite value is null."""
        found: dict[str, Any] = {
            "ok": self.ok,
            "value": self.value if math.isfinite(self.value) else None,
            "tolerance": self.tolerance,
        }
        if self.parts:
            found["parts"] = {name: part.as_dict() for name, part in self.parts.items()}
        return found
