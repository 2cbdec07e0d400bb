"""Groups of consecutive tasks: one call of Ray for about a minute of work.

A call takes the main process about a millisecond, whatever it is for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from mtpack.errors import MtpackError

_SECONDS = 60.0
# A group has at most this share of the tasks so far, for each core: so that all cores have work
# while an input is small, and the last groups end at about the same time.
_SHARE = 8
_LEAST_WEIGHT = 0.05


@dataclass(slots=True)
class GroupSizes:
    """Decides how many tasks the next group has, from the time that tasks took so far."""

    taken: int = 0
    """The number of tasks in groups so far."""
    _means: dict[type, float] = field(default_factory=dict)
    """Seconds, by the kind of the task; later tasks weigh more."""
    _counts: dict[type, int] = field(default_factory=dict)

    def add(self, task: object, seconds: float) -> None:
        """Note how long a task took."""
        kind = type(task)
        self._counts[kind] = self._counts.get(kind, 0) + 1
        mean = self._means.get(kind, 0.0)
        weight = max(1 / self._counts[kind], _LEAST_WEIGHT)
        self._means[kind] = mean + (seconds - mean) * weight

    def take(self, tasks: Iterator[Any], num_cores: int) -> tuple[list[Any], MtpackError | None]:
        """Take the tasks of the next group; none if there are no more.

        Returns them and the MtpackError that `tasks` raised after them, if any.
        """
        group: list[Any] = []
        most, expected = 1 + self.taken // (_SHARE * max(1, num_cores)), 0.0
        while len(group) < most and expected < _SECONDS:
            try:
                task = next(tasks)
            except StopIteration:
                break
            except MtpackError as error:
                return group, error
            group.append(task)
            self.taken += 1
            expected += self._means.get(type(task), _SECONDS)
        return group, None
