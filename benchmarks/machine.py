"""A description of the machine and of the libraries, for the head of a result."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_LIBRARIES = (
    *("mtpack", "tokenizers", "fastokens", "numpy", "pyarrow", "orjson", "jinja2"),
    *("trl", "transformers", "datasets", "torch"),
)


def describe_machine() -> str:
    """Return two lines: the machine, and the versions of Python and the libraries."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{_find_processor()}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB, "
        f"{platform.system()} {platform.release()}; load {os.getloadavg()[0]:.1f} at the start\n"
        f"Python {platform.python_version()}, {', '.join(map(_describe_library, _LIBRARIES))}"
    )


def _find_processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _describe_library(library: str) -> str:
    try:
        return f"{library} {version(library)}"
    except PackageNotFoundError:
        return f"{library} not installed"
