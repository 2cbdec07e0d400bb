"""Where figures were measured: the processor, its cores and memory, and the libraries."""

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
    """Return two lines: the machine, and the versions of all that takes part."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{_processor()}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB, "
        f"{platform.system()} {platform.release()}; load {os.getloadavg()[0]:.1f} at the start\n"
        f"Python {platform.python_version()}, {', '.join(map(_with_version, _LIBRARIES))}"
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _with_version(library: str) -> str:
    try:
        return f"{library} {version(library)}"
    except PackageNotFoundError:
        return f"{library} not installed"
