"""Sync files to disk during other work: a disk takes as long for a shard as a core does."""

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
def sync_in_background(at_once: int) -> Iterator[Callable[[Path], None]]:
    """Provide a function that starts syncing a file; at the end of the block, all are synced.

    At most `at_once` files are synced at the same time. Raises OSError at the end of the block. The
    threads wait for the disk and hold no lock of this process meanwhile, so it can be forked.
    """
    futures: list[Future[None]] = []
    with ThreadPoolExecutor(at_once, thread_name_prefix="sync") as threads:
        yield lambda path: futures.append(threads.submit(sync, path))
        for future in futures:
            future.result()
