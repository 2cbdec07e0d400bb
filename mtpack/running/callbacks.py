"""How a run reports to its caller what it does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from mtpack.counts import Counts


@dataclass(frozen=True, slots=True, kw_only=True)
class RunProgress:
    """How far a run is.

    On a Ray cluster, results come in bursts. If a fast path fails, splits are made again, and then
    the numbers begin at 0 again.
    """

    input_bytes: int
    """The size of all input files, as they are stored: compressed files count as such."""
    bytes_done: int = 0
    """Those whose rows are tokenized."""
    bytes_reused: int = 0
    """Those of them whose tokens came from an earlier run or from `--token-store`."""
    is_tokenized: bool = False
    """Whether all rows are tokenized; then no more sequences will be planned than there are."""
    counts: Counts = field(default_factory=Counts)
    """Those of the rows that are tokenized, without `sequences` and `sequences_lower_bound`."""
    sequences_planned: int = 0
    sequences_written: int = 0


@dataclass(frozen=True, slots=True)
class Callbacks:
    """Functions that a run calls in its main process, to report its progress and its warnings."""

    progress: Callable[[str, int], None] = lambda stage, amount: None
    """(stage, amount): rows done in `tokenize`, sequences in `write`; negative for work undone."""
    warn: Callable[[str], None] = lambda text: None
    """(one line that the user should see)"""
    status: Callable[[RunProgress], None] = lambda progress: None
    """(how far the run is now): at its start, and after each result"""
