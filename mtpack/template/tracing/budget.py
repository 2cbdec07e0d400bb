"""The time that may be spent on learning how to replay a template.

To record a render takes about five times as long as the render, and that pays only if more such
dialogues follow. So learning gets a share of the time that rendering takes: that it took so far in
this process, or that it would take for all of the process's input, if that is more. In addition, it
gets a share of the time that replays have saved. So it never takes more than a tenth of the time
for rendering in vain, and most of what is saved is kept.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

_SHARE = 0.1
_SHARE_OF_SAVED = 0.5

# A template is probed in its first renders, which then take up to a hundred times as long. So the
# typical time is the mean of the last renders without the slowest, and is not known before.
_RENDERS_KEPT = 64
_SLOWEST = 4


@dataclass(slots=True)
class LearningBudget:
    """Decides whether there is time to learn, from the time spent on rendering and learning."""

    share: float | None = _SHARE
    """The share of the time for rendering that learning may take; None: any time."""
    num_dialogues: int = 0
    """The estimated number of dialogues that this process gets in the run; 0 if not known."""
    clock: Callable[[], float] = time.process_time
    """Returns seconds. By default CPU time, so that a busy machine makes no difference."""
    rendering: float = 0.0
    """Seconds spent on rendering so far."""
    learning: float = 0.0
    """Seconds spent on learning so far."""
    _renders: deque[float] = field(default_factory=lambda: deque(maxlen=_RENDERS_KEPT))
    """The seconds of the last renders."""

    def add_render(self, started: float) -> float:
        """Count the time to render a dialogue since `started`, and return it in seconds."""
        seconds = self.clock() - started
        self.rendering += seconds
        self._renders.append(seconds)
        return seconds

    def add_learning(self, started: float, *, replayed: bool) -> None:
        """Count the time since `started` as spent on learning.

        replayed: whether a dialogue was replayed in that time. The render that it saves is then
        subtracted in full: the other share is in `affords`.
        """
        self.learning += self.clock() - started
        if replayed:
            self.learning -= (1 - _SHARE_OF_SAVED) * self._typical_render()

    def affords(self, seconds: float, replayed: int) -> bool:
        """Return whether so much more time may be spent on learning.

        replayed: the number of dialogues replayed so far, each of which has saved a render.
        """
        if self.share is None:
            return True
        typical = self._typical_render()
        rendering = max(self.rendering, typical * self.num_dialogues)
        limit = self.share * rendering + _SHARE_OF_SAVED * typical * replayed
        return self.learning + seconds <= limit

    def _typical_render(self) -> float:
        """Return the seconds of a typical render; 0 if they are not known yet."""
        renders = sorted(self._renders)[:-_SLOWEST]
        return sum(renders) / len(renders) if renders else 0.0
