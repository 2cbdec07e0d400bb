"""The private memory of a command and all its processes (Linux).

The private memory of a process is Private_Clean plus Private_Dirty of `smaps_rollup`: resident
pages that no other process has mapped. So the shared pages of the interpreter and the libraries do
not count once per worker. It is summed over the command's session about 20 times a second; a peak
between two samples is missed.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

_SECONDS_BETWEEN_SAMPLES = 0.05


@dataclass(frozen=True)
class Watched:
    """The output of a command, and the peak of the private memory of all its processes."""

    stdout: bytes
    peak_bytes: int


def run_watched(command: list[str]) -> Watched:
    """Run a command to its end. Raises CalledProcessError if it fails."""
    with (
        tempfile.TemporaryFile() as stdout,
        subprocess.Popen(command, stdout=stdout, start_new_session=True) as process,
    ):
        peak = 0
        while process.poll() is None:
            peak = max(peak, measure_private_bytes(process.pid))
            time.sleep(_SECONDS_BETWEEN_SAMPLES)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
        stdout.seek(0)
        return Watched(stdout.read(), peak)


def measure_private_bytes(leader: int) -> int:
    """Return the private memory of a session: of its leader and all processes that it started."""
    return sum(_read_private_bytes(Path(f"/proc/{number}")) for number in find_processes(leader))


def find_processes(leader: int) -> list[int]:
    """Return the ids of the processes of a session that have not ended."""
    folders = [folder for folder in Path("/proc").iterdir() if folder.name.isdigit()]
    return [int(folder.name) for folder in folders if _read_session(folder) == leader]


def _read_session(process: Path) -> int | None:
    """Return the session of a process, from its folder in /proc; None if it has ended."""
    try:
        fields = (process / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else int(fields[3])


def _read_private_bytes(process: Path) -> int:
    try:
        lines = (process / "smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return 0
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
