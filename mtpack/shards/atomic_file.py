"""Write files that get their names only when they are complete."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from mtpack.shards.fsync import sync


@contextmanager
def atomic_file(path: Path, *, durable: bool = False) -> Iterator[BinaryIO]:
    """Provide a file that gets the name `path` at the end of the block; it replaces an older file.

    durable: whether content and name are on the disk after the block, so that a loss of power can't
    take them back. A process that is killed during the block leaves a file of another name, so
    another process can simply do the work again. If two processes write the same file, the later
    one wins.
    """
    unfinished = path.with_name(f"{path.name}.{uuid4().hex}")
    try:
        with open(unfinished, "xb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    if durable:
        sync(path.parent)
