"""Fast paths: they give the same results as a slow reference, but not by definition.

So each is audited in every run: the reference computes some of its results again, to compare them.
This is a check on a sample. It can find that a fast path is wrong; it can't prove that it is right.
A fast path that gives a wrong result, or fails, raises `FastPathFailedError`. The run then starts
again without it (`running/pack.py`).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np

from mtpack.token_batch import Int64

REPLAY: Final = "replay"
"""Dialogues are replayed from recordings of the chat template, instead of rendered with it."""
FASTOKENS: Final = "fastokens"
"""The library fastokens makes the ids, instead of tokenizers."""

REMEDIES = {
    REPLAY: "so all dialogues are rendered instead; please report this chat template to mtpack",
    FASTOKENS: "so tokenizers makes all ids instead; please report this tokenizer to mtpack",
}
"""What a run does when a fast path fails, and what the user can do; follows the reason."""


class FastPathFailedError(Exception):
    """A fast path gave a wrong result, or can't be used; the text is one line that says why.

    It contains no input text. What the fast path made so far must not be kept.
    """

    def __init__(self, fast_path: str, reason: str) -> None:
        """Name the fast path, `REPLAY` or `FASTOKENS`, and the reason."""
        super().__init__(fast_path, reason)
        self.fast_path = fast_path

    def __str__(self) -> str:
        return str(self.args[1])


@dataclass(slots=True)
class Audit:
    """Draws the rows to audit, by a seed, within a share of this process's time."""

    seed: int
    one_in: int = 16
    """On average, one row in this many is drawn."""
    share: float = 0.02
    """The audit may take this share of the time since the first call of `draw`."""
    spent: float = 0.0
    """Seconds that the audit took so far."""
    done: int = 0
    """The number of comparisons so far."""
    salt: int = 0
    """Changes which rows are drawn, since rows are numbered within a split."""
    _started: float | None = None
    """The time of the first call of `draw`."""

    def is_due(self, row: int) -> bool:
        """Return whether a row must be audited."""
        return any(True for _ in self.draw(np.array([row])))

    def draw(self, rows: Int64) -> Iterator[int]:
        """Yield the index in `rows` of each that must be audited.

        It is compared before the next one is asked for.
        """
        if self._started is None:
            self._started = time.perf_counter()
        # The highest bits of a product with an odd number depend on all bits (Knuth, 6.4).
        mixed = (rows + 1).astype(np.uint64) * np.uint64(self._multiplier)
        drawn = (mixed >> np.uint64(40)) % np.uint64(self.one_in) == 0
        for index in np.flatnonzero(drawn).tolist():
            if self.spent <= self.share * (time.perf_counter() - self._started):
                yield index

    @property
    def _multiplier(self) -> int:
        """An odd number of 64 bits, of the seed and the salt."""
        seed = f"{self.seed} {self.salt}".encode()
        return int.from_bytes(hashlib.sha256(seed).digest()[:8], "little") | 1

    @contextmanager
    def measure(self) -> Iterator[None]:
        """Count a comparison and the time that it takes."""
        start = time.perf_counter()
        yield
        self.spent += time.perf_counter() - start
        self.done += 1
