"""What a check came to."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Tell = Callable[[str], None]
"""Is told what is being checked, for whoever waits."""


@dataclass(frozen=True, slots=True)
class Check:
    """What one check came to, and the parts that it has, where it has some."""

    value: float
    """Of the structure: broken laws found (the check ends with the first). Else the largest
    relative difference that was found."""
    tolerance: float
    parts: dict[str, Check] = field(default_factory=dict)

    @classmethod
    def of(cls, parts: dict[str, Check]) -> Check:
        """Make one check of several: the worst of them counts."""
        worst = max(parts.values(), key=lambda part: (not part.ok, part.value / part.tolerance))
        return cls(worst.value, worst.tolerance, parts)

    @property
    def ok(self) -> bool:
        """Whether what was found is within the tolerance; what is no number is not."""
        return self.value <= self.tolerance

    def as_dict(self) -> dict[str, Any]:
        """Return the object that `verify --json` prints; a value that is no number is null."""
        found: dict[str, Any] = {
            "ok": self.ok,
            "value": self.value if math.isfinite(self.value) else None,
            "tolerance": self.tolerance,
        }
        if self.parts:
            found["parts"] = {name: part.as_dict() for name, part in self.parts.items()}
        return found
