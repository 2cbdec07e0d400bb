"""Files that appear under their names when they are whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Write a file that takes its name, and the place of an older one, at the end of the block.

    Whoever is killed on the way leaves a file of another name behind, so whoever does the work
    again needs to know nothing of it; and of two that do the same work, the later one wins.
    """
    unfinished = path.with_name(f"{path.name}.{uuid4().hex}")
    try:
        with open(unfinished, "xb") as file:
            yield file
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
