"""What Ray calls in its worker processes.

Ray sends these functions by value, so that they work where mtpack is missing or another version.
They import nothing but the standard library until the process has passed the check.
"""

from __future__ import annotations

import os
import platform
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

REFUSED = "refused"
BEGUN = "begun"
REPORT = "report"
_SECONDS_TO_END = 5.0


def list_versions() -> dict[str, str | None]:
    """Return the versions in this process that must be alike in all; None if one is missing."""
    found: dict[str, str | None] = {"Python": platform.python_version()}
    try:
        found["mtpack"] = import_module("mtpack.version").__version__
    except ImportError:
        found["mtpack"] = None
    for package in ("pyarrow", "tokenizers", "fastokens"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def run_group(
    versions: Mapping[str, str | None],
    token: tuple[str, str],
    inputs: Sequence[str],
    contents: bytes,
    call: bytes,
) -> Iterator[tuple[str, Any]]:
    """Run a group of tasks: yield `REFUSED` and why, or `BEGUN` and who runs it, then `REPORT`s.

    versions: those of the main process. token: a file in the work area, and its content. inputs:
    files and URLs that this node must be able to read. contents, call: see `ray_worker.run_group`.
    """
    refusal = _find_other_version(versions) or _find_invisible(token, inputs)
    if refusal is not None:
        yield REFUSED, f"Ray node {platform.node()}: {refusal}"
        return
    reports = _import("mtpack.running.ray_worker").run_group(contents, call)
    node = import_module("ray").get_runtime_context().get_node_id()
    yield BEGUN, (node, os.getpid(), read_start(os.getpid()))
    for report in reports:
        yield REPORT, report


def _import(name: str) -> Any:
    """Import a module; if the group is cancelled meanwhile, end this process.

    Packages that are imported in part would break its next group.
    """
    try:
        return import_module(name)
    except KeyboardInterrupt:
        os._exit(1)


def _find_other_version(versions: Mapping[str, str | None]) -> str | None:
    """Return why this process can't take part in the run, if so, as text."""
    found = list_versions()
    for package, wanted in versions.items():
        if found[package] is None and wanted is not None:
            return f"{package} is not installed there; install {package} {wanted}"
        if found[package] != wanted:
            return (
                f"{package} is {found[package]} there and {wanted} here; "
                "install the same version on all nodes"
            )
    return None


def _find_invisible(token: tuple[str, str], inputs: Sequence[str]) -> str | None:
    """Return what this node can't read, if anything, as text."""
    path, content = token
    try:
        with open(path, encoding="ascii") as file:
            is_same = file.read() == content
    except (OSError, UnicodeDecodeError):
        is_same = False
    files = [name for name in inputs if "://" not in name]
    invisible = None if is_same else os.path.dirname(path)
    invisible = invisible or next((name for name in files if not os.path.exists(name)), None)
    if invisible is not None:
        return f"does not see {invisible}; put it into a folder that all nodes share"
    for url in sorted({*inputs} - {*files}):
        try:
            _import("mtpack.storage.objects").stat_object(url)
        except Exception as error:  # without access, or without the client of the store
            return f"can't read {url}: {getattr(error, 'strerror', None) or error}"
    return None


def read_start(process: int) -> str | None:
    """Return when a process started, in a form that only tells two of them apart.

    Returns None if it has ended, and where the system does not say.
    """
    try:
        with open(f"/proc/{process}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def kill_process(process: int, start: str | None) -> None:
    """Kill a process of this node, unless another one has its number; wait for its end."""
    if start is None or read_start(process) != start:
        return
    os.kill(process, signal.SIGKILL)
    end = time.monotonic() + _SECONDS_TO_END
    while read_start(process) == start and time.monotonic() < end:
        time.sleep(0.01)
