"""What a process is at, written where another process can read it.

The reader needs nothing from the writer but the memory, so it can tell what a process was at that
hangs in foreign code or has died.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

SLOT_BYTES = 1024

_HEADER = struct.Struct("qqdq")  # process id, how many times it changed, effort, bytes of the text


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a process was at when it was looked at."""

    process: int
    changes: int
    """Grows whenever the process goes on to something else."""
    what: str
    """What it is at, as a sentence begins; empty where it is at nothing that could hang."""
    effort: float
    """How many times as long as a usual row it may take."""


class Heartbeat:
    """A slot of `SLOT_BYTES` with what its process is at; to write it takes about 1 µs."""

    def __init__(self, slot: memoryview | bytearray | None = None) -> None:
        """Use memory that another process sees, or memory of this process alone."""
        self._slot = bytearray(SLOT_BYTES) if slot is None else slot
        self._process = 0
        self._changes = 0

    def belongs_to(self, process: int) -> None:
        """Say which process writes here."""
        self._process = process
        self.end()

    def begin(self, what: str, effort: float = 1.0) -> None:
        """Say what the process is at from now on."""
        text = what.encode("utf-8", "backslashreplace")[: SLOT_BYTES - _HEADER.size]
        self._slot[_HEADER.size : _HEADER.size + len(text)] = text
        self._changes += 1
        _HEADER.pack_into(self._slot, 0, self._process, self._changes, effort, len(text))

    def end(self) -> None:
        """Say that the process is at nothing that could hang."""
        self._changes += 1
        _HEADER.pack_into(self._slot, 0, self._process, self._changes, 0.0, 0)

    def read(self) -> Snapshot:
        """Return what the slot says."""
        process, changes, effort, length = _HEADER.unpack_from(self._slot)
        text = bytes(self._slot[_HEADER.size : _HEADER.size + length])
        return Snapshot(process, changes, text.decode("utf-8", "replace"), effort)
