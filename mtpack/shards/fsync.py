"""Files synced to disk beside other work: a disk takes as long for a shard as a core does."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path


def sync(path: Path) -> None:
    """Sync a file, or the names in a folder, to disk; raise OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def syncing(at_once: int) -> Iterator[Callable[[Path], None]]:
    """Provide what has a file synced, `at_once` of them at most; all are at the end of the block.

    Raises OSError there. The threads wait for the disk and hold no lock of this process meanwhile,
    so it can be forked.
    """
    begun: list[Future[None]] = []
    with ThreadPoolExecutor(at_once, thread_name_prefix="sync") as threads:
        yield lambda path: begun.append(threads.submit(sync, path))
        for one in begun:
            one.result()
