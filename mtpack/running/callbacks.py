"""How a run reports to its caller what it does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Callbacks:
    """Functions that a run calls to report its progress and its warnings."""

    progress: Callable[[str, int], None] = lambda stage, amount: None
    """(stage, amount): rows done in `tokenize`, sequences in `write`; negative for work undone."""
    warn: Callable[[str], None] = lambda text: None
    """(one line that the user should see)"""
