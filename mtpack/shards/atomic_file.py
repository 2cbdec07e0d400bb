"""Write files that get their names only when they are complete."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Provide a file that gets the name `path` at the end of the block; it replaces an older file.

    A process that is killed during the block leaves a file of another name, so another process can
    simply do the work again. If two processes write the same file, the later one wins.
    """
    unfinished = path.with_name(f"{path.name}.{uuid4().hex}")
    try:
        with open(unfinished, "xb") as file:
            yield file
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
