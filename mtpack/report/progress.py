"""How far a run is, on standard error: one line for each stage, and one for the problems so far.

On a terminal, these lines stay in place and change twice a second. Elsewhere, such as in the log of
a job, there is one line a minute. A thread writes them, so they also change while no results come:
on a Ray cluster, results come in bursts.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

from mtpack.counts import Counts
from mtpack.report.escaping import format_message
from mtpack.report.units import format_bytes, format_bytes_of, format_seconds
from mtpack.running.callbacks import Callbacks, RunProgress

_SECONDS_BETWEEN_DRAWS = 0.5
_SECONDS_BETWEEN_LINES = 60.0
# A rate says little before; the first rows are slow, since the template is recorded on them.
_SECONDS_BEFORE_ESTIMATE = 2.0
_WIDEST_BAR = 24
_NARROWEST_BAR = 5
_WIDTH = 80
_NAME_WIDTH = 9
_TURN_PROBLEMS = ("bent", "unproven", "prompt_differs", "no_eot", "not_a_stop")


@contextmanager
def show_progress(*, shows_stages: bool, stream: TextIO | None = None) -> Iterator[Callbacks]:
    """Provide callbacks that show progress and warnings until the block ends.

    shows_stages: False for warnings alone. stream: by default, standard error.
    """
    display = ProgressDisplay(stream or sys.stderr)
    try:
        yield Callbacks(warn=display.warn, status=display.update if shows_stages else _ignore)
    finally:
        display.close()


def _ignore(progress: RunProgress) -> None:
    """Do nothing."""


@dataclass(frozen=True, slots=True)
class StageLine:
    """What there is to say about a stage."""

    name: str
    share: float
    """Of the work that is known, from 0 to 1."""
    text: str

    def format(self, width: int) -> str:
        """Return one line of at most `width` characters, with a bar if there is room for one."""
        start = f"{self.name:<{_NAME_WIDTH}} {int(self.share * 100):>3}% "
        room = min(_WIDEST_BAR, width - len(start) - len(self.text) - len("[] "))
        bar = ""
        if room >= _NARROWEST_BAR:
            bar = f"[{'#' * int(room * self.share):.<{room}}] "
        return f"{start}{bar}{self.text}"[:width]


class Estimate:
    """Computes rates and remaining times from what is reported over time."""

    def __init__(self) -> None:
        """Begin before the first report."""
        self._progress: RunProgress | None = None
        self._updated = self._started = self._tokenized = 0.0
        self._write_started, self._written_before = 0.0, 0

    def update(self, progress: RunProgress, now: float) -> None:
        """Add a report; now: seconds of a clock."""
        last = self._progress
        if last is None or progress.bytes_done < last.bytes_done:  # the splits are made again
            self._started, last = now, None
        if progress.is_tokenized and (last is None or not last.is_tokenized):
            self._tokenized = now
        if progress.sequences_planned and (last is None or not last.sequences_planned):
            self._write_started, self._written_before = now, progress.sequences_written
        self._progress, self._updated = progress, now

    def describe(self, now: float) -> list[StageLine]:
        """Return the stages that have begun; none before the first report."""
        progress = self._progress
        if progress is None:
            return []
        lines = [self._describe_tokenize(progress, now)]
        if progress.sequences_planned:
            lines.append(self._describe_write(progress, now))
        return lines

    def describe_problems(self) -> str:
        """Return the problems so far; empty if there are none."""
        return "" if self._progress is None else list_problems(self._progress.counts)

    def _describe_tokenize(self, progress: RunProgress, now: float) -> StageLine:
        total = progress.input_bytes
        if progress.is_tokenized:
            seconds = self._tokenized - self._started
            return StageLine("tokenize", 1.0, f"{format_bytes(total)} in {format_seconds(seconds)}")
        parts = [format_bytes_of(progress.bytes_done, total)]
        seconds = self._updated - self._started
        new_bytes = progress.bytes_done - progress.bytes_reused
        if new_bytes > 0 and seconds >= _SECONDS_BEFORE_ESTIMATE:
            rate = new_bytes / seconds
            parts.append(f"{format_bytes(rate)}/s")
            parts += self._count_down((total - progress.bytes_done) / rate, now)
        return StageLine("tokenize", progress.bytes_done / max(1, total), ", ".join(parts))

    def _describe_write(self, progress: RunProgress, now: float) -> StageLine:
        written, planned = progress.sequences_written, progress.sequences_planned
        parts = [f"{written:,} of {planned:,} sequences"]
        if not progress.is_tokenized:
            parts = [f"{written:,} of {planned:,} sequences that are planned"]
        seconds = self._updated - self._write_started
        new = written - self._written_before
        if new > 0 and seconds >= _SECONDS_BEFORE_ESTIMATE:
            rate = new / seconds
            parts.append(f"{rate:,.0f}/s")
            if progress.is_tokenized and written < planned:
                parts += self._count_down((planned - written) / rate, now)
        return StageLine("write", written / planned, ", ".join(parts))

    def _count_down(self, seconds: float, now: float) -> list[str]:
        """Return the remaining time, if there is any; seconds: when the last report came.

        So it goes on between two bursts of results.
        """
        left = seconds - (now - self._updated)
        return [f"{format_seconds(left)} left"] if left >= 0 else []


def list_problems(counts: Counts) -> str:
    """Return the rows and turns that are left out or trained with a flaw; empty if there are none.

    >>> list_problems(Counts(rows_rejected={"bad_role": 2}, bent=1))
    'rows rejected 2 (bad_role), turns bent 1'
    """
    problems = [
        f"{what} {sum(reasons.values()):,} ({', '.join(reasons)})"
        for what, reasons in (
            ("rows rejected", counts.rows_rejected),
            ("rows dropped", counts.rows_dropped),
            ("turns dropped", counts.turns_dropped),
        )
        if any(reasons.values())
    ]
    flaws = [(name, getattr(counts, name)) for name in _TURN_PROBLEMS]
    problems += [f"turns {name} {count:,}" for name, count in flaws if count]
    return ", ".join(problems)


class ProgressDisplay:
    """Shows progress and warnings on a stream."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        """Show nothing yet; clock: gives seconds."""
        self._stream = stream
        self._clock = clock
        self._is_live = stream.isatty()
        self._estimate = Estimate()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._shown = ""

    def update(self, progress: RunProgress) -> None:
        """Take note of how far the run is; the thread shows it soon."""
        with self._lock:
            self._estimate.update(progress, self._clock())
        if self._thread is None:  # workers have been forked before, which needs a single thread
            self._thread = threading.Thread(target=self._repeat, name="progress", daemon=True)
            self._thread.start()

    def warn(self, text: str) -> None:
        """Print a warning above the lines of the stages."""
        with self._lock:
            shown = self._shown
            self._write(f"{self._erase()}{format_message([text])}\n{shown}")
            self._shown = shown

    def close(self) -> None:
        """Show the last state, and nothing more from now on."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()
        if self._is_live:
            self.draw()
            if self._shown:
                self._write("\n")

    def _repeat(self) -> None:
        """Show the state again and again."""
        # So the main thread gets them at once, as it would without this one.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
        while not self._closed.wait(
            _SECONDS_BETWEEN_DRAWS if self._is_live else _SECONDS_BETWEEN_LINES
        ):
            if self._is_live:
                self.draw()
            else:
                self._write(f"{format_message([self.describe()])}\n")

    def describe(self) -> str:
        """Return the state in one line, for a log."""
        with self._lock:
            stages = self._estimate.describe(self._clock())
            parts = [f"{stage.name} {stage.share:.0%}, {stage.text}" for stage in stages]
            problems = self._estimate.describe_problems()
        return "; ".join([*parts, problems] if problems else parts)

    def draw(self) -> None:
        """Write the lines of the stages in place of those that are there."""
        with self._lock:
            width = self._find_width()
            lines = [stage.format(width) for stage in self._estimate.describe(self._clock())]
            if problems := self._estimate.describe_problems():
                lines.append(f"problems so far: {problems}"[:width])
            block = "\n".join(lines)
            if block != self._shown:
                self._write(self._erase() + block)
                self._shown = block

    def _erase(self) -> str:
        """Return what moves the cursor to the first line of the stages and erases them."""
        if not self._shown:
            return ""
        self._shown, num_lines = "", self._shown.count("\n")
        up = f"\x1b[{num_lines}A" if num_lines else ""
        return f"\r{up}\x1b[J"

    def _find_width(self) -> int:
        """Return the number of characters in a line that does not wrap."""
        try:
            columns = os.get_terminal_size(self._stream.fileno()).columns
        except (OSError, ValueError):
            columns = 0
        return (columns or _WIDTH) - 1

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # the terminal is gone: the run goes on without it
            return
