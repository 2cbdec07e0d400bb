"""The private memory of a command and all its processes (Linux).

A process's private memory is what `smaps_rollup` calls Private_Clean and Private_Dirty: resident
pages that no other process has mapped, so the interpreter's and the libraries' shared pages don't
count once per worker. It is summed over the command's session about 20 times a second; what comes
and goes between two looks is missed.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

_SECONDS_BETWEEN_LOOKS = 0.05


@dataclass(frozen=True)
class Watched:
    """What a command printed, and the most private memory that its processes had together."""

    stdout: bytes
    peak_bytes: int


def run_watched(command: list[str]) -> Watched:
    """Run a command to its end; raise CalledProcessError where it fails."""
    with (
        tempfile.TemporaryFile() as stdout,
        subprocess.Popen(command, stdout=stdout, start_new_session=True) as process,
    ):
        peak = 0
        while process.poll() is None:
            peak = max(peak, private_bytes(process.pid))
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
        stdout.seek(0)
        return Watched(stdout.read(), peak)


def private_bytes(leader: int) -> int:
    """Return the private memory of a session's processes: of its leader and all it has started."""
    folders = [folder for folder in Path("/proc").iterdir() if folder.name.isdigit()]
    return sum(_private_bytes(folder) for folder in folders if _session(folder) == leader)


def _session(process: Path) -> int | None:
    """Return the session of a process, by its folder in /proc; None where it has ended."""
    try:
        fields = (process / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(fields[3])


def _private_bytes(process: Path) -> int:
    try:
        lines = (process / "smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return 0
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
