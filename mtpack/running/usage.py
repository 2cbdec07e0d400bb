"""The memory and the CPU time that processes use, and the memory that is free."""

from __future__ import annotations

import os
from pathlib import Path


def read_resident_memory(process: int) -> int:
    """Return the resident bytes of a process without mapped files; 0 if they can't be measured."""
    try:
        pages = Path(f"/proc/{process}/statm").read_text().split()
    except OSError:  # the process has ended, or the system has no /proc
        return 0
    return (int(pages[1]) - int(pages[2])) * os.sysconf("SC_PAGE_SIZE")


def read_cpu_seconds(process: int) -> float | None:
    """Return the CPU time of a process, all its threads together; None if it can't be measured.

    See proc(5): the fields of /proc/PID/stat after the name, which may hold spaces and parentheses.
    """
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # the process has ended, or the system has no /proc
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def read_free_memory() -> int | None:
    """Return the free bytes of this machine or container; None if they can't be measured."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    for file in ("memory.max", "memory/memory.limit_in_bytes"):  # cgroups, version 2 and 1
        try:
            free.append(int((Path("/sys/fs/cgroup") / file).read_text()))
        except (OSError, ValueError):  # no such file, or no limit in it
            continue
    return min(free, default=None)
