"""Signals that end the command: one line, an exit status, no traceback.

SIGINT, SIGTERM and SIGHUP end the process where it is, as a crash does: an output is safe against a
crash at any moment, so there is no second way to stop, which would need care of its own. The exit
status is 128 plus the number of the signal: 130, 143, 129. A signal that was ignored at the start
(SIGHUP after `nohup`, SIGINT in the background of a shell) stays ignored. As soon as the manifest
of the run is in place, the run ends as if there was no signal.

Only the command uses this: `mtpack.pack` sets no handler. The module is loaded before all others,
so it imports only what Python itself has loaded, and `signal`.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False  # as in `typing`, which takes 5 ms to import
if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess
    from types import FrameType

_ENDS = b"run the same command again to complete it\n"
_INCOMPLETE = b"mtpack: interrupted; the output is incomplete: " + _ENDS
_UNCHANGED = (
    b"mtpack: interrupted; the output is incomplete, the earlier one is still there: " + _ENDS
)
_WRITES_NOTHING = b"mtpack: interrupted\n"
_WITHOUT_OUTPUT = frozenset(("--dry-run", "--print-config"))  # options of `pack`
_SHOW_CURSOR = b"\x1b[?25h\n"  # a status line hides it; the line does not follow a progress bar
_SECONDS_TO_END = 1.0


class ExitSignals:
    """The handlers of the command, and what they need to know."""

    def __init__(self) -> None:
        """Set no handler yet."""
        self._process = os.getpid()
        self._writes_output = False
        self._manifest: str | None = None
        self._earlier: tuple[int, int] | None = None
        """What identifies the manifest of an earlier run, if there was one."""
        self._status: int | None = None
        """That of the first signal."""

    def install(self) -> None:
        """Set the handlers for the rest of the process.

        The arguments say what the command is, since nothing that parses them is loaded yet.
        """
        is_pack = sys.argv[1:2] == ["pack"]
        self._writes_output = is_pack and _WITHOUT_OUTPUT.isdisjoint(sys.argv)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._end)
        # The process that removes semaphores of spawned workers says so if this one ends early.
        sys.warnoptions.append("ignore::UserWarning:multiprocessing.resource_tracker")

    def expect(self, manifest: str) -> None:
        """Complete the run in spite of signals as soon as it has put this file in place."""
        self._earlier = _identify(manifest)
        self._manifest = manifest

    def ignore(self) -> None:
        """Ignore signals from now on: the exit status is known, and Python ends.

        While it ends, Python gives signals with a handler their default action again.
        """
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == self._end:
                signal.signal(number, signal.SIG_IGN)

    def _end(self, number: int, frame: FrameType | None) -> None:
        """End this process and its workers, unless the output is complete."""
        if os.getpid() != self._process:  # a copy that has not set its own handlers yet
            os._exit(128 + number)
        found = None if self._manifest is None else _identify(self._manifest)
        if found is not None and found != self._earlier:
            return
        is_first = self._status is None
        self._status = self._status or 128 + number
        try:
            workers = _kill_workers()
            if is_first:
                _print(self._describe_output(has_earlier=found is not None))
                for worker in workers:  # until then, they hold the lock of the output
                    worker.join(_SECONDS_TO_END)
        finally:
            os._exit(self._status)

    def _describe_output(self, *, has_earlier: bool) -> bytes:
        """Return the line that says what is left."""
        if not self._writes_output:
            return _WRITES_NOTHING
        return _UNCHANGED if has_earlier else _INCOMPLETE


def _identify(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _kill_workers() -> list[BaseProcess]:
    """Kill the worker processes and return them."""
    loaded = sys.modules.get("multiprocessing.process")
    children: list[BaseProcess] = getattr(loaded, "active_children", list)()
    for child in children:
        child.kill()
    return children


def _print(line: bytes) -> None:
    """Print a line on standard error, past Python's buffers, which the main program may use now."""
    try:
        error = sys.stderr.fileno()
        os.write(error, (_SHOW_CURSOR if os.isatty(error) else b"") + line)
    except (AttributeError, OSError, ValueError):  # closed, at the start or since
        return


EXIT_SIGNALS = ExitSignals()
