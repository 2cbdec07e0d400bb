"""The current task and step of a process, in memory that another process can read.

The reader needs nothing but this memory. So it can name the step of a process that hangs in foreign
code, or that has died.
"""

from __future__ import annotations

from ctypes import Structure, c_char, c_double, c_int64

NO_TASK = 0
_TEXT_BYTES = 1000


class Heartbeat(Structure):
    """What a process is doing now. A write takes about 1 µs.

    task: the number of the task; `NO_TASK` between tasks. changes: the number of begins and ends of
    steps so far. effort: the time that the step may take, relative to that of a typical row.
    renders: the number of begins and ends of renders so far, so it is odd while one runs.
    """

    _fields_ = (
        ("task", c_int64),
        ("changes", c_int64),
        ("effort", c_double),
        ("renders", c_int64),
        ("text", c_char * _TEXT_BYTES),
    )

    @property
    def what(self) -> str:
        """The step, as the start of a sentence; empty between steps."""
        text: bytes = self.text
        return text.decode("utf-8", "replace")

    def begin(self, what: str, effort: float = 1.0) -> None:
        """Begin a step; see `what` and `effort` above."""
        self.text = what.encode("utf-8", "backslashreplace")[:_TEXT_BYTES]
        self.effort = effort
        self.changes += 1

    def end(self) -> None:
        """End the step; between steps, report progress."""
        self.text = b""
        self.changes += 1
