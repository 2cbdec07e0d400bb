"""The current step of a process, in memory that another process can read.

The reader needs nothing but this memory. So it can name the step of a process that hangs in foreign
code, or that has died.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

SLOT_BYTES = 1024

_HEADER = struct.Struct("qqdq")  # process id, number of changes, effort, bytes of the text


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The step that a process was at when its heartbeat was read."""

    process: int
    """Its process id."""
    changes: int
    """The number of changes so far: it grows with each begin and end of a step."""
    what: str
    """The step, as the start of a sentence; empty between steps."""
    effort: float
    """The time that the step may take, relative to that of a typical row."""


class Heartbeat:
    """A slot of `SLOT_BYTES` that holds the current step of a process. A write takes about 1 µs."""

    def __init__(self, slot: memoryview | bytearray | None = None) -> None:
        """Use `slot`, memory shared with another process, or by default memory of this process."""
        self._slot = bytearray(SLOT_BYTES) if slot is None else slot
        self._process = 0
        self._changes = 0

    def set_process(self, process: int) -> None:
        """Set the id of the process that writes here, and end its step."""
        self._process = process
        self.end()

    def begin(self, what: str, effort: float = 1.0) -> None:
        """Begin a step; see `Snapshot` for `what` and `effort`."""
        text = what.encode("utf-8", "backslashreplace")[: SLOT_BYTES - _HEADER.size]
        self._slot[_HEADER.size : _HEADER.size + len(text)] = text
        self._changes += 1
        _HEADER.pack_into(self._slot, 0, self._process, self._changes, effort, len(text))

    def end(self) -> None:
        """End the step: what follows can't hang."""
        self._changes += 1
        _HEADER.pack_into(self._slot, 0, self._process, self._changes, 0.0, 0)

    def read(self) -> Snapshot:
        """Return the current content of the slot."""
        process, changes, effort, length = _HEADER.unpack_from(self._slot)
        text = bytes(self._slot[_HEADER.size : _HEADER.size + length])
        return Snapshot(process, changes, text.decode("utf-8", "replace"), effort)
